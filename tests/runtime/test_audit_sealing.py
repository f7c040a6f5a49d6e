"""The serving process's sealing: from the start to the end, through failures, and said seldom."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.config.settings import Settings
from fleet.domain.audit_log import AuditNode, Sealed
from fleet.domain.errors import Unavailable
from fleet.home.creation import create_home
from fleet.home.layout import Home
from fleet.home.pki import audit_signer
from fleet.runtime.jobs.audit_sealing import FAILURES_A_LINE, seal_periodically, sealing_audit
from fleet.services.audit_verification import verify
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.services.audit_stage import fill

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DEADLINE_SECONDS = 120.0


@pytest.fixture
async def home(tmp_path: Path) -> Home:
    return await create_home(tmp_path / "home", Settings(name="acme"), NOW)


class Watched(SqliteRegistry):
    """Tells when a head has been kept; its first `fails` heads are not."""

    fails = 0

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._sealed = 0
        self._changed = asyncio.Condition()

    async def seal(self, sealed: Sealed, nodes: tuple[AuditNode, ...]) -> None:
        if self.fails:
            self.fails -= 1
            raise Unavailable("registry-unavailable", "The disk is full.")
        await super().seal(sealed, nodes)
        async with self._changed:
            self._sealed = sealed.head.size
            self._changed.notify_all()

    async def sealed_up_to(self, size: int) -> None:
        """Return when that many rows are sealed."""
        async with asyncio.timeout(DEADLINE_SECONDS), self._changed:
            await self._changed.wait_for(lambda: self._sealed >= size)


@pytest.fixture
async def registry(home: Home) -> AsyncIterator[Watched]:
    opened = await Watched.open(home.registry, create=False)
    yield opened
    await opened.close()


async def test_it_seals_at_the_start_and_as_rows_come_in(home: Home, registry: Watched) -> None:
    task = asyncio.create_task(seal_periodically(registry, audit_signer(home), lambda: NOW, every_seconds=0.01))
    try:
        await registry.sealed_up_to(1)
        await fill(registry, 300)
        await registry.sealed_up_to(300)
    finally:
        task.cancel()
    await verify(registry, (audit_signer(home).public_key,))


async def test_what_came_in_last_is_sealed_at_the_end(home: Home, registry: Watched) -> None:
    async with sealing_audit(home, registry, clock=lambda: NOW) as task:
        await registry.sealed_up_to(1)
        await fill(registry, 5)
        assert not task.done()
    last = await registry.last_sealed()
    assert last is not None
    assert last.head.size == 5
    assert task.done()


async def test_an_end_with_a_registry_that_is_gone_is_an_end(home: Home, registry: Watched) -> None:
    async with sealing_audit(home, registry, clock=lambda: NOW) as task:
        await registry.sealed_up_to(1)
        await registry.close()
    assert task.done()


async def test_failures_are_said_seldom_and_tried_again(
    home: Home, registry: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "fleet.audit")
    registry.fails = FAILURES_A_LINE + 1
    task = asyncio.create_task(seal_periodically(registry, audit_signer(home), lambda: NOW, every_seconds=0))
    try:
        await registry.sealed_up_to(1)
    finally:
        task.cancel()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ['event=audit.seal outcome=failed code=registry-unavailable reason="The disk is full."'] * 2


async def test_what_is_no_failure_of_the_registry_ends_it(home: Home, registry: Watched) -> None:
    """Whoever watches the task hears of it, and the server ends rather than serve unsealed."""

    def broken_clock() -> datetime:
        raise ValueError("no clock")

    async with sealing_audit(home, registry, clock=lambda: NOW if task_is_running() else broken_clock()) as task:
        with pytest.raises(ValueError, match="no clock"):
            await asyncio.wait_for(asyncio.shield(task), DEADLINE_SECONDS)


def task_is_running() -> bool:
    current = asyncio.current_task()
    return current is None or current.get_name() != "audit sealing"
