"""Copies a registry from PostgreSQL to the SQLite file that a backup holds, and such a file into PostgreSQL.

A backup holds a registry in one form, SQLite's, whichever engine it came from: what is checked and what is done to it
before it may be served is then the same for both, and one engine's backup is restored into the other. Tables, columns
and their order come from the catalogs of the two databases. Where those do not agree nothing is copied.

Out of a server a table comes through a cursor, in the order of its key, for that is the order in which SQLite takes it
fastest; into a server it goes by COPY. Neither way holds more than ROWS_AT_ONCE rows in memory.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from msgspec import Struct

from fleet.config.database_url import DatabaseUrl
from fleet.domain.errors import Conflict, FleetError, Invalid, Unavailable
from fleet.storage.errors import reported
from fleet.storage.postgres.migrations import MIGRATION_LOCK, SECONDS_MAX, migrate, must_be_known, schema_of
from fleet.storage.postgres.session import SCHEMA, Session, connect, unavailable
from fleet.storage.sqlite.connection import WriteLock, close_writer, connect_reader, connect_writer
from fleet.storage.sqlite.snapshot import CopyProgress

OF_THE_SERVER = frozenset({"migration", "writer"})
"""Tables of a server's own bookkeeping, which are not copied."""
ROWS_AT_ONCE = 2_000
REPORT_EVERY = 100_000  # rows
TABLE_SECONDS_MAX = 86_400.0  # a table of a hundred million rows over a slow network

_KINDS = {"bigint": "INTEGER", "integer": "INTEGER", "smallint": "INTEGER", "text": "TEXT", "bytea": "BLOB"}
"""What SQLite calls a column that holds the same values."""

_COLUMNS = f"""
    SELECT c.relname AS table, a.attname AS column, format_type(a.atttypid, NULL) AS type, a.attidentity <> '' AS counts
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = '{SCHEMA}'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
      AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    ORDER BY c.relname, a.attnum"""
_KEYS = f"""
    SELECT c.relname AS table, a.attname AS column
    FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
    CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
    WHERE c.relnamespace = '{SCHEMA}'::regnamespace ORDER BY c.relname, k.place"""
_REFERENCES = f"""
    SELECT c.relname AS table, r.relname AS other
    FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid JOIN pg_class r ON r.oid = f.confrelid
    WHERE f.contype = 'f' AND f.connamespace = '{SCHEMA}'::regnamespace AND c.oid <> r.oid"""

_FILE_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, 1, 7) <> 'sqlite_'"


class Table(Struct, frozen=True):
    """A table as the server has it."""

    name: str
    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    """Of each column, in SQLite's words."""
    key: tuple[str, ...]
    counter: str
    """The column that the server numbers by itself, or ''."""


async def tables_of(session: Session) -> list[Table]:
    """Every table of the fleet's, those that others refer to first.

    Raises: Invalid (`registry-differs`): a column holds what no backup can. And what the driver raises.
    """
    columns = await session.fetch(_COLUMNS)
    keys = await session.fetch(_KEYS)
    names = {row["table"] for row in columns} - OF_THE_SERVER
    order = TopologicalSorter({name: set[str]() for name in sorted(names)})
    for row in await session.fetch(_REFERENCES):
        order.add(row["table"], row["other"])
    found: list[Table] = []
    for name in order.static_order():
        if name in names:
            key = [row["column"] for row in keys if row["table"] == name]
            found.append(_table(name, [row for row in columns if row["table"] == name], key))
    return found


def _table(name: str, columns: Sequence[Any], key: Sequence[str]) -> Table:
    strange = [f"{row['column']} {row['type']}" for row in columns if row["type"] not in _KINDS]
    if strange or not key:
        raise _differ(f"{name} {'has no primary key' if not strange else f'holds {strange[0]}'}")
    counters = [row["column"] for row in columns if row["counts"]]
    names = tuple(row["column"] for row in columns)
    return Table(name, names, tuple(_KINDS[row["type"]] for row in columns), tuple(key), "".join(counters[:1]))


def must_agree(tables: Sequence[Table], db: sqlite3.Connection) -> None:
    """Raises: Invalid (`registry-differs`): a table or a column is in one of the two only, or of another type."""
    here = {table.name: dict(zip(table.columns, table.kinds, strict=True)) for table in tables}
    there = {
        name: {column[1]: column[2].upper() for column in db.execute(f"PRAGMA table_info({_quoted(name)})")}
        for (name,) in db.execute(_FILE_TABLES)
    }
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise _differ(f"{name} is {here.get(name, 'missing')} in one and {there.get(name, 'missing')} in the other")


def _differ(how: str) -> Invalid:
    return Invalid(
        "registry-differs",
        f"PostgreSQL and SQLite do not hold the same tables: {how}.",
        "Something was added to the database that is not this program's. Nothing was copied.",
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def copy_out(url: DatabaseUrl, target: Path, progress: CopyProgress) -> None:
    """Copy the registry at `url`, which may be in use by any number of nodes, to the new SQLite file `target`, 0600.

    One transaction reads all of it from one snapshot, and blocks no other.

    Raises: FileExistsError; FleetError.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    async with _session(url, "backup") as session:
        await asyncio.to_thread(_make_tables, target)
        async with session.transaction(isolation="repeatable_read", readonly=True):
            # Between two reads we wait for our own disk, and hold no locks that others need.
            await session.execute("SET LOCAL idle_in_transaction_session_timeout = '10min'")
            must_be_known(await schema_of(session), url)  # another node may have migrated it since we checked
            with closing(sqlite3.connect(target, isolation_level=None, check_same_thread=False)) as db:
                await _copy_tables_out(session, db, progress)


def _make_tables(target: Path) -> None:
    lock = WriteLock(target.with_suffix(".lock"))
    close_writer(connect_writer(target, lock, create=True), lock)


async def _copy_tables_out(session: Session, db: sqlite3.Connection, progress: CopyProgress) -> None:
    tables = await tables_of(session)
    must_agree(tables, db)
    db.execute("PRAGMA journal_mode = OFF")  # a copy that fails is thrown away
    db.execute("PRAGMA synchronous = OFF")
    # Built at the end they take a fraction of the time.
    indices = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall()
    db.execute("BEGIN")
    for name, _ in indices:
        db.execute(f"DROP INDEX {_quoted(name)}")
    for table in tables:
        db.execute(f"DELETE FROM {_quoted(table.name)}")
        await _copy_table_out(session, db, table, progress)
    for _, sql in indices:
        await asyncio.to_thread(_make_index, db, sql)
    db.execute("COMMIT")


def _put(db: sqlite3.Connection, insert: str, found: Sequence[Any]) -> None:
    # Closed in here: a cursor let go of later, in another thread, would reset the statement while it runs again.
    db.executemany(insert, [tuple(row) for row in found]).close()


def _make_index(db: sqlite3.Connection, sql: str) -> None:
    db.execute(sql).close()


async def _copy_table_out(session: Session, db: sqlite3.Connection, table: Table, progress: CopyProgress) -> None:
    columns = ", ".join(map(_quoted, table.columns))
    key = ", ".join(map(_quoted, table.key))
    marks = ", ".join("?" * len(table.columns))
    insert = f"INSERT INTO {_quoted(table.name)} ({columns}) VALUES ({marks})"
    cursor = await session.cursor(
        f"SELECT {columns} FROM {SCHEMA}.{_quoted(table.name)} ORDER BY {key}", timeout=SECONDS_MAX
    )
    done = 0
    while found := await cursor.fetch(ROWS_AT_ONCE, timeout=SECONDS_MAX):
        await asyncio.to_thread(_put, db, insert, found)
        done += len(found)
        if done % REPORT_EVERY < ROWS_AT_ONCE:
            progress(table.name, done)
    progress(table.name, done)


async def must_be_loadable(url: DatabaseUrl) -> None:
    """Raises: Conflict (`registry-exists`): something is in the database at `url` already. FleetError."""
    async with _session(url, "restore") as session:
        await _must_be_empty(session, url)


async def _must_be_empty(session: Session, url: DatabaseUrl) -> None:
    if not await session.fetchval("SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace($1)", SCHEMA):
        return
    last = None
    if await session.fetchval(f"SELECT to_regclass('{SCHEMA}.audit')") is not None:
        last = await session.fetchval(f"SELECT action FROM {SCHEMA}.audit ORDER BY seq DESC LIMIT 1")
    if last == "registry.restore":
        raise Conflict(
            "registry-exists",
            f"A restore has filled {url.shown} already, and nothing has been done with it since; nothing was changed.",
            f"If its home is not there, that restore was cut short: run DROP SCHEMA {SCHEMA} CASCADE in it, "
            "and restore again.",
        )
    raise Conflict(
        "registry-exists",
        f"The database {url.shown} is not empty: the schema {SCHEMA} in it holds tables; nothing was changed.",
        "Name a new database. Make one with: createdb --owner=USER NAME",
    )


async def copy_in(source: Path, url: DatabaseUrl, progress: CopyProgress) -> None:
    """Load the SQLite file `source` into the database at `url`, which must be empty, in one transaction. `source` is on
    the newest schema and is not written to meanwhile.

    Raises: Conflict (`registry-exists`). FleetError.
    """
    async with _session(url, "restore") as session, session.transaction():
        await session.execute("SET LOCAL lock_timeout = 0")
        await session.execute("SET LOCAL idle_in_transaction_session_timeout = '10min'")
        await session.execute(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})", timeout=SECONDS_MAX)
        await _must_be_empty(session, url)
        await migrate(session, url, create=True)
        with closing(connect_reader(source)) as db:
            await _copy_tables_in(session, db, progress)


async def _copy_tables_in(session: Session, db: sqlite3.Connection, progress: CopyProgress) -> None:
    tables = await tables_of(session)
    must_agree(tables, db)
    for table in reversed(tables):
        await session.execute(f"DELETE FROM {SCHEMA}.{_quoted(table.name)}")
    for table in tables:
        await _copy_table_in(session, db, table, progress)
    for table in tables:
        await session.execute(f"ANALYZE {SCHEMA}.{_quoted(table.name)}", timeout=SECONDS_MAX)


async def _copy_table_in(session: Session, db: sqlite3.Connection, table: Table, progress: CopyProgress) -> None:
    columns = ", ".join(map(_quoted, table.columns))
    key = ", ".join(map(_quoted, table.key))
    found = db.execute(f"SELECT {columns} FROM {_quoted(table.name)} ORDER BY {key}")
    count = db.execute(f"SELECT count(*) FROM {_quoted(table.name)}").fetchone()[0]
    status = await session.copy_records_to_table(
        table.name,
        schema_name=SCHEMA,
        columns=table.columns,
        records=_reported(found, table.name, progress),
        timeout=TABLE_SECONDS_MAX,
    )
    if status != f"COPY {count}":
        raise Unavailable("registry-unavailable", f"Of {table.name}, {count} rows were sent and {status} arrived.")
    if table.counter and count:
        await session.execute(
            f"SELECT setval(pg_get_serial_sequence('{SCHEMA}.{table.name}', '{table.counter}'), "
            f"(SELECT max({_quoted(table.counter)}) FROM {SCHEMA}.{_quoted(table.name)}))"
        )
    progress(table.name, count)


def _reported(found: sqlite3.Cursor, name: str, progress: CopyProgress) -> Iterator[tuple[Any, ...]]:
    for number, row in enumerate(found, 1):
        if number % REPORT_EVERY == 0:
            progress(name, number)
        yield row


@asynccontextmanager
async def _session(url: DatabaseUrl, role: str) -> AsyncIterator[Session]:
    """A session, ended with the block. Errors of the file and of the server become FleetErrors."""
    session = await connect(url, role)
    try:
        with reported(_failure):
            yield session
    finally:
        session.terminate()


def _failure(error: Exception) -> FleetError:
    if isinstance(error, sqlite3.Error):
        return Unavailable("copy-failed", f"The copy of the registry could not be written or read: {error}.")
    return unavailable(error)
