"""Queues of our own mosquitto: it bounds each of them, and its memory, but not their sum. Where that grows too large
the largest gives way, before mosquitto cuts whoever asks for more. What is retained is in no queue.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from fleet.config.logs import log_event
from fleet.config.mqtt_bounds import BROKER_MEMORY_MAX
from fleet.mqtt_client.client import MqttVisit
from fleet.servers.gateway.broker.saved_messages import queues
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V311
from fleet.wire.mqtt.connect import Connect

QUEUES_MAX = BROKER_MEMORY_MAX * 3 // 8  # bytes of its memory for all queues that it has saved
DATABASE_MIN = QUEUES_MAX // 4  # a smaller one holds no more: a small message takes four times as much memory
GROWTH_MIN = QUEUES_MAX // 16  # of the database, before it is read again
PURGE_SECONDS_MAX = 10.0

log = logging.getLogger("fleet.broker")


class LargestQueues:
    def __init__(self, database: Path, connect: Callable[[MqttVisit], Awaitable[object]]) -> None:
        """`connect` connects a visit to the broker."""
        self._database = database
        self._connect = connect
        self._saved_at = 0
        self._size = 0  # when it was read

    async def saved(self, at: int, size: int) -> None:
        """The database was saved `at` some time, with `size` bytes: make the largest queues give way if they are too
        much.
        """
        self._size = min(self._size, size)
        if at == self._saved_at or size < max(DATABASE_MIN, self._size + GROWTH_MIN):
            return
        self._saved_at, self._size = at, size
        try:
            by_client = await asyncio.to_thread(queues, self._database)
        except OSError:
            return  # saved anew meanwhile: the next one is looked at
        held = sum(by_client.values())
        for client_id, bytes_ in sorted(by_client.items(), key=lambda each: -each[1]):
            if held <= QUEUES_MAX:
                return
            if await self._purge(client_id):
                held -= bytes_
                log_event(log, logging.WARNING, "broker.queue-dropped", client_id=client_id, bytes=bytes_)
                self._size = 0

    async def _purge(self, client_id: str) -> bool:
        """Discard the session: its client learns of it by Session Present 0."""
        # [MQTT-3.1.2-6]
        visit = MqttVisit(Connect(V311, client_id, clean=True))
        try:
            async with asyncio.timeout(PURGE_SECONDS_MAX):
                await self._connect(visit)
                return (await visit.answer()).code == 0
        except (OSError, TimeoutError):
            return False
        finally:
            visit.disconnect(acks.disconnect(V311))
