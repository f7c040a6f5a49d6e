"""Key identifiers in certificates: of the subject's key and of the issuer's (RFC 5280, 4.2.1.1 and 4.2.1.2)."""

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from fleet.ca.profiles import key_identifier
from fleet.wire.spki import spki_of


def spki_sha256(key: CertificatePublicKeyTypes) -> bytes:
    """SHA-256 of the key's DER SubjectPublicKeyInfo, 32 bytes."""
    return hashlib.sha256(spki_of(key)).digest()


def identifier_of(certificate: x509.Certificate) -> bytes:
    """The subject key identifier as it stands in `certificate`, by whatever method; ours where it has none."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return key_identifier(spki_sha256(certificate.public_key()))


def issuer_identifier_of(certificate: x509.Certificate) -> bytes | None:
    """The authority key identifier as it stands in `certificate`; None: it names none."""
    try:
        return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return None
