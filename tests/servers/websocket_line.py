"""A WebSocket connection without a socket: the server's end of it, and a client's."""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event

from fleet.servers.websocket.handshake import OpeningHandshake
from fleet.servers.websocket.transport import WebSocketTransport

HEADERS = {
    "Host": "fleet.example:8884",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",  # of RFC 6455, 1.3, and the answer to it
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "mqtt",
}
ACCEPTED = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
PAGE = "https://app.example"


def request(start: str = "GET /mqtt HTTP/1.1", **changes: str | None) -> bytes:
    """`changes` by header, with _ for -; None leaves it out."""
    named = {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in (HEADERS | named).items() if value is not None]
    return "\r\n".join((start, *lines, "", "")).encode()


FIN, TEXT, BINARY, CLOSE, PING, PONG = 0x80, 0x1, 0x2, 0x8, 0x9, 0xA


class Raw(asyncio.Transport):
    """The transport below: keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.7", 4711)})
        self.sent = b""
        self.ends: list[str] = []
        self.is_paused = False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def write(self, data: Any) -> None:
        assert not self.ends, "written after its end"
        self.sent += data

    def close(self) -> None:
        self.ends.append("close")

    def abort(self) -> None:
        self.ends.append("abort")

    def is_closing(self) -> bool:
        return bool(self.ends)


class Stream(asyncio.Protocol):
    """The application: what it got, and what became of it."""

    def __init__(self) -> None:
        self.got = b""
        self.batches = 0
        self.events: list[str] = []
        self.on_data: Callable[[], object] = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        assert data
        self.got += data
        self.batches += 1
        self.on_data()

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")


class Line:
    """A connection past its opening handshake, and the client's end of it."""

    def __init__(self, *, opened: bool = True) -> None:
        self.raw, self.stream, self.client = Raw(), Stream(), Connection(ConnectionType.CLIENT)
        self.refused: list[tuple[str, str]] = []
        self.transport = WebSocketTransport(
            self.stream, OpeningHandshake([]), lambda code, detail: self.refused.append((code, detail))
        )
        self.transport.connection_made(self.raw)
        if opened:
            self.transport.data_received(request())
            assert self.raw.sent.endswith(ACCEPTED)
            self.raw.sent = b""

    def send(self, *events: Event) -> None:
        self.transport.data_received(b"".join(self.client.send(event) for event in events))

    def received(self) -> list[Event]:
        """What the server has sent, as an implementation of the client's side reads it."""
        sent, self.raw.sent = self.raw.sent, b""
        self.client.receive_data(sent)
        return list(self.client.events())

    def closed_with(self) -> int:
        """The code of the Close frame, the last thing that was sent."""
        *_, last = self.received()
        assert isinstance(last, CloseConnection)
        assert self.raw.ends == ["close"]
        return int(last.code)


def frame(first: int, payload: bytes = b"", *, mask: bytes | None = b"\x01\x02\x03\x04", size: bytes = b"") -> bytes:
    """One frame of a client; `size` as it is written, where it is not what it should be."""
    short = struct.pack("!B", len(payload)) if len(payload) < 126 else b"\x7e" + struct.pack("!H", len(payload))
    short = size or short
    if mask is None:
        return bytes((first,)) + short + payload
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return bytes((first, short[0] | 0x80)) + short[1:] + mask + masked
