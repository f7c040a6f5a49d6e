"""The `device-agent` command. Each subcommand imports what it needs when it is called: `run` must stay light."""

import importlib
import json
import os
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from device_agent.errors import NotRunning
from device_agent.home_option import HOME, pass_home, usage_errors
from device_agent.interpreter import module_command
from device_agent.store.enroll_command import deploy, enroll
from fleet.config.streams import Program, os_problem, printable
from fleet.est_client.arguments import check_device_id, check_printable
from fleet.est_client.errors import ClientError

# Loaded when they are called, and not before. name: (module, its line in --help)
LAZY = {
    "doctor": ("device_agent.service.commands", "Find out what is wrong, and what to do about it."),
    "deploy": ("device_agent.service.commands", "Run the hooks that have not deployed the certificate in use."),
    "send": ("device_agent.apps.cli", "Publish a message through the running agent."),
    "subscribe": ("device_agent.apps.cli", "Print, or pass to a command, the messages of a topic."),
    "request": ("device_agent.apps.cli", "Publish a request and print the response to it."),
    "bridge": ("device_agent.apps.bridge_cli", "Set up another program's connection to the fleet, beside the agent's."),
    "emulate": ("device_agent.emulated.cli", "Emulate a board on a serial port, to be provisioned by fleet-station."),
    "service": ("device_agent.service.commands", "Install the agent as a hardened systemd service, or remove it."),
    "reset": ("device_agent.service.commands", "Erase keys, certificates, messages and state, to give it away."),
    "rejected": ("device_agent.spool.cli", "Show the messages that the server has refused."),
}
OF_BOARD = ("cbor2", "cobs", "serial")  # what the extra `board` brings, and a device does without
POLL_SECONDS = 0.05  # between two attempts to reach an agent that is starting


def missing_module(name: str | None) -> str:
    """What to tell where the module `name` is not installed: the extra that has it."""
    part, extras = ("board", "agent,board") if (name or "").partition(".")[0] in OF_BOARD else ("agent", "agent")
    return f"The Python module {name} is missing. Install the {part}'s part: pip install '.[{extras}]'."


class LazyGroup(Program):
    """A group that imports the commands of LAZY when they are called, and turns errors into one plain line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *LAZY]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in LAZY:
            return super().get_command(ctx, cmd_name)
        command = getattr(importlib.import_module(LAZY[cmd_name][0]), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{LAZY[cmd_name][0]}.{cmd_name} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(own + [(name, text) for name, (_, text) in LAZY.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ClientError as error:
            raise click.ClickException(f"{error.message} {error.advice}".rstrip()) from error
        except ModuleNotFoundError as error:
            raise click.ClickException(missing_module(error.name)) from error
        except TimeoutError as error:
            raise click.ClickException("The agent did not answer in time.") from error
        except BrokenPipeError:
            raise  # the reader of our output has closed it: the program ends silently
        except OSError as error:
            where = f"{error.filename}: " if error.filename is not None else ""
            raise click.ClickException(f"{where}{os_problem(error)}.") from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--home",
    type=HOME,
    envvar="DEVICE_HOME",
    metavar="DIR",
    help="The device's home: settings, key, certificate.  [env: DEVICE_HOME]",
)
@click.version_option(package_name="fleet-front-door", prog_name="device-agent")
def cli(home: Path | None) -> None:
    """Agent of one device: its key and certificate, and its MQTT connection over mutual TLS.

    \b
    First steps:
      device-agent init --home D --device-id cam-7 --est https://HOST:8443 --mqtt HOST:8883 --ca ca.pem
      device-agent enroll --home D --token-file TOKEN
      device-agent run --home D

    --home is accepted before and after the command.

    Exit codes: 0 done (status: healthy), 1 refused or failed (status: not healthy), 2 wrong use.

    Shell completion: eval "$(_DEVICE_AGENT_COMPLETE=bash_source device-agent)" (zsh_source, fish_source).
    """


@cli.command()
@click.option("--device-id", required=True, help="The device's id in the fleet's registry.")
@click.option(
    "--est", "est_url", required=True, metavar="URL", help="EST server: https://HOST:PORT[/.well-known/est/LABEL]."
)
@click.option("--mqtt", required=True, metavar="HOST:PORT", help="The fleet's MQTT gateway; or wss://HOST/PATH.")
@click.option(
    "--ca",
    "ca_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The fleet's root CA (PEM, DER or PKCS#7); it is copied into the home as PEM.",
)
@click.option("--hardware-serial", default="", help="serialNumber of the certificate's subject.")
@click.option("--spool", is_flag=True, help="Store messages in the home until they are delivered.")
@pass_home
def init(home: Path, device_id: str, est_url: str, mqtt: str, ca_file: Path, hardware_serial: str, spool: bool) -> None:
    """Create the device's home. Refused if it exists."""
    from device_agent.agent_config import NewHome, must_be_free, write_config
    from device_agent.link.endpoints import parse_endpoint
    from fleet.est_client.tls import client_context
    from fleet.est_client.url import parse_est_url
    from fleet.wire.ca_file import ca_pem

    with usage_errors():
        check_device_id(device_id)
        check_printable(hardware_serial, "The hardware serial")
        parse_est_url(est_url)
        server = parse_endpoint(mqtt)
        client_context(ca_file)
        anchors = ca_pem(ca_file.read_bytes()).encode()
    must_be_free(home)
    path = write_config(
        home, NewHome(device_id, est_url, server.host, server.port, anchors, hardware_serial, spool, server.path)
    )
    click.echo(f"Wrote {path}. Next: device-agent enroll --home {shlex.quote(str(home))} --token-file FILE")


@cli.command()
@click.option("--publish", metavar="TOPIC", help="Publish each line of standard input to TOPIC; {id} is the device id.")
@click.option("--stdin", is_flag=True, help="Publish standard input, in lines of `TOPIC PAYLOAD`.")
@click.option(
    "--exit-at-eof", is_flag=True, help="Exit when the input has ended and every message is delivered or refused."
)
@click.option(
    "--qos",
    type=click.IntRange(0, 1),
    default=1,
    show_default=True,
    help="QoS of the messages read from standard input.",
)
@click.option("-v", "--verbose", "least", flag_value="7", help="Log each decision, too.")
@click.option("-q", "--quiet", "least", flag_value="4", help="Log problems only.")
@pass_home
def run(home: Path, publish: str | None, stdin: bool, exit_at_eof: bool, qos: int, least: str | None) -> None:
    """Connect, publish, and renew the certificate, until SIGTERM. SIGUSR1 renews at once.

    Exits 0 if every accepted message was delivered, or is kept in the spool, else 1.
    """
    if publish is not None and stdin:
        raise click.UsageError("--publish and --stdin exclude each other.")
    if exit_at_eof and publish is None and not stdin:
        raise click.UsageError("--exit-at-eof needs --publish or --stdin.")
    if publish is not None:
        from device_agent.spool.outbox import topic_for

        with usage_errors():
            topic_for(publish, "id")
    words = ["--home", str(home), "--qos", str(qos), "--least", least or "6"]
    words += ["--publish", publish] if publish is not None else []
    words += ["--stdin"] * stdin + ["--exit-at-eof"] * exit_at_eof
    os.execv(sys.executable, [*module_command("device_agent.run"), *words])  # noqa: S606 - no shell


@cli.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Output format.",
)
@click.option(
    "--wait-connected", type=click.FloatRange(0), metavar="SECONDS", help="Wait up to SECONDS for the connection first."
)
@pass_home
def status(home: Path, output: str, wait_connected: float | None) -> None:
    """Show the device's enrollment, its certificate's expiry, and the agent's connection.

    Exits 0 if the device is enrolled and its agent, if running, is connected; else 1.
    """
    from device_agent.agent_config import read_config
    from device_agent.link.clock import device_clock
    from device_agent.store.health import Health, examine

    config = read_config(home)
    waited = wait_connected is None or _wait_connected(home, wait_connected)
    health: Health = examine(config, device_clock(home).now())
    if output == "json":
        click.echo(json.dumps(asdict(health) | {"healthy": health.healthy}))
    else:
        _print_health(asdict(health))
    if not waited:
        click.echo(f"Not connected after {wait_connected:g} s.", err=True)
    raise SystemExit(0 if health.healthy and waited else 1)


@cli.command()
@pass_home
def renew(home: Path) -> None:
    """Renew the certificate now. The new one is proven by a connection before it replaces the old one.

    A running agent renews without losing a message; without one, this command renews.
    """
    from device_agent import commands
    from device_agent.agent_config import read_config

    config = read_config(home)
    renewed = commands.renew(config).certificate
    deploy(config)
    click.echo(f"Renewed until {renewed.not_after:%Y-%m-%d %H:%M:%S} UTC, serial {renewed.serial}.")


def _wait_connected(home: Path, seconds: float) -> bool:
    from device_agent.apps.control import ask

    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            ask(home, {"do": "wait-connected"}, left)
        except NotRunning:
            time.sleep(min(POLL_SECONDS, left))  # it may be starting
        except TimeoutError:
            return False
        else:
            return True
    return False


def _print_health(health: dict[str, Any]) -> None:
    agent = health.pop("agent")
    slots, hooks, refusal = (health.pop(name) for name in ("slots", "hooks", "last_refusal"))
    rows = health | {"slots": ", ".join(f"{slot}: {what}" for slot, what in slots.items())} | agent
    if refusal:
        rows["refused_since"] = f"{refusal['since'][:19].replace('T', ' ')} UTC: {refusal['message']}"
    rows |= {f"hook {hook}": what for hook, what in hooks.items()}
    for name, value in rows.items():
        if value not in (None, ""):
            shown = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
            click.echo(printable(f"{name.replace('_', ' '):15} {shown}"))


cli.add_command(enroll)


def main() -> None:
    """The console script."""
    cli()
