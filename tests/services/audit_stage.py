"""Registries with an audit that is sealed here and there, made quickly; and a file of one to tamper with."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fleet.ca.head_signer import LocalHeadSigner
from fleet.ca.keys import generate_key
from fleet.domain.audit_log import TreeHead, leaf_of
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.ports import Registry
from fleet.services.sealing import seal
from fleet.storage import mapping as columns
from fleet.storage.sqlite.registry import SqliteRegistry

NOW = datetime(2026, 3, 1, 12, 0, 0, 654321, tzinfo=UTC)
SIGNER = LocalHeadSigner(generate_key())
KEYS = (SIGNER.public_key,)


def entry(seq: int) -> AuditEntry:
    return AuditEntry(
        NOW + timedelta(seconds=seq), "operator", "test", f"device cam-{seq}", "ok", detail={"n": str(seq)}
    )


async def fill(registry: Registry, rows: int) -> None:
    """Commit until there are `rows` rows."""
    have = await registry.last_audit()
    await asyncio.gather(*(registry.commit(Change(entry(seq))) for seq in range(have + 1, rows + 1)))


async def fill_and_seal(registry: Registry, sizes: Sequence[int]) -> list[TreeHead]:
    """Rows up to each of `sizes` in turn, each time sealed."""
    heads = []
    for size in sizes:
        await fill(registry, size)
        head = await seal(registry, SIGNER, NOW + timedelta(seconds=size))
        assert head is not None
        heads.append(head)
    return heads


async def make_file(path: Path, sizes: Sequence[int], rows: int) -> list[TreeHead]:
    """A closed registry's file: sealed at `sizes`, with `rows` rows."""
    registry = await SqliteRegistry.open(path)
    try:
        heads = await fill_and_seal(registry, sizes)
        await fill(registry, rows)
    finally:
        await registry.close()
    return heads


def edit(path: Path, *statements: str) -> None:
    """Run SQL on the file, in which LEAF may be used."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.create_function("leaf", 8, _leaf)
        for statement in statements:
            db.execute(statement)


LEAF = "leaf(seq, at, actor, action, subject, outcome, address, detail)"
"""The right leaf of a row, for use in an edit's SQL."""


def _leaf(seq: int, *row: object) -> bytes:
    return leaf_of(columns.audit_of((seq, *row, b"")).entry, seq)
