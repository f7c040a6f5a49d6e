"""The agent's log: one line for each event on stderr, `2026-01-01T00:00:00Z connected slot=slot-a`. No secrets.

Where stderr is systemd's journal, an event is an entry with fields: `journalctl DEVICE_EVENT=connect-failed`.
"""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

from device_agent.log.journal import Journal, Priority
from device_agent.times import logged

Clock = Callable[[], datetime]
Listener = Callable[[str, dict[str, object]], None]
VALUE_CHARACTERS_MAX = 400

PROBLEMS = frozenset({"clock-not-set", "disconnected", "enrolling-again", "spool-damaged", "subscriptions-damaged"})
"""Events that `run --quiet` shows, of priority WARNING, besides those whose names end in `-failed` or `-refused`."""
DETAILS = frozenset({"decided", "hook-started"})
"""Events that only `run -v` shows, of priority DEBUG."""


def system_clock() -> datetime:
    """Current time, aware, UTC."""
    return datetime.now(UTC)


def priority_of(name: str) -> Priority:
    """The priority of an event; INFO unless it is listed."""
    if name in PROBLEMS or name.endswith(("-failed", "-refused")):
        return Priority.WARNING
    return Priority.DEBUG if name in DETAILS else Priority.INFO


class EventLog:
    """`least` is the lowest priority that is written; `stream` replaces standard error and the journal."""

    def __init__(
        self, clock: Clock = system_clock, stream: TextIO | None = None, *, least: Priority = Priority.INFO
    ) -> None:
        self._clock = clock
        self._stream: TextIO | None = stream or sys.stderr
        self._journal = Journal.behind(self._stream) if stream is None else None
        self.least = least
        self.listeners: list[Listener] = []
        """Called with each event's name and fields, whether it is written or not."""

    def event(self, name: str, **fields: object) -> None:
        """Write one line. A value with a space, a quote or a control character is quoted, so a line stays a line."""
        for listener in self.listeners:
            listener(name, fields)
        priority = priority_of(name)
        if priority > self.least:
            return
        texts = {key: _text(value) for key, value in fields.items()}
        words = [name, *(f"{key}={_quoted(text)}" for key, text in texts.items())]
        if self._journal is not None and self._journal.send(priority, " ".join(words), {"event": name} | texts):
            return
        self._write(" ".join([logged(self._clock()), *words]))

    def line(self, text: str) -> None:
        """Write `text`, which ends the program. When the stream can no longer be written, the log ends and the device
        goes on."""
        if self._journal is None or not self._journal.send(Priority.ERROR, text, {}):
            self._write(text)

    def _write(self, text: str) -> None:
        if self._stream is None:  # stderr was closed when Python started
            return
        try:
            print(text, file=self._stream, flush=True)
        except (OSError, ValueError):
            self._stream = None


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return logged(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    nothing = type(value).__name__ if isinstance(value, BaseException) else ""  # as of most timeouts
    text = str(value) or nothing
    if len(text) <= VALUE_CHARACTERS_MAX:
        return text
    kept = text[: VALUE_CHARACTERS_MAX - 1]
    return (kept.rpartition(" ")[0] or kept) + "…"


def _quoted(text: str) -> str:
    plain = text.isprintable() and text and not set(text) & set(" \"'=\\")
    return text if plain else json.dumps(text)
