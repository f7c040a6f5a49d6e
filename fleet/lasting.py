"""Work that lasts as long as what it serves: a task that somebody watches, and that has ended when the block has.

async with lasting(keep_noting(registry, log), "the log of revocations") as task: …
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

AGAIN_SECONDS = 0.2


@asynccontextmanager
async def lasting(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
    """While the block runs, the task that does `work`, for whoever watches it. At the end of the block it is cancelled
    and has ended; what it died of is for its watcher, and is not raised here.
    """
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        while not task.done():  # a driver may swallow a cancellation
            task.cancel()
            await asyncio.wait((task,), timeout=AGAIN_SECONDS)
        if not task.cancelled():
            task.exception()  # looked at, should nobody have watched
