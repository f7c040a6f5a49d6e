"""`fleet db`: where the registry is, and its schema."""

import asyncio
from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.options import home_option
from fleet.cli.output import output_option, print_value
from fleet.home.layout import open_home, open_registry, place_of_registry
from fleet.storage.engines import Status, status_of


@click.group()
def db() -> None:
    """The registry's database: SQLite in the home, or PostgreSQL."""


@db.command()
@home_option("it works on the database itself")
@output_option
def status(home: Path, output: str) -> None:
    """Show the engine, where it is, its schema and its size. Nothing is changed."""
    with attempting(f"looking at the database of '{home}'"):
        found = asyncio.run(status_of(place_of_registry(open_home(home))))
    value = {key: getattr(found, key) for key in ("engine", "where", "schema", "newest_schema", "size_bytes")}
    print_value({**value, **found.counts}, output)


@db.command()
@home_option("it works on the database itself")
@output_option
def migrate(home: Path, output: str) -> None:
    """Migrate the database to the schema of this version.

    `fleet serve` does so when it starts.

    Several may run at once: each migration is applied once. There is no downgrade: copy the database first.
    """

    async def work() -> tuple[Status, Status]:
        place = open_home(home)
        before = await status_of(place_of_registry(place))
        registry = await open_registry(place)
        await registry.close()
        return before, await status_of(place_of_registry(place))

    with attempting(f"migrating the database of '{home}'"):
        before, after = asyncio.run(work())
    value = {"engine": after.engine, "where": after.where, "schema_before": before.schema, "schema": after.schema}
    print_value(value, output)
