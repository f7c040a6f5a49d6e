"""The `device-agent` command. Each subcommand imports what it needs when it is called: `run` must stay light."""

import base64
import contextlib
import importlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from device_agent.errors import NotRunning, SendRefused
from device_agent.home_option import HOME, pass_home
from device_agent.interpreter import module_command
from fleet.config.streams import Program, os_problem
from fleet.est_client.arguments import AGENT_KEY_TYPES, check_device_id, check_printable, parse_host_port
from fleet.est_client.errors import BadConfig, ClientError
from fleet.wire.errors import Malformed
from fleet.wire.text import without_mark

# Loaded when they are called, and not before. name: (module, its line in --help)
LAZY = {
    "emulate": ("device_agent.emulated.cli", "Emulate a board on a serial port, to be provisioned by fleet-station.")
}
TOKEN_SIZE_MAX = 4096  # bytes
POLL_SECONDS = 0.05  # between two attempts to reach an agent that is starting


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
            raise click.ClickException(
                f"The Python module {error.name} is missing. Install the agent's part: pip install '.[agent]'."
            ) from error
        except TimeoutError as error:
            raise click.ClickException("The agent did not answer in time.") from error
        except BrokenPipeError:
            raise  # the reader of our output has closed it: the program ends silently
        except OSError as error:
            where = f"{error.filename}: " if error.filename is not None else ""
            raise click.ClickException(f"{where}{os_problem(error)}.") from error


@contextlib.contextmanager
def _usage() -> Iterator[None]:
    """An invalid argument is a usage error: exit 2."""
    try:
        yield
    except BadConfig as error:
        raise click.UsageError(f"{error.message} {error.advice}".rstrip()) from error


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
@click.option("--mqtt", required=True, metavar="HOST:PORT", help="The fleet's MQTT gateway.")
@click.option(
    "--ca",
    "ca_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The fleet's root CA (PEM, DER or PKCS#7); it is copied into the home as PEM.",
)
@click.option("--hardware-serial", default="", help="serialNumber of the certificate's subject.")
@pass_home
def init(home: Path, device_id: str, est_url: str, mqtt: str, ca_file: Path, hardware_serial: str) -> None:
    """Create the device's home. Refused if it exists."""
    from device_agent.agent_config import NewHome, write_config
    from fleet.est_client.tls import client_context
    from fleet.est_client.url import parse_est_url
    from fleet.wire.ca_file import ca_pem

    with _usage():
        check_device_id(device_id)
        check_printable(hardware_serial, "The hardware serial")
        parse_est_url(est_url)
        host, port = parse_host_port(mqtt)
        client_context(ca_file)
        anchors = ca_pem(ca_file.read_bytes()).encode()
    path = write_config(home, NewHome(device_id, est_url, host, port, anchors, hardware_serial))
    click.echo(f"Wrote {path}. Next: device-agent enroll --home {shlex.quote(str(home))} --token-file FILE")


@cli.command()
@click.option("--token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="File with the token.")
@click.option("--token-env", metavar="VAR", help="Environment variable with the token.")
@click.option(
    "--key-type",
    type=click.Choice(AGENT_KEY_TYPES),
    default=AGENT_KEY_TYPES[0],
    show_default=True,
    help="Type of the key to generate. The device's model must allow it.",
)
@click.option("--approval", is_flag=True, help="Without a token: request an operator's approval, and wait for it.")
@click.option(
    "--model", default="", metavar="NAME", help="With --approval: the model, if the device is not registered."
)
@click.option(
    "--again", is_flag=True, help="Even if enrolled. The old certificate is kept until the new one is proven."
)
@pass_home
def enroll(
    home: Path,
    token_file: Path | None,
    token_env: str | None,
    key_type: str,
    approval: bool,
    model: str,
    again: bool,
) -> None:
    """Generate a key and get the first certificate, with a one-time token or an operator's approval.

    The token is read from a file, an environment variable, a prompt or a pipe. It is never an argument, where every
    user of the machine could read it with `ps`.

    While the server asks to retry later, waits up to a minute in all, and prints how long and why.

    With --approval, prints the fingerprint of the key for the operator to compare, and waits for the decision. It can
    be interrupted and started again: it retries with the same key.
    """
    from device_agent import commands
    from device_agent.agent_config import read_config

    config = read_config(home)
    if approval and (token_file or token_env):
        raise click.UsageError("--approval and a token exclude each other.")
    if model and not approval:
        raise click.UsageError("--model needs --approval: a token names its device's model.")
    with _usage():
        check_printable(model, "The model")
    request = commands.EnrollmentRequest(
        key_type, token="" if approval else _token(token_file, token_env), label=model, again=again
    )
    identity = commands.enroll(config, request, datetime.now(UTC), report=lambda text: click.echo(text, err=True))
    click.echo(f"Enrolled as {config.device_id} until {identity.certificate.not_after:%Y-%m-%d %H:%M:%S} UTC.")


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
@pass_home
def run(home: Path, publish: str | None, stdin: bool, exit_at_eof: bool, qos: int) -> None:
    """Connect, publish, and renew the certificate, until SIGTERM. SIGUSR1 renews at once.

    Exits 0 if every accepted message was delivered, else 1.
    """
    if publish is not None and stdin:
        raise click.UsageError("--publish and --stdin exclude each other.")
    if exit_at_eof and publish is None and not stdin:
        raise click.UsageError("--exit-at-eof needs --publish or --stdin.")
    if publish is not None:
        from device_agent.outbox import topic_for

        with _usage():
            topic_for(publish, "id")
    words = ["--home", str(home), "--qos", str(qos)]
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
    from device_agent.health import Health, examine

    config = read_config(home)
    waited = wait_connected is None or _wait_connected(home, wait_connected)
    health: Health = examine(config, datetime.now(UTC))
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

    renewed = commands.renew(read_config(home)).certificate
    click.echo(f"Renewed until {renewed.not_after:%Y-%m-%d %H:%M:%S} UTC, serial {renewed.serial}.")


@cli.command()
@click.argument("topic")
@click.argument("payload", default="-")
@click.option("--qos", type=click.IntRange(0, 1), default=1, show_default=True, help="1 retries until acknowledged.")
@click.option("--wait", is_flag=True, help="Wait until the server has acknowledged it.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Timeout for the agent's answer.",
)
@pass_home
def send(home: Path, topic: str, payload: str, qos: int, wait: bool, timeout: float) -> None:
    """Publish a message through the running agent.

    PAYLOAD `-` (the default) reads it from standard input. {id} in TOPIC is replaced by the device id.

    \b
    Example:
      device-agent send --home D 'devices/{id}/up/temperature' 21.5 --wait

    Exits 0 once the agent has accepted the message; with --wait, once the server has. A message that the server has not
    acknowledged by the timeout stays queued in the agent; the error gives the reason.
    """
    from device_agent import control
    from device_agent.outbox import PAYLOAD_SIZE_MAX, topic_for

    with _usage():
        topic_for(topic, "id")
    data = sys.stdin.buffer.read(PAYLOAD_SIZE_MAX + 1) if payload == "-" else os.fsencode(payload)
    if len(data) > PAYLOAD_SIZE_MAX:
        raise SendRefused(f"The payload is larger than {PAYLOAD_SIZE_MAX} bytes.")
    encoded = base64.b64encode(data).decode()
    request = {"do": "send", "topic": topic, "payload": encoded, "qos": qos, "wait": wait}
    control.send(home, request, timeout)


def _text(data: bytes, where: str) -> str:
    try:
        return without_mark(data).decode("utf-8", "replace")
    except Malformed as error:
        raise click.UsageError(f"{where}: {error}") from error


def _token(token_file: Path | None, token_env: str | None) -> str:
    if token_file is not None and token_env is not None:
        raise click.UsageError("--token-file and --token-env exclude each other.")
    if token_file is not None:
        with token_file.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                click.echo(f"Warning: {token_file} is readable by other users. Run: chmod 600 {token_file}", err=True)
            token = _text(file.read(TOKEN_SIZE_MAX), str(token_file))
    elif token_env is not None:
        # Removed from the environment: the child process that enrolls would expose it in /proc.
        token = os.environ.pop(token_env, "")
    elif sys.stdin.isatty():
        token = click.prompt("Token", hide_input=True)
    else:
        token = _text(sys.stdin.buffer.read(TOKEN_SIZE_MAX), "standard input")
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise click.UsageError(
            "There is no token. Pass --token-file or --token-env; create one with: fleet token create --device ID."
        )
    return token


def _wait_connected(home: Path, seconds: float) -> bool:
    from device_agent.control import ask

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
    slots = health.pop("slots")
    rows = health | {"slots": ", ".join(f"{slot}: {what}" for slot, what in slots.items())} | agent
    for name, value in rows.items():
        if value not in (None, ""):
            shown = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
            click.echo(f"{name.replace('_', ' '):15} {shown}")


def main() -> None:
    """The console script."""
    cli()
