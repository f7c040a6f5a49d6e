"""Tags, and acts on many devices at once: each whole or not at all, none that was not meant, and stoppable anywhere."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec import structs

from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change, Event, EventKind
from fleet.domain.device import Device, DeviceFilter, DeviceId, DeviceState, Model
from fleet.domain.errors import Conflict, Invalid, NotFound, Unavailable
from fleet.domain.tags import TAGS_MAX, Retag
from fleet.domain.writes import Insert
from fleet.services import bulk, inventory, revocation
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.services.tagging import tag_device

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ACTIVE = DeviceFilter(state=DeviceState.ACTIVE)


@dataclass(slots=True)
class Tally:
    """How far an operation has come."""

    done: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Code to count: devices to which there was nothing to do."""
    failed: list[bulk.Outcome] = field(default_factory=list)

    def count(self, outcome: bulk.Outcome) -> None:
        if outcome.code == bulk.DONE:
            self.done += 1
        elif outcome.is_failure:
            self.failed.append(outcome)
        else:
            self.skipped[outcome.code] = self.skipped.get(outcome.code, 0) + 1

    @property
    def seen(self) -> int:
        return self.done + sum(self.skipped.values()) + len(self.failed)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    await inventory.add_model(opened, Model("cam2"), act=Act("operator", NOW))
    yield opened
    await opened.close()


async def fill(registry: SqliteRegistry, count: int, state: DeviceState = DeviceState.ACTIVE) -> None:
    entry = AuditEntry(NOW, "test", "prepare", "", "ok")
    writes = tuple(Insert(Device(DeviceId(f"d{n:03}"), "cam2", state, NOW)) for n in range(count))
    await registry.commit(Change(entry, writes))


def move(verb: str, bulk_id: str = "b1") -> bulk.Move:
    return bulk.Move(verb, "operator", "lot leaks", bulk_id, lambda: NOW)


async def act(
    registry: SqliteRegistry,
    where: DeviceFilter,
    what: bulk.Operation,
    at_most: int = 10_000,
    stop: asyncio.Event | None = None,
) -> Tally:
    tally = Tally()
    place: bulk.StepPlace | None = bulk.FIRST
    while place is not None and not (stop is not None and stop.is_set()):
        left = at_most - tally.seen
        step = await bulk.one_step(registry, (where,), what, place, at_most=left, stop=stop or asyncio.Event())
        for outcome in step.outcomes:
            tally.count(outcome)
        place = step.following if tally.seen < at_most else None
    return tally


async def count(registry: SqliteRegistry, state: DeviceState) -> int:
    return await registry.count_devices(DeviceFilter(state=state))


class TestTagging:
    async def test_audit_has_before_and_after_and_followers_hear(self, registry: SqliteRegistry) -> None:
        labels = inventory.Labels((("lot", "L7"),), ("canary",))
        await inventory.add_device(registry, "cam-7", "cam2", labels=labels, act=Act("operator", NOW))
        before = await registry.last_event()
        retag = Retag((("site", "Oslo"),), ("lot",), ("pilot",), ("canary",))
        tagged = await tag_device(registry, "cam-7", retag, act=Act("operator", NOW))
        assert tagged == await registry.device("cam-7")
        assert (tagged.tags, tagged.groups) == ((("site", "Oslo"),), ("pilot",))
        added, row = await registry.audit(after=1)
        assert added.entry.detail == {"model": "cam2", "tags": '{"lot": "L7"}', "groups": "canary"}
        assert (row.entry.action, row.entry.subject) == ("device.tag", "device cam-7")
        assert row.entry.detail == {
            "before": 'tags={"lot": "L7"}; groups=canary',
            "after": 'tags={"site": "Oslo"}; groups=pilot',
        }
        (event,) = await registry.events(after=before)
        assert (event.kind, event.subject) == (EventKind.DEVICE_TAGGED, "cam-7")
        await tag_device(registry, "cam-7", retag, act=Act("operator", NOW))  # as it is already
        assert await registry.last_audit() == row.seq

    async def test_refused(self, registry: SqliteRegistry) -> None:
        with pytest.raises(NotFound):
            await tag_device(registry, "cam-7", Retag(join=("a",)), act=Act("operator", NOW))
        tags = tuple((f"k{n:02}", "v") for n in range(TAGS_MAX))
        await inventory.add_device(registry, "cam-7", "cam2", labels=inventory.Labels(tags), act=Act("operator", NOW))
        with pytest.raises(Invalid, match="at most"):
            await tag_device(registry, "cam-7", Retag((("more", "v"),)), act=Act("operator", NOW))
        more = inventory.Labels((*tags, ("more", "v")))
        with pytest.raises(Invalid, match="at most"):
            await inventory.add_device(registry, "cam-8", "cam2", labels=more, act=Act("operator", NOW))
        assert await registry.device("cam-8") is None


@pytest.mark.parametrize(
    ("verb", "start", "to"),
    [
        ("suspend", DeviceState.ACTIVE, DeviceState.SUSPENDED),
        ("resume", DeviceState.SUSPENDED, DeviceState.REGISTERED),
        ("revoke", DeviceState.ACTIVE, DeviceState.REVOKED),
        ("retire", DeviceState.REVOKED, DeviceState.RETIRED),
    ],
)
async def test_each_device_has_a_row_of_its_own(
    registry: SqliteRegistry, verb: str, start: DeviceState, to: DeviceState
) -> None:
    await fill(registry, 150, start)
    before = await registry.last_audit()
    assert await act(registry, DeviceFilter(model="cam2"), move(verb)) == Tally(done=150)
    assert await count(registry, to) == 150
    found = await registry.audit(after=before)
    assert {row.entry.subject for row in found} == {f"device d{n:03}" for n in range(150)}
    assert {(row.entry.action, row.entry.detail["reason"], row.entry.detail["bulk"]) for row in found} == {
        (f"device.{verb}", "lot leaks", "b1")
    }


async def test_tags_by_filter(registry: SqliteRegistry) -> None:
    await fill(registry, 70)
    retag = bulk.Tagging(Retag((("lot", "L7"),), join=("recall",)), "operator", "why", "b1", lambda: NOW)
    assert (await act(registry, ACTIVE, retag)).done == 70
    assert await registry.count_devices(DeviceFilter(group="recall", tags=(("lot", "L7"),))) == 70
    assert (await act(registry, ACTIVE, retag)) == Tally(skipped={"tagged-already": 70})
    (row,) = await registry.audit(after=await registry.last_audit() - 1)
    assert (row.entry.detail["bulk"], row.entry.detail["reason"]) == ("b1", "why")


async def test_what_is_so_already_is_skipped_and_the_rest_is_done(registry: SqliteRegistry) -> None:
    await fill(registry, 10)
    await revocation.suspend(registry, "d003", act=Act("operator", NOW))
    await revocation.revoke(registry, "d004", act=Act("operator", NOW))
    tally = await act(registry, DeviceFilter(model="cam2"), move("suspend"))
    assert (tally.done, tally.failed) == (8, [])
    assert tally.skipped == {"device-suspended": 1, "device-revoked": 1}


class Meddled(SqliteRegistry):
    """Somebody else changes a device between our look at it and our write; the disk may be full for another."""

    commits = 0
    most = 0

    async def commit(self, change: Change) -> None:
        if change.audit.subject == "device d005" and change.audit.actor == "operator":
            await tag_device(self, "d005", Retag(join=("spared",)), act=Act("somebody", NOW))
        if change.audit.subject == "device d006" and change.audit.actor == "operator":
            raise Unavailable("registry-unavailable", "The disk is full.")
        self.commits += 1
        self.most = max(self.most, self.commits)
        try:
            await super().commit(change)
        finally:
            self.commits -= 1


async def test_one_that_has_changed_meanwhile_is_left_alone(registry: SqliteRegistry) -> None:
    await fill(registry, 200)
    meddled = await Meddled.open(registry.path)
    tally = await act(meddled, ACTIVE, move("revoke"))
    await meddled.close()
    assert tally.done == 198
    assert {(o.device_id, o.code) for o in tally.failed} == {
        ("d005", "changed-meanwhile"),
        ("d006", "registry-unavailable"),
    }
    assert {d.id for d in await registry.devices(ACTIVE)} == {"d005", "d006"}
    assert 8 < meddled.most <= bulk.WINDOW
    assert await act(registry, ACTIVE, move("revoke")) == Tally(done=2)


async def test_never_more_than_were_confirmed(registry: SqliteRegistry) -> None:
    await fill(registry, 20)
    assert (await act(registry, ACTIVE, move("suspend"), at_most=7)).seen == 7
    assert await count(registry, DeviceState.SUSPENDED) == 7
    assert (await act(registry, ACTIVE, move("suspend"), at_most=0)).seen == 0


class Stopped(SqliteRegistry):
    """Whoever waits for the operation stops it at the commit number `after`."""

    after = 0
    commits = 0
    stop: asyncio.Event

    async def commit(self, change: Change) -> None:
        self.commits += 1
        if self.commits == self.after:
            self.stop.set()
        await super().commit(change)


@pytest.mark.parametrize("after", [0, 1, 64, 199])
async def test_stopped_anywhere_it_has_finished_what_it_began(registry: SqliteRegistry, after: int) -> None:
    await fill(registry, 300)
    stopped = await Stopped.open(registry.path)
    stopped.after, stopped.stop = after, asyncio.Event()
    if after == 0:
        stopped.stop.set()
    tally = await act(stopped, ACTIVE, move("revoke"), at_most=300, stop=stopped.stop)
    await stopped.close()
    assert after <= tally.seen == tally.done <= after + bulk.WINDOW
    assert await count(registry, DeviceState.REVOKED) == tally.done
    assert (await act(registry, ACTIVE, move("revoke"))).done == 300 - tally.done


def test_a_wrong_reason_is_found_before_anything_is_touched() -> None:
    for what in (move("revoke"), bulk.Tagging(Retag(join=("a",)), "operator", "", "b1", lambda: NOW)):
        with pytest.raises(Invalid) as caught:
            structs.replace(what, reason="a\nb")
        assert caught.value.code == "bad-reason"


async def test_events_reach_followers(registry: SqliteRegistry) -> None:
    await fill(registry, 2)
    before = await registry.last_event()
    await act(registry, ACTIVE, move("revoke"))
    heard: list[Event] = await registry.events(after=before)
    assert sorted((e.kind, e.subject) for e in heard) == [
        (EventKind.CREDENTIAL_ENDED, "d000"),
        (EventKind.CREDENTIAL_ENDED, "d001"),
        (EventKind.DEVICE_STATE, "d000"),
        (EventKind.DEVICE_STATE, "d001"),
    ]


async def test_a_move_as_seen_is_stricter_than_one_by_name(registry: SqliteRegistry) -> None:
    await fill(registry, 1)
    seen = await registry.device("d000")
    assert seen is not None
    await tag_device(registry, "d000", Retag(join=("x",)), act=Act("somebody", NOW))
    strict = revocation.moving(seen, DeviceState.REVOKED, "device.revoke", act=Act("a", NOW), revision=seen.revision)
    with pytest.raises(Conflict, match="changed since"):
        await registry.commit(strict)
    await registry.commit(revocation.moving(seen, DeviceState.REVOKED, "device.revoke", act=Act("a", NOW)))
