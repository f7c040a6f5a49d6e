"""Follower of the registry's event feed: reconnects, detects a stalled feed, and reports lost events.

While the feed is down no revocations are received. What was decided before remains, since missed events are delivered
once the feed is back; after `silence_seconds_max` it is not `reliable` for new decisions. A stalled feed is detected by
comparing the registry's newest event with the last one received, every CHECK_SECONDS. When events are lost (deleted by
retention, or the registry was restored to an older state), `on_missed` is called.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from fleet.config.logs import log_event
from fleet.domain.changes import Event
from fleet.domain.errors import Unavailable
from fleet.domain.ports import Registry

log = logging.getLogger("fleet.events")

RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.1, 5.0
CHECK_SECONDS = 2.0


class EventFollower:
    """`on_event` is awaited for each event in order, and again for an event for which it raised. After `on_missed`
    anything may have changed.
    """

    def __init__(
        self,
        registry: Registry,
        on_event: Callable[[Event], Awaitable[None]],
        silence_seconds_max: float,
        on_missed: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._on_event = on_event
        self._on_missed = on_missed
        self._silence_seconds_max = silence_seconds_max
        self._started = asyncio.Event()
        self._received = 0
        self._progress = asyncio.Event()
        self._down_since: float | None = None
        self._retry_seconds = RETRY_SECONDS_MIN
        self.failures = 0
        """Number of times that it broke."""

    async def started(self) -> None:
        """Returns once every event from now on will be received."""
        await self._started.wait()

    async def caught_up(self) -> None:
        """Returns once every event that is committed by now has been received. Raises: what the registry raises."""
        newest = await self._registry.last_event()
        while self._received < newest:
            self._progress.clear()
            await self._progress.wait()

    def reliable(self) -> bool:
        """Whether events have been received until `silence_seconds_max` ago or later."""
        if not self._started.is_set():
            return False
        return self._down_since is None or _monotonic() - self._down_since <= self._silence_seconds_max

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                # A successful read proves that the registry is up; following alone may be silent for hours.
                newest = await self._registry.last_event()
                if not self._started.is_set():
                    self._received = newest
                    self._started.set()
                elif newest < self._received or await self._registry.first_event() > self._received + 1:
                    log_event(log, logging.ERROR, "feed.missed", heard=self._received, newest=newest)
                    self._received = newest  # before clients are authenticated again: later events are received
                    self._on_missed()
                    self._progress.set()
                await self._follow(newest)
            except Unavailable as error:  # an outage, logged at each retry: a traceback adds nothing
                self._on_down()
                log_event(log, logging.ERROR, "feed.broken", heard=self._received, reason=error.message)
            except Exception:
                self._on_down()
                log_event(log, logging.ERROR, "feed.broken", exc_info=True, heard=self._received)
            await asyncio.sleep(self._retry_seconds)
            self._retry_seconds = min(self._retry_seconds * 2, RETRY_SECONDS_MAX)

    async def _follow(self, newest: int) -> None:
        """Receive events until the feed ends or stalls. Raises: what the registry or `on_event` raises."""
        if self._received == newest:
            self._on_up()
        following = asyncio.create_task(self._receive_all())
        try:
            while not following.done():
                await asyncio.wait((following,), timeout=CHECK_SECONDS)
                behind = self._received
                newest = await self._registry.last_event()
                if behind == newest:
                    self._on_up()
                elif behind > newest:
                    break  # the registry was restored to an older state
                elif not following.done():
                    # Delivery takes a moment: only an event not received by the next check is missing.
                    await asyncio.wait((following,), timeout=CHECK_SECONDS)
                    if self._received == behind:
                        break
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
        self._on_down()
        log_event(log, logging.ERROR, "feed.stuck", heard=self._received, newest=newest)

    async def _receive_all(self) -> None:
        async for event in self._registry.follow(self._received):
            await self._on_event(event)
            self._received = event.seq
            self._progress.set()

    def _on_up(self) -> None:
        if self._down_since is not None:
            log_event(log, logging.WARNING, "feed.back", heard=self._received)
        self._down_since = None
        self._retry_seconds = RETRY_SECONDS_MIN

    def _on_down(self) -> None:
        self.failures += 1
        if self._down_since is None:
            self._down_since = _monotonic()


def _monotonic() -> float:
    return asyncio.get_running_loop().time()
