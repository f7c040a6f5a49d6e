"""`device-agent service`: the agent as a systemd service."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

import click

from device_agent.child_process import module_command
from device_agent.cli.options import home_option, pass_home, pass_home_to_root
from device_agent.config.agent_config import read_config
from device_agent.errors import AgentError
from device_agent.store.folders import opened_folder
from device_agent.store.identity_store import IdentityStore
from device_agent.systemd.installation import UNIT_NAME, Installation, approve, check_capabilities, user_ids
from device_agent.systemd.unit import Unit
from fleet.config.streams import printable


def _unit_options(command: Callable[..., None]) -> Callable[..., None]:
    name = click.option("--name", default="device-agent", show_default=True, help="Name of the unit.")
    user = click.option(
        "--user", default="device-agent", show_default=True, help="System user of the agent; created if missing."
    )
    return name(user(command))


_root = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path("/"),
    help="Another system's files, as of an image that is being built: nothing is started.",
)


@click.group()
@home_option()
def service(home: Path | None) -> None:
    """The agent as a systemd service: hardened, restarted, with a watchdog and a user of its own."""


@service.command("print")
@_unit_options
@pass_home
def print_unit(home: Path, name: str, user: str) -> None:
    """Print the unit file, and change nothing."""
    click.echo(_unit(home, name, user).text, nl=False)


@service.command()
@_unit_options
@_root
@click.option(
    "--settings",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Root's own file, which becomes agent.toml first: hooks that need more rights are granted by it.",
)
@click.option("--no-start", is_flag=True, help="Neither enable nor start it.")
@click.option("--print", "dry", is_flag=True, help="Print the unit file, and change nothing.")
@pass_home_to_root
def install(home: Path, name: str, user: str, root: Path, settings: Path | None, no_start: bool, dry: bool) -> None:
    """Write the unit for this home, give the home to the user, enable the service and start it. Needs root.

    Again after a change of hooks in agent.toml, whose folders the unit lets the agent write to. Where systemd does not
    run, as in an image that is being built, writes the files and prints what is left to do.
    """
    ours = {0, os.geteuid()}
    owners = user_ids(user) if root == Path("/") else ours
    if settings is not None and not dry:
        approve(settings, home, owners)
    unit = _unit(home, name, user, owners, ours if settings is not None and not dry else owners)
    if dry:
        click.echo(unit.text, nl=False)
        return
    check_capabilities(unit, approved=settings is not None)
    store = IdentityStore(home)
    is_enrolled = (store.current() or store.candidate()) is not None
    for line in Installation(unit, root).install(start=is_enrolled and not no_start):
        click.echo(line)
    if not is_enrolled:
        click.echo(f"It is not started: the device is not enrolled. Run: device-agent --home {home} enroll", err=True)


@service.command()
@_unit_options
@_root
@pass_home_to_root
def uninstall(home: Path, name: str, user: str, root: Path) -> None:
    """Stop and disable the service and remove its files. The home and the user stay. Needs root."""
    for line in Installation(Unit(name, ("true",), home, user), root).uninstall():
        click.echo(line)


@service.command()
@_unit_options
@_root
@pass_home
def status(home: Path, name: str, user: str, root: Path) -> None:
    """Show whether the unit is installed as it would be now, enabled, and active. Exits 0 if it is all that."""
    found = Installation(_unit(home, name, user), root).state()
    for key, value in found.items():
        click.echo(printable(f"{key:15} {value}"))
    raise SystemExit(0 if found == {"unit": "installed", "enabled": "enabled", "active": "active"} else 1)


def _unit(
    home: Path, name: str, user: str, owners: Collection[int] | None = None, writers: Collection[int] | None = None
) -> Unit:
    """`owners` of the home, and `writers` of its settings, if not the same."""
    if not all(map(UNIT_NAME.fullmatch, (name, user))):
        raise click.UsageError("Names of units and users have letters, digits, dashes and underscores.")
    if owners is not None:  # a link of another user's, or a folder in one, could be another home once the service runs
        os.close(opened_folder(home, Path("/"), set(owners)))
    hooks = read_config(home, writers or owners).hooks
    if owners is not None and home.stat().st_uid not in owners:
        raise AgentError(f"{home} belongs neither to root nor to {user}.", "Give it to root, or choose another --user.")
    return Unit(name, (*module_command("device_agent"), "--home", str(home), "run"), home, user, hooks)
