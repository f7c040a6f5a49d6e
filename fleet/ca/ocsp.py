"""OCSP responder of one CA (RFC 6960, 2.6): answers are signed with a key to which the CA has delegated them."""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.key_identifiers import identifier_of
from fleet.ca.tbs import ECDSA_WITH_SHA256
from fleet.wire.certificate_fields import certificate_fields
from fleet.wire.der import SEQUENCE, children, only_element
from fleet.wire.errors import WireError
from fleet.wire.ocsp import (
    SHA1,
    SHA256,
    SHA384,
    SHA512,
    SingleResponse,
    encode_response,
    encode_response_data,
)
from fleet.wire.spki import spki_of

RENEW_BEFORE = timedelta(days=7)
"""A delegated certificate is replaced this long before it expires: answers made with it outlive it by nothing."""

_ALGORITHM = ec.ECDSA(hashes.SHA256())
_AUTHORITY_KEY_IDENTIFIER = "2.5.29.35"
_KEY_IDENTIFIER = 0x80
_HASHES = {SHA1: "sha1", SHA256: "sha256", SHA384: "sha384", SHA512: "sha512"}

IssuerId = tuple[str, bytes, bytes]
"""The OID of a hash, and those hashes of a CA's name and of its key (RFC 6960, 4.1.1)."""


def issuer_ids(ca: x509.Certificate) -> frozenset[IssuerId]:
    """Every way in which a request may name `ca`."""
    name = certificate_fields(ca.public_bytes(Encoding.DER)).subject.whole
    spki = spki_of(ca.public_key())
    _, bits = children(only_element(spki, SEQUENCE))
    key = bits.content[1:]  # without the number of unused bits
    return frozenset(
        (oid, hashlib.new(text, name).digest(), hashlib.new(text, key).digest()) for oid, text in _HASHES.items()
    )


class Responder:
    """Signs answers about certificates of `ca` with `key`, whose `certificate` is of `issue_responder_certificate`."""

    def __init__(self, ca: x509.Certificate, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.key_identifier = identifier_of(ca)
        """Of the CA."""
        self.renew_at = certificate.not_valid_after_utc - RENEW_BEFORE
        self.signs_until = certificate.not_valid_after_utc
        self._certificate = certificate.public_bytes(Encoding.DER)
        self._key = key
        self._key_hash = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest
        self._name = certificate_fields(ca.public_bytes(Encoding.DER)).subject.whole

    def has_issued(self, certificate_der: bytes) -> bool:
        """Whether a certificate names the CA and its key as its issuer."""
        try:
            fields = certificate_fields(certificate_der)
            identifier = fields.extension(_AUTHORITY_KEY_IDENTIFIER)
            parts = children(only_element(identifier, SEQUENCE)) if identifier is not None else ()
            named = [part.content for part in parts if part.tag == _KEY_IDENTIFIER]
        except WireError:
            return False
        return fields.issuer.whole == self._name and named == [self.key_identifier]

    def sign(self, responses: Sequence[SingleResponse], now: datetime, nonce: bytes | None = None) -> bytes:
        """The response, DER, produced at `now`."""
        data = encode_response_data(self._key_hash, now, responses, nonce)
        return encode_response(data, ECDSA_WITH_SHA256, self._key.sign(data, _ALGORITHM), self._certificate)
