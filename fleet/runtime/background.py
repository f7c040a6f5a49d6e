"""Background tasks bound to a block: observable while it runs, ended when it ends.

async with background(seal_every_second(...), "audit sealing") as task: ...
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

AGAIN_SECONDS = 0.2


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
