"""Followers of the process that commits get its events without reading them back, and miss none of others."""

import asyncio
from pathlib import Path

import pytest

from fleet.domain.changes import Event
from fleet.domain.errors import Conflict
from fleet.domain.writes import Insert
from fleet.storage import queries
from fleet.storage.recent_events import RECENT_MAX, RecentEvents
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.storage.samples import MODEL, change, device
from tests.waiting import PATIENCE_SECONDS


def numbered(first: int, last: int) -> list[Event]:
    return [Event("test", f"{seq}", seq=seq) for seq in range(first, last + 1)]


def test_what_follows_is_found_from_any_place_of_the_run() -> None:
    recent = RecentEvents()
    assert recent.after(0) == []
    recent.add(numbered(5, 7))
    recent.add(numbered(8, 8))
    for seq in range(4, 8):
        assert recent.after(seq) == numbered(seq + 1, 8)
    assert recent.after(3) == []  # event 4 is not of the run
    assert recent.after(8) == []
    assert recent.after(9) == []


def test_an_event_of_another_process_ends_the_run() -> None:
    recent = RecentEvents()
    recent.add(numbered(1, 3))
    recent.add(numbered(5, 6))
    assert recent.after(2) == recent.after(3) == []
    assert recent.after(4) == numbered(5, 6)


def test_the_oldest_are_forgotten() -> None:
    recent = RecentEvents()
    recent.add(numbered(1, RECENT_MAX + 2))
    assert recent.after(1) == []
    assert recent.after(2) == numbered(3, RECENT_MAX + 2)


async def test_a_follower_reads_the_feed_once_while_this_process_alone_commits(
    db_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = await SqliteRegistry.open(db_path)
    await registry.commit(change(Insert(MODEL), events=(Event("test", "model"),)))
    feed = registry.follow(0)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await anext(feed) == Event("test", "model", seq=1)
        reads: list[object] = []
        read = registry._read

        async def counted(query: queries.Query[object], *parameters: object) -> list[object]:
            reads.append(query)
            return await read(query, *parameters)

        monkeypatch.setattr(registry, "_read", counted)
        await asyncio.gather(*(registry.commit(change(events=(Event("test", f"{n}"),))) for n in range(20)))
        followed = [await anext(feed) for _ in range(20)]
    assert queries.EVENTS not in reads
    assert [event.seq for event in followed] == list(range(2, 22))
    assert followed == await registry.events(after=1)
    await feed.aclose()
    await registry.close()


async def test_the_events_of_a_batch_in_which_one_conflicts_have_their_numbers(db_path: Path) -> None:
    registry = await SqliteRegistry.open(db_path)
    await registry.commit(change(Insert(MODEL)))
    changes = [change(Insert(device(name)), events=(Event("test", name),)) for name in ("d-1", "d-2", "d-1", "d-3")]
    outcomes = await asyncio.gather(*(registry.commit(each) for each in changes), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [Conflict]
    assert registry._recent.after(0) == await registry.events()
    assert [event.subject for event in registry._recent.after(0)] == ["d-1", "d-2", "d-3"]
    await registry.close()


async def test_two_registries_on_one_file_follow_each_other(db_path: Path) -> None:
    first, second = await SqliteRegistry.open(db_path), await SqliteRegistry.open(db_path)
    feeds = [first.follow(0), second.follow(0)]
    async with asyncio.timeout(PATIENCE_SECONDS):
        for n in range(12):
            await (first, second)[n % 3 == 0].commit(change(events=(Event("test", f"{n}"),)))
            for feed in feeds:
                assert await anext(feed) == Event("test", f"{n}", seq=n + 1)
    for feed in feeds:
        await feed.aclose()
    await first.close()
    await second.close()
