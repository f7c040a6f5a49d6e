"""A log that no dropping of events trims does not grow for ever, and forgets no certificate that could come back."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.domain.changes import Change, Event, EventKind
from fleet.domain.credential import CredentialState
from fleet.domain.device import DeviceState
from fleet.domain.writes import AddCredential, Insert
from fleet.services.revocation_journal import HOLDERS_AT_ONCE, KEPT, catch_up, trim_spent
from fleet.storage.journals.event_marks import EventMarks
from fleet.storage.journals.revocation_reading import read_segments
from fleet.storage.journals.revocations import RevocationJournal
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.storage.samples import MODEL, NOW, change, credential, device, entry

DAY = timedelta(days=1)
LATER = NOW + KEPT + DAY


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    await opened.commit(change(Insert(MODEL)))
    yield opened
    await opened.close()


@pytest.fixture
def log(tmp_path: Path) -> RevocationJournal:
    return RevocationJournal(tmp_path / "state" / "revocations.jsonl", "a" * 64)


@pytest.fixture
def marks(tmp_path: Path) -> EventMarks:
    return EventMarks(tmp_path / "state" / "marks.jsonl")


async def revoke(registry: SqliteRegistry, name: str, days: int) -> None:
    """A device whose certificate, revoked, would have been good for `days` after NOW."""
    held = replace(credential(name, CredentialState.REVOKED), not_after=NOW + days * DAY)
    told = (
        Event(EventKind.DEVICE_STATE, name, "revoked"),
        Event(EventKind.CREDENTIAL_ENDED, name, held.fingerprint.hex()),
    )
    writes = (Insert(device(name, DeviceState.REVOKED)), AddCredential(held))
    await registry.commit(Change(entry(f"revoke {name}"), writes, told))


def told_of(log: RevocationJournal) -> list[str]:
    return list(dict.fromkeys(event.subject for event in read_segments(log.path)[-1].events))


async def run(registry: SqliteRegistry, log: RevocationJournal, marks: EventMarks, days: int) -> int:
    noted = await catch_up(registry, log)
    now = NOW + days * DAY
    marks.add(now, noted)
    return await trim_spent(registry, log, marks, noted=noted, now=now)


async def test_what_has_expired_goes_and_the_first_that_has_not_keeps_the_rest(
    registry: SqliteRegistry, log: RevocationJournal, marks: EventMarks
) -> None:
    await catch_up(registry, log)
    for name, days in (("short-1", 30), ("short-2", 30), ("long", 365), ("short-3", 30)):
        await revoke(registry, name, days)
    everything = ["short-1", "short-2", "long", "short-3"]
    assert await run(registry, log, marks, 0) == 0
    assert await run(registry, log, marks, 80) == 0  # expired, but too young to go
    assert told_of(log) == everything
    assert await run(registry, log, marks, 91) == 4
    assert told_of(log) == ["long", "short-3"]
    assert read_segments(log.path)[-1].start == 4  # an older backup is refused with it
    for days in (200, 364):
        assert await run(registry, log, marks, days) == 0
    assert told_of(log) == ["long", "short-3"]
    assert await run(registry, log, marks, 366) == 8
    assert told_of(log) == []
    assert log.mark(newest=8).seen == 8


async def test_a_run_looks_up_so_many_and_the_next_goes_on(
    registry: SqliteRegistry, log: RevocationJournal, marks: EventMarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert HOLDERS_AT_ONCE > 2
    monkeypatch.setattr("fleet.services.revocation_journal.HOLDERS_AT_ONCE", 2)
    await catch_up(registry, log)
    for n in range(5):
        await revoke(registry, f"cam-{n}", 30)
    await run(registry, log, marks, 0)
    left = []
    for days in (91, 92, 93, 94):
        await run(registry, log, marks, days)
        left.append(len(told_of(log)))
    assert left == [3, 1, 0, 0]
