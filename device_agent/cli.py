"""The `device-agent` command. Each subcommand imports what it needs when it is called: `run` must stay light."""

import base64
import functools
import importlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from device_agent.errors import NotRunning, SendRefused
from fleet.est_client.errors import BadConfig, ClientError

# Kept out of this module, and out of memory until they are called. name: (module, what --help says of it)
LAZY = {"emulate": ("device_agent.emulated.cli", "Be a board on a serial port, to be provisioned by fleet-station.")}
TOKEN_SIZE_MAX = 4096  # bytes
POLL_SECONDS = 0.05  # between two looks for an agent that is just starting


class LazyGroup(click.Group):
    """A group in which the commands of LAZY are imported when they are called, and errors are said plainly."""

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
            raise  # whoever reads our output has seen enough: click ends quietly
        except OSError as error:
            raise click.ClickException(f"{error}.") from error


def pass_home(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the device's home. It is asked for when the command runs, so that `--help` needs none."""

    @click.pass_context
    @functools.wraps(command)
    def with_home(context: click.Context, *args: Any, **options: Any) -> None:
        if context.obj is None:
            raise click.UsageError(
                f"No home is given. Name it before the command: device-agent --home DIR {context.info_name}; "
                "or set DEVICE_HOME."
            )
        context.invoke(command, context.obj, *args, **options)

    return with_home


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="DEVICE_HOME",
    help="The device's folder: settings, key, certificate. DEVICE_HOME stands in for it.",
)
@click.version_option(package_name="fleet-front-door", prog_name="device-agent")
@click.pass_context
def cli(context: click.Context, home: Path | None) -> None:
    """One device of a fleet: its key and certificate, and its MQTT connection over mutual TLS.

    \b
    In this order:
      device-agent --home D init --device-id cam-7 --est https://HOST:8443 --mqtt HOST:8883 --ca ca.pem
      device-agent --home D enroll --token-file TOKEN
      device-agent --home D run

    Exit codes: 0 done (status: healthy), 1 refused or failed (status: not healthy), 2 used wrongly.

    Shell completion: eval "$(_DEVICE_AGENT_COMPLETE=bash_source device-agent)" (zsh_source, fish_source).
    """
    context.obj = home.absolute() if home else None


@cli.command()
@click.option("--device-id", required=True, help="What the fleet's registry calls this device.")
@click.option(
    "--est",
    "est_url",
    required=True,
    metavar="URL",
    help="The enrollment server: https://HOST:PORT[/.well-known/est/LABEL].",
)
@click.option("--mqtt", required=True, metavar="HOST:PORT", help="The fleet's MQTT gateway.")
@click.option(
    "--ca",
    "ca_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM of the CA that this device trusts; it is copied.",
)
@click.option("--hardware-serial", default="", help="Goes into the certificate's subject.")
@pass_home
def init(home: Path, device_id: str, est_url: str, mqtt: str, ca_file: Path, hardware_serial: str) -> None:
    """Make the device's home. Refuses when there is one."""
    from device_agent.agent_config import write_config
    from fleet.est_client.arguments import check_device_id, parse_host_port
    from fleet.est_client.tls import client_context
    from fleet.est_client.url import parse_est_url

    parse_est_url(est_url)
    host, port = parse_host_port(mqtt)
    client_context(ca_file)
    path = write_config(home, check_device_id(device_id), est_url, host, port, ca_file.read_bytes(), hardware_serial)
    click.echo(f"{path} is written. Next: device-agent --home {shlex.quote(str(home))} enroll --token-file FILE")


@cli.command()
@click.option("--token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A file with it.")
@click.option("--token-env", metavar="VAR", help="The environment variable that holds it.")
@click.option(
    "--key-type",
    type=click.Choice(["EC-P256", "EC-P384", "RSA-2048+", "Ed25519"]),
    default="EC-P256",
    show_default=True,
    help="The key to make. The device's model must allow it.",
)
@click.option("--approval", is_flag=True, help="Without a token: ask, and wait until an operator says yes.")
@click.option("--model", default="", metavar="NAME", help="With --approval, for a device that is not registered yet.")
@click.option("--again", is_flag=True, help="Though this device is enrolled. The old certificate stays until proven.")
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
    """Make a key here and get its first certificate, by a one-time token or by an operator's approval.

    The token comes from a file, an environment variable or a prompt (or a pipe), never from the command line: that
    could be read by anybody with `ps`.

    With --approval it prints a fingerprint of its key, for the operator to compare, and waits as long as it takes.
    Stop it and start it again as you like: it asks with the same key.
    """
    from device_agent import commands
    from device_agent.agent_config import read_config

    config = read_config(home)
    if approval and (token_file or token_env):
        raise click.UsageError("--approval goes without a token.")
    if model and not approval:
        raise click.UsageError("--model goes with --approval: a token knows its model.")
    token = "" if approval else _token(token_file, token_env)
    identity = commands.enroll(
        config,
        token,
        key_type,
        again=again,
        now=datetime.now(UTC),
        label=model,
        said=lambda text: click.echo(text, err=True),
    )
    click.echo(f"Enrolled as {config.device_id} until {identity.certificate.not_after:%Y-%m-%d %H:%M:%S} UTC.")


@cli.command()
@click.option("--publish", metavar="TOPIC", help="Each line of standard input is a message for TOPIC; {id}: device id.")
@click.option("--stdin", is_flag=True, help="Each line of standard input is `TOPIC PAYLOAD`.")
@click.option("--exit-at-eof", is_flag=True, help="End when the input has ended and everything is delivered.")
@click.option("--qos", type=click.IntRange(0, 1), default=1, show_default=True, help="Of what comes in by the input.")
@pass_home
def run(home: Path, publish: str | None, stdin: bool, exit_at_eof: bool, qos: int) -> None:
    """Connect, publish, renew; until SIGTERM. SIGUSR1 renews at once.

    Exits 0 when everything it accepted was delivered, else 1.
    """
    if publish is not None and stdin:
        raise click.UsageError("--publish and --stdin exclude each other.")
    if exit_at_eof and publish is None and not stdin:
        raise click.UsageError("--exit-at-eof goes with --publish or --stdin.")
    words = ["--home", str(home), "--qos", str(qos)]
    words += ["--publish", publish] if publish is not None else []
    words += ["--stdin"] * stdin + ["--exit-at-eof"] * exit_at_eof
    # -P: a module in the working directory must not stand in for one of ours.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "device_agent.run", *words])  # noqa: S606 - no shell


@cli.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Text for people, or JSON for programs.",
)
@click.option("--wait-connected", type=click.FloatRange(0), metavar="SECONDS", help="First wait for the connection.")
@pass_home
def status(home: Path, output: str, wait_connected: float | None) -> None:
    """Whether this device is enrolled, until when, and whether its agent is connected.

    Exits 0 when it is enrolled and its agent, if one runs, is connected; else 1.
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
    """Get a new certificate now, and prove it, before it replaces the working one.

    A running agent does it without losing a message; without one it is done here.
    """
    from device_agent import commands
    from device_agent.agent_config import read_config

    identity = commands.renew(read_config(home))
    click.echo(
        f"Renewed until {identity.certificate.not_after:%Y-%m-%d %H:%M:%S} UTC, serial {identity.certificate.serial}."
    )


@cli.command()
@click.argument("topic")
@click.argument("payload", default="-")
@click.option("--qos", type=click.IntRange(0, 1), default=1, show_default=True, help="1: until it is acknowledged.")
@click.option("--wait", is_flag=True, help="Until the server has acknowledged it.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the agent's answer.",
)
@pass_home
def send(home: Path, topic: str, payload: str, qos: int, wait: bool, timeout: float) -> None:
    """Publish a message by the running agent.

    It is PAYLOAD, or standard input for `-`. {id} in TOPIC stands for the device id.

    \b
    Example:
      device-agent --home D send 'devices/{id}/up/temperature' 21.5 --wait

    Exits 0 only once the agent has accepted it; with --wait, once the server has.
    """
    from device_agent.control import ask
    from device_agent.outbox import PAYLOAD_SIZE_MAX

    data = sys.stdin.buffer.read(PAYLOAD_SIZE_MAX + 1) if payload == "-" else os.fsencode(payload)
    if len(data) > PAYLOAD_SIZE_MAX:
        raise SendRefused(f"The payload is larger than {PAYLOAD_SIZE_MAX} bytes.")
    encoded = base64.b64encode(data).decode()
    ask(home, {"do": "send", "topic": topic, "payload": encoded, "qos": qos, "wait": wait}, timeout)


def _token(token_file: Path | None, token_env: str | None) -> str:
    if token_file is not None and token_env is not None:
        raise click.UsageError("Give the token in one place only.")
    if token_file is not None:
        with token_file.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                click.echo(f"Warning: {token_file} is open to other users. Close it: chmod 600 {token_file}", err=True)
            token = file.read(TOKEN_SIZE_MAX).decode("utf-8", "replace")
    elif token_env is not None:
        # Taken out of the environment: the child process that enrolls would show it in /proc.
        token = os.environ.pop(token_env, "")
    elif sys.stdin.isatty():
        token = click.prompt("Token", hide_input=True)
    else:
        token = sys.stdin.read(TOKEN_SIZE_MAX)
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise BadConfig(
            "There is no token there.",
            "Give --token-file or --token-env; make one with: fleet token create --device ID.",
        )
    return token


def _wait_connected(home: Path, seconds: float) -> bool:
    from device_agent.control import ask

    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            ask(home, {"do": "wait-connected"}, left)
        except NotRunning:
            time.sleep(min(POLL_SECONDS, left))  # it may be about to start
        except TimeoutError:
            return False
        else:
            return True
    return False


def _print_health(facts: dict[str, Any]) -> None:
    agent = facts.pop("agent")
    slots = facts.pop("slots")
    rows = facts | {"slots": ", ".join(f"{slot}: {what}" for slot, what in slots.items())} | agent
    for name, value in rows.items():
        if value not in (None, ""):
            shown = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
            click.echo(f"{name.replace('_', ' '):15} {shown}")


def main() -> None:
    """The console script."""
    cli(prog_name="device-agent")
