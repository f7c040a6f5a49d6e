"""TLS transport: an `asyncio.Transport` over a TLS session over a socket transport.

The application's protocol is called as on any transport, with these differences:

* Small writes within one turn of the event loop are sent together, in one record and one send.
* A write is encrypted only while the socket accepts data. Otherwise the plaintext is buffered and `pause_writing` is
  called; if the application obeys it, no more than its last write and the socket's buffer is kept.
* A peer that makes the engine respond (rejected renegotiations, say) and does not read the responses is not read from.
* `eof_received` means close_notify. A socket that ends without one is truncation: `connection_lost` with Truncated,
  never an end of file.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fleet.config.layered_transport import NO_PROTOCOL, LayeredTransport
from fleet.domain.peer import Peer
from fleet.tls.contexts import TlsContext
from fleet.tls.engine import SLICE_SIZE, Scratch
from fleet.tls.errors import TlsError, Truncated
from fleet.tls.session import TlsSession

Result = TypeVar("Result")

CLOSE_DEADLINE_S = 10.0  # for a peer to read what close() still has to send

_NO_EXTRA: dict[str, Any] = {}  # in place of one for each connection: `get_extra_info` does not look there


class TlsTransport(LayeredTransport):
    """One connection as the application sees it. Created when the handshake is complete, never before."""

    __slots__ = (
        "_answers_come_with_data", "_answers_unread", "_close_deadline_s", "_close_timer", "_closing", "_context",
        "_delivering", "_eof_held", "_failure", "_flush_scheduled", "_held", "_loop", "_notified",
        "_on_lost", "_pending", "_pending_size", "_reading_paused", "_session", "_socket_is_full", "_write_ended",
        "has_received_data", "peer",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        raw: asyncio.Transport,
        session: TlsSession,
        context: TlsContext,
        on_lost: Callable[["TlsTransport"], None],
        close_deadline_s: float = CLOSE_DEADLINE_S,
    ) -> None:
        """The caller sets a Wire for this transport as the protocol of `raw`; `on_lost` is called last."""
        if session.peer is None:
            raise ValueError("A transport is made after the handshake.")
        super().__init__(_NO_EXTRA)
        self.peer: Peer = session.peer
        self.has_received_data = False
        """Whether data has been received since the handshake."""
        self._loop = loop
        self._raw = raw
        self._session = session
        self._context = context
        self._on_lost = on_lost
        self._close_deadline_s = close_deadline_s
        self._protocol = NO_PROTOCOL
        self._failure: Exception | None = None

        self._pending: list[bytes | memoryview] = []
        self._pending_size = 0
        self._flush_scheduled = False
        self._delivering = False
        self._socket_is_full = False
        # On TLS 1.3 the engine sends nothing unprompted but to end it.
        self._answers_come_with_data = session.peer.tls_version != "TLSv1.3"

        self._write_ended = False  # by write_eof or close
        self._notified = False  # close_notify sent
        self._closing = False
        self._close_timer: asyncio.TimerHandle | None = None

        self._reading_paused = False
        self._answers_unread = False
        self._held = b""
        self._eof_held = False

    # About the connection

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`peer` is the Peer; `sslcontext` the context, so aiohttp sees https; the rest is the socket's."""
        if name == "peer":
            return self.peer
        if name == "sslcontext":
            return self._context
        return self._raw.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._closing

    # Reading

    def is_reading(self) -> bool:
        return not self._reading_paused and not self._closing

    def pause_reading(self) -> None:
        """At most the batch already read from the socket is buffered."""
        self._reading_paused = True
        self._gate_socket()

    def resume_reading(self) -> None:
        if not self._reading_paused:
            return
        self._reading_paused = False
        if self._held or self._eof_held:
            self._loop.call_soon(self._deliver_held)
        else:
            self._gate_socket()

    def _gate_socket(self) -> None:
        """Read the socket only while the application reads and the peer reads the engine's responses."""
        if self._closing or self._raw.is_closing():
            return
        if self._reading_paused or self._answers_unread or self._held or self._eof_held:
            self._raw.pause_reading()
        else:
            self._raw.resume_reading()

    def _deliver_held(self) -> None:
        if self._held and self.is_reading():
            held, self._held = self._held, b""
            self._deliver(held)
        if self._eof_held and self.is_reading():
            self._eof_held = False
            self._deliver_eof()
        self._gate_socket()

    def _receive(self, size: int) -> None:
        """`size` bytes have been read into the scratch's receive buffer."""
        if self._closing:
            return
        self.has_received_data = True
        session = self._session
        try:
            plain = session.received(size)
        except TlsError as error:
            self._fail(error)
            return
        if plain or session.closed_by_peer:
            self._take_in(plain)
        if (not plain or self._answers_come_with_data) and session.outgoing_size():
            self._send_outgoing()  # the engine's response to a record that was not data
            if self._socket_is_full:
                self._answers_unread = True
                self._gate_socket()

    def _take_in(self, plain: bytes) -> None:
        if plain and not self._closing:
            if self._reading_paused or self._held:
                self._held += plain
            else:
                self._deliver(plain)
        if self._session.closed_by_peer and not self._closing:
            if self._reading_paused or self._held:
                self._eof_held = True
            else:
                self._deliver_eof()

    def _deliver(self, plain: bytes) -> None:
        """Pass one batch to the application; its writes in response are sent together."""
        self.together(self._protocol.data_received, plain)

    def together(self, act: Callable[[bytes], Result], data: bytes) -> Result:
        """`act(data)`; what it writes is sent at its end, and not at the end of the event loop's turn."""
        self._delivering = True
        try:
            return act(data)
        finally:
            self._delivering = False
            if self._pending and not self._flush_scheduled:
                self._flush()

    def _deliver_eof(self) -> None:
        if not self._protocol.eof_received():
            self.close()

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, bytes):
            if not isinstance(data, bytearray | memoryview):
                raise TypeError(f"data: expected a bytes-like object, got {type(data).__name__}")
            data = bytes(data)  # the caller may modify it before the turn ends
        self._queue(data)

    def _queue(self, data: bytes) -> None:
        if self._closing or not data:
            return  # as with asyncio's transports, a write after close is ignored
        if self._write_ended:
            raise RuntimeError("Cannot write after write_eof.")
        self._pending.append(data)
        self._pending_size += len(data)
        if self._pending_size >= SLICE_SIZE:
            self._flush()
        elif not (self._flush_scheduled or self._delivering or self._socket_is_full):
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_turn)

    def _flush_turn(self) -> None:
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        """Encrypt and send what is buffered while the socket accepts it, then close_notify if closing."""
        session = self._session
        try:
            while self._pending and not self._socket_is_full:
                session.write(self._next_slice())
                if self._pending or not self._write_ended:
                    self._send_outgoing()
            if self._write_ended and not self._pending and not self._notified:
                self._notified = True
                session.close()
                self._send_outgoing()
        except TlsError as error:
            self._fail(error)

    def _next_slice(self) -> bytes:
        """Remove and return what to encrypt next, at most SLICE_SIZE octets."""
        pending = self._pending
        if self._pending_size <= SLICE_SIZE:
            whole = pending[0] if len(pending) == 1 else b"".join(pending)
            pending.clear()
            self._pending_size = 0
            return whole if isinstance(whole, bytes) else bytes(whole)
        parts, room = [], SLICE_SIZE
        for part in pending:
            parts.append(part[:room] if len(part) <= room else memoryview(part)[:room])
            room -= len(parts[-1])
            if not room:
                break
        last = len(parts) - 1
        rest = memoryview(pending[last])[len(parts[last]) :]
        pending[: last + 1] = [rest] if rest else []
        self._pending_size -= SLICE_SIZE
        return b"".join(parts)

    def _send_outgoing(self) -> None:
        sealed = self._session.outgoing()
        if sealed and not self._raw.is_closing():
            self._raw.write(sealed)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Send close_notify after what was written; the peer may continue to send (RFC 8446, 6.1)."""
        if not self._write_ended:
            self._write_ended = True
            self._flush()

    def get_write_buffer_size(self) -> int:
        return self._pending_size + self._raw.get_write_buffer_size()

    def _pause_writing(self) -> None:
        """The socket's buffer is above its high-water mark."""
        self._socket_is_full = True
        if not self._closing:
            self._protocol.pause_writing()

    def _resume_writing(self) -> None:
        """The socket's buffer is below its low-water mark."""
        self._socket_is_full = False
        if self._failure is not None:
            return
        self._flush()
        if self._socket_is_full:
            return
        if self._closing:
            self._close_when_flushed()
            return
        if self._answers_unread:
            self._answers_unread = False
            self._gate_socket()
        self._protocol.resume_writing()

    # Ending

    def close(self) -> None:
        """Send what was written and close_notify, then close; abort if the peer does not read it in time."""
        if self._closing:
            return
        self._closing = self._write_ended = True
        self._held = b""
        if self._raw.is_closing():
            return
        self._flush()
        self._close_when_flushed()
        if self._raw.get_write_buffer_size():
            if not self._raw.is_closing():
                self._raw.pause_reading()
            self._limit_closing()

    def _close_when_flushed(self) -> None:
        if not self._pending and self._failure is None:
            self._raw.close()

    def abort(self) -> None:
        """Close at once and discard unsent data."""
        self._closing = True
        self._drop_pending()
        self._raw.abort()

    give_way = abort

    def _fail(self, error: TlsError) -> None:
        """The peer violated the protocol: send the engine's alert, close, and report the error to the application."""
        self._failure = error
        self._closing = True
        self._drop_pending()
        if self._socket_is_full:
            self._raw.abort()
            return
        self._send_outgoing()
        self._limit_closing()
        self._raw.close()

    def _limit_closing(self) -> None:
        """Start the deadline for the peer to read what is being sent."""
        if self._close_timer is None:
            self._close_timer = self._loop.call_later(self._close_deadline_s, self._raw.abort)

    def _drop_pending(self) -> None:
        self._pending.clear()
        self._pending_size = 0

    def _socket_ended(self) -> bool:
        """The peer sent FIN; whether the socket stays open for writing."""
        if self._closing or self._session.closed_by_peer:
            return True
        self._failure = Truncated("The other end closed without close_notify.")
        self.abort()
        return False

    def _connection_lost(self, error: Exception | None) -> None:
        self._closing = self._write_ended = self._notified = True
        self._drop_pending()
        self._held = b""
        if self._close_timer is not None:
            self._close_timer.cancel()
        # Drop the references to the application, so that both are freed at once, not at the next collection.
        protocol, self._protocol = self._protocol, NO_PROTOCOL
        try:
            protocol.connection_lost(self._failure or error)
        finally:
            self._on_lost(self)

    def begin(self, protocol: asyncio.Protocol, early: bytes) -> None:
        """Connect the application, then pass it `early`: data that came with the end of the handshake."""
        if self._session.outgoing_size():
            self._send_outgoing()  # TLS 1.2: the client waits for our Finished
        self._protocol = protocol
        protocol.connection_made(self)
        self._take_in(early)


class Wire(asyncio.BufferedProtocol):
    """The socket's protocol after the handshake: forwards everything to a TlsTransport.

    The two that are called for each read are no methods: of thousands of connections, each object that a message
    touches is one that is in no cache.
    """

    __slots__ = ("_transport", "buffer_updated", "get_buffer")

    get_buffer: Callable[[int], memoryview]  # type: ignore[assignment]  # see above
    buffer_updated: Callable[[int], None]  # type: ignore[assignment]

    def __init__(self, transport: TlsTransport, scratch: Scratch) -> None:
        self._transport = transport
        self.get_buffer = scratch.get_buffer
        self.buffer_updated = transport._receive

    def eof_received(self) -> bool:
        return self._transport._socket_ended()

    def pause_writing(self) -> None:
        self._transport._pause_writing()

    def resume_writing(self) -> None:
        self._transport._resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport._connection_lost(exc)
