"""What sealing, verifying, proving and searching rely on holds on every registry, whatever engine."""

import asyncio
from datetime import timedelta

import pytest

from fleet.ca.head_signer import LocalHeadSigner, check_head
from fleet.ca.keys import generate_key
from fleet.domain.audit_proof import check_path
from fleet.domain.changes import Change
from fleet.domain.errors import NotFound
from fleet.domain.ports import Registry
from fleet.domain.writes import DropAudit
from fleet.services.audit_proving import prove
from fleet.services.audit_search import RowFilter, newest_rows
from fleet.services.audit_verification import verify
from fleet.services.sealing import seal
from tests.storage.samples import NOW, change, entry

SIGNER = LocalHeadSigner(generate_key())
KEYS = (SIGNER.public_key,)


async def grow(registry: Registry, rows: int) -> None:
    missing = rows - await registry.last_audit()
    await asyncio.gather(*(registry.commit(Change(entry(f"action {n}"))) for n in range(missing)))


async def test_a_tree_grows_and_is_verified_at_every_step(registry: Registry) -> None:
    remembered = None
    for hours, rows in enumerate((1, 255, 256, 257, 700)):
        await grow(registry, rows)
        head = await seal(registry, SIGNER, NOW + timedelta(hours=hours))
        assert head is not None
        check_head(head, KEYS)
        found = await verify(registry, KEYS, since=remembered)
        assert (found.head, found.rows, found.heads) == (head, rows, 1)
        remembered = found.noted
    assert (await verify(registry, KEYS)).noted == remembered


async def test_sealed_by_many_at_once_while_rows_come_in(registry: Registry) -> None:
    await grow(registry, 300)
    await asyncio.gather(grow(registry, 600), *(seal(registry, SIGNER, NOW) for _ in range(8)))
    await seal(registry, SIGNER, NOW)
    found = await verify(registry, KEYS)
    assert (found.rows, found.sealed) == (600, 600)


async def test_rows_are_proved_before_and_after_others_are_archived(registry: Registry) -> None:
    await grow(registry, 700)
    await seal(registry, SIGNER, NOW)
    for seq in (1, 256, 257, 513, 700):
        check_path(await prove(registry, seq))
    await registry.commit(change(DropAudit(512)))
    await seal(registry, SIGNER, NOW + timedelta(hours=1))
    for seq in (513, 700, 701):
        check_path(await prove(registry, seq))
    with pytest.raises(NotFound):
        await prove(registry, 512)
    found = await verify(registry, KEYS)
    assert (found.archived, found.first_row, found.rows, found.heads) == (512, 513, 701, 2)
    assert len(await newest_rows(registry, RowFilter(actor="operator"), 999)) == 189
