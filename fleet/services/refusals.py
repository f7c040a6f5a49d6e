"""Rate limit for audit rows of repeated events that change nothing, refusals above all: one row a minute for each kind,
with the number of suppressed ones.

A client without credentials can be refused as often as a link carries it; each row costs an fsync and is kept. Counters
have every refusal; the audit needs the fact, the source, the time and the number. Rows and their `left_out` add up to
all entries: those suppressed last get a row of their own (`due`) when no further entry of their kind brings one.
"""

from collections import OrderedDict
from datetime import datetime, timedelta
from weakref import WeakKeyDictionary

from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.changes import AuditEntry, Change
from fleet.domain.errors import FleetError, Unavailable
from fleet.domain.peer import Peer, network_of
from fleet.domain.ports import Registry
from fleet.domain.recent import HolderCounts
from fleet.services.identity import NOBODY, audit_actor_of
from fleet.services.last_refusals import last_refusals_of

ROW_EVERY = timedelta(minutes=1)
KINDS_MAX = 4096  # remembered at once; beyond that, those of the actor with most give way to others
ANYWHERE = "anywhere"

_Kind = tuple[str, str, str, str]


class _Written(Struct):
    at: datetime
    left_out: int = 0
    last: AuditEntry | None = None
    """The newest of those left out, if it may be written by itself."""


class Refusals:
    """Kinds recorded lately. Unauthenticated clients are grouped by network, devices by name."""

    def __init__(self, kinds_max: int = KINDS_MAX) -> None:
        self._kinds_max = kinds_max
        self._written: OrderedDict[_Kind, _Written] = OrderedDict()  # the longest since first
        self._held = HolderCounts()  # kinds by actor

    def row(
        self, entry: AuditEntry, *, by_itself: bool = True, is_proven: bool = False, others: int = 0
    ) -> AuditEntry | None:
        """`entry` as it is to be written, or None when one of its kind was written within the last minute.

        Its detail `left_out` is the number of entries suppressed since the one before it. `by_itself`: the row is all
        that is written, so that `due` may bring it later. `is_proven`: the subject has proven who it is, though the
        actor is nobody. `others` of its kind came just before it.
        """
        kind = self._kind(entry, is_proven=is_proven)
        known = self._written.get(kind)
        if known is not None and abs(entry.at - known.at) < ROW_EVERY:
            known.left_out += 1 + others
            known.last = entry if by_itself else None
            return None
        self._remember(kind, entry.at)
        return _counting(entry, others + (known.left_out if known is not None else 0))

    def due(self, now: datetime, *, at_once: bool = False) -> list[AuditEntry]:
        """A row for each kind of which entries were left out and none was written for a minute since, or `at_once` for
        each of which any were left out: the last of them, with the number of the others.
        """
        ended = [
            (kind, known.last, known.left_out - 1)
            for kind, known in self._written.items()
            if known.last is not None and (at_once or abs(now - known.at) >= ROW_EVERY)
        ]
        for kind, _, _ in ended:
            self._remember(kind, now)
        return [_counting(last, others) for _, last, others in ended]

    def put_back(self, row: AuditEntry, *, at_once: bool = False) -> None:
        """Count `row`, which could not be written, and what it counts as left out. It is due a minute later, or now."""
        own = (self._own_kind(row, is_proven=is_proven) for is_proven in (False, True))
        kind = next((each for each in own if each in self._written), _anywhere(self._own_kind(row)))
        detail = dict(row.detail)
        left_out = 1 + int(detail.pop("left_out", "0"))
        self._leave_out(kind, replace(row, detail=detail), left_out)
        if at_once:
            self._written[kind].at = row.at - ROW_EVERY

    def _leave_out(self, kind: _Kind, last: AuditEntry, number: int) -> None:
        if kind not in self._written:
            self._remember(kind, last.at)
        self._written[kind].left_out += number
        self._written[kind].last = last

    def _remember(self, kind: _Kind, at: datetime) -> None:
        """A row of `kind` is written now."""
        if kind not in self._written:
            self._count(kind, 1)
        self._written[kind] = _Written(at)
        self._written.move_to_end(kind)

    def _own_kind(self, entry: AuditEntry, *, is_proven: bool = False) -> _Kind:
        if is_proven:
            return (entry.subject, entry.action, entry.outcome, "")
        source = network_of(entry.address) if entry.actor == NOBODY else ""
        # Repeated successes are grouped by device: each had to authenticate first. A refused client can make up names.
        source = entry.subject if entry.outcome == "ok" else source
        return (entry.actor, entry.action, entry.outcome, source)

    def _kind(self, entry: AuditEntry, *, is_proven: bool) -> _Kind:
        kind = self._own_kind(entry, is_proven=is_proven)
        if kind in self._written or len(self._written) < self._kinds_max:
            return kind
        # Kinds of anywhere that count something stay: what others leave behind is counted there.
        may_go = (each for each, known in self._written.items() if each[3] != ANYWHERE or not known.left_out)
        oldest = next(may_go, None)
        if oldest is not None and abs(entry.at - self._written[oldest].at) >= ROW_EVERY:
            self._forget(oldest)
            return kind
        if self._make_room(kind[0]):
            return kind
        # All are recent: a client with many addresses must not get a row for each of them.
        return _anywhere(kind)

    def _make_room(self, actor: str) -> bool:
        """Forget the oldest kind of the actor with most of them, unless that is `actor` or has hardly more. All
        unauthenticated clients are one actor.
        """
        most = self._held.biggest()
        if most is None or self._held.most <= self._held[actor] + 1:
            return False
        self._forget(next(kind for kind in self._written if kind[0] == most and kind[3] != ANYWHERE))
        return True

    def _forget(self, kind: _Kind) -> None:
        known = self._written.pop(kind)
        if known.last is not None:
            self._leave_out(_anywhere(kind), known.last, known.left_out)
        self._count(kind, -1)

    def _count(self, kind: _Kind, change: int) -> None:
        """`kind` takes a part of its actor's share of the memory. Kinds of anywhere are few, and nobody's to give."""
        actor, _, _, source = kind
        if source != ANYWHERE:
            self._held.set(actor, self._held[actor] + change)


def _anywhere(kind: _Kind) -> _Kind:
    actor, action, outcome, _ = kind
    return (actor.partition(" ")[0], action, outcome, ANYWHERE)


def _counting(entry: AuditEntry, left_out: int) -> AuditEntry:
    return replace(entry, detail={**entry.detail, "left_out": str(left_out)}) if left_out else entry


_OF_REGISTRY: WeakKeyDictionary[Registry, Refusals] = WeakKeyDictionary()


def refusals_of(registry: Registry) -> Refusals:
    """The instance for `registry`, one in each process."""
    found = _OF_REGISTRY.get(registry)
    if found is None:
        found = _OF_REGISTRY[registry] = Refusals()
    return found


async def audit_refusal(
    registry: Registry, peer: Peer, now: datetime, action: str, subject: str, refusal: FleetError
) -> None:
    """Audit a refusal, at most one row a minute for repeated ones. It is answered whether or not its row could be
    written: Unavailable must not hide it.
    """
    try:
        actor, detail = await audit_actor_of(registry, peer)
        entry = AuditEntry(now, actor, action, subject, refusal.code, peer.address, {**detail, **refusal.detail})
        if actor != NOBODY:
            last_refusals_of(registry).note(entry)
        await write_row(registry, entry)
    except Unavailable as error:
        _add_note(refusal, error)


async def audit_refusal_of_named(registry: Registry, entry: AuditEntry, name: str, refusal: FleetError) -> None:
    """Likewise `entry`, of `name`, which another has verified: where there is such a device, repeated ones are grouped
    by it, so that it hides nobody else's.
    """
    try:
        is_known = await registry.device(name) is not None
        if is_known:
            last_refusals_of(registry).note(entry)
        await write_row(registry, entry, is_proven=is_known)
    except Unavailable as error:
        _add_note(refusal, error)


def _add_note(refusal: FleetError, error: Unavailable) -> None:
    refusal.add_note(f"The audit row could not be written: {error.message}")


async def write_row(registry: Registry, entry: AuditEntry, *, is_proven: bool = False) -> None:
    """Audit `entry`, unless one of its kind was audited within the last minute. `is_proven`: as of `Refusals.row`.

    Raises: Unavailable: it could not be written; a later row counts it.
    """
    row = refusals_of(registry).row(entry, is_proven=is_proven)
    if row is None:
        return
    try:
        await registry.commit(Change(row))
    except Unavailable:
        refusals_of(registry).put_back(row)
        raise
