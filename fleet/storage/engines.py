"""Which engine keeps a registry, and what everybody above may ask of any of them.

A registry's place is a file's Path (SQLite) or a DatabaseUrl (PostgreSQL).
"""

import asyncio
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fleet.config.database_url import DatabaseUrl
from fleet.domain.errors import NotFound
from fleet.domain.ports import Registry
from fleet.storage.sqlite import connection as sqlite_file
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.storage.sqlite.snapshot import copy_registry

Place = Path | DatabaseUrl

Progress = Callable[[str, int], None]
"""Called with a table's name and how many of its rows have been copied so far."""

COUNT_SECONDS_MAX = 60.0  # of one table, which is walked
_COUNTS = {
    "devices": "SELECT count(*) FROM device",
    "certificates": "SELECT count(*) FROM credential",
    "audit_rows": "SELECT count(*) FROM audit",
    "events": "SELECT count(*) FROM event",
}


class Engine(Registry, Protocol):
    """A registry that is open."""

    async def close(self) -> None:
        """Commit what has been handed over and end every `follow`. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class Status:
    """How a registry stands, without having touched it."""

    engine: str
    where: str
    """Never with a password."""
    schema: int
    newest_schema: int
    """The one that this program knows."""
    size_bytes: int
    counts: dict[str, int]


async def open_engine(place: Place, *, create: bool = True) -> Engine:
    """Open the registry at `place`, on the newest schema, or make it there unless `create` is False.

    Raises: NotFound, Invalid, Unavailable: with a sentence that says what is wrong with the place.
    """
    if isinstance(place, Path):
        return await SqliteRegistry.open(place, create=create)
    from fleet.storage.postgres.registry import PostgresRegistry  # whoever stays with SQLite carries no driver

    return await PostgresRegistry.open(place, create=create)


async def copy_to_file(place: Place, target: Path, progress: Progress) -> None:
    """Copy the registry at `place`, which may be in use, as it is at one moment to the new SQLite file `target`, 0600.

    Raises: FileExistsError; FleetError; OSError or sqlite3.Error: the disk said no.
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


async def load_file(source: Path, place: DatabaseUrl, progress: Progress) -> None:
    """Make a registry of the SQLite file `source` in the empty database at `place`: all of it, or nothing.

    Raises: Conflict (`registry-exists`). FleetError.
    """
    from fleet.storage.postgres.transfer import copy_in

    await copy_in(source, place, progress)


async def status_of(place: Place) -> Status:
    """How the registry at `place` stands; nothing is changed, its schema included.

    Raises: NotFound (`no-registry`, `no-database`). Unavailable.
    """
    return _sqlite_status(place) if isinstance(place, Path) else await _postgres_status(place)


def _sqlite_status(path: Path) -> Status:
    if not path.is_file():
        raise NotFound("no-registry", f"There is no registry at {path}.", "Make a home with: fleet init HOME")
    try:
        with closing(sqlite_file.connect_reader(path)) as db:
            have = db.execute("PRAGMA user_version").fetchone()[0]
            size = db.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]
            counts = {name: db.execute(sql).fetchone()[0] for name, sql in _COUNTS.items()}
    except Exception as error:
        raise sqlite_file.unavailable(error) from error
    return Status("sqlite", str(path), have, sqlite_file.migrations()[-1][0], size, counts)


async def _postgres_status(url: DatabaseUrl) -> Status:
    from fleet.storage.postgres.migrations import schema_of
    from fleet.storage.postgres.session import connect, unavailable

    session = await connect(url, "status")
    try:
        schema = await schema_of(session)
        if schema.have == 0:
            raise NotFound("no-registry", f"There is no registry in {url}.")
        size = await session.fetchval("SELECT pg_database_size(current_database())")
        counts = {name: await session.fetchval(sql, timeout=COUNT_SECONDS_MAX) for name, sql in _COUNTS.items()}
    except Exception as error:
        raise unavailable(error) from error
    finally:
        session.terminate()
    return Status("postgresql", url.shown, schema.have, schema.newest, size, counts)
