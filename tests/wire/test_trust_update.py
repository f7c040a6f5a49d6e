"""The signed statement of which roots are retired: what is read, and what is not."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.ca.authority import create_issuing, create_root
from fleet.wire.errors import BadSignature, Malformed, TooLarge, Unsupported, WireError
from fleet.wire.trust_update import (
    CHAIN_MAX,
    CONTEXT,
    RETIRED_MAX,
    UPDATE_SIZE_MAX,
    decode_trust_update,
    key_name,
    sign_trust_update,
)
from tests.unknown_curve import with_unknown_curve

NOW = datetime(2030, 1, 1, 12, 30, tzinfo=UTC)
ROOT, ROOT_KEY = create_root("Acme", NOW)
ISSUING, KEY = create_issuing("Acme", ROOT, ROOT_KEY, NOW)
SIGNED = sign_trust_update([key_name(ROOT)], [ISSUING, ROOT], KEY, NOW)
TREE = json.loads(SIGNED)


def test_what_is_signed_is_read() -> None:
    update = decode_trust_update(SIGNED)
    assert (update.retired, update.chain, update.issued_at) == ((key_name(ROOT),), (ISSUING, ROOT), NOW)


def test_cut_at_every_octet() -> None:
    for length in range(len(SIGNED)):
        with pytest.raises(WireError):
            decode_trust_update(SIGNED[:length])


def test_no_octet_of_what_is_signed_can_be_changed() -> None:
    payload = base64.b64decode(TREE["payload"])
    for at in range(0, len(payload), 3):
        other = payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]
        with pytest.raises(BadSignature):
            decode_trust_update(json.dumps(TREE | {"payload": base64.b64encode(other).decode()}).encode())


def test_another_signature_of_the_same_key_is_none() -> None:
    payload = base64.b64decode(TREE["payload"])
    bare = KEY.sign(payload, ec.ECDSA(hashes.SHA256()))  # without CONTEXT
    with pytest.raises(BadSignature):
        decode_trust_update(json.dumps(TREE | {"signature": base64.b64encode(bare).decode()}).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"chain": []},
        {"chain": TREE["chain"] * CHAIN_MAX},
        {"chain": "x"},
        {"chain": [1]},
        {"chain": ["AAAA"]},
        {"payload": None},
        {"payload": "ä"},
        {"signature": "*"},
    ],
)
def test_members_that_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        decode_trust_update(json.dumps(TREE | change).encode())


@pytest.mark.parametrize(
    "payload",
    [
        [],
        {"issued_at": "2030-01-01T12:30:00Z"},
        {"issued_at": "2030-01-01T12:30:00Z", "retire": []},
        {"issued_at": "2030-01-01T12:30:00Z", "retire": [key_name(ROOT)] * (RETIRED_MAX + 1)},
        {"issued_at": "2030-01-01T12:30:00Z", "retire": ["sha256:"]},
        {"issued_at": "2030-01-01T12:30:00Z", "retire": [7]},
        {"issued_at": 7, "retire": [key_name(ROOT)]},
        {"issued_at": "soon", "retire": [key_name(ROOT)]},
    ],
)
def test_contents_that_are_refused_though_signed(payload: object) -> None:
    octets = json.dumps(payload).encode()
    tree = TREE | {
        "payload": base64.b64encode(octets).decode(),
        "signature": base64.b64encode(KEY.sign(CONTEXT + octets, ec.ECDSA(hashes.SHA256()))).decode(),
    }
    with pytest.raises(Malformed):
        decode_trust_update(json.dumps(tree).encode())


def test_a_signer_whose_curve_is_unknown() -> None:
    odd = with_unknown_curve(ISSUING)
    with pytest.raises(Unsupported):
        decode_trust_update(sign_trust_update([key_name(ROOT)], [odd, ROOT], KEY, NOW))


def test_size_is_capped_before_anything_is_read() -> None:
    with pytest.raises(TooLarge):
        decode_trust_update(b"[" * (UPDATE_SIZE_MAX + 1))
