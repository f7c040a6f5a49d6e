"""A connection without TLS, for a listener whose answers are signed: it has the bounds of those with TLS."""

import asyncio
from typing import Any, Protocol, cast

from fleet.domain.peer import Peer
from fleet.tls.errors import Refusal
from fleet.tls.half_open import HalfOpen


class Established(Protocol):
    """A connection that has its application protocol, as a listener keeps it."""

    peer: Peer

    def get_protocol(self) -> asyncio.BaseProtocol: ...
    def begin(self, protocol: asyncio.Protocol, early: bytes) -> None: ...
    def abort(self) -> None: ...


class PlainOwner(Protocol):
    """The listener, as a connection uses it."""

    loop: asyncio.AbstractEventLoop
    half_open: HalfOpen
    close_deadline_s: float

    def count_accepted(self) -> None: ...
    def refuse(self, address: str, reason: Refusal, detail: str) -> None: ...
    def has_no_room(self, address: str) -> Refusal | None: ...
    def establish(self, transport: Established, early: bytes) -> None: ...
    def lost(self, transport: Established) -> None: ...


class PlainConnection(asyncio.Transport, asyncio.Protocol):
    """The socket's protocol, and the transport of the application: established at once, or refused."""

    def __init__(self, owner: PlainOwner) -> None:
        super().__init__()
        self.address = ""
        self.peer = Peer("")
        self._owner = owner
        self._protocol = asyncio.Protocol()
        self._is_established = False
        self._close_timer: asyncio.TimerHandle | None = None

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = raw = cast(asyncio.Transport, transport)  # a stream socket's
        owner = self._owner
        owner.count_accepted()
        peername = raw.get_extra_info("peername")
        self.address = plain_address(peername[0]) if peername else ""
        reason = owner.half_open.enter(self)  # of one address block, only so many arrive in a second
        owner.half_open.leave(self)
        if reason := reason or owner.has_no_room(self.address):
            owner.refuse(self.address, reason, "")
            raw.abort()
            return
        self.peer = Peer(self.address)
        self._is_established = True
        owner.establish(self, b"")

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
        # Drop the reference to the application, so that both are freed at once, not at the next collection.
        protocol, self._protocol = self._protocol, asyncio.Protocol()
        if self._is_established:
            try:
                protocol.connection_lost(exc)
            finally:
                self._owner.lost(self)

    # Called by the listener; an entry of HalfOpen leaves it in the call in which it has entered

    def begin(self, protocol: asyncio.Protocol, early: bytes) -> None:
        self._protocol = protocol
        protocol.connection_made(self)

    def expire(self) -> None:
        self.abort()

    give_way = dismiss = expire

    # Called by the application

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def close(self) -> None:
        """Send what was written, then close; abort if the peer does not read it in time."""
        if self._raw.is_closing():
            return
        self._raw.close()
        if self._raw.get_write_buffer_size():
            self._close_timer = self._owner.loop.call_later(self._owner.close_deadline_s, self._raw.abort)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._raw.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._raw.write(data)

    def write_eof(self) -> None:
        self._raw.write_eof()

    def can_write_eof(self) -> bool:
        return self._raw.can_write_eof()

    def abort(self) -> None:
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._raw.is_closing()

    def is_reading(self) -> bool:
        return self._raw.is_reading()

    def pause_reading(self) -> None:
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._raw.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._raw.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)


def plain_address(address: str) -> str:
    """The IPv4 address of an IPv4 client on a dual-stack socket."""
    return address.removeprefix("::ffff:") if "." in address else address
