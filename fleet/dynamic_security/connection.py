"""A connection to the control topic of mosquitto's dynamic-security plugin.

    async with connected(broker) as control:
        answers = await control.execute([{"command": "listRoles", "verbose": True}])

The administrator's password is sent to the broker's verified certificate, or on this machine's loopback, alone.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from fleet.config.addresses import Address
from fleet.config.secret_files import first_line
from fleet.domain.errors import Unavailable
from fleet.domain.files_of_settings import password_file
from fleet.dynamic_security.commands import Answer, Answers, Command
from fleet.mqtt_client.client import MqttClient
from fleet.wire.mqtt.codes import V5
from fleet.wire.mqtt.connect import Connect
from fleet.wire.mqtt.publish import Publish
from fleet.wire.mqtt.reader import PACKET_SIZE_DEFAULT

TOPIC = "$CONTROL/dynamic-security/v1"
PASSWORD_FILE_SIZE_MAX = 4096
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

    def __init__(self, client: MqttClient) -> None:
        self._client = client

    async def execute(self, commands: Sequence[Command]) -> list[Answer]:
        """The plugin's answers, in order. Raises: Unavailable: `cannot-reach`, `broker-refused`."""
        self._client.publish(Publish(TOPIC, json.dumps({"commands": list(commands)}).encode()))
        try:
            async with asyncio.timeout(SECONDS_MAX):
                message = await self._client.messages.get()
            answers = msgspec.json.decode(message.payload, type=Answers).responses
        except TimeoutError as error:
            raise _unreachable("it does not answer its administrator") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _unreachable("its answer is not one of the plugin") from error
        for answer in answers:
            if answer.error:
                raise Unavailable("broker-refused", f"The broker refused {answer.command}: {answer.error}.")
        return answers


def _unreachable(problem: str) -> Unavailable:
    return Unavailable("cannot-reach", f"The broker cannot be administered: {problem}.")


def password_in(file: Path) -> bytes:
    """The first line of a file that nobody else can read. Raises: Invalid (`bad-password-file`)."""
    with password_file("dynamic_security.password_file", file):
        return first_line(file, PASSWORD_FILE_SIZE_MAX)


@asynccontextmanager
async def connected(broker: ControlledBroker) -> AsyncIterator[Control]:
    """A connection; the block ends when it is lost. Raises: Unavailable (`cannot-reach`). Invalid
    (`bad-password-file`).
    """
    password = password_in(broker.password_file)
    client = MqttClient(Connect(V5, "", username=broker.user, password=password), PACKET_SIZE_DEFAULT)
    try:
        await _open(client, broker)
        async with asyncio.timeout(None) as until_lost:

            def end_block(_: object) -> None:
                with suppress(RuntimeError):  # it has ended already
                    until_lost.reschedule(0)

            client.lost.add_done_callback(end_block)
            yield Control(client)
    except TimeoutError as error:
        raise _unreachable("the broker closed the connection") from error
    finally:
        client.disconnect()


async def _open(client: MqttClient, broker: ControlledBroker) -> None:
    """Raises: Unavailable (`cannot-reach`)."""
    address = broker.address
    try:
        async with asyncio.timeout(SECONDS_MAX):
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: client, address.host, address.port, ssl=broker.tls)
            connack = await client.connack
            if connack.code:
                raise _unreachable(f"it refused the administrator (code {connack.code:#x})")
            await client.subscribe(f"{TOPIC}/response")
    except (OSError, TimeoutError) as error:
        problem = str(error) or "no answer in time"
        raise Unavailable("cannot-reach", f"The broker at {address} cannot be reached: {problem}.") from error
