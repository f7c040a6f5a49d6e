"""Job: follows the registry's events and keeps the revocation journal complete, once on each node."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from msgspec.structs import replace

from fleet.config.logs import log_event
from fleet.domain.errors import FleetError, Refused
from fleet.domain.ports import Registry
from fleet.runtime.background import background
from fleet.services.revocation_journal import catch_up, record_through
from fleet.storage.journals.revocations import RevocationJournal

logger = logging.getLogger("fleet.revocations")

GATHER_SECONDS = 0.05  # events within it share one append and its fsync: a thousand renewals a second do
RETRY_SECONDS = 5.0


@asynccontextmanager
async def journaling_revocations(registry: Registry, log: RevocationJournal) -> AsyncIterator[asyncio.Task[None]]:
    """Catches up, then runs the job while the block runs; yields its task. Raises: as `catch_up`."""
    await catch_up(registry, log)
    async with background(journal_revocations(registry, log), "the revocation journal") as task:
        yield task


async def journal_revocations(registry: Registry, log: RevocationJournal) -> None:
    """Follow the registry until cancelled; retry after a failure of the registry or the disk.

    Raises: Refused (`registry-went-back`): such a registry must not be served.
    """
    while True:
        try:
            newest = await registry.last_event()
            mark = await asyncio.to_thread(log.mark, newest=newest)
            mark = replace(mark, seen=await record_through(newest, registry, log, mark))
            while True:
                async with aclosing(registry.follow(mark.seen)) as events:
                    await anext(events, None)  # the first one means that there is something to record
                await asyncio.sleep(GATHER_SECONDS)
                newest = await registry.last_event()
                mark = replace(mark, seen=await record_through(newest, registry, log, mark))
        except Refused:
            raise
        except (FleetError, OSError) as error:
            log_event(logger, logging.ERROR, "revocations.not-noted", reason=error)
        await asyncio.sleep(RETRY_SECONDS)
