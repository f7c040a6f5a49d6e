"""An event loop whose clock jumps to the next timer instead of waiting: hours of retries take no time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar


class _Jumping(selectors.DefaultSelector):
    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("Everything waits, and no timer is set.")
            self.now += max(timeout, 0.0)
        return ready


class SimulatedTime(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    def advance(self, seconds: float) -> None:
        """As if what runs now took this long."""
        self._clock.now += seconds


T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=SimulatedTime) as runner:
        return runner.run(main)
