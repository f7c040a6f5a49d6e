"""Short visits to the broker as a device: connect without a will, and disconnect in good order.

The device has then returned, and says for how long its session lives on: a will that waits is not published any more.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import cast

from fleet.domain.device import Device
from fleet.servers.gateway.broker.upstream import Upstream, username_of
from fleet.wire.errors import WireError
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType
from fleet.wire.mqtt.connect import Connack, Connect, decode_connack, encode_connect
from fleet.wire.mqtt.properties import NEVER, Property
from fleet.wire.mqtt.reader import CONNECT_SIZE_MAX, PacketReader

ANSWER_SECONDS_MAX = 10.0
VISITS_MAX = 32  # at once: a model with thousands of devices may be retired, or changed while their network is down
RETRY_SECONDS = 1.0


class BrokerVisits:
    """Those of one process to its broker: how many at once, and when they are tried again."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._slots = asyncio.Semaphore(VISITS_MAX)

    async def until_done(self, attempt: Callable[[], Awaitable[bool]], tries_max: float = math.inf) -> bool:
        """Await `attempt()`, which visits the broker once at most, again until it is True. False: after `tries_max`."""
        tries = 0
        while True:
            async with self._slots:
                if await attempt():
                    return True
            tries += 1
            if tries >= tries_max:
                return False
            await asyncio.sleep(RETRY_SECONDS)


async def purge_session(upstream: Upstream, device: Device) -> bool:
    """Connect as the device and disconnect, so that the broker discards the persistent session, and a waiting will.

    With MQTT 5.0 the session goes on and then expires at once: to begin with another would end it, at which a waiting
    will is published (3.1.3.2.2). In 3.1.1 Clean Session discards it (3.1.2.4).
    Returns whether the broker accepted. A broker's failure raises nothing.
    """
    if upstream.speaks_v5:
        return await cancel_will(upstream, device, 0.0)
    return await _visit(upstream, Connect(V311, device.id, clean=True, username=username_of(device, upstream)))


async def cancel_will(upstream: Upstream, device: Device, expiry_seconds: float) -> bool:
    """Connect as the device, go on with its session, and disconnect: its waiting will is not published any more.

    The session then expires in `expiry_seconds`; when the broker had none, none is left there. Returns and raises as
    `purge_session`.
    """
    expiry = NEVER if expiry_seconds >= NEVER else max(0, math.ceil(expiry_seconds))
    properties = ((Property.SESSION_EXPIRY_INTERVAL, expiry), (Property.RECEIVE_MAXIMUM, 1))
    username = username_of(device, upstream)
    return await _visit(upstream, Connect(V5, device.id, clean=False, username=username, properties=properties))


async def _visit(upstream: Upstream, connect: Connect) -> bool:
    client = _Visitor(connect)
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            await upstream.connect(lambda: client)
            return await client.done
    except (OSError, TimeoutError):
        return False
    finally:
        client.disconnect()


class _Visitor(asyncio.Protocol):
    def __init__(self, connect: Connect) -> None:
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._connect = connect
        self._reader = PacketReader(CONNECT_SIZE_MAX)
        self._transport: asyncio.Transport | None = None
        self._farewell = acks.disconnect(connect.version)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(encode_connect(self._connect))

    def data_received(self, data: bytes) -> None:
        version = self._connect.version
        try:
            packet = None if self.done.done() else next(self._reader.feed(data), None)
            if packet is not None:
                self._finish(packet.type is PacketType.CONNACK and self._accepts(decode_connack(packet.body, version)))
        except WireError:
            self._finish(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(False)

    def disconnect(self) -> None:
        if self._transport is not None:
            self._transport.write(self._farewell)
            self._transport.close()

    def _accepts(self, connack: Connack) -> bool:
        if not connack.session_present and self._connect.version == V5 and self._connect.outlives_connection:
            self._farewell = acks.ends_session()
        return connack.code == 0

    def _finish(self, accepted: bool) -> None:
        if not self.done.done():
            self.done.set_result(accepted)
