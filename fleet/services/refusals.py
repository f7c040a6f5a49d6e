"""Rate limit for audit rows of repeated events that change nothing, refusals above all: one row a minute for each kind,
with the number of suppressed ones.

A client without credentials can be refused as often as a link carries it; each row costs an fsync and is kept. Logs and
counters have every refusal; the audit needs the fact, the source and the time.
"""

from collections import Counter, OrderedDict
from datetime import datetime, timedelta
from weakref import WeakKeyDictionary

from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.changes import AuditEntry, Change
from fleet.domain.errors import FleetError, Unavailable
from fleet.domain.peer import Peer, network_of
from fleet.domain.ports import Registry
from fleet.services.identity import NOBODY, audit_actor_of

ROW_EVERY = timedelta(minutes=1)
KINDS_MAX = 4096  # remembered at once; beyond that, those of the actor with most give way to others
ANYWHERE = "anywhere"

_Kind = tuple[str, str, str, str]


class _Written(Struct):
    at: datetime
    left_out: int = 0


class Refusals:
    """Kinds recorded lately. Unauthenticated clients are grouped by network, devices by name."""

    def __init__(self, kinds_max: int = KINDS_MAX) -> None:
        self._kinds_max = kinds_max
        self._written: OrderedDict[_Kind, _Written] = OrderedDict()  # the longest since first
        self._held: Counter[str] = Counter()  # kinds by actor

    def row(self, entry: AuditEntry) -> AuditEntry | None:
        """`entry` as it is to be written, or None when one of its kind was written within the last minute.

        Its detail `left_out` is the number of entries suppressed since the one before it.
        """
        kind = self._kind(entry)
        known = self._written.get(kind)
        if known is not None and abs(entry.at - known.at) < ROW_EVERY:
            known.left_out += 1
            return None
        if known is None:
            self._held[_holder(kind)] += 1
        self._written[kind] = _Written(entry.at)
        self._written.move_to_end(kind)
        if known is None or not known.left_out:
            return entry
        return replace(entry, detail={**entry.detail, "left_out": str(known.left_out)})

    def _kind(self, entry: AuditEntry) -> _Kind:
        source = network_of(entry.address) if entry.actor == NOBODY else ""
        # Repeated successes are grouped by device: each had to authenticate first. A refused client can make up names.
        source = entry.subject if entry.outcome == "ok" else source
        kind = (entry.actor, entry.action, entry.outcome, source)
        if kind in self._written or len(self._written) < self._kinds_max:
            return kind
        oldest, written = next(iter(self._written.items()))
        if abs(entry.at - written.at) >= ROW_EVERY:
            self._forget(oldest)
            return kind
        if self._make_room(entry.actor):
            return kind
        # All are recent: a client with many addresses must not get a row for each of them.
        return (entry.actor.partition(" ")[0], entry.action, entry.outcome, ANYWHERE)

    def _make_room(self, actor: str) -> bool:
        """Forget the oldest kind of the actor with most of them, unless that is `actor` or has hardly more. All
        unauthenticated clients are one actor.
        """
        most = max((each for each in self._held if each != ANYWHERE), key=self._held.__getitem__, default=actor)
        if self._held[most] <= self._held[actor] + 1:
            return False
        self._forget(next(kind for kind in self._written if _holder(kind) == most))
        return True

    def _forget(self, kind: _Kind) -> None:
        del self._written[kind]
        holder = _holder(kind)
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]


def _holder(kind: _Kind) -> str:
    """Whose share of the memory `kind` takes. Kinds of anywhere are few, and nobody's to give."""
    actor, _, _, source = kind
    return ANYWHERE if source == ANYWHERE else actor


_OF_REGISTRY: WeakKeyDictionary[Registry, Refusals] = WeakKeyDictionary()


def refusals_of(registry: Registry) -> Refusals:
    """The instance for `registry`, one in each process."""
    return _OF_REGISTRY.setdefault(registry, Refusals())


async def audit_refusal(
    registry: Registry, peer: Peer, now: datetime, action: str, subject: str, refusal: FleetError
) -> None:
    """Audit a refusal, at most one row a minute for repeated ones. It is answered whether or not its row could be
    written: Unavailable must not hide it.
    """
    try:
        actor, detail = await audit_actor_of(registry, peer)
        entry = AuditEntry(now, actor, action, subject, refusal.code, peer.address, detail)
        row = refusals_of(registry).row(entry)
        if row is not None:
            await registry.commit(Change(row))
    except Unavailable as error:
        refusal.add_note(f"The audit row could not be written: {error.message}")
