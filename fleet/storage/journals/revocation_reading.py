"""A revocation journal, read: its segments, what they say was revoked, and what came after a backup."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.changes import Event
from fleet.domain.errors import Refused
from fleet.storage.journals.revocation_lines import damaged, event_of, number_of, parsed


class Segment(Struct, frozen=True):
    """Events of one lineage, complete from number `start` (exclusive) to `seen` (inclusive)."""

    fleet: str
    lineage: str
    start: int
    events: Sequence[Event]
    seen: int


def read_segments(path: Path) -> tuple[Segment, ...]:
    """All segments of a revocation journal, oldest first. A last line without a newline is ignored.

    Raises: Invalid (`revocation-log-damaged`). OSError.
    """
    segments: list[Segment] = []
    events: list[Event] = []
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            document = parsed(line, path)
            number = number_of(document)
            if "from" in document:
                events = []
                segments.append(Segment(document["fleet"], document["lineage"], number, events, number))
                continue
            last = segments[-1] if segments else None
            if last is None or document["lineage"] != last.lineage or number <= last.seen:
                raise damaged(path, f"the line of event {number} is out of place")
            if "seq" in document:
                events.append(event_of(document))
            segments[-1] = replace(last, seen=number)
    return tuple(segments)


def revocations_in(path: Path, at_most: int) -> Iterator[Event]:
    """What a journal says was revoked permanently, oldest first: the newest `at_most` devices that were revoked or
    retired, as many certificates, and rules of distrust. Nothing when there is no journal.

    Raises: Invalid (`revocation-log-damaged`). OSError.
    """
    devices: deque[bytes] = deque(maxlen=at_most)
    certificates: deque[bytes] = deque(maxlen=at_most)
    distrusts: deque[bytes] = deque(maxlen=at_most)
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:  # most lines are of neither kind, and are not parsed
            if not line.endswith(b"\n"):
                break
            if b'"device.state"' in line and (b'"revoked"' in line or b'"retired"' in line):
                devices.append(line)
            elif b'"credential.ended"' in line:
                certificates.append(line)
            elif b'"distrust.changed"' in line:
                distrusts.append(line)
            elif b'","from":' in line:  # behind a gap, in which a rule may have been undone
                distrusts.clear()
    for line in (*devices, *certificates, *distrusts):
        document = parsed(line, path)
        if "seq" in document:
            yield event_of(document)


def events_behind(path: Path, fleet: str, lineage: str, seq: int) -> tuple[Event, ...]:
    """The events recorded after event `seq` of `lineage`: in that lineage, and in those that followed it.

    Raises: Refused: `revocations-of-another` fleet; `revocations-incomplete`: the journal does not cover all of them.
    Invalid, OSError.
    """
    segments = read_segments(path)
    if any(each.fleet != fleet for each in segments):
        raise Refused("revocations-of-another", f"{path} is of another fleet than the backup.", "Check the path.")
    known = [n for n, each in enumerate(segments) if each.lineage == lineage and each.start <= seq]
    # A later segment of the same lineage follows a gap: what came before it is missing.
    gaps = [n for n, each in enumerate(segments) if each.lineage == lineage and each.start > seq]
    # One that ends before the backup is an old copy, or was cut off: what it lacks is unknown.
    if not known or gaps or segments[known[-1]].seen < seq:
        raise Refused(
            "revocations-incomplete",
            f"{path} does not hold every revocation after event {seq} of the registry that was saved.",
            "Use the file of the home that the backup was made of, or a newer backup.",
        )
    first = known[-1]
    return tuple(
        event for n, each in enumerate(segments[first:], first) for event in each.events if n > first or event.seq > seq
    )
