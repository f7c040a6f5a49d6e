"""Notes every end that the registry has told of in the revocation log: what a restore must not undo.

await catch_up(registry, log)                               # a command, when it has done its work
async with noting_revocations(registry, log) as task: …     # what serves, once a node, for as long as it lives
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from fleet.domain.errors import FleetError, Refused
from fleet.domain.ports import Registry
from fleet.lasting import lasting
from fleet.storage.journals.revocations import Mark, RevocationLog

logger = logging.getLogger("fleet.revocations")

BATCH = 1_000
GATHER_SECONDS = 0.05  # what comes within it shares one append and its fsync: a thousand renewals a second do
RETRY_SECONDS = 5.0


async def catch_up(registry: Registry, log: RevocationLog) -> int:
    """Note what the registry has told of and `log` does not have yet; the newest event that was looked at.

    Should events be gone that were not noted, the log says from where on it is complete.

    Raises: Refused (`registry-went-back`): the registry is older than its own log. Invalid, Unavailable, OSError.
    """
    newest = await registry.last_event()
    mark = await asyncio.to_thread(log.mark, newest=newest)
    return await _note_up_to(registry, log, mark.lineage, mark.seen, newest)


async def _note_up_to(registry: Registry, log: RevocationLog, lineage: str, seen: int, newest: int) -> int:
    while seen < newest:
        events = await registry.events(after=seen, limit=BATCH)
        if not events:
            break
        if events[0].seq != seen + 1:
            logger.warning("event=revocations.gap after=%d before=%d", seen, events[0].seq)
            await asyncio.to_thread(log.begin_again, Mark(lineage, events[0].seq - 1))
        await asyncio.to_thread(log.note, events)
        seen = events[-1].seq
    return seen


@asynccontextmanager
async def noting_revocations(registry: Registry, log: RevocationLog) -> AsyncIterator[asyncio.Task[None]]:
    """Caught up, and the task that keeps noting for as long as the block runs.

    Raises: as `catch_up`.
    """
    await catch_up(registry, log)
    async with lasting(keep_noting(registry, log), "the log of revocations") as task:
        yield task


async def keep_noting(registry: Registry, log: RevocationLog) -> None:
    """Follow the registry until cancelled; when it or the disk fails, begin again.

    Raises: Refused (`registry-went-back`): nothing may be served from such a registry.
    """
    while True:
        try:
            newest = await registry.last_event()
            mark = await asyncio.to_thread(log.mark, newest=newest)
            seen = await _note_up_to(registry, log, mark.lineage, mark.seen, newest)
            while True:
                async with aclosing(registry.follow(seen)) as events:
                    await anext(events, None)  # with the first there is something to note
                await asyncio.sleep(GATHER_SECONDS)
                seen = await _note_up_to(registry, log, mark.lineage, seen, await registry.last_event())
        except Refused:
            raise
        except (FleetError, OSError) as error:
            logger.error("event=revocations.not-noted reason=%s", error)
        await asyncio.sleep(RETRY_SECONDS)
