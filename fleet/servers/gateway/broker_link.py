"""Protocol of the connection to the broker that each session has: its events become the session's."""

import asyncio
from typing import Protocol


class BrokerSide(Protocol):
    """What a session does on the events of its connection to the broker."""

    def broker_connected(self, transport: asyncio.BaseTransport) -> None: ...

    def broker_data(self, data: bytes) -> None: ...

    def broker_lost(self) -> None: ...

    def broker_blocked(self) -> None: ...

    def broker_drained(self) -> None: ...


class BrokerLink(asyncio.Protocol):
    """Protocol of a session's own connection to the broker."""

    def __init__(self, session: BrokerSide) -> None:
        self._session = session

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._session.broker_connected(transport)

    def data_received(self, data: bytes) -> None:
        self._session.broker_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.broker_lost()

    def pause_writing(self) -> None:
        self._session.broker_blocked()

    def resume_writing(self) -> None:
        self._session.broker_drained()
