"""The commands `deploy`, `reset`, `service` and `doctor`. Loaded when one of them is called."""

import os
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path

import click

from device_agent.agent_config import AgentConfig, read_config
from device_agent.errors import AgentError, Busy
from device_agent.home_option import HOME, pass_home, pass_home_to_root
from device_agent.interpreter import module_command
from device_agent.runner import LOCK_NAME
from device_agent.service.deploying import deploy as deploy_hooks
from device_agent.service.deployment_marks import Mark
from device_agent.service.event_log import system_clock
from device_agent.service.installation import UNIT_NAME, Installation, check_capabilities, user_ids
from device_agent.service.unit import Unit
from device_agent.store.atomic_files import held_lock
from device_agent.store.identity_store import IdentityStore
from fleet.config.streams import json_text, printable
from fleet.est_client.errors import ClientError


@click.command()
@click.argument("hooks", nargs=-1, metavar="[HOOK]...")
@click.option("--again", is_flag=True, help="Even if they have deployed this certificate.")
@pass_home
def deploy(home: Path, hooks: tuple[str, ...], again: bool) -> None:
    """Run the hooks of agent.toml that have not deployed the certificate in use; or only these.

    A running agent does so by itself after each renewal. Exits 1 if a hook failed.
    """
    config = read_config(home)
    known = {hook.name for hook in config.hooks}
    if unknown := [name for name in hooks if name not in known]:
        raise click.UsageError(f"There is no hook {unknown[0]!r} in {home / 'agent.toml'}.")
    ran = deploy_hooks(config, hooks or known, again=again, report=_print_mark)
    if not ran:
        click.echo("Nothing to do: every hook has deployed the certificate in use." if known else "There are no hooks.")
    raise SystemExit(0 if all(mark.ok for mark in ran.values()) else 1)


def deploy_unless_running(config: AgentConfig) -> None:
    """Run the hooks that are due, unless an agent does. A failure is reported, and is not the caller's."""
    try:
        with held_lock(config.home / LOCK_NAME, "An agent is running."):
            pass
        deploy_hooks(config, {hook.name for hook in config.hooks}, report=_print_mark)
    except Busy:
        return
    except (AgentError, OSError) as error:
        click.echo(f"The hooks did not run: {error}", err=True)


def _print_mark(name: str, mark: Mark) -> None:
    click.echo(f"Hook {name}: {'done' if mark.ok else f'failed: {mark.message}'}.", err=not mark.ok)


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
@click.option("--home", type=HOME, metavar="DIR", help="The device's home.  [env: DEVICE_HOME]")
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
@click.option("--no-start", is_flag=True, help="Neither enable nor start it.")
@click.option("--print", "dry", is_flag=True, help="Print the unit file, and change nothing.")
@pass_home_to_root
def install(home: Path, name: str, user: str, root: Path, no_start: bool, dry: bool) -> None:
    """Write the unit for this home, give the home to the user, enable the service and start it. Needs root.

    Again after a change of hooks in agent.toml, whose folders the unit lets the agent write to. Where systemd does not
    run, as in an image that is being built, writes the files and prints what is left to do.
    """
    unit = _unit(home, name, user, user_ids(user) if root == Path("/") else {0, os.geteuid()})
    if dry:
        click.echo(unit.text, nl=False)
        return
    check_capabilities(unit)
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


def _unit(home: Path, name: str, user: str, owners: Collection[int] | None = None) -> Unit:
    if not all(map(UNIT_NAME.fullmatch, (name, user))):
        raise click.UsageError("Names of units and users have letters, digits, dashes and underscores.")
    hooks = read_config(home, owners).hooks
    if owners is not None and home.stat().st_uid not in owners:
        raise AgentError(f"{home} belongs neither to root nor to {user}.", "Give it to root, or choose another --user.")
    return Unit(name, (*module_command("device_agent"), "--home", str(home), "run"), home, user, hooks)


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--stop", is_flag=True, help="Stop a running agent first, instead of refusing.")
@click.option("--all", "settings", is_flag=True, help="Also erase agent.toml and ca.pem, and the home itself.")
@pass_home
def reset(home: Path, yes: bool, stop: bool, settings: bool) -> None:
    """Erase the device's keys, certificates, messages and state, before it is given away.

    Asks for the device id first. agent.toml and ca.pem are kept, for the next `enroll`; copies that hooks have made
    elsewhere are erased. A reset that was interrupted is finished by the next one.

    Files are overwritten once and removed. Flash memory keeps overwritten blocks until it reuses them: what makes the
    key worthless is to take the device out of the fleet (fleet device retire ID).
    """
    from device_agent.service import reset as wiping

    wiping.check_home(home)
    config: AgentConfig | None = None
    try:
        config = read_config(home)
    except ClientError as error:
        click.echo(f"Copies of hooks are not erased: {error.message}", err=True)
    expected = wiping.expected_answer(home, config)
    if not yes:
        what = "all files" if settings else "all files but agent.toml and ca.pem"
        click.echo(f"This erases the key and certificate of {expected}, and {what} in {home}.", err=True)
        wiping.check_answer(click.prompt(f"Type {expected} to confirm", err=True), expected)
    with wiping.exclusive(home, stop=stop):
        erased, left = wiping.wipe_copies(config) if config is not None else ([], [])
        for path in erased:
            click.echo(f"Erased {path}: the program that uses it has no key now.", err=True)
        wiping.wipe(home, settings=settings)
    if left:
        raise AgentError(
            f"The home is erased. This user may not erase the copies {', '.join(map(str, left))}.",
            f"Look at them, and remove them as root. Take the device out of the fleet: fleet device retire {expected}",
        )
    click.echo(f"Erased. Now take it out of the fleet: fleet device retire {expected}")


@click.command()
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output format."
)
@pass_home
def doctor(home: Path, output: str) -> None:
    """Find out what is wrong, and what to do: settings, permissions, disk, trust anchors, key, certificate, clock, DNS,
    TCP, TLS, and what the servers think of this device. Changes nothing, and prints no secrets.

    If no agent runs, connects once to the gateway with the current certificate; the session is kept.

    Exits 0 if nothing failed (warnings are printed), 1 if something did, 2 on wrong use.
    """
    from device_agent.service.doctor import examine_device, is_healthy

    findings = examine_device(home, system_clock())
    healthy = is_healthy(findings)
    if output == "json":
        click.echo(json_text({"healthy": healthy, "findings": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            click.echo(f"{finding.state:8} {finding.check:12} {printable(finding.detail)}")
            if finding.advice:
                click.echo(f"{'':22}{printable(finding.advice)}")
    raise SystemExit(0 if healthy else 1)
