"""A connection between accept and Finished. It has no application protocol, so its data reaches none."""

import asyncio
from typing import Protocol

from fleet.tls.contexts import ContextSource
from fleet.tls.engine import Scratch
from fleet.tls.errors import HandshakeFailed, ProtocolBroken, Refusal
from fleet.tls.handshake_queue import HandshakeQueue
from fleet.tls.plain import ConnectionOwner, peer_address
from fleet.tls.quickack import QuickAcks
from fleet.tls.session import TlsSession
from fleet.tls.transport import TlsTransport, Wire
from fleet.wire.proxy_protocol import may_begin_header

JUDGED_SIZE = 5  # of the head of a record, by which the engine knows that it is no TLS
WAITING_SIZE_MAX = 4096  # of a client that waits for its turn: a ClientHello with a post-quantum key has 1,800 octets


class HandshakeOwner(ConnectionOwner, Protocol):
    """The listener, as a handshake uses it."""

    scratch: Scratch
    queue: HandshakeQueue
    silent: QuickAcks

    @property
    def contexts(self) -> ContextSource: ...


class HalfOpenConnection(asyncio.BufferedProtocol):
    """A socket's protocol before there is an application, with a deadline."""

    __slots__ = ("_held", "_over", "_owner", "_raw", "address")

    def __init__(self, owner: ConnectionOwner) -> None:
        self.address = ""
        self._owner = owner
        self._raw: asyncio.Transport
        self._held = b""
        """Received before its turn, or before all of it is here; of a handshake that has begun, the first octets."""
        self._over = False

    def _end(self, reason: Refusal, detail: str = "") -> None:
        if not self._over:
            self._over = True
            self._owner.refuse(self.address, reason, detail)
        self._raw.abort()

    def _leave(self) -> None:
        self._owner.half_open.leave(self)

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
            self._owner.refuse(self.address, Refusal.GONE, "")


class Handshake(HalfOpenConnection):
    """The socket's first protocol; it passes the socket to a TlsTransport when the handshake is complete."""

    __slots__ = ("_context", "_session")
    _owner: HandshakeOwner

    def __init__(self, owner: HandshakeOwner) -> None:
        super().__init__(owner)
        self._session: TlsSession | None = None  # created at the first byte: a silent connection allocates no engine

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raw: asyncio.Transport = transport  # type: ignore[assignment]  # a stream socket's
        self._owner.count_accepted()
        self.open(raw, peer_address(raw))

    def open(self, raw: asyncio.Transport, address: str, early: bytes = b"") -> None:
        """Begin with a client at `address`, of which `early`, up to WAITING_SIZE_MAX octets, has arrived already."""
        self._raw, self.address = raw, address
        owner = self._owner
        if reason := owner.half_open.enter(self):
            self._end(reason)
        elif early:
            owner.scratch.received_view[: len(early)] = early
            self.buffer_updated(len(early))

    def get_buffer(self, sizehint: int) -> memoryview:
        owner = self._owner
        if self._session is None and owner.queue.waiting:
            return owner.scratch.received_view[:WAITING_SIZE_MAX]
        return owner.scratch.received_view

    def buffer_updated(self, nbytes: int) -> None:
        if self._over:
            return  # data that a refused client still sends
        if (session := self._session) is not None:
            self._advance(session, nbytes)
            return
        owner = self._owner
        if not self._held:
            owner.half_open.heard(self)
            if owner.queue.take(self):
                self._advance(self._start(), nbytes)
                return
            owner.half_open.waits(self)
        self._held += bytes(owner.scratch.received_view[:nbytes])
        if len(self._held) >= WAITING_SIZE_MAX:
            self._raw.pause_reading()

    def begin(self) -> None:
        """It is our turn."""
        if self._over:
            return
        owner = self._owner
        owner.half_open.begins(self)
        held, self._held = self._held, b""
        owner.scratch.received_view[: len(held)] = held
        self._advance(self._start(), len(held))
        if len(held) >= WAITING_SIZE_MAX and not self._raw.is_closing():
            self._raw.resume_reading()

    def _start(self) -> TlsSession:
        owner = self._owner
        self._context = owner.contexts.current
        self._session = TlsSession(self._context, self.address, owner.scratch)
        return self._session

    def _advance(self, session: TlsSession, nbytes: int) -> None:
        if len(self._held) < JUDGED_SIZE:
            self._held += bytes(self._owner.scratch.received_view[: min(nbytes, JUDGED_SIZE - len(self._held))])
        try:
            early = session.received(nbytes)
        except HandshakeFailed as failure:
            reason, detail = failure.reason, failure.detail
            if reason is Refusal.NOT_TLS and may_begin_header(self._held):
                reason, detail = Refusal.UNTRUSTED_PROXY_HEADER, ""
            self._send_alert_and_drain(reason, detail, session.outgoing())
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
        owner = self._owner
        if reason := owner.has_no_room(self.address):
            self._end(reason)
            return
        self._over = True
        self._leave()
        transport = TlsTransport(owner.loop, self._raw, session, self._context, owner.lost, owner.close_deadline_s)
        if not early:
            owner.silent.watch(transport)
        self._raw.set_protocol(Wire(transport, owner.scratch))
        owner.establish(transport, early)

    def _send_alert_and_drain(self, reason: Refusal, detail: str, alert: bytes) -> None:
        """Send the engine's alert and read to the client's end of file: closing with unread data would reset the
        connection, and the client might never read the alert. It stays half-open, with its deadline.
        """
        self._over = True
        self._owner.refuse(self.address, reason, detail)
        if alert and not self._raw.is_closing():
            self._raw.write(alert)
            if not self._raw.is_closing():  # the write may have found the client gone
                self._raw.write_eof()
        else:
            self._raw.close()

    def _leave(self) -> None:
        super()._leave()
        self._owner.queue.leave(self)
