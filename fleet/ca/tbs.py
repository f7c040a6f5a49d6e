"""Certificate encoder (RFC 5280, 4.1) that assembles parts which are encoded already.

The library's builder takes 90 µs for what is constant but for five fields; this takes 10. The result is compared with
an independent encoding before it is released (`assembly`), so a mistake here issues nothing.
"""

import functools
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from fleet.wire.der import (
    BIT_STRING,
    GENERALIZED_TIME,
    INTEGER,
    OCTET_STRING,
    SET,
    UTC_TIME,
    encode_element,
    encode_oid,
    sequence,
)

BOOLEAN_TRUE = b"\x01\x01\xff"
EXPLICIT_VERSION, EXPLICIT_EXTENSIONS = 0xA0, 0xA3

VERSION_3 = encode_element(EXPLICIT_VERSION, encode_element(INTEGER, b"\x02"))
ECDSA_WITH_SHA256 = sequence(encode_oid("1.2.840.10045.4.3.2"))  # RFC 5758, 3.2: no parameters


@dataclass(frozen=True, slots=True)
class Template:
    """DER that all certificates of one kind under one issuer share."""

    issuer: bytes
    extensions: bytes

    def fill(
        self, *, serial: int, not_before: datetime, not_after: datetime, subject: bytes, spki: bytes, extensions: bytes
    ) -> bytes:
        """The TBSCertificate; `extensions` follow the constant ones."""
        return sequence(
            VERSION_3,
            integer(serial),
            ECDSA_WITH_SHA256,
            self.issuer,
            _validity(not_before, not_after),
            subject,
            spki,
            encode_element(EXPLICIT_EXTENSIONS, sequence(self.extensions, extensions)),
        )


def sealed(tbs: bytes, signature: bytes) -> bytes:
    """The certificate of `tbs` and its ECDSA signature with SHA-256."""
    return sequence(tbs, ECDSA_WITH_SHA256, encode_element(BIT_STRING, b"\0" + signature))


def integer(value: int) -> bytes:
    """A positive INTEGER."""
    return encode_element(INTEGER, value.to_bytes(value.bit_length() // 8 + 1))


@functools.lru_cache(maxsize=256)  # certificates of one second share both times
def _validity(start: datetime, end: datetime) -> bytes:
    return sequence(time(start), time(end))


def time(moment: datetime) -> bytes:
    """A Time, in whole seconds. RFC 5280, 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050 on."""
    year, month, day, hour, minute, second = moment.utctimetuple()[:6]
    rest = b"%02d%02d%02d%02d%02dZ" % (month, day, hour, minute, second)  # half the price of strftime
    if year < 2050:
        return encode_element(UTC_TIME, b"%02d" % (year % 100) + rest)
    return encode_element(GENERALIZED_TIME, b"%04d" % year + rest)


def name(*attributes: tuple[bytes, int, str]) -> bytes:
    """A Name with one relative name for each attribute: its OID's DER, the tag of its string, its value."""
    return sequence(
        *(encode_element(SET, sequence(oid, encode_element(tag, value.encode()))) for oid, tag, value in attributes)
    )


def extension(value: x509.ExtensionType, *, critical: bool) -> bytes:
    """One Extension."""
    return raw_extension(encode_oid(value.oid.dotted_string), value.public_bytes(), critical=critical)


def raw_extension(oid: bytes, value: bytes, *, critical: bool) -> bytes:
    """One Extension from its OID's and its value's DER."""
    # DER leaves a default out: critical is FALSE unless it says TRUE.
    return sequence(oid, BOOLEAN_TRUE if critical else b"", encode_element(OCTET_STRING, value))
