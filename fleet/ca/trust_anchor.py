"""A manufacturer's CA as it is imported: what it must be, so that its certificates may earn a first one of ours."""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.chain import EC_BITS_MIN, RSA_BITS_MIN, is_strong_key
from fleet.domain.errors import Invalid
from fleet.wire.certificate_fields import certificate_fields
from fleet.wire.encodings.reading import read
from fleet.wire.errors import WireError
from fleet.wire.parsing import library_errors
from fleet.wire.spki import spki_of

FILE_SIZE_MAX = 64 * 1024


def read_trust_anchor(data: bytes, own: Sequence[x509.Certificate], now: datetime) -> x509.Certificate:
    """The one CA certificate in `data`, in any form. `own` are the fleet's CAs: none of them is a manufacturer's.

    Raises: Invalid (`bad-anchor`), with the reason.
    """
    certificate = _only_certificate(data)
    try:
        _check(certificate, own, now)
    except WireError as error:
        raise Invalid("bad-anchor", str(error)) from None
    return certificate


def _check(certificate: x509.Certificate, own: Sequence[x509.Certificate], now: datetime) -> None:
    fields = certificate_fields(certificate.public_bytes(Encoding.DER))
    constraints, usage = fields.basic_constraints, fields.key_usage
    if constraints is None:
        raise _bad("is no CA: it has no basic constraints")
    if not constraints[0]:
        raise _bad("is no CA")
    # RFC 5280, 4.2.1.3 asks for a key usage; old manufacturers' roots have none.
    if usage is not None and "keyCertSign" not in usage:
        raise _bad("may not sign certificates")
    with _field("public key"):
        key = certificate.public_key()
    if not is_strong_key(key):
        raise _bad(f"has a key that is neither EC of {EC_BITS_MIN} bits nor Ed25519, nor RSA of {RSA_BITS_MIN} bits")
    with _field("validity"):
        is_valid = certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc
    if not is_valid:
        raise _bad("is not valid at this time")
    with _field("subject"):
        subject = certificate.subject
    for ours in own:
        # One of the same name would get in the way of our own chains; one of the same key could be ours.
        if subject == ours.subject or spki_of(certificate.public_key()) == spki_of(ours.public_key()):
            raise _bad("has the name or the key of a CA of this fleet, whose certificates are no manufacturer's")


def _field(what: str) -> library_errors:
    return library_errors(f"certificate's {what}")


def _only_certificate(data: bytes) -> x509.Certificate:
    if len(data) > FILE_SIZE_MAX:
        raise Invalid("bad-anchor", f"The file is larger than {FILE_SIZE_MAX} bytes.")
    try:
        found = read(data).certificates
    except WireError as error:
        raise Invalid("bad-anchor", str(error)) from None
    if not found:
        raise Invalid("bad-anchor", "The file holds no certificate.")
    if len(found) != 1:
        message = f"The file holds {len(found)} certificates; one CA is imported at a time."
        raise Invalid("bad-anchor", message, "Devices send the CAs between theirs and this one along.")
    return found[0]


def _bad(why: str) -> Invalid:
    return Invalid("bad-anchor", f"The certificate {why}.")
