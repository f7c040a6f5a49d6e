"""The agent's log: one line for each event on stderr, `2026-01-01T00:00:00Z connected slot=slot-a`. No secrets."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

Clock = Callable[[], datetime]
VALUE_CHARACTERS_MAX = 400


def system_clock() -> datetime:
    """Current time, aware, UTC."""
    return datetime.now(UTC)


class EventLog:
    def __init__(self, clock: Clock = system_clock, stream: TextIO | None = None) -> None:
        self._clock = clock
        self._stream: TextIO | None = stream or sys.stderr

    def event(self, name: str, **fields: object) -> None:
        """Write one line. A value with a space, a quote or a control character is quoted, so a line stays a line."""
        words = [f"{self._clock():%Y-%m-%dT%H:%M:%SZ}", name]
        words += [f"{key}={_quoted(value)}" for key, value in fields.items()]
        self.line(" ".join(words))

    def line(self, text: str) -> None:
        """Write `text`. When the stream can no longer be written, the log ends and the device goes on."""
        if self._stream is None:  # stderr was closed when Python started
            return
        try:
            print(text, file=self._stream, flush=True)
        except (OSError, ValueError):
            self._stream = None


def _quoted(value: object) -> str:
    nothing = type(value).__name__ if isinstance(value, BaseException) else ""  # as of most timeouts
    text = (str(value) or nothing)[:VALUE_CHARACTERS_MAX]
    plain = text.isprintable() and text and not set(text) & set(" \"'=\\")
    return text if plain else json.dumps(text)
