"""Non-blocking reader of lines from a descriptor such as stdin. Bounded: a line that is too long is skipped."""

import os

from device_agent.config.topics import TOPIC_SIZE_MAX
from device_agent.spool.outbox import PAYLOAD_SIZE_MAX

LINE_SIZE_MAX = PAYLOAD_SIZE_MAX + TOPIC_SIZE_MAX + 1  # bytes
_READ_SIZE = 65536


class LineReader:
    """Call `read` when the descriptor is readable, then `take` lines."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.at_end = False
        self.too_long = 0
        """Lines dropped because they were longer than LINE_SIZE_MAX."""
        self.number = 0
        """Of the line that was taken last, from 1; those that were too long count."""
        self.refused = 0
        """Lines that were none to publish: their taker counts them."""
        self._buffer = b""
        self._skipping = False

    def read(self) -> None:
        """Read what is available. At the end of the input, an unterminated last line counts as a line."""
        try:
            data = os.read(self.descriptor, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal that was closed
        if not data:
            self.at_end = True
            if self._buffer:
                data = b"\n"
        self._buffer += data
        if self._skipping:
            _, newline, rest = self._buffer.partition(b"\n")
            self._buffer = rest
            self._skipping = not newline
        if b"\n" not in self._buffer and len(self._buffer) > LINE_SIZE_MAX:
            self.too_long += 1
            self.number += 1
            self._buffer = b""
            self._skipping = not self.at_end

    @property
    def has_line(self) -> bool:
        return b"\n" in self._buffer

    def take(self) -> bytes | None:
        """The oldest complete line without its terminator, or None."""
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return None
        self._buffer = rest
        self.number += 1
        return line.removesuffix(b"\r")
