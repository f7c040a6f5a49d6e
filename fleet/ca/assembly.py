"""The certificate that a permit allows, encoded a second time and compared with the issuer's bytes.

Its contents come from `lints`, their encoding from here. Nothing is shared with `profiles` and `tbs` but tags and
lengths of DER, so a mistake would have to be made twice. Parsing a finished certificate and running every lint
over it takes five times as long.
"""

import functools
from datetime import datetime

from cryptography import x509

from fleet.ca import lints
from fleet.ca.distribution import Publication
from fleet.ca.key_identifiers import identifier_of
from fleet.domain.enrollment import IssuePermit
from fleet.wire.der import (
    BIT_STRING,
    OCTET_STRING,
    SEQUENCE,
    SET,
    encode_element,
    encode_oid,
    only_element,
    read_element,
    sequence,
)
from fleet.wire.errors import WireError
from fleet.wire.spki import is_encoding, load_spki

_VERSION_3 = bytes.fromhex("a003020102")
_SERIAL_HEAD = b"\x02\x14"  # INTEGER of 20 octets
_SERIAL_SIZE = 22
_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_VALIDITY_SIZE = 32  # a SEQUENCE of two UTCTimes

_BASIC_CONSTRAINTS = bytes.fromhex("300c0603551d130101ff04023000")  # critical, cA FALSE
_KEY_USAGE = bytes.fromhex("300e0603551d0f0101ff040403020780")  # critical, digitalSignature
_AUTHORITY_KEY_IDENTIFIER = bytes.fromhex("0603551d23")
_EXTENDED_KEY_USAGE = bytes.fromhex("0603551d25")
_SUBJECT_KEY_IDENTIFIER = bytes.fromhex("301d0603551d0e04160414")  # up to the 20 octets
_SUBJECT_ALT_NAME = bytes.fromhex("0603551d11")
_CRL_DISTRIBUTION_POINTS = bytes.fromhex("0603551d1f")
_AUTHORITY_INFO_ACCESS = bytes.fromhex("06082b06010505070101")
_ACCESS_METHODS = bytes.fromhex("06082b06010505073001"), bytes.fromhex("06082b06010505073002")  # OCSP, caIssuers

_STRINGS = {  # the attribute's OID, and its string's tag (RFC 5280, 4.1.2.4; X.520 for serialNumber)
    x509.NameOID.ORGANIZATION_NAME: (bytes.fromhex("060355040a"), 0x0C),
    x509.NameOID.COMMON_NAME: (bytes.fromhex("0603550403"), 0x0C),
    x509.NameOID.SERIAL_NUMBER: (bytes.fromhex("0603550405"), 0x13),
}
_NAME_TAGS = {"EMAIL": 0x81, "DNS": 0x82, "URI": 0x86}
_UPN = bytes.fromhex("060a2b060104018237140203")
_HW_MODULE_NAME = bytes.fromhex("06082b06010505070804")


class ExpectedAssembly:
    """Compares what one issuer has assembled with what its permits allow."""

    def __init__(self, issuer: x509.Certificate, publication: Publication | None = None) -> None:
        self._issuer_name = issuer.subject.public_bytes()
        self._issuer_validity = issuer.not_valid_before_utc, issuer.not_valid_after_utc
        identifier = identifier_of(issuer)
        self._identifier, self._publication = identifier, publication
        self._authority = _extension(_AUTHORITY_KEY_IDENTIFIER, sequence(encode_element(0x80, identifier)))
        self._constant: dict[tuple[str, ...], bytes] = {}

    def matches(self, certificate: bytes, permit: IssuePermit) -> bool:
        """Whether `certificate` is exactly what `permit` allows, with a serial number and times that it may have.

        When it is not, the lints decide. The signature value is not verified.
        """
        try:
            whole = only_element(certificate, SEQUENCE)
            tbs = read_element(certificate, whole.start, whole.stop)
        except WireError:
            return False
        at = tbs.start + len(_VERSION_3)
        serial = certificate[at : at + _SERIAL_SIZE]
        at += _SERIAL_SIZE + len(_ECDSA_WITH_SHA256) + len(self._issuer_name)
        validity = certificate[at : at + _VALIDITY_SIZE]
        expected = sequence(
            _VERSION_3,
            serial,
            _ECDSA_WITH_SHA256,
            self._issuer_name,
            validity,
            _subject(permit),
            permit.spki_der,
            encode_element(0xA3, sequence(self._extensions(permit) + self._points(permit, serial))),
        )
        return (
            certificate[tbs.begin : tbs.end] == expected
            and _is_signature(certificate[tbs.end : whole.stop])
            and serial.startswith(_SERIAL_HEAD)
            and 0 < serial[2] < 0x80
            and self._is_permitted_validity(validity, permit)
            and lints.is_plain_subject(permit)
            and lints.allows_clients(permit)
            and _is_permitted_key(permit)
        )

    def _is_permitted_validity(self, validity: bytes, permit: IssuePermit) -> bool:
        start, end = _utc_time(validity[2:17]), _utc_time(validity[17:])
        if start is None or end is None or validity[:2] != b"\x30\x1e":
            return False
        return lints.is_permitted_validity((start, end), permit, self._issuer_validity)

    def _extensions(self, permit: IssuePermit) -> bytes:
        usages = lints.expected_usages(permit)
        constant = self._constant.get(usages)
        if constant is None:
            purposes = _extension(_EXTENDED_KEY_USAGE, sequence(*map(encode_oid, usages)))
            constant = self._constant[usages] = _BASIC_CONSTRAINTS + _KEY_USAGE + self._authority + purposes
        own = _SUBJECT_KEY_IDENTIFIER + permit.key_sha256[:20]
        names = lints.expected_alt_names(permit)
        if not names:
            return constant + own
        return constant + own + _extension(_SUBJECT_ALT_NAME, sequence(*map(_general_name, names)))

    def _points(self, permit: IssuePermit, serial: bytes) -> bytes:
        if self._publication is None:
            return b""
        return _urls(*lints.expected_urls(permit, self._publication, self._identifier, int.from_bytes(serial[-2:])))


@functools.lru_cache(maxsize=256)
def _urls(crl: str, access: tuple[str, str] | None) -> bytes:
    found = b""
    if crl:  # DistributionPoints, distributionPoint [0], fullName [0], uniformResourceIdentifier [6]
        name = encode_element(0xA0, encode_element(0xA0, _uri(crl)))
        found += _extension(_CRL_DISTRIBUTION_POINTS, sequence(sequence(name)))
    if access:
        places = (sequence(method, _uri(url)) for method, url in zip(_ACCESS_METHODS, access, strict=True))
        found += _extension(_AUTHORITY_INFO_ACCESS, sequence(*places))
    return found


def _uri(url: str) -> bytes:
    return encode_element(0x86, url.encode("ascii", "replace"))


def _is_permitted_key(permit: IssuePermit) -> bool:
    key = load_spki(permit.spki_der)
    is_exact = is_encoding(permit.spki_der, key) and lints.is_permitted_key(permit.spki_der, permit)
    return is_exact and lints.is_strong(key)


def _extension(oid: bytes, value: bytes) -> bytes:
    return sequence(oid, encode_element(OCTET_STRING, value))


def _subject(permit: IssuePermit) -> bytes:
    rdns = b""
    for oid, value in lints.expected_subject(permit):
        name, tag = _STRINGS[oid]
        text = value.encode()
        size = len(text)
        if size < 100:  # each length takes one octet
            rdns += bytes((SET, size + 9, SEQUENCE, size + 7)) + name + bytes((tag, size)) + text
        else:
            rdns += encode_element(SET, sequence(name, encode_element(tag, text)))
    return sequence(rdns)


def _general_name(text: str) -> bytes:
    """`text` as `lints.expected_alt_names` writes it: the type, a space, the value."""
    kind, _, value = text.partition(" ")
    if kind == "UPN":
        return encode_element(0xA0, _UPN + encode_element(0xA0, encode_element(0x0C, value.encode())))
    if kind != "HW":
        return encode_element(_NAME_TAGS[kind], value.encode("ascii", "replace"))
    module = sequence(lints.HARDWARE_TYPE, encode_element(OCTET_STRING, value.encode()))
    return encode_element(0xA0, _HW_MODULE_NAME + encode_element(0xA0, module))


@functools.lru_cache(maxsize=256)  # certificates of one second share both times
def _utc_time(element: bytes) -> datetime | None:
    digits = element[2:14].decode("latin-1")
    if not (element[:2] == b"\x17\x0d" and digits.isascii() and digits.isdigit() and element[14:] == b"Z"):
        return None
    if digits >= "50":  # RFC 5280, 4.1.2.5.1: that would be 19YY; from 2050 on it is GeneralizedTime, left to the lints
        return None
    try:
        return datetime.fromisoformat(f"20{digits[:6]}T{digits[6:]}+00:00")
    except ValueError:
        return None


def _is_signature(data: bytes) -> bool:
    """The algorithm once more, and a BIT STRING of whole octets."""
    if not data.startswith(_ECDSA_WITH_SHA256):
        return False
    try:
        value = only_element(data[len(_ECDSA_WITH_SHA256) :], BIT_STRING)
    except WireError:
        return False
    return value.content[:2] == b"\0\x30"
