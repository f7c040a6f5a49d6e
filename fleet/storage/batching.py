"""From the event loop to a database thread and back, as few times as possible.

aiosqlite gives every connection its own thread and makes one trip for each statement. A trip costs more than most
statements, so here a whole batch is one trip: `Thread.run` takes a plain function, and `Batches` gathers whatever has
been asked until that trip can begin.
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
QUIET_TURNS = 4  # that bring nothing more: whoever else is coming waits for something slower than we do


class Thread(aiosqlite.Connection):
    """An aiosqlite connection that can run a whole function over the sqlite3 connection in its thread."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        # A process that is told to end ends, even when nobody closed this: what was not committed was not promised.
        self._thread.daemon = True

    async def start(self) -> None:
        """Start the thread and connect. When that fails, the thread has ended by the time the error is raised."""
        try:
            await self
        except BaseException:
            # aiosqlite tells it to stop but does not wait: it would report to an event loop that may be gone by then.
            self._thread.join()
            raise

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(sqlite3 connection, *arguments)`, in one trip. It finishes even when the caller is cancelled."""
        answer: T = await self._execute(function, self._conn, *arguments)  # type: ignore[no-untyped-call]
        return answer


Take = Callable[[], Sequence[Item]]
"""What waits at this moment, and is to be done now. To be called once a trip, in whatever thread."""


class Batches(Generic[Item]):
    """A bounded queue in front of a function that does many items in one trip.

    `run` gets a `take`, calls it when it can begin, and answers with one outcome for each item taken, an Exception
    standing for a failure. The later it takes, the more go together: who has to wait for a lock takes behind it. While
    one trip is under way, the next batch gathers.
    """

    def __init__(
        self, run: Callable[[Take[Item]], Awaitable[Sequence[Any]]], batch_max: int, under_way_max: int
    ) -> None:
        self._run = run
        self._batch_max = batch_max
        self._queue: deque[tuple[Item, asyncio.Future[Any]]] = deque()  # appended to here, emptied in run's thread
        self._room = asyncio.Semaphore(under_way_max)
        self._coming = 0  # those who wait for room
        self._stirred = asyncio.Event()
        self._closed = False
        self._pump = asyncio.create_task(self._pump_batches())

    async def put(self, item: Item) -> Any:
        """The outcome of `item`; waits first until few enough are waiting or under way.

        Raises: Unavailable (`registry-closed`); and what the outcome was, if that is an exception.
        """
        if self._closed:
            raise closed()
        self._coming += 1
        try:
            await self._room.acquire()
        finally:
            self._coming -= 1
            self._stirred.set()
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((item, outcome))
        return await outcome

    async def close(self) -> None:
        """Serve everything that has been put, then stop. Safe to call twice."""
        self._closed = True
        self._stirred.set()
        await self._pump

    async def _pump_batches(self) -> None:
        while self._queue or self._coming or not self._closed:
            await self._stirred.wait()
            self._stirred.clear()
            while self._queue:
                await self._let_gather()
                await self._make_trip()

    async def _let_gather(self) -> None:
        """Turn the event loop while that brings in more items, so that one trip serves them all.

        A trip has its price whatever it carries. A lone item waits for a few empty turns, some 20 microseconds; in a
        storm dozens share what each would otherwise pay alone.
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

    async def _make_trip(self) -> None:
        batch: list[tuple[Item, asyncio.Future[Any]]] = []
        gone = 0

        def take() -> Sequence[Item]:
            nonlocal gone
            while self._queue and len(batch) < self._batch_max:
                waiting = self._queue.popleft()
                if waiting[1].done():  # its caller has been cancelled before the trip began
                    gone += 1
                else:
                    batch.append(waiting)
            return [item for item, _ in batch]

        try:
            outcomes = await self._run(take)
        except Exception as error:
            if not batch:  # it could not even begin: then those who wait now have waited for this
                take()
            outcomes = [error] * len(batch)
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        for _ in range(len(batch) + gone):
            self._room.release()


def closed() -> Unavailable:
    return Unavailable("registry-closed", "The registry has been closed.")
