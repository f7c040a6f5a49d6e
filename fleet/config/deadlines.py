"""Deadlines of many entries, for each as long: the oldest is due next, and one timer of the event loop serves all."""

import asyncio
from collections.abc import Callable
from itertools import takewhile
from typing import TypeVar

T = TypeVar("T")


class Deadlines(dict[T, float]):
    """Entries with the loop's time at which they are due, in that order. `on_due` has to `leave`."""

    __slots__ = ("_loop", "_on_due", "_seconds", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, on_due: Callable[[T], object]) -> None:
        super().__init__()
        self._loop, self._seconds, self._on_due = loop, seconds, on_due
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, entry: T) -> None:
        """Its time begins now."""
        self.pop(entry, None)
        self[entry] = self._loop.time() + self._seconds
        self._arm()

    def leave(self, entry: T) -> bool:
        """Whether it was there."""
        return self.pop(entry, None) is not None

    def age(self, entry: T) -> float:
        """Seconds since it entered."""
        return self._loop.time() - (self[entry] - self._seconds)

    def oldest(self) -> T | None:
        return next(iter(self), None)

    def stop(self) -> None:
        """Forget all entries, and stop the timer."""
        self.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is None and self:
            self._timer = self._loop.call_at(next(iter(self.values())), self._run)

    def _run(self) -> None:
        self._timer = None
        now = self._loop.time()
        for entry, _ in list(takewhile(lambda item: item[1] <= now, self.items())):
            self._on_due(entry)
        self._arm()
