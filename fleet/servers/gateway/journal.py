"""What happened, counted always and logged in one line each, as long as nobody makes us write too many lines.

event=mqtt.connect device=cam-7 serial=5d… code=ok ms=3
"""

import logging
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

log = logging.getLogger("fleet.gateway")

LINES_PER_SECOND_MAX = 50  # a thousand devices that knock in vain must not fill a disk
TEXT_MAX = 80  # of anything that a peer chose


class Journal:
    """Counters and log lines. `monotonic` is the loop's time in seconds."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._second = 0
        self._lines = 0

    @property
    def counts(self) -> Mapping[str, int]:
        """Live and read-only: counter -> how often."""
        return MappingProxyType(self._counts)

    def count(self, counter: str) -> None:
        self._counts[counter] += 1

    def note(self, event: str, code: str, monotonic: float, **fields: str | int) -> None:
        """Count `event.code`, and log it with `fields` unless this second has had its share of lines."""
        self._counts[f"{event}.{code}"] += 1
        second = int(monotonic)
        if second != self._second:
            if self._lines > LINES_PER_SECOND_MAX:
                log.warning("event=log.suppressed lines=%d", self._lines - LINES_PER_SECOND_MAX)
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > LINES_PER_SECOND_MAX:
            return
        told = " ".join(f"{name}={_plain(value)}" for name, value in fields.items() if value != "")
        log.info("event=%s %s code=%s", event, told, code)


def _plain(value: str | int) -> str:
    """One word: a peer's line breaks and spaces must not make it two fields, or two lines."""
    if isinstance(value, int):
        return str(value)
    text = value[:TEXT_MAX]
    plain = text.isprintable() and not any(c in " =\"'" for c in text)
    return text if plain else ascii(text).replace(" ", "\\x20")
