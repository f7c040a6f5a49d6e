"""Opens, copies and inspects a registry, whatever its engine: a Path is a SQLite file, a DatabaseUrl is PostgreSQL."""

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from fleet.config.database_url import DatabaseUrl
from fleet.domain.errors import NotFound
from fleet.domain.ports import Registry
from fleet.storage.errors import reported
from fleet.storage.sqlite import connection as sqlite_file
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.storage.sqlite.snapshot import CopyProgress as CopyProgress
from fleet.storage.sqlite.snapshot import copy_registry

RegistryLocation = Path | DatabaseUrl

COUNT_SECONDS_MAX = 60.0  # for one table, which is scanned
_COUNTS = {
    "devices": "SELECT count(*) FROM device",
    "certificates": "SELECT count(*) FROM credential",
    "audit_rows": "SELECT count(*) FROM audit",
    "events": "SELECT count(*) FROM event",
}


class Engine(Registry, Protocol):
    """An open registry."""

    async def close(self) -> None:
        """Commit what is queued and end every `follow`. Idempotent."""


class Status(Struct, frozen=True):
    """Schema and size of a registry that was only looked at."""

    engine: str
    where: str
    """Never with a password."""
    schema: int
    newest_schema: int
    """The newest that this program knows."""
    size_bytes: int
    counts: dict[str, int]


async def open_engine(place: RegistryLocation, *, create: bool = True) -> Engine:
    """Open the registry at `place` and migrate it to the newest schema; create it unless `create` is False.

    Raises: NotFound, Invalid, Unavailable: the message says what is wrong at `place`.
    """
    if isinstance(place, Path):
        return await SqliteRegistry.open(place, create=create)
    from fleet.storage.postgres.registry import PostgresRegistry  # a fleet on SQLite needs no driver

    return await PostgresRegistry.open(place, create=create)


async def copy_to_file(place: RegistryLocation, target: Path, progress: CopyProgress) -> None:
    """Write a consistent copy of the registry at `place`, which may be in use, to the new SQLite file `target`, 0600.

    Raises: FileExistsError; FleetError; OSError or sqlite3.Error: the file could not be written.
    """
    if isinstance(place, Path):
        await asyncio.to_thread(copy_registry, place, target)
        return
    from fleet.storage.postgres.transfer import copy_out

    await copy_out(place, target, progress)


async def must_be_loadable(place: DatabaseUrl) -> None:
    """Raises: Conflict (`registry-exists`): the database is not empty. FleetError."""
    from fleet.storage.postgres import transfer as postgres_copy

    await postgres_copy.must_be_loadable(place)


async def load_file(source: Path, place: DatabaseUrl, progress: CopyProgress) -> None:
    """Load the SQLite file `source` into the empty database at `place`, in one transaction.

    Raises: Conflict (`registry-exists`). FleetError.
    """
    from fleet.storage.postgres.transfer import copy_in

    await copy_in(source, place, progress)


async def status_of(place: RegistryLocation) -> Status:
    """Status of the registry at `place`. Changes nothing, its schema included.

    Raises: NotFound (`no-registry`, `no-database`). Unavailable.
    """
    return _sqlite_status(place) if isinstance(place, Path) else await _postgres_status(place)


def _sqlite_status(path: Path) -> Status:
    if not path.is_file():
        raise sqlite_file.no_registry(path)
    with reported(sqlite_file.unavailable), closing(sqlite_file.connect_reader(path)) as db:
        have = db.execute("PRAGMA user_version").fetchone()[0]
        size = db.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]
        counts = {name: db.execute(sql).fetchone()[0] for name, sql in _COUNTS.items()}
    return Status("sqlite", str(path), have, sqlite_file.migrations()[-1][0], size, counts)


async def _postgres_status(url: DatabaseUrl) -> Status:
    from fleet.storage.postgres.migrations import schema_of
    from fleet.storage.postgres.session import ADVICE_NO_REGISTRY, connect, unavailable

    session = await connect(url, "status")
    try:
        with reported(unavailable):
            schema = await schema_of(session)
            if schema.have == 0:
                raise NotFound("no-registry", f"There is no registry in {url.shown}.", ADVICE_NO_REGISTRY)
            size = await session.fetchval("SELECT pg_database_size(current_database())")
            counts = {name: await session.fetchval(sql, timeout=COUNT_SECONDS_MAX) for name, sql in _COUNTS.items()}
    finally:
        session.terminate()
    return Status("postgresql", url.shown, schema.have, schema.newest, size, counts)
