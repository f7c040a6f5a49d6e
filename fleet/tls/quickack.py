"""TCP quick ACKs for clients that have completed the handshake and sent no data yet.

A TLS 1.3 client's Finished gets no response, so the kernel delays its ACK by 40 ms; and a client without TCP_NODELAY
(mosquitto's, for one) holds its first request back until that ACK. Most clients send data within a millisecond, which
is acknowledged with the response: requesting an ACK for each at once would cost 3 % of the handshake. So one timer
handles the clients that are still silent.
"""

import asyncio
import socket

from fleet.tls.transport import TlsTransport

ACKNOWLEDGE_AFTER_S = 0.002

_TCP_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # on Linux


class QuickAcks:
    """Established connections without data, until their ACK is sent or no longer needed."""

    __slots__ = ("_loop", "_timer", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[TlsTransport, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, transport: TlsTransport) -> None:
        """Have the client's Finished acknowledged in time."""
        self._waiting[transport] = None
        if self._timer is None:
            self._timer = self._loop.call_later(ACKNOWLEDGE_AFTER_S, self._acknowledge)

    def forget(self, transport: TlsTransport) -> None:
        """It has ended: drop the reference."""
        self._waiting.pop(transport, None)

    def _acknowledge(self) -> None:
        waiting, self._waiting, self._timer = self._waiting, {}, None
        for transport in waiting:
            if _TCP_QUICKACK is not None and not transport.has_received_data and not transport.is_closing():
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, _TCP_QUICKACK, 1)

    def close(self) -> None:
        """Stop the timer."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
