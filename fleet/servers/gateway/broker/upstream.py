"""Upstream interface: the broker behind the gateway, to which each session gets a connection of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from fleet.domain.device import Device, Model
from fleet.servers.gateway.broker.private_socket import connect_unix

CONNECT_SECONDS_MAX = 8.0  # less than Limits.open_seconds_max

Factory = Callable[[], asyncio.BaseProtocol]


class Upstream(Protocol):
    @property
    def speaks_v5(self) -> bool: ...

    @property
    def is_ours(self) -> bool:
        """Whether we run it, and stop it with us."""

    @property
    def address(self) -> str:
        """`unix:PATH` or `mqtt://HOST:PORT`: its name in log lines."""

    async def connect(self, factory: Factory) -> None:
        """Connect `factory()`, a protocol. Raises: OSError, TimeoutError."""

    async def set_models(self, models: Sequence[Model]) -> None:
        """Update the ACLs of a broker that we run. Raises: OSError, TimeoutError."""

    def describe(self) -> str:
        """Kind and address of the broker, for applications on this machine."""

    async def close(self) -> None:
        """Stop the broker if we run it. Safe to call twice."""


def username_of(device: Device, upstream: Upstream) -> str:
    """The device's user name there: its model where the ACL is ours, its id at a broker of others."""
    return device.model if upstream.is_ours else device.id


class UpstreamWrapper:
    """An Upstream around another, of which it changes what a subclass overrides."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    @property
    def speaks_v5(self) -> bool:
        return self._upstream.speaks_v5

    @property
    def is_ours(self) -> bool:
        return self._upstream.is_ours

    @property
    def address(self) -> str:
        return self._upstream.address

    async def connect(self, factory: Factory) -> None:
        await self._upstream.connect(factory)

    async def set_models(self, models: Sequence[Model]) -> None:
        await self._upstream.set_models(models)

    def describe(self) -> str:
        return self._upstream.describe()

    async def close(self) -> None:
        await self._upstream.close()


class UnixUpstream:
    """A broker on a Unix socket of this machine."""

    speaks_v5 = True
    is_ours = False

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    async def connect(self, factory: Factory) -> None:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await connect_unix(self.socket, factory)


class External:
    """A broker run by others. It must trust the gateway's user names, and accept no other client there."""

    is_ours = False

    async def set_models(self, models: Sequence[Model]) -> None:
        """It keeps its own ACLs."""

    async def close(self) -> None:
        """It keeps running."""


class AddressUpstream(External):
    """On TCP."""

    speaks_v5 = True

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    @property
    def address(self) -> str:
        return f"mqtt://{self._host}:{self._port}"

    async def connect(self, factory: Factory) -> None:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await asyncio.get_running_loop().create_connection(factory, self._host, self._port)

    def describe(self) -> str:
        return f"the broker at {self.address}"


class SocketUpstream(External, UnixUpstream):
    def describe(self) -> str:
        return f"the broker at {self.address}"


class SharedUpstream(UnixUpstream):
    """Our broker, run by the supervisor process, which updates its ACLs when `request_models` asks."""

    is_ours = True

    def __init__(self, socket: Path, *, speaks_v5: bool, request_models: Callable[[], Awaitable[None]]) -> None:
        super().__init__(socket)
        self.speaks_v5 = speaks_v5
        self._request_models = request_models

    async def set_models(self, models: Sequence[Model]) -> None:
        """The supervisor reads the models itself: those that we have read, or newer ones."""
        await self._request_models()

    def describe(self) -> str:
        return f"our own broker at {self.address}"

    async def close(self) -> None:
        """The supervisor stops it."""
