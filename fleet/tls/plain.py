"""A connection without TLS, for a listener whose answers are signed: it has the bounds of those with TLS."""

import asyncio
from typing import Protocol, cast

from fleet.config.addresses import unmapped
from fleet.config.layered_transport import NO_PROTOCOL, LayeredTransport
from fleet.domain.peer import Peer
from fleet.tls.errors import Refusal
from fleet.tls.half_open import HalfOpen


class Established(Protocol):
    """A connection that has its application protocol, as a listener keeps it."""

    peer: Peer

    def begin(self, protocol: asyncio.Protocol, early: bytes) -> None: ...
    def give_way(self) -> None: ...
    def abort(self) -> None: ...


class ConnectionOwner(Protocol):
    """The listener, as a connection uses it."""

    loop: asyncio.AbstractEventLoop
    half_open: HalfOpen
    close_deadline_s: float
    declined: set["PlainConnection"]

    @property
    def no_room(self) -> bytes: ...

    def count_accepted(self) -> None: ...
    def refuse(self, address: str, reason: Refusal, detail: str) -> None: ...
    def has_no_room(self, address: str) -> Refusal | None: ...
    def establish(self, transport: Established, early: bytes) -> None: ...
    def lost(self, transport: Established) -> None: ...


DECLINED_SECONDS = 1.0
"""For a client to read that there is no room."""
DECLINED_MAX = 1000
"""Connections that are kept for that at the same time, since each takes a descriptor."""


class PlainConnection(LayeredTransport, asyncio.Protocol):
    """The socket's protocol, and the transport of the application: established at once, or refused."""

    def __init__(self, owner: ConnectionOwner) -> None:
        super().__init__()
        self.address = ""
        self.peer = Peer("")
        self._owner = owner
        self._protocol = NO_PROTOCOL
        self._is_established = False
        self._has_written = False
        self._close_timer: asyncio.TimerHandle | None = None

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raw = cast(asyncio.Transport, transport)  # a stream socket's
        self._owner.count_accepted()
        self.open(raw, peer_address(raw))

    def open(self, raw: asyncio.Transport, address: str, early: bytes = b"") -> None:
        """Begin with a client at `address`, of which `early` has arrived already."""
        self._raw, self.address = raw, address
        owner = self._owner
        reason = owner.half_open.enter(self)  # of one address block, only so many arrive in a second
        owner.half_open.leave(self)
        if reason := reason or owner.has_no_room(self.address):
            owner.refuse(self.address, reason, "")
            self._decline(reason)
            return
        self.peer = Peer(self.address)
        self._is_established = True
        owner.establish(self, early)

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._owner.declined.discard(self)
        self._leave(exc)

    def _leave(self, exc: Exception | None) -> None:
        # Drop the reference to the application, so that both are freed at once, not at the next collection.
        protocol, self._protocol = self._protocol, NO_PROTOCOL
        if self._is_established:
            self._is_established = False
            try:
                protocol.connection_lost(exc)
            finally:
                self._owner.lost(self)

    # Called by the listener; an entry of HalfOpen leaves it in the call in which it has entered

    def begin(self, protocol: asyncio.Protocol, early: bytes) -> None:
        self._protocol = protocol
        protocol.connection_made(self)
        if early:
            protocol.data_received(early)

    def expire(self) -> None:
        self.abort()

    dismiss = expire

    def give_way(self) -> None:
        """End for another connection: at once where anything was sent, as to one that is kept open between requests."""
        if self._has_written:
            self.abort()
            return
        self._leave(None)
        self._decline(Refusal.GAVE_WAY)

    def _decline(self, reason: Refusal) -> None:
        """Send that there is no room, and end once the client has closed."""
        declined, words = self._owner.declined, self._owner.no_room
        if not words or reason is Refusal.GONE:
            self._raw.abort()
            return
        self._raw.write(words)
        if len(declined) >= DECLINED_MAX or reason is Refusal.NO_DESCRIPTOR:
            self._raw.close()  # a client that has sent something by then may lose what it is told
            return
        declined.add(self)
        self._raw.write_eof()
        self._close_timer = self._owner.loop.call_later(DECLINED_SECONDS, self._raw.abort)

    # Called by the application

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._has_written = True
        self._raw.write(data)

    def close(self) -> None:
        """Send what was written, then close; abort if the peer does not read it in time."""
        if self._raw.is_closing():
            return
        self._raw.close()
        if self._raw.get_write_buffer_size():
            self._close_timer = self._owner.loop.call_later(self._owner.close_deadline_s, self._raw.abort)


def peer_address(raw: asyncio.BaseTransport) -> str:
    """The IP address at the other end of a socket, that of an IPv4 client on a dual-stack socket too; "" if unknown."""
    peername = raw.get_extra_info("peername")
    return unmapped(peername[0] if peername else "")
