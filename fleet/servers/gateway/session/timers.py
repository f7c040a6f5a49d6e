"""Running timers of one session: at most one of each kind, and none after it has closed."""

import asyncio
from collections.abc import Callable

from fleet.servers.gateway.session.phases import Timer


class Timers(dict[Timer, asyncio.TimerHandle]):
    __slots__ = ("_is_closed", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._is_closed = False

    def start(self, timer: Timer, seconds: float, callback: Callable[..., object], *args: object) -> None:
        """In place of one of this kind that runs."""
        self.cancel(timer)
        if not self._is_closed:
            self[timer] = self._loop.call_later(seconds, callback, *args)

    def cancel(self, timer: Timer) -> None:
        if (handle := self.pop(timer, None)) is not None:
            handle.cancel()

    def close(self) -> None:
        """Cancel all; none starts from now on."""
        self._is_closed = True
        for handle in self.values():
            handle.cancel()
