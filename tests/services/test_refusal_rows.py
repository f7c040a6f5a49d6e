"""Refusals that nobody waits for: many rows at once, none lost without a count, and putting one never waits."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fleet.domain.changes import AuditEntry, Change
from fleet.domain.errors import Unavailable
from fleet.services import refusal_rows
from fleet.services.refusal_rows import BATCH_ROWS, RefusalRows, write_due
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.waiting import PATIENCE_SECONDS

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Slow(SqliteRegistry):
    """Commits wait for `hurdle`, and fail while `error` is set; they are counted."""

    hurdle: asyncio.Event
    error: Exception | None = None
    under_way = 0
    most = 0

    async def commit(self, change: Change) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.hurdle.wait()
            if self.error is not None:
                raise self.error
            await super().commit(change)
        finally:
            self.under_way -= 1


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Slow]:
    opened = await Slow.open(tmp_path / "registry.db")
    opened.hurdle = asyncio.Event()
    opened.hurdle.set()
    yield opened
    await opened.close()


def refused(name: str) -> AuditEntry:
    return AuditEntry(NOW, f"device {name}", "mqtt.publish", f"device {name}", "refused")


async def counted(registry: Slow) -> dict[str, int]:
    """Refusals by device, as the audit tells them."""
    found: dict[str, int] = {}
    for row in await registry.audit(limit=5_000):
        entry = row.entry
        found[entry.subject] = found.get(entry.subject, 0) + 1 + int(entry.detail.get("left_out", "0"))
    return found


async def test_the_first_of_each_is_written_and_the_rest_is_counted(registry: Slow) -> None:
    rows = RefusalRows(registry)
    for _ in range(3):
        for n in range(1_000):
            rows.put(refused(f"cam-{n}"))
    await rows.close()
    assert len(await registry.audit(limit=5_000)) == 1_000
    assert 1 < registry.most <= BATCH_ROWS
    await write_due(registry, NOW + timedelta(seconds=59))
    assert len(await registry.audit(limit=5_000)) == 1_000
    await write_due(registry, NOW + timedelta(seconds=60))
    newer = [row.entry for row in await registry.audit(after=1_000, limit=5_000)]
    assert len(newer) == 1_000
    assert all(entry.detail == {"left_out": "1"} for entry in newer)


async def test_a_registry_that_hangs_delays_rows_and_nobody_else(
    registry: Slow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(refusal_rows, "QUEUE_ROWS_MAX", 10)
    caplog.set_level(logging.WARNING, "fleet.audit")
    registry.hurdle.clear()
    rows = RefusalRows(registry)
    for n in range(50):
        rows.put(refused(f"cam-{n}"))
    assert registry.under_way == 0  # put has returned before anything was written
    registry.hurdle.set()
    await rows.close()
    assert len(await counted(registry)) == 10
    assert caplog.messages == ["event=audit.queue-full rows=40"]
    await write_due(registry, NOW)
    assert await counted(registry) == {f"device cam-{n}": 1 for n in range(50)}


@pytest.mark.parametrize("error", [Unavailable("disk-full", "The disk is full."), RuntimeError("a fault of ours")])
async def test_what_could_not_be_written_is_written_later(
    registry: Slow, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fleet.audit")
    registry.error = error
    rows = RefusalRows(registry)
    for _ in range(4):
        rows.put(refused("cam-1"))
    await rows.close()
    assert await counted(registry) == {}
    (line,) = caplog.messages
    assert line.startswith("event=audit.not-written rows=1 error=")
    registry.error = None
    await write_due(registry, NOW)
    assert await counted(registry) == {"device cam-1": 4}


async def test_close_does_not_wait_for_a_registry_that_hangs(registry: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_rows, "END_SECONDS_MAX", 0.01)
    registry.hurdle.clear()
    rows = RefusalRows(registry)
    rows.put(refused("cam-1"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await rows.close()
    assert not registry.hurdle.is_set()
