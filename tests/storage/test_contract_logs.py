"""What every registry promises of the audit's seals and of forgetting old audit and events, whatever engine."""

import asyncio
from datetime import timedelta

import pytest

from fleet.domain import merkle
from fleet.domain.audit_log import AuditNode, Sealed, TreeHead
from fleet.domain.changes import Change, Event
from fleet.domain.errors import Conflict, Unavailable
from fleet.domain.ports import Registry
from fleet.domain.writes import DropAudit, DropEvents
from tests.storage.samples import NOW, change, entry
from tests.storage.test_contract import refused

DEADLINE_SECONDS = 120.0


def sealed(frontier: merkle.Frontier, seconds: int = 0) -> Sealed:
    at = NOW.replace(microsecond=123_000) + timedelta(seconds=seconds)
    return Sealed(TreeHead(frontier.size, frontier.root(), at, bytes(31) + b"k", b"signature"), frontier)


async def fill(registry: Registry, rows: int) -> merkle.Frontier:
    """Commit until there are `rows` audit rows; the tree that they make."""
    missing = rows - await registry.last_audit()
    await asyncio.gather(*(registry.commit(Change(entry(f"action {n}"))) for n in range(missing)))
    return merkle.EMPTY.appended(await registry.audit_hashes(0, 0, rows))


class TestSeals:
    async def test_none_at_first(self, registry: Registry) -> None:
        assert await registry.last_sealed() is None
        assert await registry.audit_heads() == []

    async def test_they_come_back_and_only_grow(self, registry: Registry) -> None:
        trees = [await fill(registry, size) for size in (3, 5, 9)]
        first, second, third = (sealed(tree, n) for n, tree in enumerate(trees))
        await registry.seal(first, ())
        await registry.seal(third, (AuditNode(8, 0, bytes(32)), AuditNode(16, 0, bytes(31) + b"1")))
        assert await registry.last_sealed() == third
        assert await registry.audit_heads() == [first.head, third.head]
        assert await registry.audit_heads(after=3) == [third.head]
        assert await registry.audit_heads(limit=1) == [first.head]
        for late in (second, third):
            with pytest.raises(Conflict, match="sealed up to row 9"):
                await registry.seal(late, (AuditNode(8, 1, bytes(32)),))
        assert await registry.audit_hashes(8, 0, 9) == [bytes(32)]
        assert await registry.audit_hashes(16, 0, 9) == [bytes(31) + b"1"]
        assert await registry.audit_hashes(24, 0, 9) == []

    async def test_one_that_grew_past_another_is_kept(self, registry: Registry) -> None:
        trees = [await fill(registry, size) for size in (300, 600)]
        first, second = AuditNode(8, 0, bytes(32)), AuditNode(8, 1, bytes(31) + b"1")
        await registry.seal(sealed(trees[0]), (first,))
        await registry.seal(sealed(trees[1]), (first, second))  # begun before the other was there
        assert await registry.last_sealed() == sealed(trees[1])
        assert await registry.audit_hashes(8, 0, 9) == [first.hash, second.hash]

    async def test_leaves_are_those_of_the_rows(self, registry: Registry) -> None:
        await fill(registry, 6)
        leaves = [row.leaf for row in await registry.audit()]
        assert await registry.audit_hashes(0, 0, 99) == leaves
        assert await registry.audit_hashes(0, 2, 3) == leaves[2:5]
        assert await registry.audit_hashes(0, 6, 3) == []

    async def test_one_of_many_seals(self, registry: Registry) -> None:
        tree = await fill(registry, 4)
        outcomes = await asyncio.gather(*(registry.seal(sealed(tree), ()) for _ in range(5)), return_exceptions=True)
        assert sorted(type(o).__name__ for o in outcomes) == ["Conflict"] * 4 + ["NoneType"]


class TestForgetting:
    async def test_audit_that_is_sealed_goes_by_256(self, registry: Registry) -> None:
        tree = await fill(registry, 600)
        assert await refused(registry, DropAudit(256)) == "audit-kept"
        await registry.seal(sealed(tree), ())
        assert await refused(registry, DropAudit(255)) == "audit-kept"
        assert await refused(registry, DropAudit(768)) == "audit-kept"
        await registry.commit(change(DropAudit(256)))
        assert (await registry.audit(limit=1))[0].seq == 257
        assert await registry.audit_hashes(0, 256, 1) != []
        assert await registry.audit_hashes(0, 0, 9) == []
        assert await registry.last_audit() == 601

    async def test_events_go_but_the_newest(self, registry: Registry) -> None:
        assert await registry.first_event() == 0
        for n in range(5):
            await registry.commit(change(events=(Event("test", f"{n}"),)))
        assert [e.subject for e in await registry.events(after=1, limit=2)] == ["1", "2"]
        await registry.commit(change(DropEvents(3)))
        assert (await registry.first_event(), await registry.last_event()) == (4, 5)
        await registry.commit(change(DropEvents(99)))
        assert (await registry.first_event(), await registry.last_event()) == (5, 5)

    async def test_who_follows_from_what_is_forgotten_is_told(self, registry: Registry) -> None:
        for n in range(5):
            await registry.commit(change(events=(Event("test", f"{n}"),)))
        await registry.commit(change(DropEvents(3)))
        async with asyncio.timeout(DEADLINE_SECONDS):
            with pytest.raises(Unavailable, match="not kept any more") as caught:
                await anext(registry.follow(1))
            assert caught.value.code == "feed-gap"
            assert (await anext(registry.follow(3))).seq == 4
