"""An ordinary `asyncio.Transport` over a TLS session over a socket transport.

The application's protocol is called as on any transport. What differs is told here:

* Small writes of one turn of the event loop leave together, in one record and one send.
* A write is encrypted only while the socket takes bytes. When it does not, the plaintext waits and the application is
  told `pause_writing`; an application that heeds it makes us hold its last write and the socket's buffer, no more.
* A peer that makes the engine answer (key updates, refused renegotiations) and does not read the answers is not read
  from either.
* `eof_received` means close_notify. A socket that ends without one is an attack or an accident: `connection_lost` with
  Truncated, never an end of file.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from fleet.domain.peer import Peer
from fleet.tls.contexts import TlsContext
from fleet.tls.engine import SLICE_SIZE, Scratch
from fleet.tls.errors import TlsError, Truncated
from fleet.tls.session import TlsSession

FLUSH_SIZE = SLICE_SIZE  # so much plaintext gathered in one turn is sent without waiting for the turn's end
CLOSE_DEADLINE_S = 10.0  # for a peer to take what close() still has to send


class TlsTransport(asyncio.Transport):
    """One connection as the application sees it. Made when the handshake is done, never before."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        raw: asyncio.Transport,
        session: TlsSession,
        context: TlsContext,
        scratch: Scratch,
        on_lost: Callable[["TlsTransport"], None],
    ) -> None:
        """`raw` must hand its events to `wire` from now on; `on_lost` is called when it is over, last of all."""
        if session.peer is None:
            raise ValueError("A transport is made after the handshake.")
        super().__init__()
        self.peer: Peer = session.peer
        self.wire = _Wire(self, scratch)
        self._loop = loop
        self._raw = raw
        self._session = session
        self._context = context
        self._on_lost = on_lost
        self._protocol: asyncio.Protocol = asyncio.Protocol()
        self._failure: Exception | None = None

        self._pending: list[bytes] = []
        self._pending_size = 0
        self._flush_scheduled = False
        self._delivering = False
        self._wire_full = False
        self._close_timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._write_ended = False
        self._lost = False

        self._app_paused_reading = False
        self._answers_unread = False
        # On TLS 1.3 the engine ends the handshake with session tickets, good for nothing here: they travel with the
        # first bytes of the application and save a send.
        self._deferred_size = session.outgoing_size() if session.peer.tls_version == "TLSv1.3" else 0
        self._held = b""
        self._eof_held = False

    # The application's side: about the connection

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`peer` is the Peer; `sslcontext` the context, by which aiohttp knows https; the rest is the socket's."""
        if name == "peer":
            return self.peer
        if name == "sslcontext":
            return self._context
        return self._raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if not isinstance(protocol, asyncio.Protocol):
            raise TypeError("The protocol must be an asyncio.Protocol: it is given bytes.")
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    # The application's side: reading

    def is_reading(self) -> bool:
        return not self._app_paused_reading and not self._closing

    def pause_reading(self) -> None:
        """No more than the batch already read from the socket is kept meanwhile."""
        if not self._app_paused_reading:
            self._app_paused_reading = True
            self._gate_socket()

    def resume_reading(self) -> None:
        if self._app_paused_reading:
            self._app_paused_reading = False
            if self._held or self._eof_held:
                self._loop.call_soon(self._deliver_held)
            else:
                self._gate_socket()

    def _gate_socket(self) -> None:
        """Read the socket only while the application listens and the peer takes the engine's answers."""
        if self._closing:
            return
        if self._app_paused_reading or self._answers_unread or self._held:
            self._raw.pause_reading()
        else:
            self._raw.resume_reading()

    def _deliver_held(self) -> None:
        if self._app_paused_reading or self._closing:
            return
        held, self._held = self._held, b""
        if held:
            self._deliver(held)
        if self._eof_held and not self._app_paused_reading and not self._closing:
            self._eof_held = False
            self._deliver_eof()
        self._gate_socket()

    # The application's side: writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, bytes):
            data = bytes(data)  # the caller may change it before the turn ends; TypeError where it is not a buffer
        self._queue(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._queue(b"".join(list_of_data))

    def _queue(self, data: bytes) -> None:
        if self._write_ended and not self._closing:
            raise RuntimeError("Cannot write after write_eof.")
        if not data or self._closing:
            return  # as asyncio's own transports: a write after close goes nowhere
        self._pending.append(data)
        self._pending_size += len(data)
        if self._pending_size >= FLUSH_SIZE:
            self._flush()
        elif not self._flush_scheduled and not self._delivering and not self._wire_full:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_turn)

    def _flush_turn(self) -> None:
        self._flush_scheduled = False
        if not self._lost:
            self._flush()

    def _flush(self) -> None:
        """Encrypt and send what waits, as long as the socket takes it."""
        if not self._pending or self._wire_full:
            return
        data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        self._pending.clear()
        at = 0
        try:
            if len(data) <= SLICE_SIZE:
                at = len(data)
                self._session.write(data)
                self._send_outgoing()
            else:
                view = memoryview(data)
                while at < len(data) and not self._wire_full:
                    self._session.write(view[at : at + SLICE_SIZE])
                    at += SLICE_SIZE
                    self._send_outgoing()
        except TlsError as error:
            self._pending_size = 0
            self._fail(error)
            return
        if at < len(data):
            self._pending.append(data[at:])
            self._pending_size = len(data) - at
        else:
            self._pending_size = 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Say close_notify after what was written; the peer may go on sending (RFC 8446, 6.1)."""
        if not self._write_ended and not self._closing:
            self._write_ended = True
            self._flush()
            self._say_close_notify_when_flushed()

    def _say_close_notify_when_flushed(self) -> None:
        if not self._pending:
            self._session.close()
            self._send_outgoing()

    def get_write_buffer_size(self) -> int:
        return self._pending_size + self._raw.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._raw.get_write_buffer_limits()

    # The application's side: ending

    def close(self) -> None:
        """Send what was written and close_notify, then close. A peer that takes too long is aborted."""
        if self._closing:
            return
        self._flush()
        if self._closing:
            return  # the flush found the connection broken
        self._closing = True
        self._held = b""
        self._raw.pause_reading()
        self._close_timer = self._loop.call_later(CLOSE_DEADLINE_S, self._raw.abort)
        self._close_when_flushed()

    def _close_when_flushed(self) -> None:
        if self._pending:
            return
        if not self._write_ended:
            self._write_ended = True
            self._session.close()
            self._send_outgoing()
        self._raw.close()

    def abort(self) -> None:
        """Close at once and lose what was not sent."""
        self._closing = True
        self._pending.clear()
        self._pending_size = 0
        self._raw.abort()

    def _fail(self, error: TlsError) -> None:
        """The peer broke the protocol: tell it by the engine's alert, close, and tell the application why."""
        if self._lost or self._failure is not None:
            return
        self._failure = error
        self._closing = True
        self._pending.clear()
        self._pending_size = 0
        if self._wire_full:
            self._raw.abort()
            return
        self._send_outgoing()
        self._close_timer = self._loop.call_later(CLOSE_DEADLINE_S, self._raw.abort)
        self._raw.close()

    # The socket's side, called by _Wire and, for what came with the handshake's end, by the listener

    def begin(self, protocol: asyncio.Protocol, early: bytes) -> None:
        """Introduce the application, then hand it `early`: what came together with the handshake's end."""
        self._protocol = protocol
        if self._deferred_size == 0:
            self._send_outgoing()  # TLS 1.2: the client waits for our Finished
        protocol.connection_made(self)
        self._received(early)

    def _feed(self, data: memoryview) -> None:
        if self._closing:
            return
        try:
            plain = self._session.feed(data)
        except TlsError as error:
            self._fail(error)
            return
        if plain or self._session.closed_by_peer:
            self._received(plain)
        if not self._closing and self._session.outgoing_size() > self._deferred_size:
            self._send_outgoing()  # the engine's own answer to something that was no data
            if self._wire_full:
                self._answers_unread = True
                self._gate_socket()

    def _received(self, plain: bytes) -> None:
        if plain and not self._closing:
            if self._app_paused_reading or self._held:
                self._held += plain
            else:
                self._deliver(plain)
        if self._session.closed_by_peer and not self._closing:
            if self._app_paused_reading or self._held:
                self._eof_held = True
            else:
                self._deliver_eof()

    def _deliver(self, plain: bytes) -> None:
        """One batch to the application; what it writes in answer leaves in one piece."""
        self._delivering = True
        try:
            self._protocol.data_received(plain)
        finally:
            self._delivering = False
            if self._pending and not self._flush_scheduled:
                self._flush()

    def _deliver_eof(self) -> None:
        if not self._protocol.eof_received():
            self.close()

    def _send_outgoing(self) -> None:
        self._deferred_size = 0
        if sealed := self._session.outgoing():
            self._raw.write(sealed)

    def _socket_ended(self) -> bool:
        """Whether the socket is to stay open for writing."""
        if self._session.closed_by_peer:
            return not self._closing
        self._failure = self._failure or Truncated("The other end closed without close_notify.")
        self._closing = True
        self._raw.abort()
        return False

    def _socket_full(self) -> None:
        self._wire_full = True
        if not self._closing:
            self._protocol.pause_writing()

    def _socket_has_room(self) -> None:
        self._wire_full = False
        self._flush()
        if self._wire_full:
            return
        if self._answers_unread:
            self._answers_unread = False
            self._gate_socket()
        if self._closing:
            self._close_when_flushed()
            return
        if self._write_ended:
            self._say_close_notify_when_flushed()
        self._protocol.resume_writing()

    def _socket_lost(self, error: Exception | None) -> None:
        self._lost = self._closing = True
        self._pending.clear()
        self._pending_size = 0
        self._held = b""
        if self._close_timer is not None:
            self._close_timer.cancel()
        try:
            self._protocol.connection_lost(self._failure or error)
        finally:
            self._on_lost(self)


class _Wire(asyncio.BufferedProtocol):
    """What the socket's transport calls."""

    __slots__ = ("_scratch", "_transport")

    def __init__(self, transport: TlsTransport, scratch: Scratch) -> None:
        self._transport = transport
        self._scratch = scratch

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._scratch.received_view

    def buffer_updated(self, nbytes: int) -> None:
        self._transport._feed(self._scratch.received_view[:nbytes])

    def eof_received(self) -> bool:
        return self._transport._socket_ended()

    def pause_writing(self) -> None:
        self._transport._socket_full()

    def resume_writing(self) -> None:
        self._transport._socket_has_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport._socket_lost(exc)
