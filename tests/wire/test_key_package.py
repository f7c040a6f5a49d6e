"""Sealed keys: opened and judged by openssl, and by nobody but their recipient."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fleet.ca.authority import create_issuing, create_root, issue_server_certificate
from fleet.ca.keys import generate_key
from fleet.wire import der
from fleet.wire.errors import Unsupported
from fleet.wire.key_package import CIPHERS, Recipient, Sealer, can_receive, seal_key

NOW = datetime.now(UTC)
ROOT = create_root("Acme", NOW)
ISSUING = create_issuing("Acme", *ROOT, NOW)
SEALER = Sealer(*issue_server_certificate(*ISSUING, ("localhost",), NOW))
PKCS8 = generate_key().private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
RECIPIENTS: dict[str, Key] = {
    "EC-P256": ec.generate_private_key(ec.SECP256R1()),
    "EC-P384": ec.generate_private_key(ec.SECP384R1()),
    "RSA": rsa.generate_private_key(65537, 2048),
}


def opened(folder: Path, sealed: bytes, key: Key) -> bytes | None:
    """The SignedData inside, when `openssl cms` can open it with `key`."""
    (folder / "sealed.der").write_bytes(sealed)
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    command = ["openssl", "cms", "-decrypt", "-inform", "DER", "-in", "sealed.der", "-inkey", "key.pem", "-binary"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=120)
    return done.stdout if done.returncode == 0 else None


def verified(folder: Path, signed_data: bytes, anchors: tuple[x509.Certificate, ...]) -> tuple[int, bytes, str]:
    """What `openssl cms -verify` says of a SignedData: its exit code, the content, its complaints."""
    whole = der.encode_element(
        der.SEQUENCE, der.encode_oid("1.2.840.113549.1.7.2") + der.encode_element(der.CONTEXT_0, signed_data)
    )
    (folder / "signed.der").write_bytes(whole)
    (folder / "ca.pem").write_bytes(b"".join(anchor.public_bytes(Encoding.PEM) for anchor in anchors))
    command = ["openssl", "cms", "-verify", "-inform", "DER", "-in", "signed.der", "-CAfile", "ca.pem"]
    command += ["-purpose", "sslserver", "-binary"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize("cipher", CIPHERS.values())
@pytest.mark.parametrize("kind", RECIPIENTS)
def test_openssl_opens_and_verifies_it(tmp_path: Path, kind: str, cipher: str) -> None:
    key = RECIPIENTS[kind]
    sealed = seal_key(PKCS8, Recipient(key.public_key(), b"some identifier"), SEALER, cipher)
    assert PKCS8 not in sealed
    signed_data = opened(tmp_path, sealed, key)
    assert signed_data is not None
    code, package, complaint = verified(tmp_path, signed_data, (ROOT[0], ISSUING[0]))
    assert code == 0, complaint
    assert der.only_element(package, der.SEQUENCE).content == PKCS8  # AsymmetricKeyPackage of one key (RFC 5958)


def test_nobody_else_opens_it(tmp_path: Path) -> None:
    for key in RECIPIENTS.values():
        sealed = seal_key(PKCS8, Recipient(key.public_key(), b"id"), SEALER)
        others: list[Key] = [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)]
        for other in others:
            # openssl answers a wrong RSA key with made-up bytes, so that nobody learns which it was (CVE-2019-1563).
            found = opened(tmp_path, sealed, other)
            assert found is None or PKCS8 not in found


def test_another_signature_is_seen(tmp_path: Path) -> None:
    key = RECIPIENTS["EC-P256"]
    foreign = create_root("Other", NOW)
    signed_data = opened(tmp_path, seal_key(PKCS8, Recipient(key.public_key(), b"id"), SEALER), key)
    assert signed_data is not None
    assert verified(tmp_path, signed_data, (foreign[0],))[0] != 0
    tampered = signed_data.replace(PKCS8, PKCS8[:-1] + bytes((PKCS8[-1] ^ 1,)))
    assert tampered != signed_data
    assert verified(tmp_path, tampered, (ROOT[0], ISSUING[0]))[0] != 0


def test_what_cannot_receive_is_refused() -> None:
    signs_only = ed25519.Ed25519PrivateKey.generate().public_key()
    assert not can_receive(signs_only)
    with pytest.raises(Unsupported):
        seal_key(PKCS8, Recipient(signs_only, b"id"), SEALER)
    with pytest.raises(Unsupported):
        seal_key(PKCS8, Recipient(RECIPIENTS["RSA"].public_key(), b"id"), SEALER, "des-EDE3-CBC")


def test_its_repr_shows_no_key() -> None:
    assert "PrivateKey" not in repr(SEALER)
