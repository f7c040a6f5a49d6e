"""What each kind of certificate looks like: everything in it that does not come from the permit.

The holder's names come from the registry by way of the permit, never from a CSR: a request contributes its public
key and nothing else.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.ca import tbs
from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import IssuePermit
from fleet.domain.errors import Refused
from fleet.wire.der import encode_oid
from fleet.wire.names import alt_name

CLOCK_SKEW = timedelta(minutes=5)
"""How far a device's or station's certificate is dated back. Gateways of one fleet may differ by some seconds, and a
certificate is used the moment it arrives; five minutes cover that and claim nothing about an older past.
"""

CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")
"""id-kp-cmcRA (RFC 6402, 2.10): the holder acts as a registration authority (RFC 7030, 3.7)."""

HARDWARE_TYPE = "2.25.147080829574024803150161196647687967301"
"""hwType in a device's hwModuleName: an OID made from a UUID (X.667), the same in every fleet. A device's SAN thereby
survives a change of the CA, and RFC 7030's rule that names stay the same on re-enrollment can be kept.
"""

KEY_IDENTIFIER_SIZE = 20  # RFC 5280, 4.2.1.2 leaves the method open; 20 octets is what every reader expects

_COMMON_NAME = encode_oid(NameOID.COMMON_NAME.dotted_string)
_SERIAL_NUMBER = encode_oid(NameOID.SERIAL_NUMBER.dotted_string)
# X.520: serialNumber is a PrintableString of at most 64 characters.
_PRINTABLE = re.compile(r"[A-Za-z0-9 '()+,\-./:=?]{1,64}")

SIGNS_ONLY = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
END_ENTITY = x509.BasicConstraints(ca=False, path_length=None)


def key_identifier(key_sha256: bytes) -> bytes:
    """The subject key identifier for a key, from the SHA-256 of its DER SubjectPublicKeyInfo."""
    return key_sha256[:KEY_IDENTIFIER_SIZE]


def new_serial() -> int:
    """A random, positive serial number of 20 octets, the most that RFC 5280, 4.1.2.2 allows: 158 random bits."""
    octets = bytearray(os.urandom(20))
    octets[0] = octets[0] & 0x7F | 0x40  # positive, and never a shorter encoding
    return int.from_bytes(octets, "big")


@dataclass(frozen=True, slots=True)
class Profile:
    """The shape of one kind of end-entity certificate. Names are given as DER."""

    extended_key_usage: x509.ExtendedKeyUsage
    subject: Callable[[IssuePermit], bytes]
    alt_names: Callable[[IssuePermit], bytes | None]


def device_subject(permit: IssuePermit) -> bytes:
    """CN = device id; serialNumber = the maker's serial number, when it is known.

    Raises: Refused (`bad-hardware-serial`) when that number cannot stand in a certificate.
    """
    if not permit.hardware_serial:
        return tbs.name((_COMMON_NAME, tbs.UTF8_STRING, permit.holder))
    if not _PRINTABLE.fullmatch(permit.hardware_serial):
        raise Refused(
            "bad-hardware-serial",
            f"The hardware serial of {permit.holder} cannot stand in a certificate.",
            "It takes up to 64 of: letters, digits, space and '()+,-./:=?",
        )
    return tbs.name(
        (_COMMON_NAME, tbs.UTF8_STRING, permit.holder),
        (_SERIAL_NUMBER, tbs.PRINTABLE_STRING, permit.hardware_serial),
    )


def device_alt_names(permit: IssuePermit) -> bytes | None:
    """hwModuleName with the maker's serial number (RFC 4108, 5; IEEE 802.1AR, 8.10.4); None when that is not known."""
    if not permit.hardware_serial:
        return None
    serial = permit.hardware_serial.encode("ascii")  # device_subject has refused anything else
    return x509.SubjectAlternativeName([alt_name(f"HW:{HARDWARE_TYPE}:{serial.hex()}")]).public_bytes()


def name_subject(permit: IssuePermit) -> bytes:
    """CN = the station's, claim's or operator's name."""
    return tbs.name((_COMMON_NAME, tbs.UTF8_STRING, permit.holder))


def no_alt_names(permit: IssuePermit) -> None:
    """A station, claim or operator is looked up by its certificate's fingerprint; it needs no further name."""
    return


PROFILES: dict[CredentialKind, Profile] = {
    CredentialKind.DEVICE: Profile(
        extended_key_usage=x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
        subject=device_subject,
        alt_names=device_alt_names,
    ),
    CredentialKind.STATION: Profile(
        extended_key_usage=x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, CMC_RA]),
        subject=name_subject,
        alt_names=no_alt_names,
    ),
    CredentialKind.CLAIM: Profile(
        extended_key_usage=x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
        subject=name_subject,
        alt_names=no_alt_names,
    ),
    CredentialKind.OPERATOR: Profile(
        extended_key_usage=x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
        subject=name_subject,
        alt_names=no_alt_names,
    ),
}


def validity(permit: IssuePermit, issuer: x509.Certificate) -> tuple[datetime, datetime]:
    """notBefore and notAfter for `permit`, in whole seconds, within those of `issuer`.

    A certificate that outlived its issuer would fail on the day the issuer ends, whatever it says itself.

    Raises: Refused (`issuer-expired`) when nothing of the issuer's own time is left.
    """
    start = max(permit.not_before - CLOCK_SKEW, issuer.not_valid_before_utc).replace(microsecond=0)
    end = min(permit.not_after, issuer.not_valid_after_utc).replace(microsecond=0)
    if not permit.not_before < end:
        raise Refused(
            "issuer-expired",
            "The issuing certificate ends before this one could begin.",
            "Make a new issuing CA.",
        )
    return start, end
