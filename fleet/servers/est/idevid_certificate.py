"""Device identity in a manufacturer's certificate (IDevID, IEEE 802.1AR). TLS has verified its chain."""

import hashlib

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from fleet.domain.errors import Invalid
from fleet.domain.idevid import IdevidCertificate, is_serial
from fleet.wire.errors import WireError
from fleet.wire.names import names_of_certificate
from fleet.wire.spki import spki_of

SERIAL_NUMBER = "2.5.4.5"


def idevid_certificate(der: bytes) -> IdevidCertificate:
    """Raises: Invalid (`bad-idevid`): it has no serial number, or several; or it can't be read."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        subject, alt_names = names_of_certificate(certificate)
        spki = spki_of(certificate.public_key())
    except (WireError, ValueError, UnsupportedAlgorithm) as error:  # OpenSSL, that is TLS, knows curves more
        raise Invalid("bad-idevid", "The manufacturer's certificate cannot be read.") from error
    in_subject = [value for oid, value in subject if oid == SERIAL_NUMBER]
    modules = [name for name in alt_names if name.startswith("HW:")]
    if len(in_subject) > 1 or len(modules) > 1:
        raise Invalid("bad-idevid", "The manufacturer's certificate names several serials.")
    serials = [*in_subject, *(text for name in modules for text in _module_serials(name))]
    taken = tuple(dict.fromkeys(text for text in serials if is_serial(text)))
    if not taken:
        raise Invalid("bad-idevid", "The manufacturer's certificate has neither serialNumber nor hwModuleName.")
    return IdevidCertificate(hashlib.sha256(der).digest(), hashlib.sha256(spki).digest(), taken)


def _module_serials(name: str) -> list[str]:
    """hwSerialNum (RFC 4108, 5) is octets: some manufacturers put text there, some a number."""
    octets = bytes.fromhex(name.rpartition(":")[2])
    as_hex = [octets.hex(), octets.hex().upper()]
    try:
        return [octets.decode("ascii"), *as_hex]
    except UnicodeDecodeError:
        return as_hex
