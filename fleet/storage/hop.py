"""From the event loop to a database thread and back, as few times as possible.

aiosqlite gives every connection its own thread and makes one trip for each statement. A trip costs more than most
statements, so here a whole batch is one trip: `Thread.run` takes a plain function, and `Batches` gathers whatever has
been asked while the last trip was under way.
"""

import asyncio
import sqlite3
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


class Batches(Generic[Item]):
    """A bounded queue in front of a function that takes many items in one trip.

    `run` takes the items and answers with one outcome each, an Exception standing for a failure. While one trip is
    under way, the next batch gathers.
    """

    def __init__(
        self, run: Callable[[Sequence[Item]], Awaitable[Sequence[Any]]], batch_max: int, waiting_max: int
    ) -> None:
        self._run = run
        self._batch_max = batch_max
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Any]] | None] = asyncio.Queue(waiting_max)
        self._closed = False
        self._pump = asyncio.create_task(self._pump_batches())

    async def put(self, item: Item) -> Any:
        """The outcome of `item`; waits for room in the queue first.

        Raises: Unavailable (`registry-closed`); and what the outcome was, if that is an exception.
        """
        if self._closed:
            raise closed()
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting = (item, outcome)
        try:
            self._queue.put_nowait(waiting)
        except asyncio.QueueFull:
            await self._queue.put(waiting)
            if self._pump.done():  # closed while we waited for room: nobody will come for it
                raise closed() from None
        return await outcome

    async def close(self) -> None:
        """Serve everything that has been put, then stop. Safe to call twice."""
        if not self._closed:
            self._closed = True
            await self._queue.put(None)
        await self._pump

    async def _pump_batches(self) -> None:
        last = False
        while not last:
            batch = []
            taken = await self._queue.get()
            await self._let_gather()
            while taken is not None:
                if not taken[1].done():  # its caller has been cancelled before the trip began
                    batch.append(taken)
                if len(batch) == self._batch_max or self._queue.empty():
                    break
                taken = self._queue.get_nowait()
            last = taken is None
            if batch:
                await self._serve(batch)
        while not self._queue.empty():  # came in behind the end
            left = self._queue.get_nowait()
            if left is not None and not left[1].done():
                left[1].set_exception(closed())

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
            waiting = self._queue.qsize()
            quiet = 0 if waiting > known else quiet + 1
            known = waiting
            if quiet == QUIET_TURNS or waiting >= self._batch_max or clock() >= deadline:
                return

    async def _serve(self, batch: list[tuple[Item, asyncio.Future[Any]]]) -> None:
        try:
            outcomes = await self._run([item for item, _ in batch])
        except Exception as error:
            outcomes = [error] * len(batch)
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


def closed() -> Unavailable:
    return Unavailable("registry-closed", "The registry has been closed.")
