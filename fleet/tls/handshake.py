"""A connection between accept and Finished. It has no application protocol, so its data reaches none."""

import asyncio
from typing import Protocol, cast

from fleet.tls.contexts import ContextSource
from fleet.tls.engine import Scratch
from fleet.tls.errors import HandshakeFailed, ProtocolBroken, Refusal
from fleet.tls.half_open import HalfOpen
from fleet.tls.handshake_queue import HandshakeQueue
from fleet.tls.plain import plain_address
from fleet.tls.quickack import QuickAcks
from fleet.tls.session import TlsSession
from fleet.tls.transport import TlsTransport, Wire

WAITING_SIZE_MAX = 4096  # of a client that waits for its turn: a ClientHello with a post-quantum key has 1,800 octets


class HandshakeOwner(Protocol):
    """The listener, as a handshake uses it."""

    loop: asyncio.AbstractEventLoop
    scratch: Scratch
    half_open: HalfOpen
    queue: HandshakeQueue
    silent: QuickAcks
    close_deadline_s: float

    @property
    def contexts(self) -> ContextSource: ...

    def count_accepted(self) -> None: ...
    def refuse(self, address: str, reason: Refusal, detail: str) -> None: ...
    def has_no_room(self, address: str) -> Refusal | None: ...
    def establish(self, transport: TlsTransport, early: bytes) -> None: ...
    def lost(self, transport: TlsTransport) -> None: ...


class Handshake(asyncio.BufferedProtocol):
    """The socket's first protocol; it passes the socket to a TlsTransport when the handshake is complete."""

    __slots__ = ("_context", "_held", "_over", "_raw", "_reception", "_session", "address")

    def __init__(self, reception: HandshakeOwner) -> None:
        self.address = ""
        self._reception = reception
        self._session: TlsSession | None = None  # created at the first byte: a silent connection allocates no engine
        self._held = b""
        """Received before its turn."""
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raw = cast(asyncio.Transport, transport)  # a stream socket's
        reception = self._reception
        reception.count_accepted()
        self._raw = raw
        peername = raw.get_extra_info("peername")
        self.address = plain_address(peername[0]) if peername else ""
        if reason := reception.half_open.enter(self):
            self._end(reason)

    def get_buffer(self, sizehint: int) -> memoryview:
        reception = self._reception
        if self._session is None and reception.queue.waiting:
            return reception.scratch.received_view[:WAITING_SIZE_MAX]
        return reception.scratch.received_view

    def buffer_updated(self, nbytes: int) -> None:
        if self._over:
            return  # data that a refused client still sends
        if (session := self._session) is not None:
            self._advance(session, nbytes)
            return
        reception = self._reception
        if not self._held:
            reception.half_open.heard(self)
            if reception.queue.take(self):
                self._advance(self._start(), nbytes)
                return
            reception.half_open.waits(self)
        self._held += bytes(reception.scratch.received_view[:nbytes])
        if len(self._held) >= WAITING_SIZE_MAX:
            self._raw.pause_reading()

    def begin(self) -> None:
        """It is our turn."""
        if self._over:
            return
        reception = self._reception
        reception.half_open.begins(self)
        held, self._held = self._held, b""
        reception.scratch.received_view[: len(held)] = held
        self._advance(self._start(), len(held))
        if len(held) >= WAITING_SIZE_MAX and not self._raw.is_closing():
            self._raw.resume_reading()

    def _start(self) -> TlsSession:
        reception = self._reception
        self._context = reception.contexts.current
        self._session = TlsSession(self._context, self.address, reception.scratch)
        return self._session

    def _advance(self, session: TlsSession, nbytes: int) -> None:
        try:
            early = session.received(nbytes)
        except HandshakeFailed as failure:
            self._send_alert_and_drain(failure.reason, failure.detail, session.outgoing())
            return
        except ProtocolBroken as failure:
            # The handshake completed and the data after it is malformed. No application has received anything.
            self._send_alert_and_drain(Refusal.HANDSHAKE, str(failure), session.outgoing())
            return
        if session.peer is None:
            if answer := session.outgoing():
                self._raw.write(answer)
            return
        self._hand_over(session, early)

    def _hand_over(self, session: TlsSession, early: bytes) -> None:
        reception = self._reception
        if reason := reception.has_no_room(self.address):
            self._end(reason)
            return
        self._over = True
        self._leave()
        transport = TlsTransport(
            reception.loop, self._raw, session, self._context, reception.lost, reception.close_deadline_s
        )
        if not early:
            reception.silent.watch(transport)
        self._raw.set_protocol(Wire(transport, reception.scratch))
        reception.establish(transport, early)

    def _send_alert_and_drain(self, reason: Refusal, detail: str, alert: bytes) -> None:
        """Send the engine's alert and read to the client's end of file: closing with unread data would reset the
        connection, and the client might never read the alert. It stays half-open, with its deadline.
        """
        self._over = True
        self._reception.refuse(self.address, reason, detail)
        if alert and not self._raw.is_closing():
            self._raw.write(alert)
            if not self._raw.is_closing():  # the write may have found the client gone
                self._raw.write_eof()
        else:
            self._raw.close()

    def _end(self, reason: Refusal) -> None:
        if not self._over:
            self._over = True
            self._reception.refuse(self.address, reason, "")
        self._raw.abort()

    def _leave(self) -> None:
        self._reception.half_open.leave(self)
        self._reception.queue.leave(self)

    def expire(self) -> None:
        """The deadline has passed."""
        self._end(Refusal.DEADLINE)

    def give_way(self) -> None:
        """A newcomer gets our place."""
        self._end(Refusal.GAVE_WAY)

    def dismiss(self) -> None:
        """The listener is closing."""
        self._end(Refusal.GONE)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        if not self._over:
            self._over = True
            self._reception.refuse(self.address, Refusal.GONE, "")
