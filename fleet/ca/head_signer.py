"""Signed tree heads of the audit: one P-256 key signs them; its public key verifies them anywhere.

signer = LocalHeadSigner(key)               # in the serving process
check_head(head, (read_head_key(pem),))     # anywhere, years later
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from fleet.domain import audit_log
from fleet.domain.audit_log import TreeHead, head_data
from fleet.domain.errors import Invalid

HEAD_KEY_SIZE_MAX = 4096  # a P-256 public key in PEM takes 178 bytes

_ALGORITHM = ec.ECDSA(hashes.SHA256())


class LocalHeadSigner:
    """Signs with a key that this process holds; implements `fleet.domain.ports.HeadSigner`."""

    def __init__(self, private_key: ec.EllipticCurvePrivateKey) -> None:
        self._key = private_key
        self.public_key = HeadKey(private_key.public_key())

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the key's DER SubjectPublicKeyInfo, 32 bytes."""
        return self.public_key.id

    def sign(self, data: bytes) -> bytes:
        """ECDSA with SHA-256 over `data`, DER."""
        return self._key.sign(data, _ALGORITHM)


@dataclass(frozen=True)
class HeadKey:
    """The public half of a key that signs heads."""

    public: ec.EllipticCurvePublicKey

    @cached_property
    def id(self) -> bytes:
        """As a head names it."""
        return audit_log.key_id(self.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    def pem(self) -> bytes:
        """A PEM SubjectPublicKeyInfo, which `read_head_key` reads."""
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def read_head_key(pem: bytes) -> HeadKey:
    """The key in the PEM SubjectPublicKeyInfo `pem`. Raises: Invalid (`bad-key`)."""
    try:
        key = load_pem_public_key(pem[:HEAD_KEY_SIZE_MAX])
    except ValueError:
        raise Invalid("bad-key", "It holds no public key in PEM.", "Give the home's ca/audit.pub.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Invalid("bad-key", "It holds a public key that is not P-256.", "Give the home's ca/audit.pub.")
    return HeadKey(key)


def check_head(head: TreeHead, keys: Iterable[HeadKey]) -> None:
    """Return if `head` was signed by one of `keys`. Raises: Invalid: `head-key`, another key's; `head-signature`."""
    key = next((key for key in keys if key.id == head.key_id), None)
    if key is None:
        message = f"The head of {head.size} rows names another key, {head.key_id.hex()[:16]}…"
        raise Invalid("head-key", message, "Give the public key that signed it, if you trust it, with --public-key.")
    try:
        key.public.verify(head.signature, head_data(head.size, head.root, head.at), _ALGORITHM)
    except InvalidSignature:
        raise Invalid("head-signature", f"The signature of the head of {head.size} rows does not verify.") from None
