"""Waiting for what must happen."""

import asyncio
import subprocess
import time
from collections.abc import Callable
from typing import Any

PATIENCE_SECONDS = 240
"""A deadline for it, far beyond what it takes."""
TURNS = 1000


async def until(
    condition: Callable[[], object], process: "asyncio.subprocess.Process | subprocess.Popen[Any] | None" = None
) -> None:
    """Returns when `condition()` holds: for what another task, thread or process does without an event.

    It fails at once where `process`, without which it never will, has ended.
    """
    async with asyncio.timeout(PATIENCE_SECONDS):
        turn = 0
        while not condition():
            ended = (
                process.returncode if isinstance(process, asyncio.subprocess.Process) else process and process.poll()
            )
            assert ended is None, f"the program has ended with {ended}"
            await asyncio.sleep(0 if turn < TURNS else 0.005)  # every other task gets its turn
            turn += 1


def wait_until(
    condition: Callable[[], object], what: str = "", process: "subprocess.Popen[Any] | None" = None
) -> float:
    """As `until`, in a thread without an event loop: the seconds that it took. `what`: the failure."""
    began = time.monotonic()
    while not condition():
        ended = process.poll() if process else None
        assert ended is None, f"{what}: the program has ended with {ended}"
        assert time.monotonic() - began < PATIENCE_SECONDS, what
        time.sleep(0.05)
    return time.monotonic() - began
