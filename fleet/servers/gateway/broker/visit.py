"""Short visits to the broker as a device: connect without a will, and disconnect in good order.

The device has then returned, and says for how long its session lives on: a will that waits is not published any more.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable

from fleet.domain.device import Device
from fleet.mqtt_client.client import MqttVisit
from fleet.servers.gateway.broker.upstream import Upstream, username_of
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311
from fleet.wire.mqtt.connect import Connect
from fleet.wire.mqtt.properties import NEVER, Property

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
    client, farewell = MqttVisit(connect), acks.disconnect(connect.version)
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            await upstream.connect(lambda: client)
            connack = await client.connack
    except (OSError, TimeoutError):
        return False
    else:
        if not connack.session_present and connect.version == V5 and connect.outlives_connection:
            farewell = acks.ends_session()
        return connack.code == 0
    finally:
        client.disconnect(farewell)
