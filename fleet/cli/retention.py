"""`fleet retention`: letting go of what the registry no longer needs, and checking what has been archived."""

from dataclasses import asdict
from pathlib import Path

import click

from fleet.cli.at_home import at_home_only
from fleet.cli.desk import Desk, fleet_option
from fleet.cli.errors import CliError, attempting
from fleet.cli.home import OPERATOR, home_option, opened, run, utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.config.settings import SettingsError
from fleet.domain.audit_log import TreeHead
from fleet.home.layout import open_home, settings_of
from fleet.runtime.jobs.retention import RetentionRun, retain
from fleet.services.archived_audit import check_archived
from fleet.services.retention import Report
from fleet.storage.journals.archive import Archive

COLUMNS = ("file", "rows", "head")


@click.group()
def retention() -> None:
    """What the registry keeps, and for how long: [retention] in fleet.toml. `fleet serve` does it every day."""


@retention.command()
@fleet_option
@output_option
def status(desk: Desk, output: str) -> None:
    """Show for how long things are kept (0 days: for ever), and from which to which number there are any."""
    with attempting("asking what is kept"):
        seen = desk.retention()
    value = {**asdict(seen.policy), "first_event": seen.first_event, "last_event": seen.last_event}
    print_value({**value, "first_audit": seen.first_audit, "last_audit": seen.last_audit}, output)


@retention.command(name="run")
@at_home_only("archives are files in the home; a server does this every day by itself")
@home_option
@click.option("--dry-run", is_flag=True, help="Say what is due, and leave it.")
@click.option("--take-over", is_flag=True, help="Archive here from now on, though another node does: it is gone.")
@output_option
def run_(home: Path, dry_run: bool, take_over: bool, output: str) -> None:
    """Archive what is due.

    It moves from the registry into files in HOME/archive. Look first: fleet retention run --dry-run

    Events: from the second run on, for it goes by when they were first seen. Audit: once it is sealed, by whole blocks
    of 256 rows. Certificates: never one that has not ended, nor the last one of a device in service.

    Of several nodes on one database, one archives; another takes over when that has not done so for three days.
    """

    async def work() -> Report:
        async with opened(home) as fleet:
            settings = settings_of(fleet.home)
            return await retain(
                fleet.home,
                fleet.registry,
                settings,
                RetentionRun(OPERATOR, utc_now(), is_dry=dry_run, by_force=take_over),
            )

    attempted = f"archiving what is due in '{home}'"
    with attempting(attempted):
        try:
            done = run(work())
        except SettingsError as error:
            raise CliError(attempted, str(error), "Mend that line") from error
    value = {"dry_run": dry_run, "events": done.events, "audit": done.audit, "certificates": done.credentials}
    print_value({**value, "files": list(done.files)}, output)


@retention.command()
@at_home_only("archives are files in the home; a server does this every day by itself")
@home_option
@output_option
def check(home: Path, output: str) -> None:
    """Verify the archives of the audit.

    Every row in HOME/archive is held against the signed heads beside it: none changed, missing or put in.

    It reads files only; the registry may be gone.
    """
    found: list[tuple[str, int, TreeHead]] = []
    after = 0
    with attempting(f"verifying the archive of '{home}'"):
        for path in Archive(open_home(home).archive).settled("audit"):
            last, head = check_archived(path, after)
            found.append((path.name, last - after, head))
            after = last
    print_rows(COLUMNS, [(name, rows, f"{head.size}:{head.root.hex()}") for name, rows, head in found], output)
