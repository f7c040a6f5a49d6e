"""Job: records who is connected, in each process with a gateway."""

import math
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fleet.config.clock import Clock
from fleet.config.settings import Settings
from fleet.domain.ports import Registry
from fleet.domain.presence import GatewayRun
from fleet.home.layout import Home
from fleet.home.node_name import node_name
from fleet.services.presence import Presence


@asynccontextmanager
async def recording_presence(
    home: Home,
    settings: Settings,
    registry: Registry,
    worker: int,
    clock: Clock,
    stop_seconds: Callable[[], float] = lambda: math.inf,
) -> AsyncIterator[Presence]:
    """Presence for the gateway of the block, whose sessions have been closed at its end. `stop_seconds`: what is left
    for that when it comes. Raises: Unavailable.
    """
    run = GatewayRun(secrets.token_hex(8), node_name(home.path), worker, clock())
    presence = Presence(registry, run, clock, sends_events=settings.presence_events, stop_seconds=stop_seconds)
    await presence.begin()
    try:
        yield presence
    finally:
        await presence.close()
