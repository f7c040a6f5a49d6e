"""Times as RFC 3339 writes them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from fleet.config.timestamps import rfc3339

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("at", "timespec", "text"),
    [
        (NOON, "auto", "2026-03-01T12:00:00Z"),
        (NOON + timedelta(microseconds=1500), "auto", "2026-03-01T12:00:00.001500Z"),
        (NOON + timedelta(microseconds=1500), "milliseconds", "2026-03-01T12:00:00.001Z"),
        (NOON, "microseconds", "2026-03-01T12:00:00.000000Z"),
        (NOON + timedelta(microseconds=1500), "seconds", "2026-03-01T12:00:00Z"),
        (datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2))), "auto", "2026-02-28T23:30:00Z"),
    ],
)
def test_in_utc_to_the_digit_asked_for(at: datetime, timespec: str, text: str) -> None:
    assert rfc3339(at, timespec) == text
