"""`fleet audit`: who did what, and proof that it was not edited."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import click

from fleet.cli.audit_verify import ENTRY, check_proof, entry_shown, head_text, prove_, verify_
from fleet.cli.errors import attempting
from fleet.cli.options import FILE, client_option, home_option
from fleet.cli.output import output_option, print_rows, print_value
from fleet.cli.parameters import DEVICE_ID, PAST_TIME
from fleet.client.audit import audit_reader
from fleet.client.client import Client
from fleet.config.durable_files import new_file
from fleet.domain.audit_log import TreeHead
from fleet.domain.audit_proof import entry_value, head_value
from fleet.domain.changes import AuditRow
from fleet.domain.ports import AuditReader
from fleet.services.audit_search import RowFilter, rows_of

COLUMNS = ("seq", *ENTRY)
NEWEST_ROWS = 100
EXPORT_PAGE_ROWS = 1_000


@click.group()
def audit() -> None:
    """Who did what to what, with which credential, and the outcome: a hash tree that shows any edit of a row."""


audit.add_command(verify_)
audit.add_command(prove_)
audit.add_command(check_proof)


@audit.command(name="list")
@client_option
@click.option("--after", type=click.IntRange(0), metavar="SEQ", help="Rows after this one; without it, the newest.")
@click.option("--since", type=PAST_TIME, help="Rows written at or after this time: 2026-03-01, RFC 3339, or 12h (ago).")
@click.option("--until", type=PAST_TIME, help="Rows written before this time.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help=f"Maximum number of rows; without it, {NEWEST_ROWS}, or all of them with --since or --until.",
)
@click.option("--actor", default="", metavar="TEXT", help="Rows of this actor: 'token 3f2a…', 'station*'.")
@click.option("--action", default="", metavar="TEXT", help="Rows of this action: device.revoke, 'device.*'.")
@click.option("--subject", default="", metavar="TEXT", help="Rows about this: 'device cam-7'.")
@click.option(
    "--device",
    type=DEVICE_ID,
    help="Rows of one device: what it did, what was done to it, its tokens and requests.",
)
@click.option("--outcome", default="", metavar="TEXT", help="Rows with this outcome: ok, or the code of a refusal.")
@output_option
def list_(
    client: Client,
    after: int | None,
    since: datetime | None,
    until: datetime | None,
    limit: int | None,
    device: str | None,
    output: str,
    **texts: str,
) -> None:
    """List the newest rows, in order, or all of a period.

    Texts are matched whole; a * at the end matches any rest. Every row may have to be read.

    \b
    Examples:
      fleet audit list --device cam-7
      fleet audit list --action 'device.*' --subject 'device cam-7'
      fleet audit list --since 2026-03-01 --until 2026-03-02T12:00Z -o json
    """
    if since is not None and until is not None and since >= until:
        raise click.UsageError("--since must be before --until.")
    where = RowFilter(**texts, device=device or "", since=since, until=until)
    at_most = limit or (NEWEST_ROWS if since is None and until is None else sys.maxsize)

    async def work() -> list[AuditRow]:
        async with audit_reader(client) as reader:
            return await rows_of(reader, where, after, at_most)

    with attempting("listing the audit"):
        rows = asyncio.run(work())
    print_rows(COLUMNS, [{"seq": row.seq, **entry_shown(row.entry)} for row in rows], output)
    if not rows:
        click.echo(_why_none(where, after), err=True)
    elif limit is None and len(rows) == at_most:
        click.echo(f"There may be more: --limit N, --since TIME or --after SEQ. These are {at_most}.", err=True)


def _why_none(where: RowFilter, after: int | None) -> str:
    if where == RowFilter():
        return f"There is no row after row {after}." if after else "There is no row yet."
    has_text = any((where.actor, where.action, where.subject, where.outcome))
    hint = "Texts are matched whole: a * at the end matches any rest, as in 'device.*'." if has_text else ""
    return f"No row{f' after row {after}' if after else ''} matches. {hint}".rstrip()


@audit.command(name="seal")
@home_option("a server seals its own audit each second")
@output_option
def seal_(home: Path, output: str) -> None:
    """Sign a head over the rows since the last one, now. A running server does it every second."""
    from fleet.home.audit_note import keep_note
    from fleet.home.layout import opened
    from fleet.home.pki import audit_signer
    from fleet.services.sealing import seal

    async def work() -> tuple[TreeHead | None, TreeHead | None]:
        async with opened(home) as (place, registry):
            ours = await seal(registry, audit_signer(place), datetime.now(UTC))
            if ours is not None:
                await keep_note(place, registry, ours)
            newest = await registry.last_sealed()
            return ours, newest.head if newest is not None else None

    with attempting(f"sealing the audit of '{home}'"):
        ours, newest = asyncio.run(work())
    value: dict[str, object] = {"sealed": 0, "head": None, "at": None}
    if newest is not None:
        value = {"sealed": newest.size, "head": head_text(newest), "at": newest.at}
    print_value({**value, "new": ours is not None}, output)


@audit.command()
@client_option
@click.option("--after", type=click.IntRange(0), default=0, metavar="SEQ", help="Only rows after this one.")
@click.option("--file", "file", type=FILE, metavar="OUT", help="A new file.")
@output_option
def export(client: Client, after: int, file: Path | None, output: str) -> None:
    """Write out the audit as JSON lines.

    One row a line, and after the rows the signed heads over them. Without --file it goes to standard output. A line is
    {"seq": …, "entry": {…}, "leaf": …} or {"head": {…}}.

    \b
    Example:
      fleet audit export --after 120000 --file audit.jsonl
    """

    async def work(out: BinaryIO) -> dict[str, int]:
        async with audit_reader(client) as reader:
            counts = {"rows": 0, "heads": 0}
            async for kind, line in _lines(reader, after):
                out.write(line)
                counts[kind] += 1
            return counts

    with attempting("exporting the audit"):
        if file is None:
            asyncio.run(work(sys.stdout.buffer))
            sys.stdout.buffer.flush()
            return
        with new_file(file, secret=True) as out:
            counts = asyncio.run(work(out))
    print_value({"file": str(file), **counts}, output)


async def _lines(reader: AuditReader, after: int) -> AsyncIterator[tuple[str, bytes]]:
    """Each row after row `after` that there is now, then each head over any of them: its kind, and its line."""
    sealed = await reader.last_sealed()  # first, so that every row under the last head is exported
    newest, at = await reader.last_audit(), after
    while at < newest:
        page = await reader.audit(after=at, limit=min(EXPORT_PAGE_ROWS, newest - at))
        for row in page:
            yield "rows", _line({"seq": row.seq, "entry": entry_value(row.entry), "leaf": row.leaf.hex()})
        at = page[-1].seq if page else newest
    at, upto = after, sealed.head.size if sealed is not None else 0
    while at < upto:
        heads = await reader.audit_heads(after=at, limit=EXPORT_PAGE_ROWS)
        for head in heads:
            if head.size <= upto:
                yield "heads", _line({"head": head_value(head)})
        at = heads[-1].size if heads else upto


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"
