"""`fleet device notify`, and what the agent answers: `ping`, `report`, `renew`, `log-level`, `trust-update`.

A command goes to `devices/ID/fleet/agent/NAME`; the agent answers by a report, signed with its key, that names the
command's id.
"""

import os
import time
from datetime import UTC, datetime
from typing import Any

import click
from msgspec import Raw

from fleet.cli.bulk import Rest, Selection, act_by_filter, ids_or_filter
from fleet.cli.errors import attempting
from fleet.cli.options import client_option
from fleet.cli.output import Row, output_option, print_value
from fleet.cli.parameters import DEVICE_ID, JSON_TEXT
from fleet.cli.records import Option, print_each
from fleet.client.client import Client, path_of
from fleet.config.timestamps import rfc3339
from fleet.domain.errors import Conflict, Invalid, NotFound, Unavailable
from fleet.services.notifying import NOT_SUBSCRIBED

POLL_SECONDS = 0.1
TIMEOUT_SECONDS = 30.0
RENEW_TIMEOUT_SECONDS = 150.0  # an agent gives a renewal 120 s
LEVELS = ("warning", "info", "debug")
OK = "ok"


def _path(device_id: str) -> str:
    return path_of("/v1/devices/{}", device_id)


@click.command()
@ids_or_filter(Rest.NAME)
@click.option("--payload", type=JSON_TEXT, help="The message, as it is written; empty unless given. 64 KiB at most.")
def notify(selection: Selection, payload: Raw | None) -> None:
    """Publish a message of the fleet to devices, which subscribe to it at devices/DEVICE_ID/fleet/NAME.

    Name them by DEVICE_ID, in front of NAME, or select them with --filter. No device can publish there. A message that
    the broker has taken is of QoS 1 and not retained; `subscribed` is false (not-subscribed) where nobody had
    subscribed, as of a device that is offline without a persistent session: that message is gone. An application that
    reads there counts as well: `yes` is no proof that the device subscribes. JSON is published as it is written.

    \b
    Examples:
      fleet device notify cam-7 renew
      fleet device notify --filter 'lot=L7 and state=active' log-level --payload '{"level": "debug"}'
    """
    if selection.ids:
        _must_be_no_device(selection)
    message: dict[str, object] = {"name": selection.name, **({} if payload is None else {"payload": payload})}
    if selection.text is not None:
        act_by_filter(selection, "notifying", {"act": "notify", "message": message})
        return

    def notified(device_id: str) -> Row:
        return dict(selection.client.post(f"{_path(device_id)}/notify", {**message, "reason": selection.reason}))

    print_each(selection.ids, "notifying device '{}'", notified, selection.output, _as_in_bulk)


def _must_be_no_device(selection: Selection) -> None:
    """Raises: CliError (`name-is-device`): NAME was left out, and the last id stands in its place."""
    name = selection.name
    with attempting(f"notifying device '{selection.ids[0]}'"):
        try:
            if "/" not in name:
                selection.client.get(_path(name))
                advice = "Give NAME behind the ids; a message of that name goes to a --filter"
                raise Invalid("name-is-device", f"NAME is missing: {name} is a device.", advice)
        except NotFound:
            return


def _as_in_bulk(notified: Row) -> Row:
    """For people: in the words of an act on many."""
    return {**notified, "subscribed": NOT_SUBSCRIBED} if notified["subscribed"] is False else notified


def _timeout_option(seconds: float) -> Option:
    return click.option(
        "--timeout",
        type=click.FloatRange(0.1, 3600),
        default=seconds,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the agent's answer.",
    )


@click.command()
@client_option
@click.argument("device_id", type=DEVICE_ID)
@_timeout_option(TIMEOUT_SECONDS)
@output_option
def ping(client: Client, device_id: str, timeout: float, output: str) -> None:
    """Ask a device's agent for a report, and show how long the answer took: over MQTT to the device, and back over EST.

    \b
    Example:
      fleet device ping cam-7
    """
    with attempting(f"pinging device '{device_id}'"):
        answer, seconds = _asked(client, device_id, "report", timeout)
    report = answer["report"]
    shown = {name: report.get(name) for name in ("state", "days_left", "connected")}
    print_value({"device_id": device_id, "seconds": round(seconds, 2), "serial": answer["serial"], **shown}, output)


@click.command()
@client_option
@click.argument("device_id", type=DEVICE_ID)
@click.option("--last", is_flag=True, help="Show the last report that the fleet has, and ask for none.")
@_timeout_option(TIMEOUT_SECONDS)
@output_option
def report(client: Client, device_id: str, last: bool, timeout: float, output: str) -> None:
    """Ask a device's agent how it is, and show its answer, which is signed with its key.

    \b
    Examples:
      fleet device report cam-7
      fleet device report cam-7 --last -o json
    """
    with attempting(f"asking device '{device_id}' for a report"):
        answer = client.get(f"{_path(device_id)}/report") if last else _asked(client, device_id, "report", timeout)[0]
    print_value(answer, output, _in_short(answer))


@click.command()
@client_option
@click.argument("device_id", type=DEVICE_ID)
@_timeout_option(RENEW_TIMEOUT_SECONDS)
@output_option
def renew(client: Client, device_id: str, timeout: float, output: str) -> None:
    """Have a device's agent renew its certificate now, and show the new one once the device is connected with it.

    \b
    Example:
      fleet device renew cam-7
    """
    with attempting(f"renewing the certificate of device '{device_id}'"):
        answer, seconds = _asked(client, device_id, "renew", timeout)
    shown = {name: answer["report"].get(name) for name in ("not_after", "connected")}
    print_value({"device_id": device_id, "serial": answer["serial"], **shown, "seconds": round(seconds, 2)}, output)


@click.command(name="log-level")
@client_option
@click.argument("device_id", type=DEVICE_ID)
@click.argument("level", type=click.Choice(LEVELS))
@_timeout_option(TIMEOUT_SECONDS)
@output_option
def log_level(client: Client, device_id: str, level: str, timeout: float, output: str) -> None:
    """Set what a device's agent logs, until it is started again.

    \b
    Example:
      fleet device log-level cam-7 debug
    """
    with attempting(f"setting the log level of device '{device_id}'"):
        _asked(client, device_id, "log-level", timeout, level=level)
    print_value({"device_id": device_id, "level": level}, output)


@click.command(name="trust-update")
@client_option
@click.argument("device_id", type=DEVICE_ID)
@_timeout_option(TIMEOUT_SECONDS)
@output_option
def trust_update(client: Client, device_id: str, timeout: float, output: str) -> None:
    """Have a device's agent take new roots of the fleet, and drop retired ones, now; it does so at each renewal, too.

    \b
    Example:
      fleet device trust-update cam-7
    """
    with attempting(f"updating the trust anchors of device '{device_id}'"):
        answer, _ = _asked(client, device_id, "trust-update", timeout)
    print_value({"device_id": device_id, "anchors": answer["report"].get("anchors")}, output)


def _asked(client: Client, device_id: str, name: str, timeout: float, **terms: str) -> tuple[Row, float]:
    """The report that answers the command, and the seconds until it was here.

    Raises: Conflict (`no-agent`, `agent-refused`), Unavailable (`no-answer`), and what the API says.
    """
    command = {"id": os.urandom(8).hex(), "at": rfc3339(datetime.now(UTC)), **terms}
    begun = time.monotonic()
    told = client.post(f"{_path(device_id)}/notify", {"name": f"agent/{name}", "payload": command})
    if told["subscribed"] is False:
        advice = f"It is offline, or not managed; its last report: fleet device report {device_id} --last"
        raise Conflict("no-agent", f"No agent of device {device_id} takes the fleet's commands now.", advice)
    while True:
        answer = _last_report(client, device_id)
        seconds = time.monotonic() - begun
        answered = answer["report"].get("command") if answer is not None else None
        if answer is not None and isinstance(answered, dict) and answered.get("id") == command["id"]:
            break
        if seconds >= timeout:
            advice = "It may be offline, with a session that the broker keeps: it answers when it is back."
            raise Unavailable("no-answer", f"Device {device_id} has not answered within {timeout:g} s.", advice)
        time.sleep(min(POLL_SECONDS, timeout))
    if answered.get("outcome") != OK:
        raise Conflict("agent-refused", f"The agent answers: {answered.get('outcome')}")
    return answer, seconds


def _last_report(client: Client, device_id: str) -> Row | None:
    try:
        return dict(client.get(f"{_path(device_id)}/report"))
    except NotFound as error:
        if error.code != "no-report":
            raise
        return None


def _in_short(answer: Row) -> Row:
    """For people: what the report says, the tables in it as names with a dot."""
    shown: dict[str, Any] = {name: answer[name] for name in ("device_id", "received_at", "serial")}
    for name, value in answer["report"].items():
        if isinstance(value, dict):
            shown |= {f"{name}.{inner}": item for inner, item in value.items()}
        else:
            shown.setdefault(name, value)
    return {name: value for name, value in shown.items() if value not in ("", None)}


COMMANDS = (notify, ping, report, renew, log_level, trust_update)
"""Those of the group `fleet device`."""
