"""MQTT's byte stream in WebSocket frames (MQTT 5.0, 6): the protocol of a connection, and the transport of a session.

The session begins with the connection, before the opening handshake: its deadline for CONNECT, and its limits, hold for
that too. Of what one read of the connection brings, the session is given all payloads at once: packets may cross frames
[MQTT-6.0.0-2].
"""

import asyncio
from collections.abc import Callable
from typing import cast

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from fleet.config.layered_transport import NO_PROTOCOL, LayeredTransport
from fleet.servers.websocket.handshake import UNAVAILABLE, OpeningHandshake, Refusal, UpgradeRefused

EMPTY_FRAMES_PER_SECOND_MAX = 100
"""Pings, pongs and frames without payload: they cost us time, and no limit of MQTT counts them."""
FRAMES_AT_ONCE_MAX = 256
"""Read in one turn of the event loop, 3 ms: one read of the connection may bring 40,000 of one byte."""
FRAMES_PER_SECOND_MAX = 2_048
"""Read in a second, 3 % of a core; further ones wait. A device's rates count messages and bytes of MQTT alone."""

OnRefused = Callable[[str, str], None]


class WebSocketTransport(LayeredTransport, asyncio.Protocol):
    """One connection. `application` is the protocol of the MQTT stream."""

    def __init__(self, application: asyncio.Protocol, handshake: OpeningHandshake, on_refused: OnRefused) -> None:
        """`on_refused` is called with a code and a detail when we end the connection for what the client sent."""
        super().__init__()
        self._protocol = application
        self._handshake: OpeningHandshake | None = handshake
        self._frames = Connection(ConnectionType.SERVER)  # offers no extension: permessage-deflate least of all
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()
        self._is_closing = False
        self._is_full = False
        self._is_paused = False
        """By the application."""
        self._is_behind = False
        """Frames are left for the next turn."""
        self._counted_from = 0.0
        self._empty_frames = 0
        self._frames_read = 0

    # Called by the transport below

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self._protocol.connection_made(self)

    def data_received(self, data: bytes) -> None:
        if self.is_closing():
            return
        if self._handshake is None:
            self._frames.receive_data(data)
            if not self._is_behind:
                self._take_in()
            return
        try:
            answer = self._handshake.feed(data)
        except UpgradeRefused as refused:
            self._on_refused(refused.refusal.code, "")
            self._refuse(refused.refusal)
            return
        if answer is not None:
            self._handshake = None
            self._raw.write(answer)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._is_full = True
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._is_full = False
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        application, self._protocol = self._protocol, NO_PROTOCOL  # both are freed at once
        application.connection_lost(exc)

    # Frames

    def _take_in(self) -> None:
        payloads: list[bytes | bytearray] = []
        ping: Ping | None = None
        end: CloseConnection | None = None
        self._begin_second()
        for count, event in enumerate(self._frames.events(), 1):
            self._frames_read += 1
            if isinstance(event, BytesMessage) and event.data:
                payloads.append(event.data)
            elif isinstance(event, CloseConnection | TextMessage) or self._is_flooded():
                end = self._answer_to(event)
                break
            elif isinstance(event, Ping):
                ping = event
            if count == FRAMES_AT_ONCE_MAX or self._frames_read >= FRAMES_PER_SECOND_MAX:
                self._fall_behind()
                break
        if payloads:
            self._protocol.data_received(b"".join(payloads))
        if self._is_closing:
            return
        if end is not None:
            self._end(end)
        elif ping is not None and not self._is_full:  # RFC 6455, 5.5.3: the most recent one may stand for all
            self._raw.write(self._frames.send(ping.response()))

    def _fall_behind(self) -> None:
        self._is_behind = True
        self._raw.pause_reading()
        if self._frames_read < FRAMES_PER_SECOND_MAX:
            self._loop.call_soon(self._catch_up)
        else:
            self._loop.call_at(self._counted_from + 1, self._catch_up)

    def _catch_up(self) -> None:
        self._is_behind = False
        if self.is_closing():
            return
        self._take_in()
        if not self._is_behind and not self._is_paused and not self.is_closing():
            self._raw.resume_reading()

    def _begin_second(self) -> None:
        now = self._loop.time()
        if now - self._counted_from >= 1:
            self._counted_from, self._empty_frames, self._frames_read = now, 0, 0

    def _is_flooded(self) -> bool:
        self._begin_second()
        self._empty_frames += 1
        return self._empty_frames > EMPTY_FRAMES_PER_SECOND_MAX

    def _answer_to(self, event: Event) -> CloseConnection:
        """The Close frame for what ends the connection."""
        if isinstance(event, TextMessage):  # [MQTT-6.0.0-1]
            self._on_refused("text-frame", "")
            return CloseConnection(CloseReason.UNSUPPORTED_DATA)
        if not isinstance(event, CloseConnection):
            self._on_refused("too-many-empty-frames", "")
            return CloseConnection(CloseReason.POLICY_VIOLATION)
        if self._frames.state is ConnectionState.REMOTE_CLOSING:
            return event.response()
        self._on_refused("bad-frame", event.reason or "")
        return CloseConnection(event.code)

    def _end(self, last: CloseConnection) -> None:
        self._is_closing = True
        self._raw.write(self._frames.send(last))
        self._raw.close()

    # Called by the application

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Ignored before the opening handshake, and from the client's Close frame on: RFC 6455, 5.5.1 and 1.4."""
        if self._handshake is None and not self.is_closing() and self._frames.state is ConnectionState.OPEN:
            self._raw.write(self._frames.send(BytesMessage(bytes(data))))

    def together(self, act: Callable[[bytes], None], data: bytes) -> None:
        """`act(data)`; what it writes is sent at its end, where the transport below can do that."""
        below: Callable[[Callable[[bytes], None], bytes], None] | None = getattr(self._raw, "together", None)
        if below is None:
            act(data)
        else:
            below(act, data)

    def close(self) -> None:
        """Send what was written and a Close frame, then close."""
        if self._is_closing:
            return
        if self._handshake is None and not self._raw.is_closing():
            self._end(CloseConnection(CloseReason.NORMAL_CLOSURE))
        else:
            self._refuse(UNAVAILABLE)

    def _refuse(self, refusal: Refusal) -> None:
        self._is_closing = True
        if not self._raw.is_closing():
            self._raw.write(refusal.encode())
            self._raw.close()

    def abort(self) -> None:
        self._is_closing = True
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._is_closing or self._raw.is_closing()

    def pause_reading(self) -> None:
        self._is_paused = True
        super().pause_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        if not self._is_behind:
            super().resume_reading()
