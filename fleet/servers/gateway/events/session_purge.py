"""Purges the broker's session of a revoked or retired device: subscriptions, queued messages, a waiting will."""

import asyncio
from functools import partial

from fleet.domain.errors import Unavailable
from fleet.domain.ports import Registry
from fleet.domain.registry_events import DeviceStateChanged, RightChanged
from fleet.servers.gateway.broker.visit import BrokerVisits, purge_session
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.tasks import Tasks

OTHERS_SECONDS = 1.0  # by then every process before a broker has received an event, and has closed its sessions
PURGE_TRIES_MAX = 60  # a second apart: our own broker is back by then, and one that refuses is left alone


class SessionPurger:
    """Purges a device's session `after_seconds` after the event that it was revoked or retired.

    A purge takes over the device's connection at the broker, which then may publish its will: the gateway of that
    connection must have sent DISCONNECT before. In this process it has; other processes may receive the event later.
    """

    def __init__(
        self, visits: BrokerVisits, registry: Registry, outcomes: OutcomeLog, *, after_seconds: float = 0.0
    ) -> None:
        self._visits = visits
        self._registry = registry
        self._outcomes = outcomes
        self._after_seconds = after_seconds
        self._tasks = Tasks()

    def on_event(self, event: RightChanged | None) -> None:
        """Returns at once: a slow broker must not delay the feed."""
        if isinstance(event, DeviceStateChanged) and event.is_out_of_service:
            self._tasks.start(self._purge(event.device_id))

    async def close(self) -> None:
        """Cancel pending purges; those sessions stay at the broker."""
        await self._tasks.close()

    async def _purge(self, device_id: str) -> None:
        await asyncio.sleep(self._after_seconds)
        purged = await self._visits.until_done(partial(self._try, device_id), PURGE_TRIES_MAX)
        now = asyncio.get_running_loop().time()
        self._outcomes.record("mqtt.purge", "ok" if purged else "failed", now, device=device_id)

    async def _try(self, device_id: str) -> bool:
        try:
            device = await self._registry.device(device_id)
        except Unavailable:
            return False
        return device is None or await purge_session(self._visits.upstream, device)
