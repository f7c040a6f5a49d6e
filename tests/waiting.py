"""Waiting for what must happen."""

import asyncio
import time
from collections.abc import Callable

PATIENCE_SECONDS = 240
"""A deadline for it, far beyond what it takes."""
TURNS = 1000


async def until(condition: Callable[[], object]) -> None:
    """Returns when `condition()` holds: for what another task, thread or process does without an event."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        turn = 0
        while not condition():
            await asyncio.sleep(0 if turn < TURNS else 0.005)  # every other task gets its turn
            turn += 1


def wait_until(condition: Callable[[], object], what: str = "") -> float:
    """As `until`, in a thread without an event loop: the seconds that it took. `what`: the failure."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE_SECONDS, what
        time.sleep(0.05)
    return time.monotonic() - began
