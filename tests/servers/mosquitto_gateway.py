"""A gateway before a real mosquitto, with paho on either side of it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fleet.domain.credential import Credential
from fleet.domain.device import Model
from fleet.servers.gateway.broker.mosquitto import BACKEND, Mosquitto, mosquitto_program
from fleet.wire.mqtt.codes import V5, V311
from tests.servers.gateway_fixtures import MODEL, GatewayHarness, open_gateway
from tests.servers.paho_client import Paho

PROGRAM = mosquitto_program()
needs_mosquitto = pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")


class MosquittoGateway:
    """Its clients are closed at the end."""

    def __init__(self, harness: GatewayHarness, broker: Mosquitto, stack: AsyncExitStack) -> None:
        self.harness = harness
        self.broker = broker
        self._stack = stack

    async def device(
        self, held: Credential, version: int = V5, *, client_id: str = "", clean: bool = True, will: str = ""
    ) -> Paho:
        """A client of the gateway, connected. `will`: a topic."""
        client = Paho(client_id or held.holder, version, clean=clean)
        if will:
            client.client.will_set(will, b"gone", 1, True)
        assert await client.connect("127.0.0.1", await self.harness.door(held)) == 0
        self._stack.push_async_callback(client.close)
        return client

    async def local(self, username: str, client_id: str = "local", version: int = V311) -> Paho:
        """A client of the broker's own socket, connected."""
        client = Paho(client_id, version, transport="unix")
        client.client.username_pw_set(username)
        assert await client.connect_unix(self.broker.socket) == 0
        self._stack.push_async_callback(client.close)
        return client

    async def backend(self, *filters: str) -> Paho:
        """A local one that may do everything, subscribed to `filters`."""
        client = await self.local(BACKEND, "backend")
        if filters:
            await client.subscribe(*filters, qos=2)
        return client


@asynccontextmanager
async def open_mosquitto_gateway(
    folder: Path, models: Sequence[Model] = (MODEL,), **options: Any
) -> AsyncIterator[MosquittoGateway]:
    """One with these GatewayOptions."""
    assert PROGRAM is not None
    async with AsyncExitStack() as stack:
        broker = await Mosquitto.start(PROGRAM, folder / "run", models)
        stack.push_async_callback(broker.close)
        harness = await stack.enter_async_context(open_gateway(folder, broker, **options))
        yield MosquittoGateway(harness, broker, stack)
