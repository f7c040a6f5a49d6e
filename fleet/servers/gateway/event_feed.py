"""Follows the registry's feed of events, starts again when it breaks, and knows when it can't be relied on.

A gateway whose feed is down does not hear of revocations. It keeps the sessions it has, since every event missed is
heard once the feed is back; but it lets nobody new in after `silence_max` seconds. A feed that is merely stuck is
found out too: every CHECK_SECONDS the newest event is compared with the last one that was heard. When events were
missed for good (they are not kept any more, or the registry was put back to an older state), `missed` is called.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from fleet.domain.changes import Event
from fleet.domain.errors import Unavailable
from fleet.domain.ports import Registry

log = logging.getLogger("fleet.gateway")

RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.1, 5.0
CHECK_SECONDS = 2.0


class EventFollower:
    """One follower. `hear` is awaited for each event in order; one that raises is heard again. `missed` is told that
    anything may have changed.
    """

    def __init__(
        self,
        registry: Registry,
        hear: Callable[[Event], Awaitable[None]],
        silence_max: float,
        missed: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._hear = hear
        self._missed = missed
        self._silence_max = silence_max
        self._started = asyncio.Event()
        self._heard = 0
        self._down_since: float | None = None
        self.failures = 0
        """How often it broke."""

    async def started(self) -> None:
        """Returns once every event from now on will be heard."""
        await self._started.wait()

    def reliable(self) -> bool:
        """Whether an event that is a few seconds old has been heard."""
        if not self._started.is_set():
            return False
        return self._down_since is None or _monotonic() - self._down_since <= self._silence_max

    async def run(self) -> None:
        """Follow until cancelled."""
        delay = RETRY_SECONDS_MIN
        while True:
            try:
                # A read that succeeds says that the registry is there; following alone may be silent for hours.
                newest = await self._registry.last_event()
                if not self._started.is_set():
                    self._heard = newest
                    self._started.set()
                elif newest < self._heard or await self._registry.first_event() > self._heard + 1:
                    log.error("event=feed.missed heard=%d newest=%d", self._heard, newest)
                    self._heard = newest  # before the sessions ask again: what comes from here on is heard
                    self._missed()
                await self._follow(newest)
                delay = RETRY_SECONDS_MIN
            except Unavailable as error:  # an outage: it is told again and again, and a traceback tells no more
                self._broke()
                log.error("event=feed.broken heard=%d reason=%s", self._heard, error.message)
            except Exception:
                self._broke()
                log.exception("event=feed.broken heard=%d", self._heard)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_SECONDS_MAX)

    async def _follow(self, newest: int) -> None:
        """Hear events until the feed ends or is stuck. Raises: what the registry or `hear` raises."""
        if self._heard == newest:
            self._is_back()
        following = asyncio.create_task(self._hear_all())
        try:
            while not following.done():
                await asyncio.wait((following,), timeout=CHECK_SECONDS)
                behind = self._heard
                newest = await self._registry.last_event()
                if behind == newest:
                    self._is_back()
                elif behind > newest:
                    break  # the registry was put back
                elif not following.done():
                    # Events take a moment; only one that is not heard by the next look is missing.
                    await asyncio.wait((following,), timeout=CHECK_SECONDS)
                    if self._heard == behind:
                        break
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
        self._broke()
        log.error("event=feed.stuck heard=%d newest=%d", self._heard, newest)

    async def _hear_all(self) -> None:
        async for event in self._registry.follow(self._heard):
            await self._hear(event)
            self._heard = event.seq

    def _is_back(self) -> None:
        if self._down_since is not None:
            log.warning("event=feed.back heard=%d", self._heard)
        self._down_since = None

    def _broke(self) -> None:
        self.failures += 1
        if self._down_since is None:
            self._down_since = _monotonic()


def _monotonic() -> float:
    return asyncio.get_running_loop().time()
