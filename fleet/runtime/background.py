"""Background tasks bound to a block: observable while it runs, ended when it ends.

async with background(seal_every_second(...), "audit sealing") as task: ...
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from fleet.config.logs import FailureLog
from fleet.domain.errors import FleetError
from fleet.domain.ports import Registry

T = TypeVar("T")

AGAIN_SECONDS = 0.2
RETRY_SECONDS = 5.0


async def repeated(attempt: Callable[[], Awaitable[None]], on_failure: Callable[[FleetError | OSError], None]) -> None:
    """Await `attempt()`, and again RETRY_SECONDS after it has ended or failed, until cancelled."""
    while True:
        try:
            await attempt()
        except (FleetError, OSError) as error:
            on_failure(error)
        await asyncio.sleep(RETRY_SECONDS)


Follow = Callable[[int], Awaitable[None]]
"""Follows the registry's events after the one of that number."""


async def mirrored(
    registry: Registry,
    opened: Callable[[], AbstractAsyncContextManager[T]],
    compared: Callable[[T], Awaitable[Follow]],
    failures: FailureLog,
) -> None:
    """Keep a broker up to date with the registry until cancelled: over a connection of `opened`, compare the whole,
    then follow what has changed since. A broker or registry that fails is logged, and tried again.
    """

    async def attempt() -> None:
        async with opened() as connection:
            newest = await registry.last_event()  # first: what changes meanwhile is seen again
            follow = await compared(connection)
            failures.succeeded()
            await follow(newest)

    def report(error: FleetError | OSError) -> None:
        code = error.code if isinstance(error, FleetError) else "cannot-reach"
        failures.failed(outcome="failed", code=code, reason=error)

    await repeated(attempt, report)


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
    """Run `work` as a task while the block runs, then cancel it and wait until it has ended.

    An exception of the task is for the one who awaits it and is not raised here.
    """
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        while not task.done():  # a driver may swallow a cancellation
            task.cancel()
            await asyncio.wait((task,), timeout=AGAIN_SECONDS)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio logs nothing if nobody awaited it
