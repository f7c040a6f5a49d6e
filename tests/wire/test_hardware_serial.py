"""Hardware serials as X.520's caseIgnoreMatch compares them."""

import pytest

from fleet.wire.hardware_serial import comparable


@pytest.mark.parametrize(
    ("written", "compared"),
    [("", ""), ("   ", ""), ("SN-1", "sn-1"), ("  sn-1 ", "sn-1"), ("A   b  C", "a b c"), ("A b", "a b"), ("Ab", "ab")],
)
def test_case_and_spaces_do_not_count(written: str, compared: str) -> None:
    assert comparable(written) == compared == comparable(compared)
