"""Job: rows of repeated refusals that were left out are written within seconds of the end of their minute.

async with counting_refusals(registry, clock=clock): ...
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fleet.config.clock import Clock
from fleet.domain.ports import Registry
from fleet.runtime.background import background
from fleet.services.refusal_rows import END_SECONDS_MAX, write_due

EVERY_SECONDS = 5.0


@asynccontextmanager
async def counting_refusals(registry: Registry, *, clock: Clock) -> AsyncIterator[None]:
    """Run the job while the block runs, and write all of them at its end. Each process counts its own."""
    try:
        async with background(count_periodically(registry, clock), "refusal counts"):
            yield
    finally:
        with suppress(TimeoutError):  # shutdown must not wait longer
            async with asyncio.timeout(END_SECONDS_MAX):
                await write_due(registry, clock(), at_once=True)


async def count_periodically(registry: Registry, clock: Clock, *, every_seconds: float = EVERY_SECONDS) -> None:
    """Until cancelled."""
    while True:
        await asyncio.sleep(every_seconds)
        await write_due(registry, clock())
