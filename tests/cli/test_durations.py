"""Durations as people write them."""

from datetime import timedelta

import click
import pytest

from fleet.cli.parameters import DURATION, duration_text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("1h", 3600), ("30d", 30 * 86400), ("2w", 14 * 86400), ("1h30m", 5400), (" 1H ", 3600)],
)
def test_read(text: str, seconds: int) -> None:
    assert DURATION.convert(text, None, None) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "1", "h", "-1h", "1.5h", "1 h", "1y", "0s", "0h0m", "9999999999s", "999999999w", "٣h"]
)
def test_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize("text", ["1s", "59m", "1h30m", "30d", "1d1h1m1s"])
def test_written_as_it_is_read(text: str) -> None:
    assert duration_text(DURATION.convert(text, None, None)) == text


def test_below_a_second() -> None:
    assert duration_text(timedelta(milliseconds=5)) == "0s"
