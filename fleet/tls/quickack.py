"""Clients that have finished the handshake and said nothing yet: their last message is acknowledged before they stall.

A TLS 1.3 client's Finished gets no answer of ours, so the kernel would sit on its ACK for 40 ms; and a client without
TCP_NODELAY (mosquitto's, for one) holds its first request back until that ACK. Most clients speak within a
millisecond, and their data is answered, ACK and all: asking the kernel for each at once would cost a thirtieth of the
handshake. So one timer looks after those who are still silent.
"""

import asyncio
import socket

from fleet.tls.transport import TlsTransport

ACKNOWLEDGE_AFTER_S = 0.002

_TCP_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux has it


class Silent:
    """The connections that were handed over without data, until their ACK is out or not needed any more."""

    __slots__ = ("_loop", "_timer", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[TlsTransport, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, transport: TlsTransport) -> None:
        """See to it that the client's Finished is acknowledged in time."""
        self._waiting[transport] = None
        if self._timer is None:
            self._timer = self._loop.call_later(ACKNOWLEDGE_AFTER_S, self._acknowledge)

    def forget(self, transport: TlsTransport) -> None:
        """It has ended; nothing here may keep it."""
        self._waiting.pop(transport, None)

    def _acknowledge(self) -> None:
        waiting, self._waiting, self._timer = self._waiting, {}, None
        for transport in waiting:
            if _TCP_QUICKACK is not None and not transport.heard and not transport.is_closing():
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, _TCP_QUICKACK, 1)

    def close(self) -> None:
        """Stop looking."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
