"""`fleet audit`: who did what, and proof that nobody edited it."""

import re
from collections.abc import Iterable
from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.home import home_option, opened, run
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.audit_log import sound_leaves
from fleet.domain.changes import AuditRow
from fleet.domain.errors import Invalid
from fleet.domain.merkle import EMPTY
from fleet.storage.sqlite_audit import audit_rows

COLUMNS = ("seq", "at", "actor", "action", "subject", "outcome", "address", "detail")


@click.group()
def audit() -> None:
    """Who did what, to what, by what right, and how it ended: a tree in which no row can be edited unseen."""


@audit.command(name="list")
@home_option
@click.option("--after", type=click.IntRange(0), metavar="SEQ", help="Rows behind this one; without it, the newest.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most so many rows.")
@output_option
def list_(home: Path, after: int | None, limit: int, output: str) -> None:
    """List the newest rows, in order."""

    async def work() -> list[AuditRow]:
        async with opened(home) as fleet:
            start = after if after is not None else max(0, await fleet.registry.last_audit() - limit)
            return await fleet.registry.audit(after=start, limit=limit)

    with attempting("listing the audit"):
        found = run(work())
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


@audit.command(name="verify")
@click.option(
    "--home", type=click.Path(path_type=Path), envvar="FLEET_HOME", show_envvar=True, help="The fleet's home."
)
@click.option("--file", "copy", type=click.Path(path_type=Path), metavar="DB", help="Verify this copy of a registry.")
@click.option("--head", metavar="SEQ:HASH", help="A head noted earlier, which must still hold.")
@output_option
def verify_(home: Path | None, copy: Path | None, head: str | None, output: str) -> None:
    """Verify every row from the first to the last, and print the head: their number and the root of their tree.

    A row that was changed, removed or moved is named, and the exit code is 1. That the newest rows were cut off shows
    only against a head that was noted somewhere else: give it with --head.
    """
    noted = _parse_head(head)
    if copy is not None:
        with attempting(f"verifying the audit of '{copy}'"):
            seq, hash_ = _verify_copy(copy, noted)
    elif home is not None:
        with attempting(f"verifying the audit of '{home}'"):
            seq, hash_ = run(_verify_home(home, noted))
    else:
        raise click.UsageError("Give --home (or FLEET_HOME), or --file.")
    print_value({"ok": True, "rows": seq, "head": f"{seq}:{hash_.hex()}"}, output)


def _parse_head(text: str | None) -> tuple[int, bytes] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,18}):([0-9a-fA-F]{64})", text.strip())
    if not found:
        raise click.UsageError("--head is the number of rows, a colon and the root, as `fleet audit verify` prints it.")
    return int(found[1]), bytes.fromhex(found[2])


class _Walk:
    """Through the audit, row by row, with an eye on the head that was noted."""

    def __init__(self, noted: tuple[int, bytes] | None) -> None:
        self._tree = EMPTY
        self._noted = noted
        self._met = noted is None or noted == (0, EMPTY.root())

    def over(self, rows: Iterable[AuditRow]) -> None:
        """Go on over `rows`. Raises: Invalid, naming the first bad one."""
        for leaf in sound_leaves(rows, self._tree.size):
            self._tree = self._tree.appended([leaf])
            if self._noted is not None and self._tree.size == self._noted[0]:
                self._met = self._tree.root() == self._noted[1]

    def head(self) -> tuple[int, bytes]:
        """Where it has ended. Raises: Invalid (`audit-rewritten`) when the noted head was not on the way."""
        if not self._met and self._noted is not None:
            raise Invalid(
                "audit-rewritten", f"The audit is broken: its first {self._noted[0]} rows are not those noted."
            )
        return self._tree.size, self._tree.root()


async def _verify_home(home: Path, noted: tuple[int, bytes] | None) -> tuple[int, bytes]:
    walk = _Walk(noted)
    async with opened(home) as fleet:
        async for page in fleet.registry.audit_pages():
            walk.over(page)
    return walk.head()


def _verify_copy(path: Path, noted: tuple[int, bytes] | None) -> tuple[int, bytes]:
    walk = _Walk(noted)
    with audit_rows(path, is_copy=True) as rows:
        walk.over(rows)
    return walk.head()
