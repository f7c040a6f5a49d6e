"""Certificate profiles: names and extended key usages of each kind of end-entity certificate.

The holder's names and, for a device, its model's profile come from the registry by way of the permit, never from a CSR:
a request contributes its public key and nothing else.
"""

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.ca import tbs
from fleet.domain import name_templates
from fleet.domain.backdating import BACKDATED_LEAF
from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import IssuePermit
from fleet.domain.errors import Refused
from fleet.domain.model_rules import EXTENDED_KEY_USAGES
from fleet.wire.der import OCTET_STRING, PRINTABLE_STRING, UTF8_STRING, encode_element, encode_oid, sequence

CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH.dotted_string
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH.dotted_string
CMC_RA = "1.3.6.1.5.5.7.3.28"
"""id-kp-cmcRA (RFC 6402, 2.10): the holder acts as a registration authority (RFC 7030, 3.7)."""

HARDWARE_TYPE = "2.25.147080829574024803150161196647687967301"
"""hwType in a device's hwModuleName: an OID made from a UUID (X.667), the same in every fleet. A device's SAN thereby
survives a change of the CA, and RFC 7030's rule that names stay the same on re-enrollment can be kept.
"""

KEY_IDENTIFIER_SIZE = 20  # RFC 5280, 4.2.1.2 leaves the method open; 20 octets is what every reader expects

_ORGANIZATION = encode_oid(NameOID.ORGANIZATION_NAME.dotted_string)
_COMMON_NAME = encode_oid(NameOID.COMMON_NAME.dotted_string)
_SERIAL_NUMBER = encode_oid(NameOID.SERIAL_NUMBER.dotted_string)
# X.520: serialNumber is a PrintableString of at most 64 characters.
# RFC 4108, 5: the otherName's type, and the first part of its value.
_HW_MODULE_NAME = encode_oid("1.3.6.1.5.5.7.8.4")
_HARDWARE_TYPE = encode_oid(HARDWARE_TYPE)
_UPN = encode_oid("1.3.6.1.4.1.311.20.2.3")
"""Microsoft's user principal name, an UTF8String."""
# RFC 5280, 4.2.1.6: the tags of a GeneralName's choices.
_OTHER_NAME, _OTHER_NAME_VALUE, _RFC822_NAME, _DNS_NAME, _URI = 0xA0, 0xA0, 0x81, 0x82, 0x86
_PRINTABLE = re.compile(r"[A-Za-z0-9 '()+,\-./:=?]{1,64}")

_NO_USAGE = dict.fromkeys(
    (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    ),
    False,
)
SIGNS_ONLY = x509.KeyUsage(**_NO_USAGE | {"digital_signature": True})
SIGNS_CERTIFICATES = x509.KeyUsage(**_NO_USAGE | {"key_cert_sign": True, "crl_sign": True})
SERIAL_CHANCE_SIZE = 14  # 112 bits; the CA/Browser Forum asks for 64
END_ENTITY = x509.BasicConstraints(ca=False, path_length=None)


def key_identifier(key_sha256: bytes) -> bytes:
    """The subject key identifier for a key, from the SHA-256 of its DER SubjectPublicKeyInfo."""
    return key_sha256[:KEY_IDENTIFIER_SIZE]


def new_serial(now: datetime) -> int:
    """A new serial number: not predictable, and larger than those of earlier seconds."""
    return serial_number(now, os.urandom(SERIAL_CHANCE_SIZE))


def serial_number(at: datetime, chance: bytes) -> int:
    """0x40, the second of issue in 5 octets, SERIAL_CHANCE_SIZE random octets: 20, the most that RFC 5280, 4.1.2.2
    allows.

    With the time in front, new serial numbers go to the end of the registry's index. Fully random ones would read and
    dirty a page anywhere on the disk for each certificate.
    """
    return int.from_bytes(b"\x40" + max(0, int(at.timestamp())).to_bytes(5) + chance)


@dataclass(frozen=True, slots=True)
class Profile:
    """Profile of one kind of end-entity certificate. Names are DER."""

    extended_key_usages: Callable[[IssuePermit], tuple[str, ...]]
    """Dotted OIDs; few different sets, since each has a template."""
    subject: Callable[[IssuePermit], bytes]
    alt_names: Callable[[IssuePermit], bytes | None]
    """Value of the SAN. It is never critical: the subject is never empty (RFC 5280, 4.2.1.6)."""


def device_usages(permit: IssuePermit) -> tuple[str, ...]:
    """The profile's, in a fixed order, so that one set is one template."""
    usages = _usages_of(permit.profile.extended_key_usages)
    return (*usages, SERVER_AUTH) if permit.profile.service else usages


@functools.lru_cache(maxsize=64)
def _usages_of(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(oid for name, oid in EXTENDED_KEY_USAGES.items() if name in names)


def device_subject(permit: IssuePermit) -> bytes:
    """O = the profile's, if any; CN = device id; serialNumber = the manufacturer's serial number, if known.

    Raises: Refused (`bad-hardware-serial`): that number is no PrintableString of 1 to 64 characters.
    """
    attributes = [(_COMMON_NAME, UTF8_STRING, permit.holder)]
    if permit.profile.organisation:
        attributes.insert(0, (_ORGANIZATION, UTF8_STRING, permit.profile.organisation))
    if permit.hardware_serial:
        if not _PRINTABLE.fullmatch(permit.hardware_serial):
            raise Refused(
                "bad-hardware-serial",
                f"The hardware serial of {permit.holder} is not allowed in a certificate.",
                "It takes up to 64 of: letters, digits, space and '()+,-./:=?",
            )
        attributes.append((_SERIAL_NUMBER, PRINTABLE_STRING, permit.hardware_serial))
    return tbs.name(*attributes)


def device_alt_names(permit: IssuePermit) -> bytes | None:
    """The profile's names: hwModuleName with the hardware serial, when known (RFC 4108, 5; IEEE 802.1AR, 8.10.4), a DNS
    name, URIs, a mail address, a user principal name; None when that leaves none.

    Raises: Refused (`name-impossible`).
    """
    profile = permit.profile
    names = b""
    if profile.hardware_module_name and permit.hardware_serial:
        serial = permit.hardware_serial.encode("ascii")  # device_subject has refused anything else
        value = sequence(_HARDWARE_TYPE, encode_element(OCTET_STRING, serial))
        names += encode_element(_OTHER_NAME, _HW_MODULE_NAME + encode_element(_OTHER_NAME_VALUE, value))
    if profile.dns_name:
        name = name_templates.dns_name(profile.dns_name, permit.holder, permit.model)
        names += encode_element(_DNS_NAME, name.encode("ascii"))
    for template in profile.uris:
        uri = name_templates.uri(template, permit.holder, permit.model)
        names += encode_element(_URI, uri.encode("ascii"))
    if profile.email:
        email = name_templates.user_name(profile.email, permit.holder, permit.model)
        names += encode_element(_RFC822_NAME, email.encode("ascii"))
    if profile.upn:
        upn = encode_element(UTF8_STRING, name_templates.user_name(profile.upn, permit.holder, permit.model).encode())
        names += encode_element(_OTHER_NAME, _UPN + encode_element(_OTHER_NAME_VALUE, upn))
    return sequence(names) if names else None


def name_subject(permit: IssuePermit) -> bytes:
    """CN = the station's, claim's or operator's name."""
    return tbs.name((_COMMON_NAME, UTF8_STRING, permit.holder))


def no_alt_names(permit: IssuePermit) -> None:
    """A station, claim or operator is identified by its certificate's fingerprint and needs no SAN."""
    return


PROFILES: dict[CredentialKind, Profile] = {
    CredentialKind.DEVICE: Profile(device_usages, device_subject, device_alt_names),
    CredentialKind.STATION: Profile(lambda permit: (CLIENT_AUTH, CMC_RA), name_subject, no_alt_names),
    CredentialKind.CLAIM: Profile(lambda permit: (CLIENT_AUTH,), name_subject, no_alt_names),
    CredentialKind.OPERATOR: Profile(lambda permit: (CLIENT_AUTH,), name_subject, no_alt_names),
}


def validity(permit: IssuePermit, issuer_validity: tuple[datetime, datetime]) -> tuple[datetime, datetime]:
    """notBefore and notAfter for `permit`, in whole seconds, within the issuer's own.

    A certificate that outlives its issuer fails on the day the issuer expires, whatever its own notAfter says.

    Raises: Refused (`issuer-expired`): nothing of the issuer's lifetime is left.
    """
    start = max(permit.not_before - BACKDATED_LEAF, issuer_validity[0]).replace(microsecond=0)
    end = min(permit.not_after, issuer_validity[1]).replace(microsecond=0)
    if not permit.not_before < end:
        raise Refused(
            "issuer-expired", "The issuing certificate expires before this one could begin.", "Make a new issuing CA."
        )
    return start, end
