"""One field of a certificate is read whatever the others hold."""

import pytest

from fleet.ca.keys import generate_key
from fleet.wire.certificate_fields import certificate_fields, why_unsupported
from fleet.wire.der import encode_element, encode_oid, sequence
from fleet.wire.errors import Malformed, WireError
from tests.odd_certificates import (
    BASIC,
    CA,
    CA_OF_ONE,
    CERT_SIGN,
    DIGITAL_SIGNATURE,
    ECDSA_WITH_NULL,
    EXTENDED,
    FALSE_IN_FULL,
    SAN,
    USAGE,
    X400_NAME,
    certificate,
    extension,
    name,
)

KEY = generate_key()
CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"
WHOLE = certificate(
    KEY,
    extension(BASIC, sequence(b"\x01\x01\xff", b"\x02\x01\x03")),
    extension(USAGE, b"\x03\x03\x07\x84\x80"),
    extension(EXTENDED, sequence(encode_oid(CLIENT_AUTH))),
)


def test_what_is_there() -> None:
    fields = certificate_fields(WHOLE)
    assert fields.subject.whole == name(b"Maker")
    assert fields.basic_constraints == (True, 3)
    assert fields.key_usage == ("digitalSignature", "keyCertSign", "decipherOnly")
    assert fields.extended_key_usage == (CLIENT_AUTH,)
    assert fields.extension(SAN) is None


def test_what_is_not_there() -> None:
    fields = certificate_fields(certificate(KEY))
    assert (fields.basic_constraints, fields.key_usage, fields.extended_key_usage) == (None, None, None)


def test_cut_at_every_byte() -> None:
    for at in range(len(WHOLE)):
        with pytest.raises(WireError):
            certificate_fields(WHOLE[:at])
    with pytest.raises(WireError):
        certificate_fields(WHOLE + b"\0")


def test_each_byte_damaged_is_an_error_of_ours_or_none() -> None:
    read = refused = 0
    for at in range(len(WHOLE)):
        for value in (0, 0xFF, WHOLE[at] ^ 0x20):
            damaged = WHOLE[:at] + bytes((value,)) + WHOLE[at + 1 :]
            try:
                fields = certificate_fields(damaged)
                _ = fields.basic_constraints, fields.key_usage, fields.extended_key_usage
            except WireError:
                refused += 1
            else:
                read += 1
    assert min(read, refused) > 100


@pytest.mark.parametrize(
    ("value", "expected"),
    [(CA, (True, None)), (CA_OF_ONE, (True, None)), (FALSE_IN_FULL, (False, None)), (sequence(), (False, None))],
)
def test_basic_constraints_in_every_form(value: bytes, expected: tuple[bool, int | None]) -> None:
    odd = extension(SAN, X400_NAME)
    assert certificate_fields(certificate(KEY, odd, extension(BASIC, value))).basic_constraints == expected


@pytest.mark.parametrize(
    "value", [b"", b"\x05\0", sequence(b"\x05\0"), sequence(b"\x02\x01\0", b"\x01\x01\xff"), CA + CA]
)
def test_basic_constraints_that_are_none(value: bytes) -> None:
    with pytest.raises(Malformed):
        _ = certificate_fields(certificate(KEY, extension(BASIC, value))).basic_constraints


def test_an_extension_that_stands_twice_is_refused_where_it_is_read() -> None:
    fields = certificate_fields(
        certificate(KEY, extension(BASIC, CA), extension(BASIC, CA), extension(USAGE, CERT_SIGN))
    )
    assert fields.key_usage == ("keyCertSign",)
    with pytest.raises(Malformed, match="twice"):
        _ = fields.basic_constraints


@pytest.mark.parametrize("value", [b"", DIGITAL_SIGNATURE[:-1], encode_element(0x04, b"\x80"), sequence()])
def test_a_key_usage_that_is_none(value: bytes) -> None:
    with pytest.raises(Malformed):
        _ = certificate_fields(certificate(KEY, extension(USAGE, value))).key_usage


def test_why_the_library_cannot_load_it() -> None:
    assert "RFC 5758" in why_unsupported(certificate(KEY, algorithm=ECDSA_WITH_NULL))
    assert why_unsupported(WHOLE) == why_unsupported(b"") == why_unsupported(b"\x30\x80") == ""
