"""Trust update: the fleet's word that devices shall no longer trust former roots, signed by a CA below a later one.

    {"payload": BASE64, "chain": [BASE64, ...], "signature": BASE64}

`payload`: JSON, {"issued_at": RFC 3339, "retire": ["sha256:HEX", ...]}, each the SHA-256 over the DER
SubjectPublicKeyInfo of a root. `chain`: DER certificates, the signer's first, then those above it. `signature`: ECDSA
with SHA-256 and the signer's P-256 key over CONTEXT and the octets of the payload.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.wire import strict_json
from fleet.wire.errors import BadSignature, Malformed, TooLarge, Unsupported
from fleet.wire.parsing import library_errors
from fleet.wire.spki import spki_of

CONTENT_TYPE = "application/json"
UPDATE_SIZE_MAX = 32 * 1024  # bytes; a chain of four P-256 certificates takes 4 KiB
RETIRED_MAX = 16  # roots; each was valid for years
CHAIN_MAX = 5  # certificates
CONTEXT = b"fleet trust update 1\n"  # so that no other signature of a CA is one of these

_KEY = re.compile(r"sha256:[0-9a-f]{64}")
_ALGORITHM = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class TrustUpdate:
    """`retired`: keys of roots, as `key_name` has them. The signature verifies with the key of chain[0]."""

    retired: tuple[str, ...]
    chain: tuple[x509.Certificate, ...]
    issued_at: datetime


def key_name(certificate: x509.Certificate) -> str:
    """`sha256:` and the hex SHA-256 over the DER SubjectPublicKeyInfo."""
    return f"sha256:{hashlib.sha256(spki_of(certificate.public_key())).hexdigest()}"


def sign_trust_update(
    retired: Sequence[str], chain: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey, now: datetime
) -> bytes:
    """The update that retires these roots, signed with the P-256 `key` of chain[0]."""
    payload = json.dumps({"issued_at": f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}", "retire": list(retired)}).encode()
    tree = {
        "payload": _text(payload),
        "chain": [_text(each.public_bytes(Encoding.DER)) for each in chain],
        "signature": _text(key.sign(CONTEXT + payload, _ALGORITHM)),
    }
    return json.dumps(tree).encode()


def decode_trust_update(data: bytes) -> TrustUpdate:
    """The update in `data`, its signature verified; whether its signer may say so is the caller's to judge.

    Raises: TooLarge, Malformed, Unsupported, BadSignature.
    """
    if len(data) > UPDATE_SIZE_MAX:
        raise TooLarge(f"The trust update is larger than {UPDATE_SIZE_MAX} bytes.")
    tree = strict_json.loads(data)
    encoded = tree.get("chain") if isinstance(tree, dict) else None
    if not isinstance(encoded, list) or not 0 < len(encoded) <= CHAIN_MAX:
        raise Malformed("The trust update has no chain of one to five certificates.")
    payload, signature = _octets(tree.get("payload")), _octets(tree.get("signature"))
    with library_errors("trust update's chain"):
        chain = tuple(x509.load_der_x509_certificate(_octets(each)) for each in encoded)
        signer = chain[0].public_key()
    if not isinstance(signer, ec.EllipticCurvePublicKey) or not isinstance(signer.curve, ec.SECP256R1):
        raise Unsupported("The trust update is signed with a key that is not P-256.")
    try:
        signer.verify(signature, CONTEXT + payload, _ALGORITHM)
    except InvalidSignature:
        raise BadSignature("The signature of the trust update does not verify.") from None
    retired, issued_at = _content(payload)
    return TrustUpdate(retired, chain, issued_at)


def _content(payload: bytes) -> tuple[tuple[str, ...], datetime]:
    tree = strict_json.loads(payload)
    retired = tree.get("retire") if isinstance(tree, dict) else None
    if not isinstance(retired, list) or not 0 < len(retired) <= RETIRED_MAX:
        raise Malformed("The trust update names no roots, or too many.")
    if not all(isinstance(each, str) and _KEY.fullmatch(each) for each in retired):
        raise Malformed("The trust update names a root in another way than by its key.")
    try:
        issued_at = datetime.strptime(tree.get("issued_at", ""), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except (TypeError, ValueError):
        raise Malformed("The trust update has no time of issue.") from None
    return tuple(retired), issued_at


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _octets(text: object) -> bytes:
    if not isinstance(text, str):
        raise Malformed("A member of the trust update is missing.")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error is one; so is what is not ASCII
        raise Malformed("A member of the trust update is not base64.") from None
