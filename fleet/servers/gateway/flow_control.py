"""One of a session's two transports: written to, read from while there is no reason to stop, closed in time."""

import asyncio
from typing import cast


class FlowControlledTransport:
    __slots__ = ("_reasons", "_transport", "clogged", "write")

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._reasons: set[str] = set()
        self.write = self._transport.write
        self.clogged = False
        """What is written to it is not taken at the moment."""

    def stop(self, reason: str) -> None:
        """Read nothing until each reason to stop is gone."""
        if not self._reasons and not self._transport.is_closing():
            self._transport.pause_reading()
        self._reasons.add(reason)

    def go_on(self, reason: str) -> None:
        """`reason` is gone, if it was there."""
        if reason in self._reasons:
            self._reasons.discard(reason)
            if not self._reasons and not self._transport.is_closing():
                self._transport.resume_reading()

    def hold_if_clogged(self) -> None:
        """It makes us write to it and does not read what we write: read no more of it until it does."""
        if self.clogged:
            self.stop("does not read our answers")

    def close(self, linger_seconds: float) -> None:
        """Let it send what was written, but not for ever."""
        self._transport.close()
        asyncio.get_running_loop().call_later(linger_seconds, self._transport.abort)


def clog(slow: FlowControlledTransport | None, source: FlowControlledTransport | None) -> None:
    """`slow` does not take what it is written: stop reading `source`, where that comes from."""
    if slow is not None:
        slow.clogged = True
    if source is not None:
        source.stop("the other side is slow")


def unclog(slow: FlowControlledTransport | None, source: FlowControlledTransport | None) -> None:
    if slow is not None:
        slow.clogged = False
        slow.go_on("does not read our answers")
    if source is not None:
        source.go_on("the other side is slow")
