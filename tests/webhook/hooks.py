"""A webhook for tests: a real HTTPS server that answers whatever bytes it is told to."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fleet.ca.authority import create_issuing, create_root, issue_server_certificate


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def http(body: object, status: str = "200 OK", content_type: str = "application/json", *more: str) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(raw)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + raw


@dataclass
class Hook:
    ca_file: Path
    port: int = 0
    answer: Answer = b""
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/enroll?fleet=1"

    async def has_been_asked(self, times: int) -> None:
        async with self.news:
            await self.news.wait_for(lambda: len(self.asked) >= times)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
                body = await reader.readexactly(int(headers["content-length"]))
                self.asked.append(Asked(method, path, headers, body))
                async with self.news:
                    self.news.notify_all()
                if isinstance(self.answer, bytes):
                    writer.write(self.answer)
                else:
                    await self.answer(writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def server_tls(folder: Path, names: tuple[str, ...]) -> tuple[ssl.SSLContext, Path]:
    """TLS of a server whose certificate is for `names`, and the file of its CA."""
    now = datetime.now(UTC)
    root = create_root("Hooks", now)
    issuing = create_issuing("Hooks", *root, now)
    certificate, key = issue_server_certificate(*issuing, names, now)
    ca_file, chain = folder / "hook-ca.pem", folder / "hook.pem"
    ca_file.write_bytes(root[0].public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem = [each.public_bytes(Encoding.PEM) for each in (certificate, issuing[0])]
    chain.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + b"".join(pem))
    context.load_cert_chain(chain)
    return context, ca_file


@asynccontextmanager
async def serving(folder: Path, names: tuple[str, ...] = ("localhost",)) -> AsyncIterator[Hook]:
    """A hook whose certificate is for `names`, of a CA that is in its `ca_file`."""
    context, ca_file = server_tls(folder, names)
    hook = Hook(ca_file)
    server = await asyncio.start_server(hook.serve, "127.0.0.1", 0, ssl=context)
    hook.port = server.sockets[0].getsockname()[1]
    try:
        yield hook
    finally:
        server.close()
