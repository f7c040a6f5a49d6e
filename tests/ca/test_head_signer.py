"""Heads are signed by one key, and checked by its public half alone."""

import hashlib
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from fleet.ca.head_signer import LocalHeadSigner, check_head, read_head_key
from fleet.ca.keys import generate_key
from fleet.domain.audit_log import TreeHead, head_data
from fleet.domain.errors import Invalid

AT = datetime(2026, 3, 1, 12, 0, 0, 654_000, tzinfo=UTC)
KEY = generate_key()
SIGNER = LocalHeadSigner(KEY)
OTHER = LocalHeadSigner(generate_key())


def head(signer: LocalHeadSigner = SIGNER) -> TreeHead:
    return TreeHead(9, bytes(range(32)), AT, signer.key_id, signer.sign(head_data(9, bytes(range(32)), AT)))


def test_what_is_signed_is_checked_by_the_public_key_alone() -> None:
    public = read_head_key(SIGNER.public_key.pem())
    check_head(head(), (public,))
    check_head(head(), (OTHER.public_key, public))


def test_the_key_is_named_by_its_spki() -> None:
    spki = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert SIGNER.key_id == read_head_key(SIGNER.public_key.pem()).id == hashlib.sha256(spki).digest()


@pytest.mark.parametrize(
    "changed",
    [
        replace(head(), size=10),
        replace(head(), root=bytes(32)),
        replace(head(), at=AT + timedelta(milliseconds=1)),
        replace(head(), signature=b""),
        replace(head(), signature=OTHER.sign(head_data(9, bytes(range(32)), AT))),
    ],
)
def test_every_part_of_a_head_is_signed(changed: TreeHead) -> None:
    with pytest.raises(Invalid) as caught:
        check_head(changed, (SIGNER.public_key,))
    assert caught.value.code == "head-signature"


@pytest.mark.parametrize("keys", [(), (SIGNER.public_key,)])
def test_another_key_is_named(keys: tuple[object, ...]) -> None:
    with pytest.raises(Invalid) as caught:
        check_head(head(OTHER), keys)  # type: ignore[arg-type]
    assert caught.value.code == "head-key"
    assert OTHER.key_id.hex()[:16] in caught.value.message


def _pem(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"hello",
        SIGNER.public_key.pem()[:-30],
        _pem(ec.generate_private_key(ec.SECP384R1()).public_key()),
        _pem(ed25519.Ed25519PrivateKey.generate().public_key()),
    ],
)
def test_what_is_no_such_key(pem: bytes) -> None:
    with pytest.raises(Invalid) as caught:
        read_head_key(pem)
    assert caught.value.code == "bad-key"
    assert "audit.pub" in caught.value.advice


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl: not installed")
def test_openssl_agrees(tmp_path: Path) -> None:
    (tmp_path / "audit.pub").write_bytes(SIGNER.public_key.pem())
    (tmp_path / "data").write_bytes(head_data(9, bytes(range(32)), AT))
    (tmp_path / "signature").write_bytes(head().signature)
    command = ["openssl", "dgst", "-sha256", "-verify", "audit.pub", "-signature", "signature", "data"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "Verified OK\n", done.stderr
