"""Running timers of one session: at most one of each kind, and none after it has closed."""

import asyncio
from collections.abc import Callable
from datetime import datetime

from fleet.servers.gateway.session.phases import Timer

CLOCK_CHECK_SECONDS_MAX = 3600.0  # the wall clock may be set, and a timer of ninety days would not notice


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

    def at(
        self,
        timer: Timer,
        time: datetime,
        clock: Callable[[], datetime],
        callback: Callable[..., object],
        *args: object,
    ) -> None:
        """When `clock` says that `time` has come, at once if it has."""
        left = (time - clock()).total_seconds()
        if left <= 0:
            callback(*args)
        else:
            self.start(timer, min(left, CLOCK_CHECK_SECONDS_MAX), self.at, timer, time, clock, callback, *args)

    def after_silence(
        self, seconds: float, silent: Callable[[], float], callback: Callable[..., object], *args: object
    ) -> None:
        """Timer.KEEP_ALIVE: when `silent`, the seconds since the device was heard, has reached `seconds`."""
        left = seconds - silent()
        if left <= 0:
            callback(*args)
        else:
            self.start(Timer.KEEP_ALIVE, left, self.after_silence, seconds, silent, callback, *args)

    def cancel(self, timer: Timer) -> None:
        if (handle := self.pop(timer, None)) is not None:
            handle.cancel()

    def close(self) -> None:
        """Cancel all; none starts from now on."""
        self._is_closed = True
        for handle in self.values():
            handle.cancel()
