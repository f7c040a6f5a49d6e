"""Background tasks: exceptions are logged, and all end with their owner."""

import asyncio
import logging
from collections.abc import Coroutine

from fleet.config.logs import log_event

log = logging.getLogger("fleet.gateway")


class Tasks:
    """Those of one owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Run `work` until it ends or `close` cancels it; an exception of it is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    async def ended(self) -> None:
        """Returns when those started so far have ended."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Cancel all, and wait until they have ended. Safe to call twice."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log_event(log, logging.ERROR, "gateway.failed", exc_info=task.exception())
