"""Purges the broker's session of a revoked or retired device: subscriptions, queued messages, a waiting will."""

import asyncio
import math
from typing import cast

from fleet.domain.changes import Event, EventKind
from fleet.domain.device import OUT_OF_SERVICE, Device
from fleet.domain.errors import Unavailable
from fleet.domain.ports import Registry
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.tasks import Tasks
from fleet.servers.gateway.upstream import Upstream, username_of
from fleet.wire.errors import WireError
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType
from fleet.wire.mqtt.connect import Connect, decode_connack, encode_connect
from fleet.wire.mqtt.properties import NEVER, Property
from fleet.wire.mqtt.reader import CONNECT_SIZE_MAX, PacketReader

ANSWER_SECONDS_MAX = 10.0
PURGES_MAX = 8  # concurrent: a whole model may be retired at once


class SessionPurger:
    """Purges a device's session `after_seconds` after the event that it was revoked or retired.

    A purge takes over the device's connection at the broker, which then may publish its will: the gateway of that
    connection must have sent DISCONNECT before. In this process it has; other processes may receive the event later.
    """

    def __init__(
        self, upstream: Upstream, registry: Registry, outcomes: OutcomeLog, *, after_seconds: float = 0.0
    ) -> None:
        self._upstream = upstream
        self._registry = registry
        self._outcomes = outcomes
        self._after_seconds = after_seconds
        self._slots = asyncio.Semaphore(PURGES_MAX)
        self._tasks = Tasks()

    async def on_event(self, event: Event) -> None:
        """Returns at once: a slow broker must not delay the feed."""
        if event.kind == EventKind.DEVICE_STATE and event.detail in OUT_OF_SERVICE:
            self._tasks.start(self._purge(event.subject))

    async def close(self) -> None:
        """Cancel pending purges; those sessions stay at the broker."""
        await self._tasks.close()

    async def _purge(self, device_id: str) -> None:
        await asyncio.sleep(self._after_seconds)
        async with self._slots:
            try:
                device = await self._registry.device(device_id)
            except Unavailable:
                device = None
            purged = device is not None and await purge_session(self._upstream, device)
        now = asyncio.get_running_loop().time()
        self._outcomes.record("mqtt.purge", "ok" if purged else "failed", now, device=device_id)


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

    The session then expires in `expiry_seconds`. Returns and raises as `purge_session`.
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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(encode_connect(self._connect))

    def data_received(self, data: bytes) -> None:
        version = self._connect.version
        try:
            packet = None if self.done.done() else next(self._reader.feed(data), None)
            if packet is not None:
                self._finish(packet.type is PacketType.CONNACK and decode_connack(packet.body, version).code == 0)
        except WireError:
            self._finish(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(False)

    def disconnect(self) -> None:
        if self._transport is not None:
            self._transport.write(acks.disconnect(self._connect.version))
            self._transport.close()

    def _finish(self, accepted: bool) -> None:
        if not self.done.done():
            self.done.set_result(accepted)
