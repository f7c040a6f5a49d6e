"""Seconds by which the age of stored messages is counted. No I/O: both clocks are injected."""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol


class Reading(Protocol):
    """Of the device's clock."""

    @property
    def now(self) -> datetime: ...
    @property
    def is_set(self) -> bool: ...


class SpoolClock:
    """Seconds since 1970, that pass evenly: the device's clock is read at the start, so that a jump of it ages nothing.

    Where it is not set they count from 0: by it nothing is over that an earlier run has left, and what is accepted
    counts as accepted at the first start at which it is set.
    """

    def __init__(self, read: Callable[[], Reading], monotonic: Callable[[], float]) -> None:
        self._read = read
        self._monotonic = monotonic
        self._begin = monotonic()
        self._base = 0.0
        self.is_set = False
        """Whether the device's clock was, at the start."""

    def start(self) -> None:
        """Read the device's clock. Call once, before anything is stored."""
        reading = self._read()
        self._begin, self.is_set = self._monotonic(), reading.is_set
        self._base = reading.now.timestamp() if reading.is_set else 0.0

    def __call__(self) -> float:
        return self._base + self._monotonic() - self._begin
