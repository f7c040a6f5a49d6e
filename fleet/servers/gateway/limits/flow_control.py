"""Flow control for a session's two transports: one is not read while the other's write buffer is full."""

import asyncio
import enum
import socket
import struct
from collections.abc import Callable
from typing import cast


class Pause(enum.Enum):
    """Reasons not to read from a transport."""

    AWAITING_CONNACK = enum.auto()
    """[MQTT-3.2.0-1] no request of the device may be answered before CONNACK."""
    OTHER_SIDE_BLOCKED = enum.auto()
    """What it sends would be written to a full buffer."""
    ANSWERS_UNREAD = enum.auto()
    """Its packets are answered by the gateway itself, and it does not read the answers."""
    BROKER_LOST = enum.auto()
    """The session closes once the cause is known."""
    OVER_RATE = enum.auto()
    """It has sent more than its model allows."""
    EVENTS_UNREAD = enum.auto()
    """The event loop was late: the device may have been revoked meanwhile."""
    TURN = enum.auto()
    """It has had its share of this turn of the event loop."""


class FlowControlledTransport:
    __slots__ = ("_next", "_pauses", "_transport", "blocked", "together", "write")

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pauses: tuple[Pause, ...] = ()  # not a set: each idle session has two of them
        self._next: Callable[[], None] | None = None
        self.write = self._transport.write
        self.together: Callable[[Callable[[bytes], None], bytes], None] = getattr(transport, "together", _call)
        """Call with bytes what writes here: its writes are sent together, and then at once."""
        self.blocked = False
        """Whether its write buffer is full: the peer does not read."""

    @property
    def is_paused(self) -> bool:
        """Whether it is not read."""
        return bool(self._pauses)

    def unread_size(self) -> int:
        """Bytes that the peer has not read."""
        return self._transport.get_write_buffer_size()

    @property
    def is_due(self) -> bool:
        """Whether the next turn is all that it waits for."""
        return self._pauses == (Pause.TURN,)

    def ends(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Address and port of the peer, and of our own end."""
        return self._end("peername"), self._end("sockname")

    def _end(self, name: str) -> tuple[str, int]:
        match self._transport.get_extra_info(name):
            case (str(address), int(port), *_):
                return address, port
        return "::", 0  # it has closed

    def peer_pid(self) -> int:
        """The process that listens at the other end of a Unix socket."""
        options = self._transport.get_extra_info("socket")
        pid, _, _ = struct.unpack("3i", options.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)

    def pause(self, reason: Pause) -> None:
        """Stop reading until every reason is resolved."""
        if not self._pauses and not self._transport.is_closing():
            self._transport.pause_reading()
        if reason not in self._pauses:
            self._pauses += (reason,)

    def resume(self, reason: Pause) -> None:
        """Resolve `reason`; does nothing when reading was not paused for it."""
        if reason in self._pauses:
            self._pauses = tuple(one for one in self._pauses if one is not reason)
            if self._next is not None and self.is_due:
                asyncio.get_running_loop().call_soon(self._begin_turn)
            elif not self._pauses and not self._transport.is_closing():
                self._transport.resume_reading()

    def end_turn(self, act: Callable[[], None] | None = None) -> None:
        """Read nothing more in this turn of the event loop: uvloop may read 32 times in one. In the next, once no
        reason speaks against reading, `act` is called before it.
        """
        if self._next is None and self._pauses == ():
            asyncio.get_running_loop().call_soon(self._begin_turn)
        self._next = act or self._next or _nothing
        self.pause(Pause.TURN)

    def _begin_turn(self) -> None:
        if self._next is None or not self.is_due:
            return
        act, self._next = self._next, None
        act()
        if self._next is None:
            self.resume(Pause.TURN)
        elif self.is_due:
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def pause_if_blocked(self) -> None:
        """Stop reading from a peer that causes answers and does not read them."""
        if self.blocked:
            self.pause(Pause.ANSWERS_UNREAD)

    def finish(self, linger_seconds: float) -> None:
        """As `close`, but the peer closes: it has then processed all that was written. What it sends is still read."""
        if self._transport.is_closing():
            return
        for reason in self._pauses:
            self.resume(reason)
        try:
            self._transport.write_eof()
        except NotImplementedError:  # TLS has no half-closed connection: close_notify follows what was written
            self._transport.close()
        asyncio.get_running_loop().call_later(linger_seconds, self._transport.abort)

    def close(self, linger_seconds: float) -> None:
        """Close once the write buffer is empty; abort after `linger_seconds`."""
        self._transport.close()
        asyncio.get_running_loop().call_later(linger_seconds, self._transport.abort)


def _nothing() -> None:
    pass


def _call(act: Callable[[bytes], None], data: bytes) -> None:
    act(data)


def block(target: FlowControlledTransport | None, source: FlowControlledTransport | None) -> None:
    """The write buffer of `target` is full: stop reading `source`, whose bytes go there."""
    if target is not None:
        target.blocked = True
    if source is not None:
        source.pause(Pause.OTHER_SIDE_BLOCKED)


def unblock(target: FlowControlledTransport | None, source: FlowControlledTransport | None) -> None:
    """The write buffer of `target` has drained."""
    if target is not None:
        target.blocked = False
        target.resume(Pause.ANSWERS_UNREAD)
    if source is not None:
        source.resume(Pause.OTHER_SIDE_BLOCKED)
