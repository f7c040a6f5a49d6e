"""`device-agent bridge`: programs that speak MQTT themselves, beside the agent."""

import shlex
from pathlib import Path

import click

from device_agent.apps.bridge import CONFIG_NAME, PUBLISH, SUBSCRIBE, Bridge
from device_agent.cli.options import pass_home
from device_agent.cli.wiping import erase_copy
from device_agent.config.agent_config import read_config
from device_agent.errors import AgentError
from device_agent.hooks.deploying import deploy
from device_agent.store.key_store import FILE
from fleet.est_client.errors import BadConfig


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def bridge() -> None:
    """Set up another program's connection to the fleet, beside the agent's."""


@bridge.command()
@click.option("--name", default="bridge", show_default=True, help="Its client id is the device id, a slash, and this.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write bridge.conf and copies of the certificate to DIR, and renew the copies.",
)
@click.option("--user", default="mosquitto", show_default=True, help="The user that mosquitto runs as.")
@click.option("--publish", multiple=True, metavar="FILTER", help=f"From mosquitto to the fleet.  [default: {PUBLISH}]")
@click.option(
    "--subscribe", multiple=True, metavar="FILTER", help=f"From the fleet to mosquitto.  [default: {SUBSCRIBE}]"
)
@click.option("--reload", "command", metavar="COMMAND", help="Run COMMAND after each renewal; mosquitto needs none.")
@click.option("--remove", is_flag=True, help="Take the hook of --name out of agent.toml, and erase its files.")
@pass_home
def mosquitto(
    home: Path,
    name: str,
    out: Path | None,
    user: str,
    publish: tuple[str, ...],
    subscribe: tuple[str, ...],
    command: str | None,
    remove: bool,
) -> None:
    """Print, or with --out write and maintain, the configuration of a mosquitto that bridges to the fleet.

    Without --out nothing is changed: it prints a part of mosquitto.conf and one of agent.toml, for DIR ./bridge. With
    it, the part of agent.toml is added, a deploy hook that copies each new certificate, and copies are made at once.

    The device's model must allow client ids beneath the device id: fleet model set MODEL --client-id prefix.
    """
    try:
        reload = tuple(shlex.split(command)) if command is not None else ()
    except ValueError as error:
        raise click.UsageError(f"--reload: {error}.") from error
    folder = (out or Path("bridge")).absolute()
    config = read_config(home)
    if config.key_store.kind != FILE:
        from device_agent.store.hardware_key import NOT_EXPORTED

        raise AgentError(f"{NOT_EXPORTED} for mosquitto.", "Use a device with its key in a file.")
    made = Bridge(config, folder, name, user, publish or (PUBLISH,), subscribe or (SUBSCRIBE,), reload)
    if remove:
        _remove(made)
        return
    try:
        conf = made.mosquitto()
    except BadConfig as error:
        raise click.UsageError(f"{error.message} {error.advice}".rstrip()) from error
    if out is None:
        click.echo(f"# mosquitto.conf\n{conf}\n# {home / 'agent.toml'}{made.hook()}", nl=False)
        return
    if user in ("root", "0"):
        click.echo("Warning: mosquitto started by root runs as its own user, and cannot read root's key.", err=True)
    config = made.install()
    mark = deploy(config, [made.hook_name], again=True)[made.hook_name]
    if not mark.ok:
        raise AgentError(
            f"The certificate was not copied: {mark.message}.",
            f"Then: device-agent --home {shlex.quote(str(home))} deploy {made.hook_name}.",
        )
    click.echo(f"Wrote {folder / CONFIG_NAME}. In mosquitto.conf: include_dir {folder}")
    click.echo(f"Reload the agent (signal HUP): its hook {made.hook_name} then copies each new certificate there.")


def _remove(made: Bridge) -> None:
    left = []
    for copy in made.remove():
        try:
            if erase_copy(copy):
                click.echo(f"Erased {copy.to}.")
        except (AgentError, OSError):
            left.append(str(copy.to))
    click.echo(f"Reload the agent (signal HUP): it has no hook {made.hook_name} then.")
    if left:
        raise AgentError(f"This user may not erase {', '.join(left)}.", "Look at them, and remove them as root.")
