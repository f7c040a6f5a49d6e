"""A connection to the control topic of mosquitto's dynamic-security plugin.

    async with connected(broker) as control:
        answers = await control.execute([{"command": "listRoles", "verbose": True}])

The administrator's password is sent to the broker's verified certificate, or on this machine's loopback, alone.
"""

import asyncio
import json
import shlex
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
from msgspec import Struct
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleet.config.addresses import Address
from fleet.domain.errors import Invalid, Unavailable
from fleet.dynamic_security.commands import Answer, Answers, Command

TOPIC = "$CONTROL/dynamic-security/v1"
SECONDS_MAX = 10.0  # for a connection, and for the answer to one message


class ControlledBroker(Struct, frozen=True):
    """Where the broker is and who administers its plugin."""

    address: Address
    tls: ssl.SSLContext | None
    """None: without TLS."""
    user: str
    password_file: Path


class Control:
    """One connection; executes one message at a time."""

    def __init__(self, broker: ControlledBroker) -> None:
        """Raises: Invalid (`bad-password-file`)."""
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[list[Answer]] = self._loop.create_future()
        self._is_subscribed = self._loop.create_future()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.username_pw_set(broker.user, password_in(broker.password_file))
        if broker.tls is not None:
            self._client.tls_set_context(broker.tls)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda *_: self._fail("the broker closed the connection")
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message

    async def open(self, address: Address) -> None:
        try:
            async with asyncio.timeout(SECONDS_MAX):
                await asyncio.to_thread(self._client.connect, address.host, address.port, 60)
                self._client.loop_start()
                await self._is_subscribed
        except (OSError, TimeoutError) as error:
            raise Unavailable("cannot-reach", f"The broker at {address} cannot be reached: {error}.") from error

    async def execute(self, commands: Sequence[Command]) -> list[Answer]:
        """The plugin's answers, in order. Raises: Unavailable: `cannot-reach`, `broker-refused`."""
        self._answer = self._loop.create_future()
        message = json.dumps({"commands": list(commands)}).encode()
        try:
            async with asyncio.timeout(SECONDS_MAX):
                self._client.publish(TOPIC, message, qos=1)
                answers = await self._answer
        except TimeoutError as error:
            raise Unavailable("cannot-reach", "The broker does not answer its administrator.") from error
        for answer in answers:
            if answer.error:
                raise Unavailable("broker-refused", f"The broker refused {answer.command}: {answer.error}.")
        return answers

    async def close(self) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    def _on_connect(self, client: mqtt.Client, _: object, flags: object, reason: Any, properties: object) -> None:
        if reason.is_failure:
            self._fail(f"it refused the administrator ({reason})")
        else:
            client.subscribe(f"{TOPIC}/response", qos=1)

    def _on_subscribe(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(_resolve, self._is_subscribed, None)

    def _on_message(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        try:
            answers = msgspec.json.decode(message.payload, type=Answers).responses
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._fail("its answer is not one of the plugin")
            return
        self._loop.call_soon_threadsafe(_resolve, self._answer, answers)

    def _fail(self, problem: str) -> None:
        error = Unavailable("cannot-reach", f"The broker cannot be administered: {problem}.")
        for waiting in (self._is_subscribed, self._answer):
            self._loop.call_soon_threadsafe(_resolve, waiting, error)


def _resolve(future: asyncio.Future[Any], value: object) -> None:
    if future.done():
        return
    if isinstance(value, Exception):
        future.set_exception(value)
        future.exception()  # retrieved: nobody may await it
    else:
        future.set_result(value)


def password_in(file: Path) -> str:
    """The first line of a file that nobody else can read. Raises: Invalid (`bad-password-file`)."""
    try:
        mode, text = file.stat().st_mode, file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid("bad-password-file", f"The password file {file} cannot be read.") from error
    if mode & 0o077:
        message = f"The password file {file} is open to other users."
        raise Invalid("bad-password-file", message, f"Close it with: chmod 600 {shlex.quote(str(file))}")
    return text.partition("\n")[0].removesuffix("\r")


@asynccontextmanager
async def connected(broker: ControlledBroker) -> AsyncIterator[Control]:
    """Raises: Unavailable (`cannot-reach`). Invalid (`bad-password-file`)."""
    control = Control(broker)
    try:
        await control.open(broker.address)
        yield control
    finally:
        await control.close()
