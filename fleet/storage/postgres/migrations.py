"""Schema migrations in PostgreSQL: numbered SQL, forward only, each applied once however many nodes start at once."""

from pathlib import Path

import asyncpg
from msgspec import Struct

from fleet.config.database_url import DatabaseUrl
from fleet.domain.errors import Invalid, NotFound
from fleet.storage.postgres.session import ADVICE_NO_REGISTRY, SCHEMA, Session, first_line
from fleet.storage.upgrade_log import log_upgrade

MIGRATION_LOCK = "1179399217, 2"  # "FLT1": held while the schema is changed
_SCHEMA = Path(__file__).parents[1] / "schema" / "postgres"
SECONDS_MAX = 3600.0  # for another node's migration, and for ours: it may have to rewrite a large table


class Schema(Struct, frozen=True):
    """The schema version of a database, and the newest that this program knows."""

    have: int
    """0 when there is no registry in the database."""
    newest: int


def migrations() -> list[tuple[int, str]]:
    """(number, SQL) of every migration, in order. A file `0001_what.sql` is number 1."""
    found = sorted(_SCHEMA.glob("*.sql"))
    return [(int(file.name.split("_", 1)[0]), file.read_text(encoding="utf-8")) for file in found]


async def schema_of(session: Session) -> Schema:
    """Changes nothing."""
    newest = migrations()[-1][0]
    if await session.fetchval(f"SELECT to_regclass('{SCHEMA}.migration')") is None:
        return Schema(0, newest)
    return Schema(await session.fetchval(f"SELECT coalesce(max(number), 0) FROM {SCHEMA}.migration"), newest)


async def migrate(session: Session, url: DatabaseUrl, *, create: bool) -> None:
    """Migrate the database to the newest schema, in one transaction; create a registry in it only if `create`.

    Raises: NotFound (`no-registry`). Invalid: `registry-newer`; `not-a-registry`: another program's tables are in
    its place; `registry-permissions`. And what the driver raises.
    """
    schema = await schema_of(session)
    if schema.have == 0 and not create:
        raise NotFound(
            "no-registry",
            f"There is no registry in {url.shown}.",
            ADVICE_NO_REGISTRY,
        )
    must_be_known(schema, url)
    if schema.have == schema.newest:
        return
    try:
        async with session.transaction():
            await session.execute("SET LOCAL lock_timeout = 0")
            await session.execute(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})", timeout=SECONDS_MAX)
            found = await _apply(session, url)
        log_upgrade(url.shown, found.have, found.newest)
    except asyncpg.InsufficientPrivilegeError as error:
        raise Invalid(
            "registry-permissions",
            f"The registry in {url.shown} cannot be made or changed: {first_line(error)}.",
            f"Its user must own the database, or the schema {SCHEMA} in it.",
        ) from error
    except (asyncpg.DuplicateObjectError, asyncpg.DuplicateTableError) as error:
        raise _not_ours(url, error) from error


async def _apply(session: Session, url: DatabaseUrl) -> Schema:
    """The schema that it had."""
    if await session.fetchval(f"SELECT to_regnamespace('{SCHEMA}')") is None:
        await session.execute(f"CREATE SCHEMA {SCHEMA}")
    await session.execute(
        "CREATE TABLE IF NOT EXISTS migration (number int PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    schema = await schema_of(session)  # again: another node may have been at it while we waited
    must_be_known(schema, url)
    for number, sql in migrations():
        if number > schema.have:
            await session.execute(sql, timeout=SECONDS_MAX)
            await session.execute("INSERT INTO migration (number) VALUES ($1)", number)
    return schema


def must_be_known(schema: Schema, url: DatabaseUrl) -> None:
    """Raises: Invalid (`registry-newer`)."""
    if schema.have > schema.newest:
        raise Invalid(
            "registry-newer",
            f"The registry in {url.shown} has schema {schema.have}; this program knows schemas up to {schema.newest}.",
            "Use the program that wrote it, or a newer one.",
        )


def _not_ours(url: DatabaseUrl, error: asyncpg.PostgresError) -> Invalid:
    return Invalid(
        "not-a-registry",
        f"The schema {SCHEMA} in {url.shown} holds another program's tables: {first_line(error)}.",
        "Name another database.",
    )
