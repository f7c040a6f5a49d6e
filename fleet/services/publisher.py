"""The fleet's own client at the broker, as services use it."""

from typing import Protocol


class Publisher(Protocol):
    async def publish(self, topic: str, payload: bytes) -> bool | None:
        """Returns when the broker has taken the message: whether anybody had subscribed to it; None: it does not say.
        Raises: Unavailable: `broker-unreachable`, `publish-refused`, `publisher-busy`.
        """
