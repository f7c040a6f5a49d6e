"""Manufacturers' CAs in odd forms: taken, or refused with the true cause, and never a traceback."""

from datetime import UTC, datetime

import pytest

from fleet.ca.keys import generate_key
from fleet.ca.trust_anchor import read_trust_anchor
from fleet.domain.errors import Invalid
from fleet.wire import armor
from tests.odd_certificates import (
    BASIC,
    CA,
    CA_OF_ONE,
    CERT_SIGN,
    DIGITAL_SIGNATURE,
    ECDSA_WITH_NULL,
    FALSE_IN_FULL,
    SAN,
    USAGE,
    X400_NAME,
    certificate,
    extension,
    name,
)

KEY = generate_key()
NOW = datetime(2026, 6, 1, tzinfo=UTC)
SIGNS = extension(USAGE, CERT_SIGN)


@pytest.mark.parametrize(
    "data",
    [
        certificate(KEY, extension(BASIC, CA_OF_ONE), SIGNS),
        certificate(KEY, extension(BASIC, CA), SIGNS, extension(SAN, X400_NAME)),
        certificate(KEY, extension(BASIC, CA)),
    ],
    ids=["TRUE of BER", "a name that is not read", "no key usage"],
)
def test_taken(data: bytes) -> None:
    assert read_trust_anchor(data, (), NOW).serial_number == 7


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (certificate(KEY, extension(BASIC, CA), SIGNS, algorithm=ECDSA_WITH_NULL), "ECDSA, has parameters"),
        (certificate(KEY, extension(BASIC, CA), SIGNS, subject=name(b"M\xfcnchen", 0x14)), "subject can't be read"),
        (certificate(KEY, extension(BASIC, CA), SIGNS, begins=b"00000101000000Z"), "validity can't be read"),
        (certificate(KEY, extension(BASIC, b""), SIGNS), "ends in the middle"),
        (certificate(KEY, extension(BASIC, FALSE_IN_FULL), SIGNS), "is no CA"),
        (certificate(KEY, SIGNS), "no basic constraints"),
        (certificate(KEY, extension(BASIC, CA), extension(USAGE, DIGITAL_SIGNATURE)), "may not sign"),
    ],
    ids=["NULL", "Latin-1", "year 0", "no octets", "cA FALSE", "no constraints", "usage"],
)
@pytest.mark.parametrize("is_pem", [False, True])
def test_refused_with_the_cause(data: bytes, cause: str, is_pem: bool) -> None:
    pem = b"-----BEGIN CERTIFICATE-----\n" + armor.lines(data) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(Invalid, match=cause) as refused:
        read_trust_anchor(pem if is_pem else data, (), NOW)
    assert refused.value.code == "bad-anchor"


def test_what_is_wrong_with_the_file_is_said() -> None:
    good = certificate(KEY, extension(BASIC, CA), SIGNS)
    for data, cause in ((good + b"\n", "has bytes after its end"), (good[:-1], "cut off"), (b"", "empty")):
        with pytest.raises(Invalid, match=cause) as refused:
            read_trust_anchor(data, (), NOW)
        assert refused.value.code == "bad-anchor"
