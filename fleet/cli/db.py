"""`fleet db`: where the registry is, and its schema."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from fleet.cli.errors import CliError, attempting
from fleet.cli.options import home_option
from fleet.cli.output import output_option, print_value
from fleet.domain.changes import AuditRow, Change, made_by
from fleet.domain.credential import Credential
from fleet.home.layout import open_home, open_registry, place_of_registry, revocation_journal
from fleet.home.unix_user import act_now
from fleet.services.audit_search import RowFilter, newest_rows
from fleet.services.revocation_journal import usable_though_listed
from fleet.storage.engines import Status, status_of
from fleet.storage.journals.revoked_certificates import RevokedCertificates

ROWS_LOOKED_AT = 10_000
SHOWN_MAX = 5
_ENDING = (
    "device.revoke",
    "device.suspend",
    "device.retire",
    "device.bar",
    "credential.revoke",
    "certificate.revoke",
    "claim.quarantine",
    "distrust.begin",
)
"""Actions that the journal is for."""


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


def _show_newest(rows: Sequence[AuditRow]) -> None:
    """Show the newest revocations among `rows`, and have the person at a terminal agree. Raises: CliError."""
    click.echo("Check that the newest revocations that you know of are in force. Those of this registry:", err=True)
    ends = [row.entry for row in rows if row.entry.action in _ENDING and row.entry.outcome == "ok"]
    for entry in ends[-SHOWN_MAX:]:
        click.echo(f"  {entry.at:%Y-%m-%dT%H:%M:%SZ} {entry.action} {entry.subject}, by {entry.actor}", err=True)
    if not ends:
        click.echo(f"  none in the last {len(rows)} rows of its audit", err=True)
    if sys.stdin.isatty() and not click.confirm("Begin the journal with this registry?", err=True):
        raise CliError("beginning the revocation journal", "it was not confirmed; nothing was changed")


@db.command(name="begin-journal")
@home_option("the journal is a file there")
@output_option
def begin_journal(home: Path, output: str) -> None:
    """Begin the revocation journal anew, where it is lost.

    A home whose journal is lost is not served: its registry may be an older one, in which devices are in service that
    have been revoked since. So look first: is the newest revocation that you know of in force? If an older registry was
    put in its place, restore a backup instead.

    A journal that is there is left as it is (begun: no). Otherwise the audit has a row, journal.begin, with the number
    of the event behind which it begins, and standard error names certificates that CRLs have listed and that are usable
    in this registry, which is then an older one. The newest revocations of the registry are shown before it begins, and
    at a terminal you are asked.
    """

    left: list[Credential] = []

    async def work() -> dict[str, object]:
        place = open_home(home)
        journal, act = revocation_journal(place), act_now()
        registry = await open_registry(place)
        try:
            newest = await registry.last_event()
            begins = not journal.has_begun()
            if begins:
                _show_newest(await newest_rows(registry, RowFilter(), ROWS_LOOKED_AT))
                # First the row: an older registry is not accepted without one.
                entry = made_by(act, "journal.begin", "revocation journal", event=str(newest))
                await registry.commit(Change(entry))
                left.extend(await usable_though_listed(registry, RevokedCertificates.beside(journal.path), act.now))
            after = journal.mark(newest=newest).seen
        finally:
            await registry.close()
        return {"journal": str(journal.path), "begun": begins, "after_event": after}

    with attempting(f"beginning the revocation journal of '{home}'"):
        value = asyncio.run(work())
    print_value(value, output)
    for each in left:
        sentence = (
            f"CRLs have listed certificate {each.serial} of {each.kind} {each.holder}, but it is usable: revoke it."
        )
        click.echo(sentence, err=True)
