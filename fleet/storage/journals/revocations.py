"""The revocation journal: a record of revocations outside the registry's own file, which outlives a restore.

A backup lacks the revocations made since. `fleet restore` applies this journal to what it restores, and a registry that
is behind its own journal, because an older file was put in its place, is not served.

    {"lineage": "5c…", "from": 41, "fleet": "9f…"}      events of this lineage, complete after number 41
    {"lineage": "5c…", "seq": 42, "kind": "device.state", "subject": "cam-7", "detail": "revoked"}
    {"lineage": "5c…", "seen": 1042}                    nothing to record up to there

Several processes may append: each takes the lock, reads the last line, and adds what is missing. A line counts once its
newline is written; an append that records a revocation is durable when it returns.
"""

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from fleet.config.durable_files import new_file, sync
from fleet.config.logs import log_event
from fleet.domain.changes import Event, EventKind
from fleet.domain.device import DeviceState
from fleet.domain.errors import Refused, Unavailable
from fleet.storage.journals.revocation_lines import LINE_MAX, damaged, encoded, event_of, number_of, parsed

logger = logging.getLogger("fleet.revocations")

NOTED = frozenset(
    {
        EventKind.DEVICE_STATE,
        EventKind.CREDENTIAL_ENDED,
        EventKind.CLAIM_STATE,
        EventKind.ANCHOR_CHANGED,
        EventKind.DISTRUST_CHANGED,
    }
)
_ENDS = frozenset(
    {DeviceState.SUSPENDED.value, DeviceState.REVOKED.value, DeviceState.RETIRED.value, "quarantined", "removed"}
)
"""Details of those events that end a right."""
TAIL_SIZE = 64 * 1024  # octets at the end in which the last event is looked for: some 400 lines
MARK_EVERY = 1_000  # events without an entry before a line records the position


def new_lineage() -> str:
    """An id for one run of event numbers: a restored registry counts on from its backup in a new lineage."""
    return os.urandom(16).hex()


class Mark(Struct, frozen=True):
    """The last event that the journal covers."""

    lineage: str
    seen: int


class RevocationJournal:
    """The journal at `path`, of the fleet whose root certificate has the SHA-256 `fleet`, in hex; kept by `node`.

    A file `registry` belongs to its home, and is written there alone: one with events never was without a journal.
    """

    def __init__(self, path: Path, fleet: str, *, registry: Path | None = None, node: str = "") -> None:
        self.path = path
        self.node = node
        self._fleet = fleet
        self._registry = registry

    def must_not_be_lost(self, *, newest: int, has_archived: bool = False) -> None:
        """Raises: Refused (`revocation-log-lost`): the registry has events, up to `newest`, and there must have been a
        journal: this node `has_archived`, a part of it is there, or what a home has that was served.
        """
        with self._locked() as handle:
            if newest and _has_no_line(handle) and (has_archived or self._was_there(handle)):
                raise Refused(
                    "revocation-log-lost",
                    f"The revocation journal {self.path} is lost. Whether the registry, which ends with event "
                    f"{newest}, is the newest is not known; with an older one, devices revoked since are accepted.",
                    "Put the journal back from a copy, or look at the registry and then: fleet db begin-journal",
                )

    def has_begun(self) -> bool:
        """False: there is none, or no whole line of it. Raises: OSError."""
        with self._locked() as handle:
            return not _has_no_line(handle)

    def _was_there(self, handle: int) -> bool:
        if self._registry is not None and self._registry.exists():
            return True
        return os.fstat(handle).st_size > 0 or any(file != self.path for file in self.path.parent.iterdir())

    def mark(self, *, newest: int) -> Mark:
        """The last event that it covers. A missing journal is created, starting after event `newest` of the registry;
        this is logged unless the registry is new, as an error where there must have been a journal.

        Raises: Invalid (`revocation-log-damaged`); Refused (`registry-went-back`): it covers events after `newest`.
        """
        with self._locked() as handle:
            is_lost = self._was_there(handle)  # before what is left of a line is cut off
            mark = self._mark(handle)
            if mark is None:
                if newest:
                    self._warn_of_beginning(newest, is_lost=is_lost)
                mark = Mark(new_lineage(), newest)
                self._append(handle, [self._beginning(mark)])
        if mark.seen > newest:
            raise Refused(
                "registry-went-back",
                f"The registry ends with event {newest}, but {self.path} covers events up to {mark.seen}: an older "
                "registry was put in its place, and devices revoked since then would be accepted.",
                f"Restore a backup with: fleet restore FILE NEW_HOME --revocations {self.path}",
            )
        return mark

    def _warn_of_beginning(self, newest: int, *, is_lost: bool) -> None:
        advice = (
            f"If {self.path} was lost, an older registry is not found out, and devices revoked since are accepted: "
            "put the journal back from a copy, or check that the newest revocations are in force (fleet audit list)."
        )
        level = logging.ERROR if is_lost else logging.WARNING
        log_event(logger, level, "revocations.begun-anew", after=newest, advice=advice)

    def covered(self) -> int:
        """The number of the last event that it covers, 0 for a missing journal. Raises: as `newest_event`."""
        with self._locked() as handle:
            mark = self._mark(handle)
        return mark.seen if mark is not None else 0

    def newest_event(self) -> Event | None:
        """The last event recorded, in the newest lineage; None: there is none among the last lines.

        Raises: Invalid (`revocation-log-damaged`). OSError.
        """
        with self._locked() as handle:
            size = os.fstat(handle).st_size
            lines = os.pread(handle, TAIL_SIZE, max(0, size - TAIL_SIZE)).split(b"\n")
        # The first may be part of a line, the last is empty or one that a crash has left incomplete.
        for line in reversed(lines[1 if size > TAIL_SIZE else 0 : -1]):
            document = parsed(line, self.path)
            if "from" in document:
                return None
            if "seq" in document:
                return event_of(document)
        return None

    def note(self, events: Sequence[Event]) -> None:
        """Append those of `events` that belong in the journal and are missing; durable when one ends a right.

        The caller has already recorded every event from this journal's mark up to the first of these.

        Raises: Unavailable (`revocation-log-gone`): it was removed. Invalid, OSError.
        """
        with self._locked() as handle:
            mark = self._mark(handle)
            if mark is None:
                raise Unavailable("revocation-log-gone", f"{self.path} was removed while it was in use.")
            fresh = [event for event in events if event.seq > mark.seen]
            noted = [event for event in fresh if event.kind in NOTED]
            lines: list[dict[str, object]] = [
                {"lineage": mark.lineage, "seq": e.seq, "kind": e.kind, "subject": e.subject, "detail": e.detail}
                for e in noted
            ]
            seen = noted[-1].seq if noted else mark.seen
            if fresh and fresh[-1].seq - seen >= MARK_EVERY:
                lines.append({"lineage": mark.lineage, "seen": fresh[-1].seq})
            self._append(handle, lines, is_urgent=any(map(is_revoking, noted)))

    def record_examined(self, seq: int) -> None:
        """Record that the caller has examined every event up to number `seq`. Raises: Invalid, OSError."""
        with self._locked() as handle:
            mark = self._mark(handle)
            if mark is not None and mark.seen < seq:
                self._append(handle, [{"lineage": mark.lineage, "seen": seq}])

    def reset(self, mark: Mark) -> None:
        """Start a new segment that is complete after `mark`: after a gap, or in a restored registry."""
        with self._locked() as handle:
            self._mark(handle)
            self._append(handle, [self._beginning(mark)])

    def trim(self, upto: int) -> None:
        """Delete entries up to event `upto` of the newest lineage, and every earlier lineage.

        Backups from before that event can no longer be restored with this journal, and are refused.

        Raises: Invalid, OSError: the journal is unchanged.
        """
        with self._locked() as handle:
            mark = self._mark(handle)
            if mark is None or upto > mark.seen:
                return
            with self.path.open("rb") as old, new_file(self.path, secret=True, force=True) as new:
                new.write(encoded(self._beginning(Mark(mark.lineage, upto))))
                for line in old:
                    document = parsed(line, self.path)
                    if document["lineage"] == mark.lineage and number_of(document) > upto:
                        new.write(line)

    def _beginning(self, mark: Mark) -> dict[str, object]:
        return {"lineage": mark.lineage, "from": mark.seen, "fleet": self._fleet}

    @contextmanager
    def _locked(self) -> Iterator[int]:
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)  # held for one append; the kernel drops it when its process dies
                if _is_at(handle, self.path):  # not if it was trimmed while we waited
                    yield handle
                    return
            finally:
                os.close(handle)

    def _mark(self, handle: int) -> Mark | None:
        """None: there is no whole line. An incomplete last line, left by a crash, is cut off."""
        size = os.fstat(handle).st_size
        start = max(0, size - 2 * LINE_MAX)
        whole, newline, torn = os.pread(handle, size - start, start).rpartition(b"\n")
        if torn:
            if start and not newline:
                raise damaged(self.path, "its end is no line")
            os.ftruncate(handle, size - len(torn))
        if not newline:
            return None
        document = parsed(whole.rpartition(b"\n")[2], self.path)
        return Mark(document["lineage"], number_of(document))

    def _append(self, handle: int, documents: Sequence[dict[str, object]], *, is_urgent: bool = True) -> None:
        if not documents:
            return
        is_new = os.fstat(handle).st_size == 0
        data = b"".join(map(encoded, documents))
        while data:
            data = data[os.write(handle, data) :]
        if is_urgent:
            os.fsync(handle)
        if is_new:
            sync(self.path.parent)


def _has_no_line(handle: int) -> bool:
    start = os.pread(handle, 2 * LINE_MAX, 0)  # of more without a line, `mark` says what is wrong
    return b"\n" not in start and len(start) < 2 * LINE_MAX


def is_revoking(event: Event) -> bool:
    """Whether `event` ends a right. Grants are recorded too, but need not be durable: a restore works without them."""
    always = (EventKind.CREDENTIAL_ENDED, EventKind.DISTRUST_CHANGED)
    return event.kind in always or event.detail in _ENDS


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
