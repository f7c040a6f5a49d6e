"""Several processes on one registry, and processes that die in the middle of writing."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from fleet.domain.audit_log import sound_leaves
from fleet.domain.changes import Event
from fleet.domain.writes import Insert
from fleet.storage.sqlite import registry as sqlite_registry
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.storage.samples import MODEL, change, device

DEADLINE_SECONDS = 120.0
PROGRAM = Path(__file__).with_name("writer_process.py")


async def writer(path: Path, prefix: str, count: int) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(path), prefix, str(count), stdout=PIPE
    )


async def lines_of(process: Process) -> list[str]:
    assert process.stdout is not None
    return (await process.stdout.read()).decode().split()


async def made(path: Path) -> SqliteRegistry:
    registry = await SqliteRegistry.open(path)
    await registry.commit(change(Insert(MODEL)))
    return registry


async def whole_audit_verifies(registry: SqliteRegistry) -> int:
    """The number of rows, read in pages."""
    after = 0
    while rows := await registry.audit(after=after, limit=100):
        list(sound_leaves(rows, after))
        after = rows[-1].seq
    return after


async def test_three_processes_write_at_once_and_one_follows(db_path: Path) -> None:
    registry = await made(db_path)
    async with asyncio.timeout(DEADLINE_SECONDS):
        others = [await writer(db_path, prefix, 150) for prefix in "ab"]
        for n in range(150):
            await registry.commit(change(Insert(device(f"c-{n}")), events=(Event("test", f"c-{n}"),)))
        seen: list[Event] = []
        async for event in registry.follow(0):
            seen.append(event)
            if len(seen) == 450:
                break
        for other in others:
            assert len(await lines_of(other)) == 150
            assert await other.wait() == 0
    assert [e.seq for e in seen] == list(range(1, 451))
    assert {e.subject for e in seen} == {f"{prefix}-{n}" for prefix in "abc" for n in range(150)}
    assert await whole_audit_verifies(registry) == 451
    await registry.close()


async def hears_another_process(db_path: Path) -> None:
    registry = await made(db_path)
    feed = registry.follow(0)
    waiting = asyncio.ensure_future(anext(feed))
    async with asyncio.timeout(DEADLINE_SECONDS):
        other = await writer(db_path, "a", 1)
        assert (await waiting).subject == "a-0"
        assert await other.wait() == 0
    await registry.close()


async def test_a_follower_that_waits_hears_another_process(db_path: Path) -> None:
    await hears_another_process(db_path)


async def test_it_hears_it_without_polling(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("FOREIGN_COMMIT_POLL_SECONDS", "WATCHED_POLL_SECONDS"):
        monkeypatch.setattr(sqlite_registry, pause, 10 * DEADLINE_SECONDS)
    monkeypatch.setattr(SqliteRegistry, "feed_pause_seconds", 0.0)
    registry = await made(db_path)
    other = await SqliteRegistry.open(db_path)
    feed = registry.follow(0)
    async with asyncio.timeout(DEADLINE_SECONDS):
        for number in range(3):
            waiting = asyncio.ensure_future(anext(feed))
            await registry.commit(change(Insert(device(f"own-{number}")), events=(Event("test", "own"),)))
            assert (await waiting).subject == "own"
            waiting = asyncio.ensure_future(anext(feed))
            for _ in range(3):  # reads are answered in their order: it has read that there is nothing more
                await registry.last_event()
            await other.commit(change(Insert(device(f"other-{number}")), events=(Event("test", "other"),)))
            assert (await waiting).subject == "other"
    await other.close()
    await registry.close()


async def test_where_there_is_no_inotify_it_polls(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise OSError("no more inotify instances")

    monkeypatch.setattr(sqlite_registry, "CommitWatch", missing)
    await hears_another_process(db_path)


async def test_what_was_acknowledged_survives_kill_9(db_path: Path) -> None:
    await (await made(db_path)).close()
    acknowledged: list[str] = []
    for round_ in range(6):
        async with asyncio.timeout(DEADLINE_SECONDS):
            process = await writer(db_path, f"r{round_}", 0)
            assert process.stdout is not None
            for _ in range(20 + 37 * round_):  # dies at another point of its work each time
                acknowledged.append((await process.stdout.readline()).decode().strip())
            process.send_signal(signal.SIGKILL)
            # What it still managed to print counts: it had been told that it was durable.
            rest = await process.stdout.read()
            acknowledged += [line for line in rest.decode().split("\n")[:-1] if line]
            await process.wait()
    registry = await SqliteRegistry.open(db_path)
    present = {d.id for d in await registry.devices(limit=10_000)}
    assert len(acknowledged) > 600
    assert set(acknowledged) <= present
    # A device, its audit row and its event: all three or none, one chain through all the deaths.
    assert await whole_audit_verifies(registry) == len(present) + 1
    assert await registry.last_event() == len(present)
    await registry.close()


async def test_a_new_file_is_migrated_once_however_many_open_it(db_path: Path) -> None:
    registries = await asyncio.gather(*(SqliteRegistry.open(db_path) for _ in range(4)))
    await asyncio.gather(*(r.commit(change(Insert(MODEL.__class__(f"m{n}")))) for n, r in enumerate(registries)))
    assert [m.name for m in await registries[0].models()] == ["m0", "m1", "m2", "m3"]
    for registry in registries:
        await registry.close()
