"""A publisher without a broker."""

import asyncio

from fleet.domain.errors import Unavailable
from tests.waiting import PATIENCE_SECONDS


class FakePublisher:
    """Keeps what is published; fails, or waits, when a test says so."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.subscribed: bool | None = True
        self.failures: list[str] = []
        """Codes of the next messages, which fail."""
        self.failed = asyncio.Event()
        self.answers = asyncio.Event()
        """Not set: the broker is silent."""
        self.answers.set()
        self._arrived = asyncio.Event()

    async def publish(self, topic: str, payload: bytes) -> bool | None:
        await self.answers.wait()
        if self.failures:
            self.failed.set()
            raise Unavailable(self.failures.pop(0), "It has not.")
        self.published.append((topic, payload))
        self._arrived.set()
        return self.subscribed

    async def next(self) -> tuple[str, bytes]:
        """The first of `published`, taken out, as soon as there is one."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self.published:
                self._arrived.clear()
                await self._arrived.wait()
        return self.published.pop(0)
