"""`fleet db`: where the registry is, and its schema."""

from pathlib import Path

import click

from fleet.cli.at_home import at_home_only
from fleet.cli.errors import attempting
from fleet.cli.home import run
from fleet.cli.options import home_option
from fleet.cli.output import output_option, print_value
from fleet.home.layout import open_home, open_registry, place_of_registry
from fleet.storage.engines import Status, status_of


@click.group()
def db() -> None:
    """The registry's database: SQLite in the home, or PostgreSQL."""


@db.command()
@at_home_only("it works on the database itself")
@home_option
@output_option
def status(home: Path, output: str) -> None:
    """Show the engine, where it is, its schema and its size. Nothing is changed."""
    with attempting(f"looking at the database of '{home}'"):
        found = run(status_of(place_of_registry(open_home(home))))
    print_value(_shown(found), output)


@db.command()
@at_home_only("it works on the database itself")
@home_option
@output_option
def migrate(home: Path, output: str) -> None:
    """Bring the database to this program's schema.

    `fleet serve` does so when it starts.

    Several may be started at once: each step is applied once. There is no way back: copy the database before.
    """

    async def work() -> tuple[Status, Status]:
        place = open_home(home)
        before = await status_of(place_of_registry(place))
        registry = await open_registry(place)
        await registry.close()
        return before, await status_of(place_of_registry(place))

    with attempting(f"migrating the database of '{home}'"):
        before, after = run(work())
    print_value(
        {"engine": after.engine, "where": after.where, "schema_before": before.schema, "schema": after.schema}, output
    )


def _shown(found: Status) -> dict[str, object]:
    return {
        "engine": found.engine,
        "where": found.where,
        "schema": found.schema,
        "newest_schema": found.newest_schema,
        "size_bytes": found.size_bytes,
        **found.counts,
    }
