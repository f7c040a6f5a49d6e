"""Makes the broker forget a device that will not come back: its subscriptions, and the messages queued for it."""

import asyncio
from typing import cast

from fleet.servers.gateway.upstream import Upstream
from fleet.wire.errors import WireError
from fleet.wire.mqtt.acks import disconnect
from fleet.wire.mqtt.codes import V311, PacketType
from fleet.wire.mqtt.connect import Connect, decode_connack, encode_connect
from fleet.wire.mqtt.reader import CONNECT_SIZE_MAX, PacketReader

ANSWER_SECONDS_MAX = 10.0


async def purge_session(upstream: Upstream, device_id: str) -> bool:
    """Connect as the device with a clean session, and leave: MQTT 3.1.1, 3.1.2.4 discards what was kept.

    Returns whether the broker agreed. Raises nothing that a broker can cause.
    """
    visit = _Visit(device_id)
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            await upstream.connect(lambda: visit)
            return await visit.done
    except (OSError, TimeoutError):
        return False
    finally:
        visit.leave()


class _Visit(asyncio.Protocol):
    def __init__(self, device_id: str) -> None:
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._device_id = device_id
        self._reader = PacketReader(CONNECT_SIZE_MAX)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        connect = Connect(V311, self._device_id, clean=True, username=self._device_id)
        self._transport.write(encode_connect(connect))

    def data_received(self, data: bytes) -> None:
        try:
            packet = next(self._reader.feed(data), None)
            if packet is not None:
                self._answer(packet.type is PacketType.CONNACK and decode_connack(packet.body, V311).code == 0)
        except WireError:
            self._answer(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._answer(False)

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.write(disconnect(V311))
            self._transport.close()

    def _answer(self, agreed: bool) -> None:
        if not self.done.done():
            self.done.set_result(agreed)
