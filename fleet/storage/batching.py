"""Batches of work for a database connection: a bounded queue, and the connection's thread.

aiosqlite gives each connection a thread and hands every statement over to it separately. A handover costs more than
most statements, so here a whole batch is one: `Thread.run` takes a function, and `Batches` collects items until it can
run.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import aiosqlite

from fleet.domain.errors import Unavailable

Item = TypeVar("Item")
T = TypeVar("T")


GATHER_TURNS_MAX = 64  # of the event loop, and no longer than
GATHER_SECONDS_MAX = 0.02
QUIET_TURNS = 4  # without a new item: further callers are waiting for something slower than we are


class Thread(aiosqlite.Connection):
    """An aiosqlite connection that can run a whole function over the sqlite3 connection in its thread."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        # The process can exit even when this was not closed: what was not committed was not promised.
        self._thread.daemon = True

    async def start(self) -> None:
        """Start the thread and connect. When that fails, the thread has ended by the time the error is raised."""
        try:
            await self
        except BaseException:
            # aiosqlite stops it but does not wait: it would report to an event loop that may be closed by then.
            self._thread.join()
            raise

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(sqlite3 connection, *arguments)`, run in the thread; cancelling the caller does not stop it."""
        answer: T = await self._execute(function, self._conn, *arguments)  # type: ignore[no-untyped-call]
        return answer


Take = Callable[[], Sequence[Item]]
"""Removes the waiting items from the queue. Called once for each batch, from any thread."""


class Batches(Generic[Item]):
    """A bounded queue in front of a function that handles many items at once.

    `run` is given a `take`, calls it when it can begin, and returns one outcome for each item taken; an Exception is a
    failure. The later it takes, the larger the batch: a function that needs a lock takes once it holds the lock. While
    one batch runs, the next one is collected.
    """

    def __init__(
        self, run: Callable[[Take[Item]], Awaitable[Sequence[Any]]], batch_max: int, under_way_max: int
    ) -> None:
        self._run = run
        self._batch_max = batch_max
        self._queue: deque[tuple[Item, asyncio.Future[Any]]] = deque()  # appended to here, emptied in run's thread
        self._under_way, self._under_way_max = 0, under_way_max
        self._room = asyncio.Event()  # looked at only when there is none
        self._waiting_for_room = 0
        self._changed = asyncio.Event()
        self._closed = False
        self._pump = asyncio.create_task(self._pump_batches())

    async def put(self, item: Item) -> Any:
        """The outcome of `item`. Waits while `under_way_max` items are queued or running.

        Raises: Unavailable (`registry-closed`); and the outcome, if it is an exception.
        """
        if self._closed:
            raise closed()
        if self._under_way >= self._under_way_max:
            await self._wait_for_room()
        self._under_way += 1
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((item, outcome))
        self._changed.set()
        return await outcome

    async def _wait_for_room(self) -> None:
        self._waiting_for_room += 1
        try:
            while self._under_way >= self._under_way_max:
                self._room.clear()
                await self._room.wait()
        finally:
            self._waiting_for_room -= 1
            self._changed.set()

    async def close(self) -> None:
        """Handle everything that was put, then stop. Idempotent."""
        self._closed = True
        self._changed.set()
        await self._pump

    async def _pump_batches(self) -> None:
        while self._queue or self._waiting_for_room or not self._closed:
            await self._changed.wait()
            self._changed.clear()
            while self._queue:
                await self._collect()
                await self._run_batch()

    async def _collect(self) -> None:
        """Yield to the event loop while that brings more items, so that they share one batch.

        A batch has a fixed cost. A single item waits for a few empty turns, some 20 microseconds; under load dozens
        share a cost that each would otherwise pay alone.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + GATHER_SECONDS_MAX
        known = quiet = 0
        for _ in range(GATHER_TURNS_MAX):
            await asyncio.sleep(0)
            waiting = len(self._queue)
            quiet = 0 if waiting > known else quiet + 1
            known = waiting
            if quiet == QUIET_TURNS or waiting >= self._batch_max or clock() >= deadline:
                return

    async def _run_batch(self) -> None:
        batch: list[tuple[Item, asyncio.Future[Any]]] = []
        cancelled = 0

        def take() -> Sequence[Item]:
            nonlocal cancelled
            while self._queue and len(batch) < self._batch_max:
                waiting = self._queue.popleft()
                if waiting[1].done():  # its caller was cancelled before the batch began
                    cancelled += 1
                else:
                    batch.append(waiting)
            return [item for item, _ in batch]

        try:
            outcomes = await self._run(take)
        except Exception as error:
            if not batch:  # it could not begin: the items that wait now fail with it
                take()
            outcomes = [error] * len(batch)
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        self._under_way -= len(batch) + cancelled
        self._room.set()


def closed() -> Unavailable:
    return Unavailable("registry-closed", "The registry has been closed.")
