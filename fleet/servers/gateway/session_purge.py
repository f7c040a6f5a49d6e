"""Makes the broker forget a device that will not come back: its subscriptions, and the messages queued for it."""

import asyncio
from typing import cast

from fleet.domain.changes import Event, EventKind
from fleet.domain.device import DeviceState
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.upstream import Upstream
from fleet.wire.errors import WireError
from fleet.wire.mqtt.acks import disconnect
from fleet.wire.mqtt.codes import V311, PacketType
from fleet.wire.mqtt.connect import Connect, decode_connack, encode_connect
from fleet.wire.mqtt.reader import CONNECT_SIZE_MAX, PacketReader

ANSWER_SECONDS_MAX = 10.0
PURGES_MAX = 8  # at a time: a whole model may be retired at once
GONE_FOR_GOOD = frozenset({DeviceState.REVOKED, DeviceState.RETIRED})


class SessionPurger:
    """Purges the broker sessions of devices that the feed reports revoked or retired, `after_seconds` after it has.

    A purge takes over the device's session at the broker, which then publishes its will: whoever holds the session must
    have signed it off before. Within one process that has happened by then; others need a moment to hear.
    """

    def __init__(self, upstream: Upstream, journal: OutcomeLog, *, after_seconds: float = 0.0) -> None:
        self._upstream = upstream
        self._journal = journal
        self._after_seconds = after_seconds
        self._at_once = asyncio.Semaphore(PURGES_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    async def hear(self, event: Event) -> None:
        """Returns at once: a slow broker must not keep the feed waiting."""
        if event.kind == EventKind.DEVICE_STATE and event.detail in GONE_FOR_GOOD:
            task = asyncio.create_task(self._purge(event.subject))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """What has not been purged by now stays."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _purge(self, device_id: str) -> None:
        await asyncio.sleep(self._after_seconds)
        async with self._at_once:
            agreed = await purge_session(self._upstream, device_id)
        now = asyncio.get_running_loop().time()
        self._journal.note("mqtt.purge", "ok" if agreed else "failed", now, device=device_id)


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
