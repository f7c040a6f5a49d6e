"""The log of revocations: durable lines, cut anywhere, several writers, and what it can and cannot vouch for."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fleet.domain.changes import Event, EventKind
from fleet.domain.errors import FleetError, Invalid, Refused, Unavailable
from fleet.storage.journals.revocation_reading import events_behind, read_segments
from fleet.storage.journals.revocations import MARK_EVERY, Mark, RevocationJournal, new_lineage

FLEET = "ab" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "revocations.jsonl"


def revoked(seq: int, name: str = "") -> Event:
    return Event(EventKind.DEVICE_STATE, name or f"d{seq}", "revoked", seq)


def begun(path: Path, newest: int = 0) -> tuple[RevocationJournal, str]:
    log = RevocationJournal(path, FLEET)
    return log, log.mark(newest=newest).lineage


def test_it_begins_where_the_registry_is(path: Path) -> None:
    log, lineage = begun(path, 5)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert RevocationJournal(path, FLEET).mark(newest=9) == Mark(lineage, 5)
    log.note([revoked(6), Event("model.changed", "m", "", 7), revoked(8), Event("credential.issued", "d", "00", 9)])
    assert log.mark(newest=9) == Mark(lineage, 8)
    assert events_behind(path, FLEET, lineage, 5) == (revoked(6), revoked(8))
    assert events_behind(path, FLEET, lineage, 6) == (revoked(8),)
    assert events_behind(path, FLEET, lineage, 8) == ()


def test_what_is_there_is_not_noted_twice(path: Path) -> None:
    log, lineage = begun(path)
    log.note([revoked(1), revoked(2)])
    RevocationJournal(path, FLEET).note([revoked(1), revoked(2), revoked(3)])
    assert events_behind(path, FLEET, lineage, 0) == (revoked(1), revoked(2), revoked(3))


def test_one_that_ends_before_the_backup_does_not_do(path: Path) -> None:
    log, lineage = begun(path)
    log.note([revoked(1), revoked(2)])
    with pytest.raises(Refused) as caught:
        events_behind(path, FLEET, lineage, 3)
    assert caught.value.code == "revocations-incomplete"
    log.record_examined(3)
    log.record_examined(2)  # it has said more already
    assert log.mark(newest=3) == Mark(lineage, 3)
    assert events_behind(path, FLEET, lineage, 3) == ()


def test_many_events_of_no_interest_leave_a_mark(path: Path) -> None:
    log, lineage = begun(path)
    boring = [Event("model.changed", "m", "", seq) for seq in range(1, MARK_EVERY + 1)]
    log.note(boring[:-1])
    assert log.mark(newest=MARK_EVERY).seen == 0
    log.note(boring)
    assert log.mark(newest=MARK_EVERY) == Mark(lineage, MARK_EVERY)


def test_a_registry_behind_its_own_log(path: Path) -> None:
    log, _ = begun(path)
    log.note([revoked(1), revoked(2)])
    with pytest.raises(Refused) as caught:
        log.mark(newest=1)
    assert caught.value.code == "registry-went-back"
    assert str(path) in caught.value.advice


def test_cut_anywhere_it_goes_on_from_the_last_whole_line(path: Path) -> None:
    log, lineage = begun(path)
    log.note([revoked(n) for n in range(1, 5)])
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        lines = whole[:end].count(b"\n")
        mark = log.mark(newest=4)
        if lines == 0:
            assert mark.seen == 4  # begun anew, and it says so
            with pytest.raises(Refused):
                events_behind(path, FLEET, lineage, 0)
            continue
        assert mark == Mark(lineage, lines - 1)
        log.note([revoked(n) for n in range(1, 5)])
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("found", "beside", "level"),
    [
        (b"", "", logging.WARNING),
        (None, "", logging.WARNING),  # a new node's home, or one from before there were journals
        (None, "audit-note.json", logging.ERROR),
        (b"", "revoked.jsonl", logging.ERROR),
        (b'{"lineage":"5c', "", logging.ERROR),
        (bytes(500), "", logging.ERROR),
    ],
)
def test_a_journal_that_begins_anew_in_a_registry_with_events_says_so(
    path: Path, caplog: pytest.LogCaptureFixture, found: bytes | None, beside: str, level: int
) -> None:
    path.parent.mkdir(mode=0o700)
    if found is not None:
        path.write_bytes(found)
    if beside:
        (path.parent / beside).touch()
    log = RevocationJournal(path, FLEET)
    assert log.mark(newest=5).seen == 5
    [record] = caplog.records
    assert record.levelno == level
    assert str(path) in record.getMessage()
    assert "after=5" in record.getMessage()
    log.mark(newest=6)
    assert len(caplog.records) == 1


def test_the_journal_of_a_new_registry_begins_without_a_word(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun(path)
    assert not caplog.records


def test_a_torn_end_is_no_line_for_a_reader(path: Path) -> None:
    log, lineage = begun(path)
    log.note([revoked(1), revoked(2)])
    path.write_bytes(path.read_bytes()[:-1])
    assert events_behind(path, FLEET, lineage, 0) == (revoked(1),)


def test_a_changed_line_is_no_line(path: Path) -> None:
    log, lineage = begun(path)
    log.note([revoked(1), revoked(2)])
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    for bad in (
        good.replace(b'"seq":1', b'"seq":x'),
        good.replace(b'"seq":2', b'"seq":1'),
        good.replace(b'"seq":2', b'"seq":-2'),
        good.replace(b'"revoked"', b"7"),
        b"".join(lines[1:]),
        lines[0] + b"{}\n" + b"".join(lines[1:]),
        lines[0] + b"[1]\n",
        lines[0] + lines[1].replace(lineage.encode(), b"0" * 32),
        lines[0].replace(b'"fleet"', b'"flet"'),
    ):
        path.write_bytes(bad)
        with pytest.raises(Invalid) as caught:
            read_segments(path)
        assert caught.value.code == "revocation-log-damaged"


def test_a_tail_without_end_is_not_cut_off(path: Path) -> None:
    log, _ = begun(path)
    with path.open("ab") as file:
        file.write(b"x" * 10_000)
    with pytest.raises(Invalid):
        log.mark(newest=0)
    assert path.stat().st_size > 10_000


def test_after_a_gap_it_vouches_for_what_came_behind_it_only(path: Path) -> None:
    log, lineage = begun(path)
    log.note([revoked(1)])
    log.reset(Mark(lineage, 10))
    log.note([revoked(11)])
    for seq in (0, 1, 9):
        with pytest.raises(Refused) as caught:
            events_behind(path, FLEET, lineage, seq)
        assert caught.value.code == "revocations-incomplete"
    assert events_behind(path, FLEET, lineage, 10) == (revoked(11),)


def test_a_restored_registry_counts_on_in_another_lineage(path: Path) -> None:
    log, old = begun(path)
    log.note([revoked(1), revoked(2), revoked(3)])
    new = new_lineage()
    log.reset(Mark(new, 2))
    log.note([revoked(3, "other")])
    assert events_behind(path, FLEET, old, 2) == (revoked(3), revoked(3, "other"))
    assert events_behind(path, FLEET, new, 2) == (revoked(3, "other"),)
    with pytest.raises(Refused, match="does not hold"):
        events_behind(path, FLEET, new_lineage(), 2)
    with pytest.raises(Refused) as caught:
        events_behind(path, "cd" * 32, old, 2)
    assert caught.value.code == "revocations-of-another"


def test_trimmed_it_is_smaller_and_says_from_where_on_it_is_complete(path: Path) -> None:
    log, old = begun(path)
    log.note([revoked(1), revoked(2)])
    new = new_lineage()
    log.reset(Mark(new, 2))
    log.note([revoked(n) for n in range(3, 9)])
    before = path.read_bytes()
    log.trim(99)  # it has not come so far
    assert path.read_bytes() == before
    log.trim(5)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) < len(before)
    assert events_behind(path, FLEET, new, 5) == (revoked(6), revoked(7), revoked(8))
    for lineage, seq in ((old, 1), (new, 4)):
        with pytest.raises(Refused):
            events_behind(path, FLEET, lineage, seq)
    log.note([revoked(9)])
    assert log.mark(newest=9) == Mark(new, 9)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_several_writers(path: Path) -> None:
    _, lineage = begun(path)
    events = [revoked(n) for n in range(1, 201)]

    def write(trims: bool) -> None:
        log = RevocationJournal(path, FLEET)
        for end in range(10, 201, 10):
            log.note(events[:end])
            if trims:
                log.trim(5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, (False, False, True, False)))
    assert events_behind(path, FLEET, lineage, 5) == tuple(events[5:])


def test_gone_while_in_use(path: Path) -> None:
    log, _ = begun(path)
    path.unlink()
    with pytest.raises(Unavailable):
        log.note([revoked(1)])
    with pytest.raises(FleetError):
        events_behind(path, FLEET, new_lineage(), 0)


@pytest.mark.parametrize(
    ("found", "beside", "is_lost"),
    [
        (None, "", False),  # a new node's home
        (b"", "", False),
        (None, "audit-note.json", True),
        (None, "revoked.jsonl", True),
        (None, "event-marks.jsonl", True),
        (None, "revoked.lock", True),
        (b'{"lineage":"5c', "", True),
    ],
)
def test_a_lost_journal_is_refused_until_one_is_begun(
    path: Path, found: bytes | None, beside: str, is_lost: bool
) -> None:
    path.parent.mkdir(mode=0o700)
    if found is not None:
        path.write_bytes(found)
    if beside:
        (path.parent / beside).touch()
    log = RevocationJournal(path, FLEET)
    log.must_not_be_lost(newest=0)  # a registry without events has lost none
    if is_lost:
        with pytest.raises(Refused) as caught:
            log.must_not_be_lost(newest=5)
        assert caught.value.code == "revocation-log-lost"
        assert "begin-journal" in caught.value.advice
    assert log.mark(newest=5).seen == 5
    log.must_not_be_lost(newest=5)
