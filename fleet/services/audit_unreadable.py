"""A request for a certificate that could not be read, or whose key or signature is no good: refused at the door.

No right has been looked at by then, so the row names who presented a certificate, and else the address; and it costs
the sender nothing, so what comes again and again fills one row a minute.
"""

from contextlib import suppress
from datetime import datetime

from fleet.domain.changes import AuditEntry, Change
from fleet.domain.errors import Unavailable
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.services.identity import shown_by
from fleet.services.refusals import refusals_of


async def record_unread(registry: Registry, peer: Peer, action: str, code: str, now: datetime) -> None:
    """Write down that a request of `peer` for `action` was refused with `code`. The refusal stands, row or not."""
    with suppress(Unavailable):
        actor, detail = await shown_by(registry, peer)
        entry = AuditEntry(now, actor, action, "device ?", code, peer.address, detail)
        row = refusals_of(registry).row(entry)
        if row is not None:
            await registry.commit(Change(row))
