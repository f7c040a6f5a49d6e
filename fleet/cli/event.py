"""`fleet event`: what has changed, in order, and what changes."""

import time
from collections.abc import Iterator
from itertools import islice

import click

from fleet.cli.errors import attempting
from fleet.cli.options import client_option
from fleet.cli.output import Row, output_option, print_rows
from fleet.cli.parameters import DEVICE_ID
from fleet.client.client import PAGE_MAX, Client
from fleet.config.streams import json_text, text_of

COLUMNS = ("seq", "kind", "subject", "detail")
NEWEST = 100
WINDOW = 5_000  # what a request reads at most, too
POLL_SECONDS = 1.0
SEQUENCE_MAX = 2**53 - 1


@click.group()
def event() -> None:
    """Changes, in order: states and tags of devices, certificates, requests, models, claims, sessions."""


@event.command("list")
@client_option
@click.option("--device", type=DEVICE_ID, help="Only those about this device.")
@click.option("--kind", metavar="KIND", help="Only of this kind: device.state, credential.issued, ...")
@click.option("--after", type=click.IntRange(0, SEQUENCE_MAX), metavar="SEQ", help="Those after this one.")
@click.option("--follow", is_flag=True, help="What comes, too, until interrupted; without --after, that alone.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help=f"Maximum number; without --after the newest, {NEWEST} unless given. With --follow it ends after so many.",
)
@output_option
def list_(
    client: Client, after: int | None, limit: int | None, output: str, *, follow: bool, **where: str | None
) -> None:
    """List the newest events, in order, or those after SEQ.

    They are kept as retention says (fleet retention show). With --follow each is printed as it comes, a line each; -o
    json prints an object a line then.

    \b
    Examples:
      fleet event list --device cam-7
      fleet event list --kind device.state --follow -o json
    """
    with attempting("listing the events"):
        if follow:
            begin = _bounds(client)[1] if after is None else after
            for each in islice(_coming(client, begin, where), limit):
                shown = json_text(each) if output == "json" else "  ".join(text_of(each[name]) for name in COLUMNS)
                click.echo(shown)
            return
        if after is None:
            found: Iterator[Row] | list[Row] = _newest(client, limit or NEWEST, where)
        else:
            found = islice(_behind(client, after, _bounds(client)[1], where), limit)
        print_rows(COLUMNS, found, output, "There are no such events.")


def _bounds(client: Client) -> tuple[int, int]:
    """Sequences of the oldest and of the newest that are kept."""
    page = client.get("/v1/events/kept", after=SEQUENCE_MAX)
    return page["first"], page["last"]


def _newest(client: Client, count: int, where: Row) -> list[Row]:
    first, upto = _bounds(client)
    found: list[Row] = []
    while len(found) < count and upto >= max(first, 1):
        begin = max(upto - WINDOW, first - 1, 0)
        found = [*_behind(client, begin, upto, where), *found]
        upto = begin
    return found[-count:]


def _behind(client: Client, after: int, upto: int, where: Row) -> Iterator[Row]:
    """Those after `after`, and not after `upto`."""
    while after < upto:
        page = client.get("/v1/events/kept", after=after, limit=PAGE_MAX, **where)
        yield from (each for each in page["items"] if each["seq"] <= upto)
        if page["read"] <= after:
            return
        after = page["read"]


def _coming(client: Client, after: int, where: Row) -> Iterator[Row]:
    while True:
        last = _bounds(client)[1]
        yield from _behind(client, after, last, where)
        after = max(after, last)
        time.sleep(POLL_SECONDS)
