"""Filters of approval requests: the language of device filters with keys of their own."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import pytest

from fleet.domain.approval import RequestFilter, RequestState
from fleet.domain.errors import Invalid
from fleet.domain.request_filter import RequestSelection, parse_request_filter

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TEXT = 'model=cam2 and address=198.51.100.0/24 and expires<12h and state=approved and device="cam-7"'


def test_every_key() -> None:
    where = RequestFilter(RequestState.APPROVED, "cam2", "cam-7")
    expected = RequestSelection(where, ip_network("198.51.100.0/24"), NOW + timedelta(hours=12))
    assert parse_request_filter(TEXT, NOW) == expected
    assert parse_request_filter("model=cam2", NOW).where.state is RequestState.PENDING


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected model, state, device, address or expires"),
        ("lot=L7", "position 1: expected model, state, device, address or expires"),
        ("state=active", "States are pending, approved, denied, issued"),
        ("address=198.51.100.1/24", "is not an address or a network"),
        ("address=x", "is not an address or a network"),
        ("device=a/b", "position 8"),
        ("model=a model=b", "expected 'and'"),
        ("x" * 5000, "at most"),
    ],
)
def test_refused_with_the_place(text: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_request_filter(text, NOW)
    assert says in f"{caught.value.message} {caught.value.advice}"


def test_cut_anywhere_it_is_read_or_refused() -> None:
    for end in range(len(TEXT)):
        with suppress(Invalid):
            parse_request_filter(TEXT[:end], NOW)


@pytest.mark.parametrize(
    ("network", "address", "is_within"),
    [
        ("198.51.100.0/24", "198.51.100.9", True),
        ("198.51.100.0/24", "::ffff:198.51.100.9", True),
        ("198.51.100.0/24", "198.51.101.9", False),
        ("198.51.100.0/24", "2001:db8::1", False),
        ("2001:db8::/32", "2001:db8:1::1%eth0", True),
        ("2001:db8::/32", "192.0.2.1", False),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "", False),
    ],
)
def test_addresses(network: str, address: str, is_within: bool) -> None:
    selection = parse_request_filter(f"address={network}", NOW)
    assert selection.takes(address, NOW) is is_within


def test_what_ends_soon() -> None:
    selection = parse_request_filter("expires<1h", NOW)
    assert selection.takes("192.0.2.1", NOW + timedelta(minutes=59))
    assert not selection.takes("192.0.2.1", NOW + timedelta(hours=1))
