"""The connection of the plugin's administrator, to a broker over TLS that answers what it is told to."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fleet.config.addresses import Address
from fleet.domain.errors import Unavailable
from fleet.dynamic_security.connection import TOPIC, ControlledBroker, connected
from fleet.wire.mqtt.codes import V5, PacketType, Reason
from fleet.wire.mqtt.connect import Connack, Connect, decode_connect, encode_connack
from fleet.wire.mqtt.publish import Publish, decode_publish, encode_publish
from fleet.wire.mqtt.reader import PacketReader
from fleet.wire.mqtt.subscribe import Suback, decode_subscribe, encode_suback
from tests.waiting import PATIENCE_SECONDS
from tests.webhook.hooks import server_tls

PASSWORD = "between them"


class Plugin:
    """Answers each message with `answer`; with None it closes the connection."""

    def __init__(self) -> None:
        self.connect: Connect | None = None
        self.commands: list[object] = []
        self.answer: bytes | None = b'{"responses": [{"command": "listRoles", "data": {"totalCount": 7}}]}'
        self.code = 0
        self.writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer, packets = writer, PacketReader()
        while data := await reader.read(4096):
            for packet in packets.feed(data):
                match packet.type:
                    case PacketType.CONNECT:
                        self.connect = decode_connect(packet.body)
                        writer.write(encode_connack(Connack(False, self.code), V5))
                    case PacketType.SUBSCRIBE:
                        asked = decode_subscribe(packet.body, V5)
                        assert asked.subscriptions[0].topic_filter == f"{TOPIC}/response"
                        writer.write(encode_suback(Suback(asked.packet_id, (0,)), V5))
                    case PacketType.PUBLISH:
                        message = decode_publish(packet.first, packet.body, V5)
                        assert message.topic == TOPIC
                        self.commands.append(json.loads(message.payload))
                        if self.answer is None:
                            writer.close()
                        else:
                            writer.write(encode_publish(Publish(f"{TOPIC}/response", self.answer), V5))
        writer.close()


@pytest.fixture
def plugin() -> Plugin:
    return Plugin()


@pytest.fixture
async def broker(plugin: Plugin, tmp_path: Path) -> AsyncIterator[ControlledBroker]:
    async with listening(plugin, tmp_path, "localhost") as broker:
        yield broker


@asynccontextmanager
async def listening(plugin: Plugin, folder: Path, name: str) -> AsyncIterator[ControlledBroker]:
    """A broker with `plugin`, whose certificate is for `name`."""
    context, ca_file = server_tls(folder, (name,))
    password_file = folder / "password"
    password_file.write_text(PASSWORD + "\n")
    password_file.chmod(0o600)
    server = await asyncio.start_server(plugin.serve, "127.0.0.1", 0, ssl=context)
    address = Address("localhost", server.sockets[0].getsockname()[1])
    try:
        yield ControlledBroker(address, ssl.create_default_context(cafile=ca_file), "admin", password_file)
    finally:
        server.close()


async def test_commands_are_executed_as_the_administrator(broker: ControlledBroker, plugin: Plugin) -> None:
    async with connected(broker) as control:
        [answer] = await control.execute([{"command": "listRoles"}])
    assert answer.data.totalCount == 7
    assert plugin.commands == [{"commands": [{"command": "listRoles"}]}]
    assert plugin.connect is not None
    assert (plugin.connect.username, plugin.connect.password) == ("admin", PASSWORD.encode())


@pytest.mark.parametrize("answer", [b"", b"{}", b'{"responses": 7}', b"\xff", None])
async def test_what_is_no_answer_of_the_plugin_is_said(
    broker: ControlledBroker, plugin: Plugin, answer: bytes | None
) -> None:
    plugin.answer = answer
    with pytest.raises(Unavailable, match="cannot be administered"):
        async with connected(broker) as control:
            await control.execute([{"command": "listRoles"}])


async def test_a_command_that_is_refused_is_said(broker: ControlledBroker, plugin: Plugin) -> None:
    plugin.answer = b'{"responses": [{"command": "createRole", "error": "Role already exists"}]}'
    with pytest.raises(Unavailable, match="refused createRole: Role already exists"):
        async with connected(broker) as control:
            await control.execute([{"command": "createRole"}])


async def test_an_administrator_who_is_refused_is_said(broker: ControlledBroker, plugin: Plugin) -> None:
    plugin.code = Reason.NOT_AUTHORIZED
    with pytest.raises(Unavailable, match="refused the administrator"):
        async with connected(broker):
            pytest.fail("It is connected.")


async def test_the_block_ends_when_the_connection_is_lost(broker: ControlledBroker, plugin: Plugin) -> None:
    """So that the plugin is compared as a whole again, also when nothing changes in the registry."""
    with pytest.raises(Unavailable, match="closed the connection"):
        async with asyncio.timeout(PATIENCE_SECONDS), connected(broker):
            assert plugin.writer is not None
            plugin.writer.close()
            await asyncio.Event().wait()


async def test_the_password_is_sent_to_a_verified_broker_alone(plugin: Plugin, tmp_path: Path) -> None:
    async with listening(plugin, tmp_path, "broker.example") as another:
        with pytest.raises(Unavailable, match="cannot be reached"):
            async with connected(another):
                pytest.fail("It is connected.")
    assert plugin.connect is None
