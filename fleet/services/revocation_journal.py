"""Revocation journal: copies every revocation among the registry's events to a log that a restore leaves in place.

await catch_up(registry, log)     # after each command; a server follows the events (`fleet.runtime.jobs`)
"""

import asyncio
import logging

from fleet.config.logs import log_event
from fleet.domain.ports import Registry
from fleet.storage.journals.revocations import Mark, RevocationJournal

logger = logging.getLogger("fleet.revocations")

BATCH = 1_000


async def catch_up(registry: Registry, log: RevocationJournal) -> int:
    """Record the events that `log` lacks; the sequence number of the newest one examined.

    If events were dropped before they were recorded, the log states from which event on it is complete.

    Raises: Refused (`registry-went-back`): the registry is older than its own log. Invalid, Unavailable, OSError.
    """
    newest = await registry.last_event()
    mark = await asyncio.to_thread(log.mark, newest=newest)
    return await record_through(newest, registry, log, mark)


async def record_through(newest: int, registry: Registry, log: RevocationJournal, mark: Mark) -> int:
    """Record the events after `mark` through `newest`; the sequence number of the last one recorded."""
    seen = mark.seen
    while seen < newest:
        events = await registry.events(after=seen, limit=BATCH)
        if not events:
            break
        if events[0].seq != seen + 1:
            log_event(logger, logging.WARNING, "revocations.gap", after=seen, before=events[0].seq)
            await asyncio.to_thread(log.reset, Mark(mark.lineage, events[0].seq - 1))
        await asyncio.to_thread(log.note, events)
        seen = events[-1].seq
    return seen
