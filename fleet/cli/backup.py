"""`fleet backup` and `fleet restore`: a home as one file, and back."""

import asyncio
import shlex
from pathlib import Path
from typing import Any

import click
from click.exceptions import NoSuchCommand

from fleet.backup.archive import Manifest
from fleet.backup.create import Encryption, Taken, save_home
from fleet.backup.restore import Restored, RestoreSource, check_backup, needs_passphrase, restore_backup
from fleet.cli.errors import CliError, attempting
from fleet.cli.init import database_options
from fleet.cli.options import FILE, at_home_only, home_option
from fleet.cli.other_names import OTHER_NAMES
from fleet.cli.output import output_option, print_value
from fleet.cli.passwords import PasswordSource, password_options
from fleet.config.addresses import Database
from fleet.home.layout import opened
from fleet.home.unix_user import act_now

NAMES_SHOWN_MAX = 20
RESTORED_LABELS = {
    "devices_out_again": "devices out of service again",
    "approvals_taken_back": "approvals withdrawn",
}
"""What people are shown in place of these keys."""
PROGRESS_ROWS_MIN = 100_000  # of a table: below that it is done before anybody wonders

passphrase_options = password_options(
    "The passphrase: the first line of FILE.", "The passphrase: in this environment variable."
)


class BackupGroup(click.Group):
    """`fleet backup FILE` takes one; `fleet backup check FILE` checks it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in OTHER_NAMES["backup"]:  # it would be the file
            raise NoSuchCommand(args[0], ctx=ctx)
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["take", *args]
        return super().parse_args(ctx, args)


@click.group(cls=BackupGroup)
def backup() -> None:
    """Save a home into one file while it is served, and check such a file.

    \b
    fleet backup FILE          the same as: fleet backup take FILE
    fleet backup check FILE    reads all of it and says whether it could be restored
    """


@backup.command()
@home_option("a backup holds the fleet's keys, and they travel nowhere")
@click.argument("file", type=FILE)
@passphrase_options
@click.option("--plain", is_flag=True, help="Do not encrypt it: the file then holds the fleet's keys in the clear.")
@output_option
def take(home: Path, file: Path, password: PasswordSource, plain: bool, output: str) -> None:
    """Save the home into a new file.

    Settings, CAs, keys and the registry go into FILE, encrypted with a passphrase. The server may run, and is not held
    up. Archives of retention (HOME/archive) are left out: these files never change; copy them by other means.

    A registry in PostgreSQL is read in one transaction, and can be restored into SQLite too; HOME/run needs space for
    it as one SQLite file. With several nodes, take the backup on any of them, and keep that node's
    state/revocations.jsonl for the restore.

    \b
    Examples:
      fleet backup fleet-1.backup --password-file backup.pass
      fleet backup check fleet-1.backup --password-file backup.pass
    """
    if plain and (password.file or password.variable):
        raise click.UsageError("Give a passphrase or --plain, not both.")

    async def work() -> Taken:
        encryption = None if passphrase is None else Encryption(passphrase)
        async with opened(home) as (place, registry):
            return await save_home(
                place, registry, file, encryption=encryption, act=act_now(), progress=_print_progress
            )

    with attempting(f"saving '{home}' into '{file}'"):
        passphrase = None if plain else password.given_or_asked("the backup", confirm=True)
        taken = asyncio.run(work())
    for name in taken.left_out:
        click.echo(f"Left out: {name}", err=True)
    if plain:
        click.echo(f"Warning: {file} holds the fleet's private keys, and nothing protects them but its mode.", err=True)
    _print(taken.manifest, file, output, size=taken.size, sealed=not plain)


@backup.command()
@click.argument("file", type=FILE)
@passphrase_options
@output_option
def check(file: Path, password: PasswordSource, output: str) -> None:
    """Read all of a backup.

    Every checksum, the registry's pages, every row of its audit. Needs no home.
    """
    with attempting(f"checking '{file}'"):
        sealed = needs_passphrase(file)
        manifest = check_backup(file, _passphrase(file, password))
    _print(manifest, file, output, ok=True, sealed=sealed)


@click.command()
@at_home_only("a home is made in a folder of this machine")
@click.argument("file", type=FILE)
@click.argument("home", type=click.Path(path_type=Path))
@click.option(
    "--revocations",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The lost home's state/revocations.jsonl: what was revoked after the backup holds in the new home too.",
)
@click.option(
    "--no-revocations-after-backup",
    "none_kept",
    is_flag=True,
    help="That file is lost as well: all devices are suspended; resume those that you trust.",
)
@database_options(
    "Restore the registry into this empty PostgreSQL database, postgresql://USER@HOST[:PORT]/DATABASE; "
    "whichever engine it was saved from. Without it, the registry is SQLite in HOME."
)
@passphrase_options
@output_option
def restore(
    file: Path,
    home: Path,
    revocations: Path | None,
    none_kept: bool,
    database: Database,
    password: PasswordSource,
    output: str,
) -> None:
    """Restore the backup FILE into the new folder HOME. Everything is verified before HOME is there.

    Certificates issued after the backup are not in it and are refused; their devices enroll again with a new token
    (fleet token create --device ID). Tokens that were open in the backup are revoked: they may have been used since.

    A backup of either engine can be restored into either: with --database into PostgreSQL, without into SQLite. The
    new home's fleet.toml says where its registry is; FLEET_DATABASE must not be set.

    \b
    Examples:
      fleet restore fleet-1.backup ./home2 --revocations ./home/state/revocations.jsonl --password-file backup.pass
      fleet restore fleet-1.backup ./home2 --revocations ./home/state/revocations.jsonl --password-file backup.pass \\
        --database postgresql://fleet@db.acme.example/fleet
    """
    attempted = f"restoring '{file}' into '{home}'"
    if revocations is not None and none_kept:
        raise click.UsageError("Give --revocations or --no-revocations-after-backup, not both.")
    with attempting(attempted):
        file.stat()  # a wrong path is said before what a restore needs
    if revocations is None and not none_kept:
        raise CliError(
            attempted,
            "a backup does not know what was revoked after it was taken",
            "Give --revocations OLD_HOME/state/revocations.jsonl. If that is lost, --no-revocations-after-backup "
            "suspends every device, for you to resume those that you trust",
        )
    with attempting(attempted):
        source = RestoreSource(file, revocations, _passphrase(file, password))
        restoring = restore_backup(source, home.absolute(), act=act_now(), database=database, progress=_print_progress)
        done = asyncio.run(restoring)
    _print_restored(done, home, database, output, none_kept)


def _print_progress(table: str, rows: int) -> None:
    if rows >= PROGRESS_ROWS_MIN:
        click.echo(f"{table}: {rows} rows copied", err=True)


def _passphrase(file: Path, password: PasswordSource) -> bytes | None:
    return password.given_or_asked(f"'{file}'") if needs_passphrase(file) else password.given(f"'{file}'")


def _print(manifest: Manifest, file: Path, output: str, **more: object) -> None:
    value = {
        "file": str(file),
        "taken_at": manifest.taken_at,
        "event_seq": manifest.event_seq,
        "audit_head": f"{manifest.audit_rows}:{manifest.audit_root}",
        "members": len(manifest.members),
        "lineage": manifest.lineage,
    }
    print_value({**value, **more}, output)


def _print_restored(done: Restored, home: Path, database: Database, output: str, none_kept: bool) -> None:
    again = done.reapplied
    value: dict[str, Any] = {
        "home": str(home),
        "database": str(database),
        "backup_of": done.manifest.taken_at,
        "restore": done.restore,
        "devices_out_again": again.devices,
        "certificates_ended_again": again.certificates,
        "tokens_revoked": again.tokens,
        "approvals_taken_back": again.requests,
        "unknown": again.unknown,
        "barred": again.barred,
        "resumed_since": again.resumed,
        "claims_quarantined": again.claims,
        "anchors_removed_again": again.anchors,
        "stations": done.stations,
        "operators": done.operators,
    }
    counted = {key: len(value[key]) for key in ("unknown", "barred", "resumed_since")}
    print_value(value, output, {RESTORED_LABELS.get(key, key): item for key, item in {**value, **counted}.items()})
    if output == "table":
        click.echo(f"\nNext: fleet serve --home {shlex.quote(str(home))}")
    for what, names in (
        ("Not known to the backup; register them, and give each a token", again.unknown),
        ("Not known to the backup, revoked since; they stay revoked, under the model restore-barred", again.barred),
        ("Suspended in the backup and resumed since; resume them", again.resumed),
        ("Claims in quarantine, for they may have been used since; look at each, and release it", again.claims),
    ):
        if names:
            more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
            click.echo(f"{what}: {', '.join(names[:NAMES_SHOWN_MAX])}{more}", err=True)
    if none_kept:
        click.echo(
            f"Warning: devices suspended: {again.devices}. Any of them may have been revoked since the backup. "
            f"Resume those that you trust: fleet device resume --filter 'restore={done.restore} and ...'. A station "
            "that was revoked since can enroll devices again, a revoked operator can use the API, a removed trust "
            "anchor is trusted (fleet anchor list): before you serve, review each of those named above, and revoke "
            "what you do not trust.",
            err=True,
        )
