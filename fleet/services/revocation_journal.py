"""Revocation journal: copies every revocation among the registry's events to a log that a restore leaves in place.

await catch_up(registry, log)     # after each command; a server follows the events (`fleet.runtime.jobs`)

A registry that has gone back to an older state, and on from there, lacks events that the journal has: they are written
back to it, as a restore does.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from fleet.config.clock import Clock, utc_now
from fleet.config.logs import log_event
from fleet.domain.access import Act
from fleet.domain.changes import Event
from fleet.domain.credential import USABLE, Credential
from fleet.domain.crl import CrlReason
from fleet.domain.errors import Conflict
from fleet.domain.lease import RETENTION
from fleet.domain.ports import Registry
from fleet.storage.journals.event_marks import EventMarks
from fleet.storage.journals.revocation_reading import read_segments
from fleet.storage.journals.revocations import Mark, RevocationJournal, new_lineage
from fleet.storage.journals.revoked_certificates import RevokedCertificates

if TYPE_CHECKING:
    from fleet.services.restore_revocations import Reapplied

logger = logging.getLogger("fleet.revocations")

BATCH = 1_000
ACTOR = "revocation journal"
KEPT = timedelta(days=90)  # the default retention of events
HOLDERS_AT_ONCE = 10_000  # looked up in one run; the rest follows the next day
_MAY_BE_USABLE = (CrlReason.CERTIFICATE_HOLD, CrlReason.REMOVE_FROM_CRL)
_TRIES_MAX = 4  # another process may be writing the same back


async def catch_up(registry: Registry, log: RevocationJournal, *, clock: Clock = utc_now) -> int:
    """Record the events that `log` lacks, after writing back those that the registry lacks; the sequence number of the
    newest one examined.

    If events were dropped before they were recorded, the log states from which event on it is complete.

    Raises: Refused: `registry-went-back`: the registry is older than its own log; `revocation-log-lost`. Invalid,
    Unavailable, OSError.
    """
    newest = await registry.last_event()
    if newest and not await asyncio.to_thread(log.has_begun):
        archiving = await registry.lease(RETENTION)  # kept when it has ended
        has_archived = archiving is not None and archiving.owner == log.node
        await asyncio.to_thread(log.must_not_be_lost, newest=newest, has_archived=has_archived)
    mark = await asyncio.to_thread(log.mark, newest=newest)
    if await _has_other_events(registry, log):
        await write_back(registry, log, clock())
        newest = await registry.last_event()
        mark = await asyncio.to_thread(log.mark, newest=newest)
    return await record_through(newest, registry, log, mark)


async def has_gone_back(registry: Registry, log: RevocationJournal) -> bool:
    """Whether the registry lacks an event that `log` covers. Raises: Invalid, Unavailable, OSError."""
    covered = await asyncio.to_thread(log.covered)  # read first: the registry is never behind it
    return await registry.last_event() < covered or await _has_other_events(registry, log)


async def _has_other_events(registry: Registry, log: RevocationJournal) -> bool:
    last = await asyncio.to_thread(log.newest_event)
    return last is not None and not await _has(registry, last)


async def _has(registry: Registry, event: Event) -> bool:
    """Whether the registry has `event` under its number; yes also when it does not keep it any more."""
    found = await registry.events(after=event.seq - 1, limit=1)
    return bool(found) and (found[0].seq > event.seq or found[0] == event)


async def write_back(registry: Registry, log: RevocationJournal, now: datetime) -> "Reapplied":
    """Apply to the registry, which has gone back, what `log` has recorded since; then `log` begins a new lineage.

    Raises: Conflict: the registry was changed concurrently, again and again. Invalid, Unavailable, OSError.
    """
    from fleet.services.restore_revocations import list_again, reapply  # a listing at a home does without

    segments = await asyncio.to_thread(read_segments, log.path)
    last = segments[-1]
    common = await _common(registry, last.events)
    # With none in common, it may be from before the last restore.
    missing = last.events[common:] if common else [event for segment in segments for event in segment.events]
    fork = last.events[common - 1].seq if common else last.start
    begun = await registry.last_event()
    act = Act(ACTOR, now)
    listed = await asyncio.to_thread(RevokedCertificates.beside(log.path).read, now)
    for left in reversed(range(_TRIES_MAX)):
        try:
            done = await reapply(registry, missing, act=act, listed=listed)
            break
        except Conflict:
            if not left:
                raise
    await list_again(registry, listed)
    await asyncio.to_thread(log.reset, Mark(new_lineage(), min(fork, begun)))
    counts = {"devices": done.devices, "barred": len(done.barred), "certificates": done.certificates}
    log_event(logger, logging.ERROR, "revocations.written-back", after=fork, **counts)
    return done


async def usable_though_listed(registry: Registry, listed: RevokedCertificates, now: datetime) -> list[Credential]:
    """Certificates that the registry holds for usable, and that CRLs have listed as revoked: it is an older one.

    Raises: Unavailable, OSError.
    """
    entries = await asyncio.to_thread(listed.read, now)
    revoked = [serial for serial, (each, _) in entries.items() if each.reason not in _MAY_BE_USABLE]
    found = [await registry.credential(serial) for serial in revoked]
    return [each for each in found if each is not None and each.state in USABLE]


async def _common(registry: Registry, events: Sequence[Event]) -> int:
    """How many of `events`, in order, the registry has: those before it went back."""
    low, high = 0, len(events)
    while low < high:
        middle = (low + high) // 2
        if await _has(registry, events[middle]):
            low = middle + 1
        else:
            high = middle
    return low


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


async def trim_spent(
    registry: Registry, log: RevocationJournal, marks: EventMarks, *, noted: int, now: datetime
) -> int:
    """Trim spent entries from `log`, where retention deletes no events; the event through which it was trimmed, or 0.

    Trimming the journal up to an event never readmits a device: a backup older than that event is then refused with it.
    What remains keeps backups usable: everything younger than KEPT, and everything from the first entry on whose holder
    has a certificate that was ended early and has not expired.

    `noted` is the newest event recorded, `marks` the times at which this node saw events.

    Raises: Unavailable; Invalid, OSError: the log is unchanged.
    """
    old = min(marks.newest_before(now - KEPT), noted)
    segments = await asyncio.to_thread(read_segments, log.path)
    if not segments or old <= segments[-1].start:
        return 0
    upto = old
    looked_at: set[str] = set()
    for event in segments[-1].events:
        if event.seq > old:
            break
        if event.subject in looked_at:
            continue
        if len(looked_at) == HOLDERS_AT_ONCE or await _has_ended_early(registry, event.subject, now):
            upto = event.seq - 1
            break
        looked_at.add(event.subject)
    if upto <= segments[-1].start:
        return 0
    await asyncio.to_thread(log.record_examined, noted)  # trims only what it has recorded
    await asyncio.to_thread(log.trim, upto)
    return upto


async def _has_ended_early(registry: Registry, holder: str, now: datetime) -> bool:
    held = await registry.credentials(holder)
    return any(c.state not in USABLE and c.not_after > now for c in held)
