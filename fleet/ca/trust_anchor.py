"""A manufacturer's CA as it is imported: what it must be, so that its certificates may earn a first one of ours."""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.domain.errors import Invalid

FILE_SIZE_MAX = 64 * 1024
RSA_BITS_MIN = 2048


def read_trust_anchor(data: bytes, own: Sequence[x509.Certificate], now: datetime) -> x509.Certificate:
    """The one CA certificate in `data`, PEM or DER. `own` are the fleet's CAs: none of them is a manufacturer's.

    Raises: Invalid (`bad-anchor`), with the reason.
    """
    certificate = _only_certificate(data)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        key = certificate.public_key()
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError, UnsupportedAlgorithm):
        raise _bad("is no CA: it has no basic constraints, or cannot be read") from None
    if not constraints.ca:
        raise _bad("is no CA")
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None  # RFC 5280, 4.2.1.3 asks for one; old manufacturers' roots have none
    if usage is not None and not usage.key_cert_sign:
        raise _bad("may not sign certificates")
    is_strong = isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) or (
        isinstance(key, rsa.RSAPublicKey) and key.key_size >= RSA_BITS_MIN
    )
    if not is_strong:
        raise _bad(f"has a key that is neither EC nor Ed25519, nor RSA of {RSA_BITS_MIN} bits")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise _bad("is not valid at this time")
    for ours in own:
        # One of the same name would get in the way of our own chains; one of the same key could be ours.
        if certificate.subject == ours.subject or _spki(certificate) == _spki(ours):
            raise _bad("has the name or the key of a CA of this fleet, whose certificates are no manufacturer's")
    return certificate


def _only_certificate(data: bytes) -> x509.Certificate:
    if len(data) > FILE_SIZE_MAX:
        raise Invalid("bad-anchor", f"The file is larger than {FILE_SIZE_MAX} bytes.")
    try:
        if b"-----BEGIN" not in data:
            return x509.load_der_x509_certificate(data)
        found = x509.load_pem_x509_certificates(data)
    except ValueError:
        raise Invalid("bad-anchor", "The file holds no certificate in PEM or DER.") from None
    if len(found) != 1:
        message = f"The file holds {len(found)} certificates; one CA is imported at a time."
        raise Invalid("bad-anchor", message, "Devices send the CAs between theirs and this one along.")
    return found[0]


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _bad(why: str) -> Invalid:
    return Invalid("bad-anchor", f"The certificate {why}.")
