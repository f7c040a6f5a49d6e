"""Notices that a turn of the event loop came late, and has what devices sent meanwhile wait for the registry's events.

    late = LateTurns(follower.caught_up, spawn)
    late.start()
    if monotonic() > late.fresh_until:
        late.after(act)     # once every event has been received that is committed by now

While a process was stopped, had no processor, or took long for one turn, a device may have been revoked: messages that
it has sent since lie in the socket's buffer, and the loop may come to them before it comes to the event.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from math import inf
from time import monotonic

from fleet.domain.errors import Unavailable

TICK_SECONDS = 0.05
LATE_SECONDS = 0.05  # for a tick; 32 handshakes in one turn take less
WAIT_SECONDS_MAX = 2.0  # for the registry: then sessions go on, as they do while its feed is down


class LateTurns:
    """`fresh_until` is compared for each read: with the clock itself, as the loop's time is that of its last poll."""

    def __init__(
        self,
        caught_up: Callable[[], Awaitable[None]],
        spawn: Callable[[Coroutine[object, object, None]], None],
    ) -> None:
        """`caught_up` returns once every event that is committed by now has been received; or raises Unavailable."""
        self._caught_up = caught_up
        self._spawn = spawn
        self.fresh_until = inf
        """When read data is to wait, in seconds of `monotonic`: any time before `start`, none while it is looked."""
        self._late_at = inf
        self._is_late = self._is_looking = False
        self._waiting: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From now on until `stop`."""
        self._late_at = inf
        self._tick()

    def stop(self) -> None:
        """Nothing is late any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.fresh_until = self._late_at = inf

    def after(self, act: Callable[[], None]) -> None:
        """Call `act` once every event has been received that is committed by now."""
        self._waiting.append(act)
        self._look()

    def _tick(self) -> None:
        now = monotonic()
        was_late = now > self._late_at
        self._late_at = now + TICK_SECONDS + LATE_SECONDS
        if was_late:
            self._look()
        elif not self._is_looking:
            self.fresh_until = self._late_at
        self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _look(self) -> None:
        self._is_late = True
        self.fresh_until = -inf
        if not self._is_looking:
            self._is_looking = True
            self._spawn(self._catch_up())

    async def _catch_up(self) -> None:
        try:
            while self._is_late:
                # What begins to wait from here on waits for the next round: the registry is read before that.
                waiting, self._waiting, self._is_late = self._waiting, [], False
                with suppress(Unavailable, TimeoutError):
                    async with asyncio.timeout(WAIT_SECONDS_MAX):
                        await self._caught_up()
                for act in waiting:
                    act()
        finally:
            self._is_looking = False
            self.fresh_until = self._late_at
