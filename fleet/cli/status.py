"""`fleet status`: what a fleet holds, and how its server is doing."""

from collections.abc import Iterator, Mapping

import click

from fleet.cli.errors import attempting
from fleet.cli.options import client_option
from fleet.cli.output import Row, output_option, print_rows, print_value
from fleet.client.client import Client

COLUMNS = ("part", "what", "value")
SERVER = "server"
"""The part of values outside any part."""


@click.command()
@client_option
@output_option
def status(client: Client, output: str) -> None:
    """Show what the registry holds; with --url, the server's uptime and counters too."""
    with attempting("asking for the status"):
        found = dict(client.get("/v1/status", devices="count"))
    if client.home is not None:
        del found["uptime_seconds"]  # of this command
    if output == "json":
        print_value(found, output)
        return
    print_rows(COLUMNS, _lines(found), output)


def _lines(found: Mapping[str, object]) -> Iterator[Row]:
    """A row for each number: first the server's own, then each part's, with its parts' names in front."""
    for name, value in found.items():
        if not isinstance(value, Mapping):
            yield {"part": SERVER, "what": name, "value": _rounded(value)}
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _within(name, value)


def _within(part: str, found: Mapping[str, object]) -> Iterator[Row]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _within(f"{part} {name}", value)
        else:
            yield {"part": part, "what": name, "value": _rounded(value)}


def _rounded(value: object) -> object:
    return round(value, 1) if isinstance(value, float) else value
