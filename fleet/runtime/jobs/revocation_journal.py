"""Job: follows the registry's events and keeps the revocation journal complete, once on each node.

A registry that goes back to an older state meanwhile gets back the revocations that it has lost.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from fleet.config.clock import Clock, utc_now
from fleet.config.logs import log_event
from fleet.domain.changes import Event
from fleet.domain.ports import Registry
from fleet.runtime.background import background, repeated
from fleet.services.revocation_journal import BATCH, catch_up, has_gone_back, record_through, write_back
from fleet.storage.journals.revocations import RevocationJournal, is_revoking

logger = logging.getLogger("fleet.revocations")

GATHER_SECONDS = 0.05  # events within it share one append and its fsync: a thousand renewals a second do
GRANTS_SECONDS = 1.0  # events that end no right wait this long for one: enrollments make nothing else
CHECK_SECONDS = 2.0  # between two looks whether the registry has gone back


@asynccontextmanager
async def journaling_revocations(
    registry: Registry, log: RevocationJournal, *, clock: Clock = utc_now
) -> AsyncIterator[asyncio.Task[None]]:
    """Catches up, then runs the job while the block runs; yields its task. Raises: as `catch_up`."""
    await catch_up(registry, log, clock=clock)
    async with background(journal_revocations(registry, log, clock), "the revocation journal") as task:
        yield task


async def journal_revocations(registry: Registry, log: RevocationJournal, clock: Clock = utc_now) -> None:
    """Follow the registry until cancelled; retry after a failure of the registry or the disk."""

    async def journal() -> None:
        while True:
            await _record_until_gone_back(registry, log, clock)

    await repeated(journal, lambda error: log_event(logger, logging.ERROR, "revocations.not-noted", reason=error))


async def _record_until_gone_back(registry: Registry, log: RevocationJournal, clock: Clock) -> None:
    """Write back what the registry has lost, then record its events until it loses some.

    Raises: FleetError, OSError.
    """
    if await has_gone_back(registry, log):
        await write_back(registry, log, clock())
    newest = await registry.last_event()
    mark = await asyncio.to_thread(log.mark, newest=newest)
    seen = await record_through(newest, registry, log, mark)
    following = asyncio.create_task(_record_after(seen, registry, log))
    try:
        while not (await asyncio.wait((following,), timeout=CHECK_SECONDS))[0]:
            if await has_gone_back(registry, log):
                break
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


async def _record_after(seen: int, registry: Registry, log: RevocationJournal) -> None:
    """Record every event after number `seen`, without end. Raises: FleetError, OSError."""
    async with aclosing(registry.follow(seen)) as events:
        async for event in events:
            await _record_from(event, events, registry, log)


async def _record_from(
    first: Event, following: AsyncGenerator[Event, None], registry: Registry, log: RevocationJournal
) -> None:
    """Record `first` and what follows it: at once when one of the events ends a right, else a moment later."""
    clock = asyncio.get_running_loop().time
    due = clock() + GRANTS_SECONDS
    found, seen, is_urgent = [first], first.seq, is_revoking(first)
    while True:
        await asyncio.sleep(GATHER_SECONDS)
        newest = await registry.last_event()
        while seen < newest:
            event = await anext(following)
            seen, is_urgent = event.seq, is_urgent or is_revoking(event)
            found.append(event)
            if len(found) == BATCH:
                await asyncio.to_thread(log.note, found)
                found = []
        if is_urgent or clock() >= due:
            break
    if found:
        await asyncio.to_thread(log.note, found)
