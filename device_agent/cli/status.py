"""`device-agent status`: the enrollment, the certificate, and the running agent's connection."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from device_agent.apps.control import ask
from device_agent.cli.options import output_option, pass_home
from device_agent.config.agent_config import read_config
from device_agent.doctor.health import Health, examine
from device_agent.errors import NotRunning
from device_agent.link.clock import device_clock
from fleet.config.streams import printable, text_of

POLL_SECONDS = 0.05  # between two attempts to reach an agent that is starting


@click.command()
@output_option
@click.option(
    "--wait-connected", type=click.FloatRange(0), metavar="SECONDS", help="Wait up to SECONDS for the connection first."
)
@pass_home
def status(home: Path, output: str, wait_connected: float | None) -> None:
    """Show the device's enrollment, its certificate's expiry, and the agent's connection.

    Exits 0 if the device is enrolled and its agent, if running, is connected; else 1.
    """
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


def _wait_connected(home: Path, seconds: float) -> bool:
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
        said = "" if refusal["message"] in health["problem"] else f": {refusal['message']}"
        rows["refused_since"] = f"{text_of(refusal['since'])}{said}"
        if rows["last_error"] == refusal["message"]:
            rows["last_error"] = ""
    rows |= {f"hook {hook}": what for hook, what in hooks.items()}
    for name, value in rows.items():
        if value not in (None, ""):
            click.echo(f"{printable(name.replace('_', ' ')):15} {text_of(value)}")
