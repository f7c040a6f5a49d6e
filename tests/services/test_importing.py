"""A manifest taken chunk by chunk: each row by itself, by two at once, and in the words of the audit and the feed."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.domain.changes import Change, EventKind
from fleet.domain.device import DeviceFilter, DeviceId, DeviceState, Model
from fleet.domain.errors import Conflict, Invalid
from fleet.domain.manifest import ManifestRow, key_hash
from fleet.services import inventory
from fleet.services.importing import ROWS_AT_ONCE, Importer, Numbered, checked_row
from fleet.storage.sqlite.registry import SqliteRegistry

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    await inventory.add_model(opened, Model("cam2"), act=Act("operator", NOW))
    yield opened
    await opened.close()


def rows(first: int, count: int) -> list[Numbered]:
    return [Numbered(n + 2, ManifestRow(DeviceId(f"d{n:05}"), "cam2", f"S{n}")) for n in range(first, first + count)]


def importer(registry: SqliteRegistry, bulk: str = "b1") -> Importer:
    return Importer(registry, "operator", lambda: NOW, bulk)


async def test_one_change_a_chunk(registry: SqliteRegistry) -> None:
    one = importer(registry)
    events, audit = await registry.last_event(), await registry.last_audit()
    assert await one.take(rows(0, ROWS_AT_ONCE)) == []
    assert (one.counts.added, one.counts.seen) == (ROWS_AT_ONCE, ROWS_AT_ONCE)
    assert await registry.count_devices(DeviceFilter(state=DeviceState.REGISTERED)) == ROWS_AT_ONCE
    [event] = await registry.events(after=events)
    assert (event.kind, event.subject, event.detail) == (EventKind.DEVICES_IMPORTED, "b1", str(ROWS_AT_ONCE))
    [row] = await registry.audit(after=audit)
    assert (row.entry.action, row.entry.actor, row.entry.outcome) == ("device.import", "operator", "ok")
    assert row.entry.detail["bulk"] == "b1"
    assert row.entry.detail["lines"] == f"2-{ROWS_AT_ONCE + 1}"
    assert (row.entry.detail["first"], row.entry.detail["last"]) == ("d00000", f"d{ROWS_AT_ONCE - 1:05}")


async def test_nothing_new_is_no_change(registry: SqliteRegistry) -> None:
    await importer(registry).take(rows(0, 10))
    audit = await registry.last_audit()
    again = importer(registry, "b2")
    assert await again.take(rows(0, 10)) == []
    assert (again.counts.added, again.counts.unchanged) == (0, 10)
    assert await registry.last_audit() == audit


async def test_two_at_once_take_each_row_once(registry: SqliteRegistry) -> None:
    pair = importer(registry, "b1"), importer(registry, "b2")

    async def work(one: Importer) -> None:
        for first in range(0, 1000, 50):
            assert await one.take(rows(first, 50)) == []

    await asyncio.gather(*map(work, pair))
    assert sum(one.counts.added for one in pair) == 1000
    assert sum(one.counts.unchanged for one in pair) == 1000
    assert await registry.count_devices() == 1000


async def test_somebody_elses_commit_between_look_and_commit(
    registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row that came in meanwhile is refused, and the others are taken."""
    commit, meant = registry.commit, iter([True])

    async def late(change: Change) -> None:
        if change.audit.action == "device.import" and next(meant, False):
            await inventory.add_device(registry, "d00001", "cam2", act=Act("operator", NOW))
        await commit(change)

    monkeypatch.setattr(registry, "commit", late)
    one = importer(registry)
    [refused] = await one.take(rows(0, 3))
    assert (refused.line, refused.device_id, refused.code) == (3, "d00001", "device-exists")
    assert (one.counts.added, one.counts.refused) == (2, 1)


async def test_a_registry_that_always_says_no(registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, and each row is told."""

    async def never(change: Change) -> None:
        raise Conflict("listed-already", "Somebody is always faster.")

    monkeypatch.setattr(registry, "commit", never)
    one = importer(registry)
    assert [each.code for each in await one.take(rows(0, 3))] == ["changed-meanwhile"] * 3
    assert (one.counts.added, one.counts.refused) == (0, 3)


@pytest.mark.parametrize("text", ["00", "zz" * 32, "0" * 63, "00" * 33, "00 " * 32])
def test_what_is_no_key_hash(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        key_hash(text)
    assert caught.value.code == "bad-key-hash"


def test_a_row_needs_something_to_know_the_device_by() -> None:
    with pytest.raises(Invalid) as caught:
        checked_row("cam-1", "cam2", "", None, (), ())
    assert caught.value.code == "no-proof"
    assert checked_row("cam-1", "cam2", "", bytes(32), (), ()).key_sha256 == bytes(32)


def test_a_digest_is_of_everything() -> None:
    row = ManifestRow(DeviceId("a"), "m", "s", bytes(32), (("k", "v"),), ("g",))
    others = (
        ManifestRow(DeviceId("b"), "m", "s", bytes(32), (("k", "v"),), ("g",)),
        ManifestRow(DeviceId("a"), "n", "s", bytes(32), (("k", "v"),), ("g",)),
        ManifestRow(DeviceId("a"), "m", "t", bytes(32), (("k", "v"),), ("g",)),
        ManifestRow(DeviceId("a"), "m", "s", None, (("k", "v"),), ("g",)),
        ManifestRow(DeviceId("a"), "m", "s", bytes(32), (), ("g",)),
        ManifestRow(DeviceId("a"), "m", "s", bytes(32), (("k", "v"),), ()),
    )
    assert len({row.digest(), *(other.digest() for other in others)}) == 7
