"""The broker behind the gateway, as a session sees it: whichever it is, a session gets its own connection to it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from fleet.domain.device import Model
from fleet.servers.gateway.private_socket import connect_unix

CONNECT_SECONDS_MAX = 8.0  # less than a session may take to open

Factory = Callable[[], asyncio.BaseProtocol]


class Upstream(Protocol):
    """Where sessions go."""

    @property
    def speaks_v5(self) -> bool: ...

    async def connect(self, factory: Factory) -> None:
        """Make a connection whose protocol is `factory()`. Raises: OSError, TimeoutError."""
        ...

    async def set_models(self, models: Sequence[Model]) -> None:
        """The models are now these: a broker of our own guards their topics too. Raises: OSError, TimeoutError."""
        ...

    def describe(self) -> str:
        """What it is and where an application on this machine finds it, for a person to read."""
        ...

    async def close(self) -> None:
        """Stop what was started. Safe to call twice."""
        ...


class AddressUpstream:
    """A broker somewhere else, on TCP. It must let the gateway in under any user name, and nobody else."""

    speaks_v5 = True

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    async def connect(self, factory: Factory) -> None:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await asyncio.get_running_loop().create_connection(factory, self._host, self._port)

    async def set_models(self, models: Sequence[Model]) -> None:
        """Its access rules are its owner's."""

    def describe(self) -> str:
        return f"the broker at mqtt://{self._host}:{self._port}"

    async def close(self) -> None:
        """It is not ours to stop."""


class SocketUpstream:
    """A broker on this machine, on a Unix socket. As AddressUpstream."""

    speaks_v5 = True

    def __init__(self, path: Path) -> None:
        self._path = path

    async def connect(self, factory: Factory) -> None:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await connect_unix(self._path, factory)

    async def set_models(self, models: Sequence[Model]) -> None:
        """Its access rules are its owner's."""

    def describe(self) -> str:
        return f"the broker at unix:{self._path}"

    async def close(self) -> None:
        """It is not ours to stop."""


class SharedUpstream:
    """A broker of our own that another process keeps: `ask_for_models` has that one teach it the models."""

    def __init__(self, socket: Path, *, speaks_v5: bool, ask_for_models: Callable[[], Awaitable[None]]) -> None:
        self.speaks_v5 = speaks_v5
        self._socket = socket
        self._ask_for_models = ask_for_models

    async def connect(self, factory: Factory) -> None:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await connect_unix(self._socket, factory)

    async def set_models(self, models: Sequence[Model]) -> None:
        """Whoever keeps it reads the models itself, and finds those that we have read, or newer ones."""
        await self._ask_for_models()

    def describe(self) -> str:
        return f"our own broker at unix:{self._socket}"

    async def close(self) -> None:
        """Its keeper stops it."""
