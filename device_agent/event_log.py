"""The agent's log: one line an event on stderr, `2026-01-01T00:00:00Z connected slot=slot-a protocol=5`. No secrets."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

Clock = Callable[[], datetime]
VALUE_CHARACTERS_MAX = 400


def system_clock() -> datetime:
    """The time of the system, aware, UTC."""
    return datetime.now(UTC)


class EventLog:
    def __init__(self, clock: Clock = system_clock, stream: TextIO | None = None) -> None:
        self._clock = clock
        self._stream = stream or sys.stderr

    def event(self, name: str, **facts: object) -> None:
        """Write one line. A value with a space, a quote or a control character is quoted, so a line stays a line."""
        words = [f"{self._clock():%Y-%m-%dT%H:%M:%SZ}", name]
        words += [f"{key}={_shown(value)}" for key, value in facts.items()]
        try:
            print(" ".join(words), file=self._stream, flush=True)
        except (OSError, ValueError):
            self._stream = open("/dev/null", "w")  # noqa: SIM115 - whoever read our log is gone; the device goes on


def _shown(value: object) -> str:
    text = str(value)[:VALUE_CHARACTERS_MAX]
    plain = text.isprintable() and text and not set(text) & set(" \"'=\\")
    return text if plain else json.dumps(text)
