"""Job: publishes who connects and who is gone, in each process with a gateway."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fleet.config.logs import FailureLog
from fleet.config.settings import Settings
from fleet.runtime.background import background
from fleet.services.announcing import Announcer
from fleet.services.presence import Presence
from fleet.services.presence_topic import PresenceTopic
from fleet.services.publisher import Publisher

log = logging.getLogger("fleet.gateway")

CLOSE_SECONDS_MAX = 0.5


@asynccontextmanager
async def publishing_presence(
    settings: Settings, presence: Presence, publisher: Publisher, stop_seconds: Callable[[], float]
) -> AsyncIterator[None]:
    """What `presence` notes in the block is published where the settings say so. `stop_seconds`: what is left for the
    rest at its end.
    """
    if settings.presence_topic is None:
        yield
        return
    topic = PresenceTopic(settings.presence_topic, publisher)
    announcer = Announcer(topic.publish, FailureLog(log, "presence.not-published"))
    presence.topic = announcer
    async with background(announcer.run(), "the presence topic"):
        try:
            yield
        finally:
            await announcer.close(min(stop_seconds(), CLOSE_SECONDS_MAX))
