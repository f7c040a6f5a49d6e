"""The job that writes what was left out: while it runs, and at its end."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fleet.domain.changes import AuditEntry
from fleet.runtime.jobs.refusal_counts import count_periodically, counting_refusals
from fleet.services.refusals import refusals_of
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.waiting import PATIENCE_SECONDS

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ENTRY = AuditEntry(NOW, "device cam-1", "mqtt.publish", "device cam-1", "refused")


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    for _ in range(3):
        refusals_of(opened).row(ENTRY)
    yield opened
    await opened.close()


async def test_it_writes_them_after_their_minute(registry: SqliteRegistry) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        job = asyncio.create_task(
            count_periodically(registry, lambda: NOW + timedelta(seconds=60), every_seconds=0.001)
        )
        while not (rows := await registry.audit()):  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0)
    job.cancel()
    assert [row.entry.detail for row in rows] == [{"left_out": "1"}]


async def test_it_writes_them_at_its_end(registry: SqliteRegistry) -> None:
    async with counting_refusals(registry, clock=lambda: NOW):
        assert await registry.audit() == []
    assert [row.entry.detail for row in await registry.audit()] == [{"left_out": "1"}]
