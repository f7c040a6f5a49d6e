"""The same fleet in PostgreSQL: the rows of `fill`, by COPY."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from fleet.config.database_url import DatabaseUrl
from fleet.domain.device import Model
from fleet.storage import mapping
from fleet.storage.postgres.session import SCHEMA, Session
from hw_bench.drivers.fill import MODELS, FilledFleet, OnCount, Sizes, portions

DEVICE_TABLES = ("device", "device_tag", "credential")
# Indices grow with the rows, as a fleet's do: built afterwards they would be smaller than they will be in life.
# Tables with their indices and TOAST. Nothing else is written between two readings.
SIZE = "SELECT sum(pg_total_relation_size(name::regclass)) FROM unnest($1::text[]) name"


async def fill_postgres(url: DatabaseUrl, fleet: FilledFleet, on_count: OnCount) -> Sizes:
    """Write `fleet` into the registry at `url`, which must not be in use. `on_count` is called with the count so far.

    Raises: asyncpg.PostgresError, OSError.
    """
    async with _session(url) as db:
        await _copy(db, mapping.MODEL, (mapping.MODEL.row(Model(f"model-{n}")) for n in range(MODELS)))
        before = await _octets(db, *DEVICE_TABLES)
        for portion in portions(fleet.count):
            devices = [fleet.device(number) for number in portion]
            async with db.transaction():
                await _copy(db, mapping.DEVICE, map(mapping.DEVICE.row, devices))
                tags = (row for device in devices for row in mapping.tag_rows(device))
                await _copy(db, mapping.TAG, tags)
                credentials = (mapping.CREDENTIAL.row(fleet.credential(number)) for number in portion)
                await _copy(db, mapping.CREDENTIAL, credentials)
            on_count(portion.stop)
        filled = await _octets(db, *DEVICE_TABLES)
        last = await db.fetchval("SELECT coalesce(max(seq), 0) FROM audit")
        audit_before = await _octets(db, "audit")
        for portion in portions(fleet.count):
            found = (mapping.AUDIT.row(fleet.audit(number, last + 1 + number)) for number in portion)
            await _copy(db, mapping.AUDIT, found)
        audit = await _octets(db, "audit")
        # What autovacuum and the checkpointer would do at some time while others measure.
        await db.execute("VACUUM ANALYZE")
        await db.execute("CHECKPOINT")
        return Sizes(filled - before, audit - audit_before)


@asynccontextmanager
async def _session(url: DatabaseUrl) -> AsyncIterator[Session]:
    # Of use only when it is whole: no commit need be on disk before the checkpoint at the end.
    settings = {"search_path": SCHEMA, "synchronous_commit": "off"}
    session = await asyncpg.connect(url.dsn, server_settings=settings)
    try:
        yield session
    finally:
        await session.close()


async def _copy(db: Session, table: mapping.Table[Any], records: Iterable[mapping.Row]) -> None:
    await db.copy_records_to_table(table.name, schema_name=SCHEMA, columns=table.columns, records=records)


async def _octets(db: Session, *tables: str) -> int:
    return int(await db.fetchval(SIZE, tables))
