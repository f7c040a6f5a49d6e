"""Short visits to the broker as a device: connect without a will, and disconnect in good order.

The device has then returned, and says for how long its session lives on: a will that waits is not published any more.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

from fleet.config.mqtt_bounds import PACKET_SIZE_MAX
from fleet.domain.device import Device
from fleet.mqtt_client.client import MqttVisit
from fleet.servers.gateway.broker.proxy_header import visit_header
from fleet.servers.gateway.broker.upstream import Upstream, username_of
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import Connack, Connect
from fleet.wire.mqtt.properties import NEVER, Property
from fleet.wire.mqtt.reader import Packet
from fleet.wire.mqtt.subscribe import Unsubscribe, encode_unsubscribe

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


async def purge_session(upstream: Upstream, device: Device, client_id: str = "") -> bool:
    """Connect as the device, by `client_id` if not by its own, and disconnect, so that the broker discards the
    persistent session, and a waiting will.

    With MQTT 5.0 the session goes on and then expires at once: to begin with another would end it, at which a waiting
    will is published (3.1.3.2.2). In 3.1.1 Clean Session discards it (3.1.2.4).
    Returns whether the broker accepted. A broker's failure raises nothing.
    """
    if upstream.speaks_v5:
        code = await _returned(upstream, device, 0.0, client_id)
        if code != Reason.UNSUPPORTED_PROTOCOL_VERSION or upstream.is_ours:
            return code == 0
    connect = Connect(V311, client_id or device.id, clean=True, username=username_of(device, upstream))
    return await _visit(upstream, device, connect) == 0


async def cancel_will(upstream: Upstream, device: Device, expiry_seconds: float, client_id: str = "") -> bool:
    """Connect as the device, go on with its session, and disconnect: its waiting will is not published any more.

    The session then expires in `expiry_seconds`; when the broker had none, none is left there. Returns and raises as
    `purge_session`.
    """
    return await _returned(upstream, device, expiry_seconds, client_id) == 0


async def leave_filters(upstream: Upstream, device: Device, client_id: str, filters: Sequence[str]) -> bool:
    """Connect as the device, go on with its session, and unsubscribe from `filters`; what else it has stays.

    The session then ends when the device says so, since nobody knows any more when it would have. Returns and raises
    as `purge_session`.
    """
    for version in (V5, V311) if upstream.speaks_v5 else (V311,):
        properties = ((Property.SESSION_EXPIRY_INTERVAL, NEVER), (Property.RECEIVE_MAXIMUM, 1)) if version == V5 else ()
        username = username_of(device, upstream)
        connect = Connect(version, client_id, clean=False, username=username, properties=properties)
        visit = _Unsubscribing(replace(connect, password=upstream.access.password), filters)
        code = await _answered(upstream, device, visit)
        if code != Reason.UNSUPPORTED_PROTOCOL_VERSION or upstream.is_ours:
            break
    return code == 0


class _Unsubscribing(MqttVisit):
    """Its UNSUBACK ends the visit. Messages that come before that are not acknowledged, and so come again."""

    def __init__(self, connect: Connect, filters: Sequence[str]) -> None:
        super().__init__(connect, PACKET_SIZE_MAX)
        self._filters = tuple(filters)
        self._unsuback: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def answer(self) -> Connack:
        connack = await super().answer()
        if connack.code == 0 and connack.session_present:
            self._write(encode_unsubscribe(Unsubscribe(1, self._filters), self.connect.version))
            await asyncio.wait((self._unsuback, self.lost), return_when=asyncio.FIRST_COMPLETED)
            if not self._unsuback.done():
                raise ConnectionError("The broker has closed the connection.")
        return connack

    def _read(self, packets: Iterator[Packet]) -> None:
        if any(packet.type is PacketType.UNSUBACK for packet in packets) and not self._unsuback.done():
            self._unsuback.set_result(None)


async def _returned(upstream: Upstream, device: Device, expiry_seconds: float, client_id: str) -> int | None:
    expiry = NEVER if expiry_seconds >= NEVER else max(0, math.ceil(expiry_seconds))
    properties = ((Property.SESSION_EXPIRY_INTERVAL, expiry), (Property.RECEIVE_MAXIMUM, 1))
    username = username_of(device, upstream)
    connect = Connect(V5, client_id or device.id, clean=False, username=username, properties=properties)
    return await _visit(upstream, device, connect)


async def _visit(upstream: Upstream, device: Device, connect: Connect) -> int | None:
    """The code of the broker's answer; None without one."""
    return await _answered(upstream, device, MqttVisit(replace(connect, password=upstream.access.password)))


async def _answered(upstream: Upstream, device: Device, client: MqttVisit) -> int | None:
    connect, farewell = client.connect, acks.disconnect(client.connect.version)
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            await upstream.connect(lambda: client, visit_header(upstream, device))
            connack = await client.answer()
    except (OSError, TimeoutError):
        return None
    else:
        if not connack.session_present and connect.version == V5 and connect.outlives_connection:
            farewell = acks.ends_session()
        return connack.code
    finally:
        client.disconnect(farewell)
