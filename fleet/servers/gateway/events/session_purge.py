"""Purges the broker's sessions of a revoked or retired device: subscriptions, queued messages, a waiting will.

Of a suspended device they stay, without its shared subscriptions: what the broker queued for these, no other of the
group would get.
"""

import asyncio
import math
from functools import partial

from fleet.domain.client_ids import broker_client_id
from fleet.domain.device import DeviceState
from fleet.domain.errors import Unavailable
from fleet.domain.mqtt_rules import ClientIdBinding
from fleet.domain.ports import Registry
from fleet.domain.registry_events import DeviceStateChanged, RightChanged, SessionKicked
from fleet.servers.gateway.broker.visit import BrokerVisits, leave_filters, purge_session
from fleet.servers.gateway.limits.kept_filters import KeptFilters
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.tasks import Tasks

OTHERS_SECONDS = 1.0  # by then every process before a broker has received an event, and has closed its sessions
PURGE_TRIES_MAX = 60  # a second apart: our own broker is back by then, and one that refuses is left alone


class SessionPurger:
    """Purges a device's sessions, of its own client id and of those in `kept`, `after_seconds` after the event that
    it was revoked or retired.

    A purge takes over the device's connection at the broker, which then may publish its will: the gateway of that
    connection must have sent DISCONNECT before. In this process it has; other processes may receive the event later.
    """

    def __init__(
        self,
        visits: BrokerVisits,
        registry: Registry,
        outcomes: OutcomeLog,
        kept: KeptFilters | None = None,
        *,
        after_seconds: float = 0.0,
    ) -> None:
        self._visits = visits
        self._registry = registry
        self._outcomes = outcomes
        self._kept = kept or KeptFilters()
        self._after_seconds = after_seconds
        self._tasks = Tasks()

    def on_event(self, event: RightChanged | None) -> None:
        """Returns at once: a slow broker must not delay the feed."""
        match event:
            case DeviceStateChanged(device_id, is_out_of_service=True):
                self._tasks.start(self._purge(device_id))
            case DeviceStateChanged(device_id, state=DeviceState.SUSPENDED):
                self._tasks.start(self._leave_shares(device_id))
            case SessionKicked(device_id, str(client_id), ends_kept=True):
                self._tasks.start(self._end_kept(device_id, client_id))

    async def close(self) -> None:
        """Cancel pending purges; those sessions stay at the broker."""
        await self._tasks.close()

    async def _purge(self, device_id: str) -> None:
        await asyncio.sleep(self._after_seconds)
        client_ids = ("", *self._kept.clients.of_device(device_id))
        attempts = (partial(self._try, device_id, client_id) for client_id in client_ids)
        done = await asyncio.gather(*(self._visits.until_done(attempt, PURGE_TRIES_MAX) for attempt in attempts))
        if purged := all(done):
            self._kept.clients.purged(device_id)
        now = asyncio.get_running_loop().time()
        self._outcomes.record("mqtt.purge", "ok" if purged else "failed", now, device=device_id)

    async def _end_kept(self, device_id: str, said: str) -> None:
        client_id = broker_client_id(device_id, said, ClientIdBinding.ANY)
        if client_id is None or not self._kept.clients.is_kept_alone(client_id):
            return

        async def attempt() -> bool:
            # One that has connected meanwhile is not taken over.
            return not self._kept.clients.is_kept_alone(client_id) or await self._try(device_id, client_id)

        purged = await self._visits.until_done(attempt, PURGE_TRIES_MAX)
        if purged and self._kept.clients.is_kept_alone(client_id):
            self._kept.clients.ended(client_id, 0)
        now = asyncio.get_running_loop().time()
        self._outcomes.record("mqtt.purge", "ok" if purged else "failed", now, device=device_id)

    async def _try(self, device_id: str, client_id: str) -> bool:
        try:
            device = await self._registry.device(device_id)
        except Unavailable:
            return False
        return device is None or await purge_session(self._visits.upstream, device, client_id)

    async def _leave_shares(self, device_id: str) -> None:
        await asyncio.sleep(self._after_seconds)
        client_ids = [one for one in (device_id, *self._kept.clients.of_device(device_id)) if self._kept.shared(one)]
        if not client_ids:
            return
        attempts = (partial(self._try_leaving, device_id, client_id) for client_id in client_ids)
        done = await asyncio.gather(*(self._visits.until_done(attempt, PURGE_TRIES_MAX) for attempt in attempts))
        if not all(done) or not any(map(self._kept.shared, client_ids)):  # it has not been resumed meanwhile
            now = asyncio.get_running_loop().time()
            self._outcomes.record("mqtt.share", "left" if all(done) else "failed", now, device=device_id)

    async def _try_leaving(self, device_id: str, client_id: str) -> bool:
        try:
            device = await self._registry.device(device_id)
        except Unavailable:
            return False
        if device is None or device.state is not DeviceState.SUSPENDED:
            return True  # no live session is taken over
        shared = self._kept.shared(client_id)
        if not await leave_filters(self._visits.upstream, device, client_id, shared):
            return False
        self._kept.removed(client_id, shared)
        self._kept.clients.ended(client_id, math.inf)
        return True
