"""Filters as people write them: what each means, where each mistake is, and places that come back as printed."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.domain.device import DeviceFilter, DeviceState, Place
from fleet.domain.device_filter import FILTER_MAX, parse_filter, parse_place, parse_time, place_text
from fleet.domain.errors import Invalid
from fleet.domain.model_rules import ModelKind

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("model=cam2", DeviceFilter(model="cam2")),
        ("  state = suspended\t", DeviceFilter(state=DeviceState.SUSPENDED)),
        ("group=pilot and lot=L7", DeviceFilter(group="pilot", tags=(("lot", "L7"),))),
        ("z=1 and a=2", DeviceFilter(tags=(("a", "2"), ("z", "1")))),
        ("kind=application", DeviceFilter(kind=ModelKind.APPLICATION)),
        ("lot=L7 and kind=device", DeviceFilter(tags=(("lot", "L7"),), kind=ModelKind.DEVICE)),
        ("expires<30d", DeviceFilter(expires_before=NOW + 30 * DAY)),
        ("expires < 2026-12-01", DeviceFilter(expires_before=datetime(2026, 12, 1, tzinfo=UTC))),
        ('site="Köln Süd" and lot="a \\"b\\" \\\\"', DeviceFilter(tags=(("lot", 'a "b" \\'), ("site", "Köln Süd")))),
        ('site="and"', DeviceFilter(tags=(("site", "and"),))),
        ("site=and and lot=x=y", DeviceFilter(tags=(("lot", "x=y"), ("site", "and")))),
        (
            "model=cam2 and lot=L7 and state=active and group=pilot and expires<30d",
            DeviceFilter("cam2", DeviceState.ACTIVE, (("lot", "L7"),), "pilot", NOW + 30 * DAY),
        ),
    ],
)
def test_meaning(text: str, where: DeviceFilter) -> None:
    assert parse_filter(text, NOW) == where


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("", 1, "model, state, group, expires or a tag's key"),
        ("   ", 4, "the filter ends"),
        ("model", 6, "'=' after model"),
        ("model=", 7, "a value for model"),
        ("model=cam2 or lot=L7", 12, "expected 'and', found 'or lot=L7'"),
        ("model=cam2 lot=L7", 12, "expected 'and'"),
        ("model=cam2 and", 15, "the filter ends"),
        ("model=cam2 and and lot=x", 16, "a tag's key"),
        ("model=a and model=b", 13, "model is given twice"),
        ("lot=a and lot=b", 11, "lot is given twice"),
        ("expires=30d", 8, "'<' after expires"),
        ("lot<3", 4, "'=' after lot"),
        ("lot!=3", 4, "'=' after lot"),
        ("expires<soon", 9, "is not a time"),
        ("expires<2026-02-30", 9, "is not a time"),
        ("expires<999999w", 9, "is not a time"),
        ("state=dead", 7, "States are registered, active"),
        ("kind=service", 6, "Kinds are device, application"),
        ("model=a/b", 7, "is not a name for a model"),
        ("lot='L 7'", 5, "a value for lot"),
        ('lot="L7', 5, "a closing quote"),
        ('lot="L7"x', 9, "a space after the closing quote"),
        ('lot=L"7"', 6, "double quotes"),
        ('lot=""', 5, "is not a tag's value"),
        ("id=cam-7", 1, "cannot be a tag's key"),
        ("7up=x", 1, "is not a tag's key"),
        ("model=a and 7up=x", 13, "is not a tag's key"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, position: int, expected: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_filter(text, NOW)
    assert caught.value.code == "bad-filter"
    assert f"position {position}:" in caught.value.message
    assert expected in caught.value.message


def test_a_filter_is_no_document() -> None:
    with pytest.raises(Invalid, match=f"at most {FILTER_MAX}"):
        parse_filter("a=" + "b" * FILTER_MAX, NOW)
    many = " and ".join(f"k{n}=v" for n in range(33))
    with pytest.raises(Invalid, match="names 33 tags"):
        parse_filter(many, NOW)


@given(st.text(alphabet="model=state and<\"\\ 30dlot'", max_size=60))
def test_anything_at_all_is_a_filter_or_an_error_with_a_place(text: str) -> None:
    try:
        meant = parse_filter(text, NOW)
    except Invalid as error:
        meant, said = None, error.message
    # nothing that somebody mistypes means every device
    assert "position" in said if meant is None else meant != DeviceFilter()


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2w", NOW + 14 * DAY),
        ("90m", NOW + timedelta(minutes=90)),
        ("2026-12-01", datetime(2026, 12, 1, tzinfo=UTC)),
        ("2026-12-01T01:00:00+02:00", datetime(2026, 11, 30, 23, tzinfo=UTC)),
    ],
)
def test_time(text: str, at: datetime) -> None:
    assert parse_time(text, NOW) == at


@given(st.integers(0, 10**17).map(lambda n: NOW + timedelta(microseconds=n)))
def test_a_place_comes_back_as_it_was_printed(at: datetime) -> None:
    by_expiry = DeviceFilter(expires_before=NOW)
    assert parse_place(place_text(Place("a:b.c", at)), by_expiry) == Place("a:b.c", at)
    assert parse_place(place_text(Place("a:b.c")), DeviceFilter()) == Place("a:b.c")
    assert parse_place("", by_expiry) == Place()


@pytest.mark.parametrize(
    ("text", "by_expiry"),
    [
        ("cam-7", True),
        ("2026-12-01T00:00:00Z/cam-7", False),
        ("2026-12-01T00:00:00/cam-7", True),
        ("x/cam-7", True),
        ("2026-12-01T00:00:00Z/", True),
        ("a b", False),
    ],
)
def test_a_place_of_another_listing_is_refused(text: str, by_expiry: bool) -> None:
    with pytest.raises(Invalid) as caught:
        parse_place(text, DeviceFilter(expires_before=NOW if by_expiry else None))
    assert caught.value.code == "bad-place"


def test_a_time_is_taken_as_tables_print_it() -> None:
    at = datetime(2026, 11, 30, 12, 5, tzinfo=UTC)
    for text in ("2026-11-30 12:05:00Z", "2026-11-30T12:05:00Z", "2026-11-30 12:05", "2026-11-30 13:05:00+01:00"):
        assert parse_time(text, NOW) == at
