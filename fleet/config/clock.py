"""The clock: read at entry points, and passed on."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the current time, aware, in UTC."""


def utc_now() -> datetime:
    """Current UTC time."""
    return datetime.now(UTC)
