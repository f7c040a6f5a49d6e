"""Retained messages that our own broker keeps of each device: one for each topic, for as long as nobody replaces it.

    retained.put("cam-7", topic, size)   # False: over the device's limits, or its share where all have too much

What the broker has saved is read from its database: when a process begins, and again once a device has come to a
further topic, or was refused one. Between, a process counts what its own sessions publish.

A topic costs memory for each of its levels, deleted or not: mosquitto 2.0 never frees them while it runs.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from fleet.config.logs import log_event
from fleet.config.mqtt_bounds import BROKER_MEMORY_MAX
from fleet.domain.client_ids import device_of
from fleet.servers.gateway.broker.saved_messages import Retained, retained_messages
from fleet.servers.gateway.limits.in_flight import MESSAGE_BYTES
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS, Limits

LOOK_SECONDS = 10.0
SAVED_SECONDS = 2.0  # for what was published before a look to be in what the next one reads
LEVEL_BYTES = 768  # of the broker's memory for each level of a topic: mosquitto 2.0.11 takes 746
ALL_BYTES_MAX = BROKER_MEMORY_MAX * 3 // 8  # of all devices: beyond it each has an equal share
SHARED_LEVELS = 2  # and one: a device's topics begin alike

log = logging.getLogger("fleet.gateway")


class _Kept:
    """Of one device."""

    __slots__ = ("bytes", "gone", "sizes")

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}  # by topic
        self.gone: dict[str, int] = {}  # topics without a message, whose levels the broker keeps
        self.bytes = 0
        """Of both."""

    def cost(self, topic: str) -> int:
        """What is counted for a topic now; 0: it was never used."""
        return self.sizes.get(topic) or self.gone.get(topic, 0)

    def set(self, topic: str, size: int) -> None:
        """The payload has `size` bytes; 0: none is retained there any more."""
        self.bytes -= self.sizes.pop(topic, 0) + self.gone.pop(topic, 0)
        (self.sizes if size else self.gone)[topic] = cost = cost_of(topic, size)
        self.bytes += cost

    def after(self, before: "_Kept") -> None:
        """This is what is saved now, and `before` what was known: topics that others have deleted are gone."""
        for topic in before.sizes.keys() | before.gone.keys():
            if topic not in self.sizes:
                self.set(topic, 0)


class RetainedMessages:
    """Those of all devices, as one process knows them."""

    def __init__(self, database: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._database = database
        self._kept: dict[str, _Kept] = {}
        self._bytes = 0  # of all
        self._since: dict[tuple[str, str], int] = {}  # (device, topic): payload put since the last look began
        self._asked = True  # to look again
        self._looked_at_ns = 0

    def put(self, device_id: str, topic: str, size: int) -> bool:
        """A device retains a message with a payload of `size` bytes, 0 for none. False: its limits do not allow it."""
        kept = self._kept.get(device_id) or _Kept()
        growth = cost_of(topic, size) - kept.cost(topic)
        if growth > 0 and not self._has_room(kept, topic, size, growth):
            self._asked = True
            return False
        if growth:
            self._asked = self._asked or (size > 0 and topic not in kept.sizes)
            kept.set(topic, size)
            self._kept[device_id] = kept
            self._bytes += growth
            self._since[device_id, topic] = size
        return True

    def count(self, device_id: str) -> int:
        """Messages of the device."""
        kept = self._kept.get(device_id)
        return len(kept.sizes) if kept is not None else 0

    def _has_room(self, kept: _Kept, topic: str, size: int, growth: int) -> bool:
        limits, others = self.limits, len(kept.sizes) - (topic in kept.sizes)
        if size and others >= limits.retained_messages_per_device_max:
            return False
        if self._bytes + growth > ALL_BYTES_MAX and kept.bytes + growth > ALL_BYTES_MAX // (len(self._kept) or 1):
            return False
        if not others:
            growth -= size  # a single one may be of any size
        return kept.bytes + growth <= limits.retained_bytes_per_device_max

    async def watch(self, read: Callable[[Path], Iterable[Retained]] = retained_messages) -> None:
        """Look when there is something to look for, until it is cancelled."""
        while True:
            if self._asked and self._saved_at_ns() >= self._looked_at_ns + SAVED_SECONDS * 1e9:
                self._asked = False
                self._looked_at_ns = time.time_ns()  # the clock of the file's times
                await self._look(read)
            await asyncio.sleep(LOOK_SECONDS)

    def _saved_at_ns(self) -> int:
        try:
            return self._database.stat().st_mtime_ns
        except OSError:
            return -1

    async def _look(self, read: Callable[[Path], Iterable[Retained]]) -> None:
        since, self._since = self._since, {}
        try:
            kept = await asyncio.to_thread(_by_device, read, self._database)
        except OSError as error:
            log_event(log, logging.WARNING, "retained.not-read", reason=str(error))
            self._since = since | self._since
            return
        for (device_id, topic), size in (since | self._since).items():
            kept.setdefault(device_id, _Kept()).set(topic, size)
        for device_id, before in self._kept.items():
            kept.setdefault(device_id, _Kept()).after(before)
        self._kept = kept
        self._bytes = sum(each.bytes for each in kept.values())


def _by_device(read: Callable[[Path], Iterable[Retained]], database: Path) -> dict[str, _Kept]:
    kept: dict[str, _Kept] = {}
    for each in read(database):
        if not each.username.startswith("_"):  # not of the fleet or of the back end
            of_device = kept.setdefault(device_of(each.client_id), _Kept())
            of_device.set(each.topic, each.size)
    return kept


def cost_of(topic: str, size: int) -> int:
    """Bytes of the broker's memory for a topic on which a message with a payload of `size` bytes is retained; 0: none
    is any more, and mosquitto 2.0 keeps the topic's levels all the same, until it is started again.
    """
    levels = max(1, topic.count("/") - SHARED_LEVELS) * LEVEL_BYTES + len(topic)
    return levels + size + MESSAGE_BYTES if size else levels
