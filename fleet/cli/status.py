"""`fleet status`: what a fleet holds, and how its server is doing."""

from collections.abc import Iterator, Mapping

import click

from fleet.cli.desk import Desk, fleet_option
from fleet.cli.errors import attempting
from fleet.cli.output import output_option, print_rows, print_value

COLUMNS = ("part", "what", "value")
SERVER = "server"
"""The part of what stands by itself."""


@click.command()
@fleet_option
@output_option
def status(desk: Desk, output: str) -> None:
    """Show what the registry holds; with --url, the server's uptime and counters too."""
    with attempting("asking for the status"):
        found = desk.status()
    if output == "json":
        print_value(found, output)
        return
    print_rows(COLUMNS, _lines(found), output)


def _lines(found: Mapping[str, object]) -> Iterator[tuple[str, str, object]]:
    """A line for each number: first the server's own, then each part's, with its parts' names in front."""
    for name, value in found.items():
        if not isinstance(value, Mapping):
            yield SERVER, name, value
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _within(name, value)


def _within(part: str, found: Mapping[str, object]) -> Iterator[tuple[str, str, object]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _within(f"{part} {name}", value)
        else:
            yield part, name, value
