"""Trimming of the revocation journal where retention deletes no events.

Trimming the journal up to an event never readmits a device: a backup older than that event is then refused with it.
What remains keeps backups usable: everything younger than KEPT, and everything from the first entry on whose holder has
a certificate that was ended early and has not expired.
"""

import asyncio
from datetime import datetime, timedelta

from fleet.domain.credential import USABLE
from fleet.domain.ports import Registry
from fleet.storage.journals.event_marks import EventMarks
from fleet.storage.journals.revocations import RevocationJournal, read_segments

KEPT = timedelta(days=90)  # the default retention of events
HOLDERS_AT_ONCE = 10_000  # looked up in one run; the rest follows the next day


async def trim_spent(
    registry: Registry, log: RevocationJournal, marks: EventMarks, *, noted: int, now: datetime
) -> int:
    """Trim spent entries from `log`; the event through which it was trimmed, or 0.

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
