"""Key identifiers in certificates: of the subject's key and of the issuer's (RFC 5280, 4.2.1.1 and 4.2.1.2)."""

import hashlib
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from fleet.ca.profiles import key_identifier
from fleet.wire.spki import spki_of

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


def extension_in(
    signed: x509.Certificate | x509.CertificateRevocationList, kind: type[_Extension]
) -> _Extension | None:
    """The value of its extension of this kind; None: it has none."""
    try:
        return signed.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def spki_sha256(key: CertificatePublicKeyTypes) -> bytes:
    """SHA-256 of the key's DER SubjectPublicKeyInfo, 32 bytes."""
    return hashlib.sha256(spki_of(key)).digest()


def identifier_of(certificate: x509.Certificate) -> bytes:
    """The subject key identifier as `certificate` has it, by whatever method; ours where it has none."""
    found = extension_in(certificate, x509.SubjectKeyIdentifier)
    return found.digest if found is not None else key_identifier(spki_sha256(certificate.public_key()))


def issuer_identifier_of(certificate: x509.Certificate) -> bytes | None:
    """The authority key identifier as `certificate` has it; None: it names none."""
    found = extension_in(certificate, x509.AuthorityKeyIdentifier)
    return found.key_identifier if found is not None else None
