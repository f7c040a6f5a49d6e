"""Notices of who connects and who is gone as messages at the broker, with the names that the events have.

    topic = PresenceTopic("fleet/presence/{id}", publisher)
    presence.topic = Announcer(topic.publish, failures)

No message is retained: nobody would correct that of a process that was killed. `GET /v1/sessions` has the present
state.
"""

import asyncio
import json
from collections.abc import Sequence

from fleet.domain.errors import Unavailable
from fleet.domain.presence import SessionNotice
from fleet.services.publisher import Publisher


class PresenceTopic:
    """`template`: a topic, with {id} for the device id."""

    def __init__(self, template: str, publisher: Publisher) -> None:
        self._template = template
        self._publisher = publisher

    async def publish(self, notices: Sequence[SessionNotice]) -> int:
        """How many the broker has refused. Raises: Unavailable: some were not published."""
        refused = 0
        for result in await asyncio.gather(*map(self._publish_one, notices), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
            refused += not result
        return refused

    async def _publish_one(self, notice: SessionNotice) -> bool:
        """Whether the broker has taken it. Raises: Unavailable."""
        value = {"kind": notice.kind, "subject": notice.device_id, **notice.members}
        payload = json.dumps(value, separators=(",", ":")).encode()
        try:
            await self._publisher.publish(self._template.replace("{id}", notice.device_id), payload)
        except Unavailable as error:
            if error.code != "publish-refused":
                raise
            return False  # it would be refused again
        return True
