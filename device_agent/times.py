"""How times are written: for people as the tables of `fleet` do, in the log by RFC 3339; in UTC, to the second."""

from datetime import UTC, datetime


def shown(at: datetime) -> str:
    """For people: 2026-01-31 23:59:59Z."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"


def logged(at: datetime) -> str:
    """For the log, and for programs: 2026-01-31T23:59:59Z."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
