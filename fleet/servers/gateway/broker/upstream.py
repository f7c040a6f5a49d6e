"""Upstream interface: the broker behind the gateway, to which each session gets a connection of its own."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fleet.domain.device import Device, Model
from fleet.servers.gateway.broker.header_first import Factory, behind_header
from fleet.servers.gateway.broker.private_socket import connect_unix

CONNECT_SECONDS_MAX = 8.0  # less than Limits.open_seconds_max


@dataclass(frozen=True, slots=True)
class UpstreamAccess:
    """How the gateway proves itself to an external broker."""

    tls: ssl.SSLContext | None = None
    """None: without TLS."""
    password: bytes | None = field(default=None, repr=False)
    """For every user name."""
    sends_identity: bool = False
    """Whether the CONNECT of a device with MQTT 5.0 says who it is in user properties, too."""
    sends_proxy_header: bool = False
    """Whether each connection begins with a PROXY header of version 2, which says who the device is."""
    refuses_dots: bool = False
    """Whether no topic may have a dot, since the broker takes it for a slash."""


class Upstream(Protocol):
    access: UpstreamAccess
    """For the connections to come."""

    @property
    def speaks_v5(self) -> bool: ...

    @property
    def is_ours(self) -> bool:
        """Whether we run it, and stop it with us."""

    @property
    def address(self) -> str:
        """`unix:PATH`, `mqtt://HOST:PORT` or `mqtts://HOST:PORT`: its name in log lines."""

    async def connect(self, factory: Factory, header: bytes = b"") -> None:
        """Connect `factory()`, a protocol. `header` goes before all else, TLS too. Raises: OSError, TimeoutError."""

    async def set_models(self, models: Sequence[Model]) -> None:
        """Update the ACLs of a broker that we run. Raises: OSError, TimeoutError."""

    def describe(self) -> str:
        """Kind and address of the broker, for applications on this machine."""

    async def close(self) -> None:
        """Stop the broker if we run it. Safe to call twice."""


def username_of(device: Device, upstream: Upstream) -> str:
    """The device's user name there: its model where the ACL is ours, its id at an external broker."""
    return device.model if upstream.is_ours else device.id


class UpstreamWrapper:
    """An Upstream around another, of which it changes what a subclass overrides."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    @property
    def access(self) -> UpstreamAccess:
        return self._upstream.access

    @access.setter
    def access(self, access: UpstreamAccess) -> None:
        self._upstream.access = access

    @property
    def speaks_v5(self) -> bool:
        return self._upstream.speaks_v5

    @property
    def is_ours(self) -> bool:
        return self._upstream.is_ours

    @property
    def address(self) -> str:
        return self._upstream.address

    async def connect(self, factory: Factory, header: bytes = b"") -> None:
        await self._upstream.connect(factory, header)

    async def set_models(self, models: Sequence[Model]) -> None:
        await self._upstream.set_models(models)

    def describe(self) -> str:
        return self._upstream.describe()

    async def close(self) -> None:
        await self._upstream.close()


class UnixUpstream:
    """A broker on a Unix socket of this machine."""

    speaks_v5 = True
    access = UpstreamAccess()

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    async def connect(self, factory: Factory, header: bytes = b"") -> None:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            if not header:
                await connect_unix(self.socket, factory)
            else:
                await behind_header(factory, header, lambda before: connect_unix(self.socket, before))


class External:
    """A broker run by others. It must trust the gateway's user names, and accept no other client there."""

    is_ours = False
    access = UpstreamAccess()

    async def set_models(self, models: Sequence[Model]) -> None:
        """It keeps its own ACLs."""

    def describe(self: Upstream) -> str:
        return f"the broker at {self.address}"

    async def close(self) -> None:
        """It keeps running."""


class AddressUpstream(External):
    """On TCP."""

    speaks_v5 = True

    def __init__(self, host: str, port: int, access: UpstreamAccess | None = None) -> None:
        self._host, self._port = host, port
        self.access = access or UpstreamAccess()

    @property
    def address(self) -> str:
        return f"{'mqtts' if self.access.tls else 'mqtt'}://{self._host}:{self._port}"

    async def connect(self, factory: Factory, header: bytes = b"") -> None:
        loop, tls = asyncio.get_running_loop(), self.access.tls
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            if not header:
                await loop.create_connection(factory, self._host, self._port, ssl=tls)
            else:
                await behind_header(
                    factory,
                    header,
                    lambda before: loop.create_connection(before, self._host, self._port),
                    tls,
                    self._host,
                )


class SocketUpstream(External, UnixUpstream):
    def __init__(self, socket: Path, access: UpstreamAccess | None = None) -> None:
        super().__init__(socket)
        self.access = access or UpstreamAccess()


class SharedUpstream(UnixUpstream):
    """Our own broker, run by the supervisor process, which updates its ACLs when `request_models` asks."""

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
