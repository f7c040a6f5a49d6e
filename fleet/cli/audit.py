"""`fleet audit`: who did what, and proof that nobody edited it."""

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import click

from fleet.cli.at_home import at_home_only
from fleet.cli.audit_proof import check_proof, prove_
from fleet.cli.audit_verify import verify_
from fleet.cli.desk import Desk, fleet_option
from fleet.cli.errors import attempting
from fleet.cli.home import home_option, opened, run, utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.cli.output_file import new_file
from fleet.domain.audit_log import TreeHead
from fleet.domain.audit_proof import entry_value, head_value
from fleet.domain.ports import AuditReader
from fleet.home.pki import audit_signer
from fleet.services.audit_search import RowFilter
from fleet.services.sealing import seal

COLUMNS = ("seq", "at", "actor", "action", "subject", "outcome", "address", "detail")
EXPORT_PAGE_ROWS = 1_000


@click.group()
def audit() -> None:
    """Who did what, to what, by what right, and how it ended: a tree in which no row can be edited unseen."""


audit.add_command(verify_)
audit.add_command(prove_)
audit.add_command(check_proof)


@audit.command(name="list")
@fleet_option
@click.option("--after", type=click.IntRange(0), metavar="SEQ", help="Rows behind this one; without it, the newest.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most so many rows.")
@click.option("--actor", default="", metavar="TEXT", help="Rows of this actor: 'token 3f2a…', 'station*'.")
@click.option("--action", default="", metavar="TEXT", help="Rows of this action: device.revoke, 'device.*'.")
@click.option("--subject", default="", metavar="TEXT", help="Rows about this: 'device cam-7'.")
@click.option("--outcome", default="", metavar="TEXT", help="Rows that ended so: ok, or the code of a refusal.")
@output_option
def list_(
    desk: Desk,
    after: int | None,
    limit: int,
    actor: str,
    action: str,
    subject: str,
    outcome: str,
    output: str,
) -> None:
    """List the newest rows, in order.

    What is looked for is matched whole; a * at its end stands for any rest. Every row may have to be looked at.

    \b
    Example:
      fleet audit list --action 'device.*' --subject 'device cam-7'
    """
    where = RowFilter(actor, action, subject, outcome)
    with attempting("listing the audit"):
        found = desk.audit(where, after, limit)
    rows = [
        (
            r.seq,
            r.entry.at,
            r.entry.actor,
            r.entry.action,
            r.entry.subject,
            r.entry.outcome,
            r.entry.address,
            r.entry.detail,
        )
        for r in found
    ]
    print_rows(COLUMNS, rows, output)
    if not rows:
        click.echo(_why_none(where, after), err=True)


def _why_none(where: RowFilter, after: int | None) -> str:
    if where == RowFilter():
        return f"There is no row behind row {after}." if after else "There is no row yet."
    hint = "What is looked for is matched whole: a * at its end stands for any rest, as in 'device.*'."
    return f"No row{f' behind row {after}' if after else ''} is as you say. {hint}"


@audit.command(name="seal")
@at_home_only("a server seals its own audit each second")
@home_option
@output_option
def seal_(home: Path, output: str) -> None:
    """Seal now what has come in since the last signed head. A running server does it each second."""

    async def work() -> tuple[TreeHead | None, TreeHead | None]:
        async with opened(home) as fleet:
            ours = await seal(fleet.registry, audit_signer(fleet.home), utc_now())
            newest = await fleet.registry.last_sealed()
            return ours, newest.head if newest is not None else None

    with attempting(f"sealing the audit of '{home}'"):
        ours, newest = run(work())
    print_value(
        {
            "sealed": newest.size if newest is not None else 0,
            "head": f"{newest.size}:{newest.root.hex()}" if newest is not None else None,
            "at": newest.at if newest is not None else None,
            "new": ours is not None,
        },
        output,
    )


@audit.command()
@fleet_option
@click.option("--after", type=click.IntRange(0), default=0, metavar="SEQ", help="Only what came behind this row.")
@click.option("--file", "file", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT", help="A new file.")
@output_option
def export(desk: Desk, after: int, file: Path | None, output: str) -> None:
    """Write out the audit as JSON lines.

    One row a line, and behind the rows the signed heads over them. Without --file it goes to standard output. A line is
    {"seq": …, "entry": {…}, "leaf": …} or {"head": {…}}.

    \b
    Example:
      fleet audit export --after 120000 --file audit.jsonl
    """

    async def work(out: BinaryIO) -> dict[str, int]:
        async with desk.audit_reader() as reader:
            counts = {"rows": 0, "heads": 0}
            async for kind, line in _lines(reader, after):
                out.write(line)
                counts[kind] += 1
            return counts

    with attempting("exporting the audit"):
        if file is None:
            run(work(sys.stdout.buffer))
            sys.stdout.buffer.flush()
            return
        with new_file(file, secret=True) as out:
            counts = run(work(out))
    print_value({"file": str(file), **counts}, output)


async def _lines(reader: AuditReader, after: int) -> AsyncIterator[tuple[str, bytes]]:
    """Each row behind row `after` there is now, then each head over any of them: what it is, and its line."""
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
