"""A publish listener on a free loopback port, and a client that sees every header."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from fleet.servers.http import Exchange, Handle
from fleet.servers.http_connection import HttpLimits
from fleet.servers.http_response import Response
from fleet.servers.publish.server import Find, build_publish_server, no_room
from fleet.tls.listener import Listener, ListenerLimits, listen
from tests.waiting import PATIENCE_SECONDS


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, method: str, path: str, *headers: str, body: bytes = b"") -> Answer:
        size = (f"Content-Length: {len(body)}",) if body else ()
        head = "\r\n".join((f"{method} {path} HTTP/1.1", "Host: h", *headers, *size, "", ""))
        self.writer.write(head.encode() + body)
        return await self.answer(method)

    async def answer(self, method: str) -> Answer:
        async with asyncio.timeout(PATIENCE_SECONDS):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            found = dict(line.split(": ", 1) for line in lines[1:-2])
            length = 0 if method == "HEAD" else int(found.get("Content-Length", 0))
            return Answer(int(lines[0].split()[1]), found, await self.reader.readexactly(length))

    async def is_closed(self) -> bool:
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True


async def no_ocsp(exchange: Exchange) -> Response:
    raise AssertionError("no OCSP is asked for here")


@asynccontextmanager
async def serving(
    find: Find,
    now: datetime,
    *,
    ocsp: Handle = no_ocsp,
    limits: ListenerLimits | None = None,
    http_limits: HttpLimits | None = None,
) -> AsyncIterator[Listener]:
    server = build_publish_server(find, ocsp, clock=lambda: now, limits=http_limits)
    limits = replace(limits or ListenerLimits(), no_room=no_room)
    listener = await listen(server, ("127.0.0.1", 0), contexts=None, limits=limits)
    try:
        yield listener
    finally:
        listener.close()
        await server.shutdown(1.0)
        listener.abort_connections()


@asynccontextmanager
async def connected(listener: Listener) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
