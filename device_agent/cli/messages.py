"""`device-agent send`, `subscribe` and `request`: messages through the running agent."""

import base64
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from device_agent.apps import control
from device_agent.cli.options import output_option, pass_home
from device_agent.config.topics import filter_for, topic_for
from device_agent.errors import AgentError, NotRunning, SendRefused
from device_agent.spool.outbox import PAYLOAD_SIZE_MAX, TTL_SECONDS_MAX
from fleet.config.streams import printable
from fleet.est_client.errors import BadConfig

_NEGATIVE = re.compile(r"-\.?[0-9]")
_RESPONSE = "response"  # id of the requests that send one
KEEP_SECONDS = 60.0
RETRY_SECONDS = 0.5  # between two attempts to reach an agent that has ended
ANSWER_SECONDS = 5.0  # for the agent's own part of a request

_SHOWN_KEYS = ("topic", "qos", "retain", "response_topic", "correlation", "user")

QOS = click.option(
    "--qos", type=click.IntRange(0, 1), default=1, show_default=True, help="1 retries until acknowledged."
)
TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(0.1, 3600),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Timeout for the answer.",
)


class _WithReadings(click.Command):
    """A command with a PAYLOAD at its end, which may be a negative number: a reading, no option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" not in args:
            valued = {n for each in self.params if not getattr(each, "is_flag", True) for n in each.opts}
            pairs = zip(["", *args], args, strict=False)
            readings = [word for before, word in pairs if _NEGATIVE.match(word) and before not in valued]
            args = [word for word in args if word not in readings] + ["--"] * bool(readings) + readings
        return super().parse_args(ctx, args)


@click.command(cls=_WithReadings)
@click.argument("topic")
@click.argument("payload", default="-")
@QOS
@click.option("--wait", is_flag=True, help="Wait until the server has acknowledged it.")
@TIMEOUT
@click.option(
    "--ttl", type=click.IntRange(1, TTL_SECONDS_MAX), metavar="SECONDS", help="Not to be sent later than this."
)
@pass_home
def send(home: Path, topic: str, payload: str, qos: int, wait: bool, timeout: float, ttl: int | None) -> None:
    """Publish a message through the running agent.

    PAYLOAD `-` (the default) reads it from standard input. {id} in TOPIC is replaced by the device id.

    \b
    Example:
      device-agent send --home D 'devices/{id}/up/temperature' 21.5 --wait

    Exits 0 once the agent has accepted the message; with --wait, once the server has. A message that the server has not
    acknowledged by the timeout stays queued in the agent; the error gives the reason.
    """
    _check(topic_for, topic)
    request = {"do": "send", "topic": topic, "payload": _payload(payload), "qos": qos, "wait": wait, "ttl": ttl}
    control.send(home, request, timeout)


@click.command(cls=_WithReadings)
@click.argument("topic")
@click.argument("payload", default="-")
@TIMEOUT
@output_option
@pass_home
def request(home: Path, topic: str, payload: str, timeout: float, output: str) -> None:
    """Publish a request, with a response topic and correlation data (MQTT 5), and print the response to it.

    PAYLOAD `-` (the default) reads it from standard input. {id} in TOPIC is replaced by the device id.
    Exits 1 if there is no response in time.
    """
    _check(topic_for, topic)
    asked = {"do": "request", "topic": topic, "payload": _payload(payload), "timeout_seconds": timeout}
    answer = control.ask(home, asked, timeout + ANSWER_SECONDS)
    data = base64.b64decode(answer["payload"])
    if output == "json":
        click.echo(json.dumps({"topic": answer["topic"]} | _shown(data)))
    else:
        click.echo(_printable(data))


@dataclass(slots=True)
class _Taking:
    """What `subscribe` does with each message."""

    command: tuple[str, ...]
    output: str
    responses: int = 0
    """Sent, and neither accepted nor refused yet."""

    def take(self, conversation: control.Conversation, event: dict[str, Any]) -> None:
        payload = base64.b64decode(event["payload"])
        if self.command:
            self._execute(conversation, event, payload)
        elif self.output == "json":
            record = {key: event[key] for key in _SHOWN_KEYS if key in event}
            click.echo(json.dumps(record | _shown(payload)))
        else:
            click.echo(f"{printable(str(event['topic']))} {_printable(payload)}")
        if "message" in event:
            conversation.say({"do": "ack", "message": event["message"]})

    def _execute(self, conversation: control.Conversation, event: dict[str, Any], payload: bytes) -> None:
        response_topic = str(event.get("response_topic", ""))
        variables = {"MQTT_TOPIC": str(event["topic"]), "MQTT_RESPONSE_TOPIC": response_topic}
        done = subprocess.run(
            self.command,
            input=payload,
            env=os.environ | variables,
            stdout=subprocess.PIPE if response_topic else None,
            check=False,
        )
        if done.returncode != 0:
            raise AgentError(
                f"The command has failed with exit code {done.returncode}.",
                "Its message is not taken: the next subscribe gets it again, within the seconds of --keep.",
            )
        if response_topic:
            answer = base64.b64encode(done.stdout[: PAYLOAD_SIZE_MAX + 1]).decode()
            response = {"do": "send", "topic": response_topic, "payload": answer, "wait": True, "id": _RESPONSE}
            conversation.say(response | {key: event[key] for key in ("correlation",) if key in event})
            self.responses += 1

    def hear(self, line: dict[str, Any]) -> None:
        """What is no message. Raises: ClientError if it ends the subscription."""
        if line.get("id") != _RESPONSE:
            _check_line(line)
            return
        self.responses -= 1
        if not line.get("ok"):
            click.echo(
                f"The response was refused: {line.get('message', '')} {line.get('advice', '')}".rstrip(), err=True
            )


@click.command()
@click.argument("topic")
@QOS
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N messages.")
@click.option(
    "--exec",
    "command",
    metavar="COMMAND",
    help="Run COMMAND for each message, payload on its standard input; its output answers a request.",
)
@click.option(
    "--keep",
    type=click.FloatRange(0, 604800),
    default=KEEP_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long the agent keeps the subscription, and its messages, once this command has ended.",
)
@output_option
@pass_home
def subscribe(
    home: Path, topic: str, qos: int, count: int | None, command: str | None, keep: float, output: str
) -> None:
    """Print the messages of TOPIC, a topic filter, as they arrive: `TOPIC PAYLOAD`.

    {id} in TOPIC is replaced by the device id. A message counts as taken once it is printed, or once COMMAND has exited
    with 0: if it has failed, this command ends with 1. COMMAND is split into words as by a shell, and no shell runs it;
    it gets MQTT_TOPIC and MQTT_RESPONSE_TOPIC. While the agent restarts, it is waited for.

    \b
    Example:
      device-agent subscribe --home D 'devices/{id}/down/#' --exec './on-command'
    """
    _check(filter_for, topic)
    try:
        words = tuple(shlex.split(command)) if command is not None else ()
    except ValueError as error:
        raise click.UsageError(f"--exec: {error}.") from error
    if command is not None and not words:
        raise click.UsageError("--exec: there is no command.")
    taking = _Taking(words, output)
    asked = {"do": "subscribe", "topic": topic, "qos": qos, "keep_seconds": keep, "id": "subscribe"}
    left = count
    reached = False
    while left is None or left > 0:
        try:
            with control.Conversation(home) as conversation:
                conversation.say(asked)
                reached, taking.responses = True, 0
                while left is None or left > 0:
                    event = conversation.hear()
                    if event.get("event") == "message":
                        taking.take(conversation, event)
                        left = left - 1 if left is not None else None
                    else:
                        taking.hear(event)
                _hear_out(conversation, taking)
        except NotRunning:
            if not reached:
                raise
            time.sleep(RETRY_SECONDS)


def _hear_out(conversation: control.Conversation, taking: _Taking) -> None:
    """Whether the last responses were accepted."""
    end = time.monotonic() + ANSWER_SECONDS
    try:
        while taking.responses and (left := end - time.monotonic()) > 0:
            line = conversation.hear(left)
            if line.get("event") != "message":
                taking.hear(line)
    except TimeoutError:
        click.echo("It is not known yet whether the server accepts the last response.", err=True)


def _check_line(line: dict[str, Any]) -> None:
    """Raises: ClientError if the line ends the subscription."""
    if line.get("event") == "refused":
        raise AgentError(
            f"{line['topic']}: {line['message']}.", "See at the fleet: fleet policy test DEVICE subscribe FILTER."
        )
    if "ok" in line:
        control.checked(line)
    if line.get("id") == "subscribe":
        click.echo(f"Subscribed to {line['topic']}.", err=True)


def _check(parse: Any, text: str) -> None:
    try:
        parse(text, "id")
    except BadConfig as error:
        raise click.UsageError(f"{error.message} {error.advice}".rstrip()) from error


def _payload(text: str) -> str:
    data = sys.stdin.buffer.read(PAYLOAD_SIZE_MAX + 1) if text == "-" else os.fsencode(text)
    if len(data) > PAYLOAD_SIZE_MAX:
        raise SendRefused(f"The payload is larger than {PAYLOAD_SIZE_MAX} bytes.")
    return base64.b64encode(data).decode()


def _shown(data: bytes) -> dict[str, str]:
    """For programs: text as it is, what is no UTF-8 in base64."""
    try:
        return {"payload": data.decode(), "encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"payload": base64.b64encode(data).decode(), "encoding": "base64"}


def _printable(data: bytes) -> str:
    """For people: what could move the cursor of a terminal, or end the line, is escaped."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(
        each if each.isprintable() or each == "\t" else each.encode("unicode_escape").decode() for each in text
    )
