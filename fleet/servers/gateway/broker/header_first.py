"""Connections to an external broker that begin with a PROXY header: before TLS, and before what the protocol says."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import cast

Factory = Callable[[], asyncio.BaseProtocol]


class _Before(asyncio.Protocol):
    """Holds the connection until the header is written; a broker says nothing before CONNECT."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)


async def behind_header(
    factory: Factory,
    header: bytes,
    connect: Callable[[Factory], Awaitable[object]],
    tls: ssl.SSLContext | None = None,
    host: str = "",
) -> None:
    """Connect `factory()` by `connect`, after `header`, with `tls` to `host` behind that. Raises: OSError."""
    before = _Before()
    await connect(lambda: before)
    transport = before.transport
    if transport is None:
        raise ConnectionResetError("The broker has closed the connection.")
    try:
        transport.write(header)
        if tls is not None:
            loop = asyncio.get_running_loop()
            secured = await loop.start_tls(transport, asyncio.Protocol(), tls, server_hostname=host)
            transport = cast("asyncio.Transport", secured)
        if transport.is_closing():
            raise ConnectionResetError("The broker has closed the connection.")
    except BaseException:
        transport.abort()
        raise
    protocol = factory()
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
