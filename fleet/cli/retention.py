"""`fleet retention`: archive and delete what the registry no longer needs, and verify the archives."""

import asyncio
from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.options import client_option, home_option
from fleet.cli.output import Row, output_option, print_rows, print_value
from fleet.client.client import Client

COLUMNS = ("file", "rows", "head")


@click.group()
def retention() -> None:
    """What the registry keeps, and for how long: [retention] in fleet.toml. `fleet serve` applies it daily."""


@retention.command()
@client_option
@output_option
def status(client: Client, output: str) -> None:
    """Show how long records are kept (0 days: forever), and the numbers of those in the registry."""
    with attempting("asking what is kept"):
        seen = client.get("/v1/retention")
    print_value(seen, output)


@retention.command(name="run")
@home_option("archives are files in the home; a server does this every day by itself")
@click.option("--dry-run", is_flag=True, help="Show what is due, and change nothing.")
@click.option("--take-over", is_flag=True, help="Make this the node that archives: the previous one is gone.")
@output_option
def run_(home: Path, dry_run: bool, take_over: bool, output: str) -> None:
    """Move records past their retention period from the registry to files in HOME/archive.

    Events: their age counts from the run that first saw them, so the first run moves none. Audit rows: under a signed
    head, in whole blocks of 256. Certificates: expired ones, but never the newest of a device in service.

    With several nodes on one database, one of them archives. Another takes over three days after its last run, or at
    once with --take-over.

    \b
    Example:
      fleet retention run --dry-run
    """
    from fleet.home.layout import opened, settings_of
    from fleet.home.unix_user import act_now
    from fleet.runtime.jobs.retention import RetentionRun, retain
    from fleet.services.retention import Report

    async def work() -> Report:
        async with opened(home) as (place, registry):
            act = act_now()
            terms = RetentionRun(act.actor, act.now, is_dry=dry_run, by_force=take_over)
            return await retain(place, registry, settings_of(place), terms)

    with attempting(f"archiving what is due in '{home}'"):
        done = asyncio.run(work())
    value = {"dry_run": dry_run, "events": done.events, "audit": done.audit, "certificates": done.credentials}
    print_value({**value, "files": list(done.files)}, output)


@retention.command()
@home_option("archives are files in the home")
@output_option
def check(home: Path, output: str) -> None:
    """Verify the archives of the audit.

    Every row in HOME/archive is checked against the signed heads beside it: none changed, missing or inserted.

    Needs the files only, not the registry.
    """
    from fleet.home.layout import open_home
    from fleet.services.archived_audit import check_archived
    from fleet.storage.journals.archive import Archive

    found: list[Row] = []
    after = 0
    with attempting(f"verifying the archive of '{home}'"):
        for path in Archive(open_home(home).archive).settled("audit"):
            last, head = check_archived(path, after)
            found.append({"file": path.name, "rows": last - after, "head": f"{head.size}:{head.root.hex()}"})
            after = last
    print_rows(COLUMNS, found, output)
