"""The serving process's revocation journal: what ends a right is recorded at once, the rest a moment later."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.domain.changes import AuditEntry, Change, Event, EventKind
from fleet.runtime.jobs import revocation_journal as job
from fleet.storage.journals.revocation_reading import read_segments
from fleet.storage.journals.revocations import RevocationJournal
from fleet.storage.sqlite.registry import SqliteRegistry

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NEVER = 3600.0
DEADLINE_SECONDS = 120.0


class Watched(RevocationJournal):
    """Tells when it has recorded something."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "ab" * 32)
        self.noted: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def note(self, events: Sequence[Event]) -> None:
        super().note(events)
        self._loop.call_soon_threadsafe(self._add, [event.seq for event in events])

    def _add(self, seqs: list[int]) -> None:
        self.noted += seqs
        self._changed.set()

    async def noted_up_to(self, seq: int) -> None:
        """Return when the event of that number has been passed to it."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while seq not in self.noted:
                self._changed.clear()
                await self._changed.wait()

    def recorded(self) -> list[tuple[str, str]]:
        return [(event.subject, event.detail) for segment in read_segments(self.path) for event in segment.events]


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    yield opened
    await opened.close()


async def happens(registry: SqliteRegistry, *details: str) -> None:
    """A device for each of `details`, which becomes its state."""
    for number, detail in enumerate(details):
        event = Event(EventKind.DEVICE_STATE, f"d{number}", detail)
        await registry.commit(Change(AuditEntry(NOW, "nobody", "test", "device", "ok"), (), (event,)))


async def test_a_grant_waits_for_what_ends_a_right_and_goes_with_it(
    registry: SqliteRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "GRANTS_SECONDS", NEVER)
    log = Watched(tmp_path / "revocations")
    async with job.journaling_revocations(registry, log):
        await happens(registry, "active", "active", "revoked")
        await log.noted_up_to(3)
        await happens(registry, "suspended")
        await log.noted_up_to(4)
    assert log.recorded() == [("d0", "active"), ("d1", "active"), ("d2", "revoked"), ("d0", "suspended")]


async def test_grants_alone_are_recorded_in_time(
    registry: SqliteRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "GRANTS_SECONDS", 0.0)
    log = Watched(tmp_path / "revocations")
    async with job.journaling_revocations(registry, log):
        await happens(registry, "active")
        await log.noted_up_to(1)
        await happens(registry, "active", "active")
        await log.noted_up_to(3)
    assert log.noted == [1, 2, 3]
    assert log.recorded() == [("d0", "active"), ("d0", "active"), ("d1", "active")]


async def test_many_are_recorded_in_parts_and_none_is_left_out(
    registry: SqliteRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "BATCH", 4)
    monkeypatch.setattr(job, "GRANTS_SECONDS", NEVER)
    log = Watched(tmp_path / "revocations")
    states = ["active"] * 9 + ["revoked"]
    async with job.journaling_revocations(registry, log):
        await happens(registry, *states)
        await log.noted_up_to(10)
    assert log.noted == list(range(1, 11))
    assert log.recorded() == [(f"d{number}", state) for number, state in enumerate(states)]


async def test_what_waits_when_the_process_ends_is_recorded_by_the_next(
    registry: SqliteRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "GRANTS_SECONDS", NEVER)
    log = Watched(tmp_path / "revocations")
    async with job.journaling_revocations(registry, log):
        await happens(registry, "active")
    assert log.recorded() == []
    async with job.journaling_revocations(registry, log):
        assert log.recorded() == [("d0", "active")]
