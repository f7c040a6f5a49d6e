"""How much of a revocation log nobody needs any more, where the events themselves are not dropped.

A log may forget up to an event without letting anybody back in: a backup from before that event is refused with it from
then on. What is kept is what keeps backups useful: everything younger than KEPT, and everything from the first line on
that tells of a holder with a certificate that has ended before its time and has not expired.
"""

import asyncio
from datetime import datetime, timedelta

from fleet.domain.credential import USABLE
from fleet.domain.ports import Registry
from fleet.storage.journals.event_marks import EventMarks
from fleet.storage.journals.revocations import RevocationLog, read_segments

KEPT = timedelta(days=90)  # as long as events are kept where nothing else is said
HOLDERS_AT_ONCE = 10_000  # looked up in one run: the rest has its turn the next day


async def trim_spent(registry: Registry, log: RevocationLog, marks: EventMarks, *, noted: int, now: datetime) -> int:
    """Have `log` forget what is spent; the event up to which it has, 0 when there was nothing.

    `noted` is the newest event that the log has looked at, `marks` tell when this node saw which event.

    Raises: Unavailable; Invalid, OSError: the log is as it was.
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
    await asyncio.to_thread(log.vouch, noted)  # it trims only what it says that it has seen
    await asyncio.to_thread(log.trim, upto)
    return upto


async def _has_ended_early(registry: Registry, holder: str, now: datetime) -> bool:
    held = await registry.credentials(holder)
    return any(c.state not in USABLE and c.not_after > now for c in held)
