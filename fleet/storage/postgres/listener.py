"""Wakes the followers of the feed: a session that LISTENs for the NOTIFY of every node's commits.

A notification carries no data and may be lost with its session; followers poll as well.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from fleet.config.database_url import DatabaseUrl
from fleet.storage.postgres.session import DRIVER_ERRORS, Session, connect
from fleet.storage.postgres.writer import CHANNEL

RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.1, 5.0


class Listener:
    """Calls `notify` for each notification, and whenever one may have been missed. Runs from `start` to `close`."""

    def __init__(self, url: DatabaseUrl, notify: Callable[[], None]) -> None:
        self._url = url
        self._notify = notify
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        delay = RETRY_SECONDS_MIN
        while True:
            try:
                session = await connect(self._url, "feed")
            except Exception:  # the followers read the feed themselves, and raise the error
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_SECONDS_MAX)
                continue
            delay = RETRY_SECONDS_MIN
            try:
                await self._listen(session)
            finally:
                session.terminate()

    async def _listen(self, session: Session) -> None:
        """Returns when the session has ended."""
        ended = asyncio.Event()
        session.add_termination_listener(lambda _: ended.set())
        with suppress(*DRIVER_ERRORS):
            await session.add_listener(CHANNEL, lambda *_: self._notify())
            self._notify()  # for commits since the last session ended
            await ended.wait()
