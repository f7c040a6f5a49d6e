"""Sealing: every row comes under a signed head, once, whoever seals, and nothing is signed that does not hold."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from fleet.ca.head_signer import check_head
from fleet.domain.audit_log import NODE_LEVELS, AuditNode, Sealed
from fleet.domain.errors import Conflict, Invalid, Unavailable
from fleet.domain.merkle import EMPTY
from fleet.services import sealing
from fleet.services.audit_verification import verify
from fleet.services.sealing import seal
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.services.audit_stage import KEYS, NOW, SIGNER, edit, fill, fill_and_seal


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    yield opened
    await opened.close()


async def test_nothing_to_seal(registry: SqliteRegistry) -> None:
    assert await seal(registry, SIGNER, NOW) is None
    await fill(registry, 3)
    head = await seal(registry, SIGNER, NOW)
    assert head is not None
    assert await seal(registry, SIGNER, NOW) is None
    assert await registry.audit_heads() == [head]


async def test_a_head(registry: SqliteRegistry) -> None:
    await fill(registry, 3)
    head = await seal(registry, SIGNER, NOW)
    assert head is not None
    check_head(head, KEYS)
    tree = EMPTY.appended(await registry.audit_hashes(0, 0, 3))
    assert (head.size, head.root, head.at) == (3, tree.root(), NOW.replace(microsecond=654_000))
    assert await registry.last_sealed() == Sealed(head, tree)


async def test_nodes_are_kept_as_they_become_whole(registry: SqliteRegistry) -> None:
    await fill_and_seal(registry, (255, 256, 600))
    leaves = await registry.audit_hashes(0, 0, 600)
    blocks = [EMPTY.appended(leaves[at : at + 256]).root() for at in (0, 256)]
    assert await registry.audit_hashes(NODE_LEVELS[0], 0, 9) == blocks
    assert await registry.audit_hashes(NODE_LEVELS[1], 0, 9) == []


async def test_a_backlog_is_sealed_in_portions_each_durable(
    registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "HEAD_ROWS_MAX", 100)
    monkeypatch.setattr(sealing, "PAGE_ROWS", 30)
    await fill(registry, 350)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    busy = asyncio.create_task(others())
    head = await seal(registry, SIGNER, NOW)
    busy.cancel()
    assert turns > 350 // 30  # the loop was theirs between any two pages
    assert [each.size for each in await registry.audit_heads()] == [100, 200, 300, 350]
    assert head is not None
    assert head.size == 350
    await verify(registry, KEYS)


async def test_rows_that_come_in_meanwhile_wait_for_the_next_time(registry: SqliteRegistry) -> None:
    await fill(registry, 10)
    await asyncio.gather(seal(registry, SIGNER, NOW), fill(registry, 400))
    await seal(registry, SIGNER, NOW)
    last = await registry.last_sealed()
    assert last is not None
    assert last.head.size == 400
    await verify(registry, KEYS)


async def test_several_at_once(registry: SqliteRegistry) -> None:
    """Processes that share a registry: each head once, all of them sound."""
    other = await SqliteRegistry.open(registry.path)
    try:
        for size in (5, 300, 700):
            await fill(registry, size)
            await asyncio.gather(*(seal(each, SIGNER, NOW) for each in (registry, other) * 4))
        assert [head.size for head in await registry.audit_heads()] == [5, 300, 700]
        await verify(other, KEYS)
    finally:
        await other.close()


async def test_when_the_others_always_win(registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(registry, 3)

    async def lost(sealed: Sealed, nodes: tuple[AuditNode, ...]) -> None:
        raise Conflict("sealed-already", "Somebody else was first.")

    monkeypatch.setattr(registry, "seal", lost)
    with pytest.raises(Unavailable, match="keep sealing"):
        await seal(registry, SIGNER, NOW)


@pytest.mark.parametrize(
    "frontier", ["UPDATE audit_frontier SET hashes = zeroblob(length(hashes))", "DELETE FROM audit_frontier"]
)
async def test_a_frontier_that_does_not_fit_is_made_anew(registry: SqliteRegistry, frontier: str) -> None:
    await fill_and_seal(registry, (300, 555))
    edit(registry.path, frontier)
    await fill(registry, 600)
    assert await seal(registry, SIGNER, NOW + timedelta(hours=1)) is not None
    await verify(registry, KEYS)


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("DELETE FROM audit_head WHERE size = 300", "audit-head-removed"),
        ("DELETE FROM audit_head", "audit-head-removed"),
        ("DELETE FROM audit WHERE seq = 305", "audit-removed"),
        ("UPDATE audit SET leaf = x'00' WHERE seq = 305", "audit-removed"),
        ("UPDATE audit_head SET root = zeroblob(32) WHERE size = 300", "audit-frontier"),
    ],
)
async def test_nothing_is_signed_on_broken_ground(registry: SqliteRegistry, statement: str, code: str) -> None:
    await fill_and_seal(registry, (100, 300))
    await fill(registry, 310)
    edit(registry.path, statement)
    before = await registry.audit_heads()
    with pytest.raises(Invalid) as caught:
        await seal(registry, SIGNER, NOW)
    assert caught.value.code == code
    assert await registry.audit_heads() == before
