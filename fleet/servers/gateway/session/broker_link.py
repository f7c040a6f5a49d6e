"""Protocol of the connection to the broker that each session has: its events become the session's."""

import asyncio
from contextlib import suppress
from typing import Protocol


class BrokerSide(Protocol):
    """What a session does on the events of its connection to the broker."""

    def broker_connected(self, transport: asyncio.BaseTransport) -> None: ...

    def broker_data(self, data: bytes) -> None: ...

    def broker_lost(self) -> None: ...

    def broker_blocked(self) -> None: ...

    def broker_drained(self) -> None: ...


class BrokerLinks:
    """The open ones of a gateway."""

    def __init__(self) -> None:
        self._open: set[BrokerLink] = set()
        self._none_open = asyncio.Event()

    def add(self, link: "BrokerLink") -> None:
        self._open.add(link)

    def remove(self, link: "BrokerLink") -> None:
        self._open.discard(link)
        if not self._open:
            self._none_open.set()

    async def closed(self, seconds_max: float) -> None:
        """Returns when none is open, at the latest after `seconds_max`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                while self._open:
                    self._none_open.clear()
                    await self._none_open.wait()


class BrokerLink(asyncio.Protocol):
    """Protocol of a session's own connection to the broker."""

    def __init__(self, session: BrokerSide, links: BrokerLinks) -> None:
        self._session = session
        self._links = links

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._links.add(self)
        self._session.broker_connected(transport)

    def data_received(self, data: bytes) -> None:
        self._session.broker_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._links.remove(self)
        self._session.broker_lost()

    def pause_writing(self) -> None:
        self._session.broker_blocked()

    def resume_writing(self) -> None:
        self._session.broker_drained()
