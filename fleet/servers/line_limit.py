"""Rate limit for log lines that clients can cause: a flood must not fill a disk, nor hide what others do.

Lines are counted for each second, by kind (what happened) and by source (who caused it). One source gets few lines of
one kind; the first line of a source is written even when others have spent what its kind may have. What is left out is
counted, and the sources with most of it are named at the end of the second.
"""

import logging
from collections import Counter

from fleet.config.logs import log_event

LINES_EACH_MAX = 10
"""A second, of one kind from one source."""
LINES_OF_KIND_MAX = 50
LINES_PER_SECOND_MAX = 100
"""Of all kinds together."""
FIRST_LINES_MAX = 50
"""A second, in addition to each of the two before: first lines of a source."""
SOURCES_MAX = 4096
"""Told apart within a second; all further ones count as one."""
NAMED_MAX = 5
"""Sources named for what was left out."""

_Key = tuple[str, str]


class LineLimit:
    """Limit of one log."""

    __slots__ = ("_came", "_first", "_left_out", "_log", "_of_kind", "_second")

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._second = 0
        self._came: Counter[_Key] = Counter()
        self._left_out: Counter[_Key] = Counter()
        self._of_kind: Counter[str] = Counter()  # lines written
        self._first = 0

    def allows(self, monotonic: float, kind: str, source: str) -> bool:
        """Whether a line may be written at this time, in seconds of a monotonic clock.

        `kind` is one of few words of ours; `source` is who caused it: what TLS has proved, or an address.
        """
        second = int(monotonic)
        if second != self._second:
            self._report()
            self._second = second
        key = (kind, source)
        if key not in self._came and len(self._came) >= SOURCES_MAX:
            key = (kind, "")
        came = self._came[key]
        self._came[key] = came + 1
        if came < LINES_EACH_MAX and self._has_room(kind, is_first=came == 0):
            self._of_kind[kind] += 1
            return True
        self._left_out[key] += 1
        return False

    def _has_room(self, kind: str, *, is_first: bool) -> bool:
        if self._of_kind[kind] < LINES_OF_KIND_MAX and self._of_kind.total() < LINES_PER_SECOND_MAX:
            return True
        if is_first and self._first < FIRST_LINES_MAX:
            self._first += 1
            return True
        return False

    def _report(self) -> None:
        """Log what was left out, and begin anew."""
        most = self._left_out.most_common(NAMED_MAX)
        for (kind, source), lines in most:
            log_event(self._log, logging.WARNING, "log.suppressed", of=kind, source=source, lines=lines)
        others = self._left_out.total() - sum(lines for _, lines in most)
        if others:
            log_event(self._log, logging.WARNING, "log.suppressed", of="others", lines=others)
        self._came.clear()
        self._left_out.clear()
        self._of_kind.clear()
        self._first = 0
