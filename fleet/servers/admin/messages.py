"""HTTP requests and replies as values, without an HTTP library: what AdminApp is given and gives back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Protocol

from msgspec import Struct, field

from fleet.domain.access import Operator
from fleet.domain.credential import Credential
from fleet.domain.peer import Peer
from fleet.servers.refusals import HttpRefused


class Headers(Mapping[str, str]):
    """Header fields; names are compared without case. A field that comes on several lines is read with `getall`."""

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name.lower(), []).append(value)

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()][0]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def getall(self, name: str) -> list[str]:
        """The values of every line of `name`, in order; [] when there is none."""
        return self._values.get(name.lower(), [])


class Caller(Struct, frozen=True):
    """An authenticated client."""

    actor: str
    """In the audit's words: "operator bob", "device cam-1", "user alice"."""
    operator: Operator | None = None
    """None for a device or a station."""
    credential: Credential | None = None
    """The certificate presented, in service at the time of the call; None for a user of this machine."""


ReadBody = Callable[[int], Awaitable[bytes]]
"""Reads the whole body, of at most so many bytes. Raises: HttpRefused: 400, 408, 413, 415."""


def body_of(content: bytes) -> ReadBody:
    """A body that is here already."""

    async def read(size_max: int) -> bytes:
        if len(content) > size_max:
            raise HttpRefused(413, "too-large", f"The body is larger than {size_max} bytes.")
        return content

    return read


class Request(Struct, frozen=True):
    method: str
    target: str
    """Path and query, as sent."""
    headers: Headers = field(default_factory=Headers)
    read_body: ReadBody = field(default=body_of(b""))
    """The body is read once the client is authorized: its size limit is the route's."""
    peer: Peer = field(default=Peer(""))
    caller: Caller | None = None
    """Set by a transport that has authenticated the client by itself; else the certificate of `peer` counts."""
    shutdown: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server shuts down: streams end then."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class Stream(Protocol):
    """A body that is written piece by piece."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """To be called in any case, even before the first piece."""


class Reply(Struct, frozen=True):
    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    stream: Stream | None = None
    """Written in place of `body`."""
