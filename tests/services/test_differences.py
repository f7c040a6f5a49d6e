"""Before and after: only what differs, in words short enough for the audit."""

from datetime import timedelta

import pytest

from fleet.services.differences import TEXT_MAX, differences


def test_only_fields_that_differ() -> None:
    told = differences({"a": 1, "b": True, "c": ("x",)}, {"a": 1, "b": False, "c": ("x", "y")})
    assert told == {"before": "b=yes; c=x", "after": "b=no; c=x y"}


def test_nothing_when_nothing_does() -> None:
    assert differences({"a": 1}, {"a": 1}) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (timedelta(days=1), "86400s"),
        (("EC-P256", "Ed25519"), "EC-P256 Ed25519"),
        ((), ""),
        (None, ""),
        (True, "yes"),
        ("active", "active"),
    ],
)
def test_in_words(value: object, text: str) -> None:
    assert differences({"x": "before"}, {"x": value}) == {"before": "x=before", "after": f"x={text}"}


def test_a_long_one_is_cut() -> None:
    told = differences({"x": ""}, {"x": "y" * 10_000})
    assert len(told["after"]) == TEXT_MAX
    assert told["after"].endswith("y…")
