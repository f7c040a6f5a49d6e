"""Outcome counters and a rate-limited log: every outcome is counted, and logged in one line below the limit.

event=mqtt.connect device=cam-7 serial=5d… code=ok ms=3
"""

import logging
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from fleet.servers.line_limit import LineLimit

log = logging.getLogger("fleet.gateway")

TEXT_MAX = 80  # of a value that a peer has chosen


class OutcomeLog:
    """Counters and log lines. `monotonic` is the loop's time in seconds."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._limit = LineLimit(log)

    @property
    def counts(self) -> Mapping[str, int]:
        """Live and read-only: counter -> how often."""
        return MappingProxyType(self._counts)

    def count(self, counter: str) -> None:
        self._counts[counter] += 1

    def record(self, event: str, code: str, monotonic: float, **fields: str | int) -> None:
        """Count `event.code`, and log it with `fields` unless the second's limit of lines is reached."""
        self._counts[f"{event}.{code}"] += 1
        if not self._limit.allows(monotonic):
            return
        text = " ".join(f"{name}={_plain(value)}" for name, value in fields.items() if value != "")
        log.info("event=%s %s code=%s", event, text, code)


def _plain(value: str | int) -> str:
    """`value` without spaces and line breaks: a peer must not forge a field or a line."""
    if isinstance(value, int):
        return str(value)
    text = value[:TEXT_MAX]
    plain = text.isprintable() and not any(c in " =\"'" for c in text)
    return text if plain else ascii(text).replace(" ", "\\x20")
