"""Rate limit for log lines that clients can cause: a flood must not fill a disk, nor hide what others do.

Lines are counted for each second, by kind (what happened) and by source (what caused it). One source gets few lines of
one kind; the first line of a source is written even when others have spent what its kind may have. Sources that TLS has
authenticated have a share of their own: addresses can be made up, certificates can't. What is left out is counted, and
the sources with most of it are named when the second is over, whether or not a further line comes.
"""

import asyncio
import logging
from collections import Counter
from contextlib import suppress

from fleet.config.logs import log_event

LINES_EACH_MAX = 10
"""A second, of one kind from one source."""
LINES_OF_KIND_MAX = 50
LINES_PER_SECOND_MAX = 100
"""Of all kinds together."""
FIRST_LINES_MAX = 50
"""A second, in addition to each of the two before: first lines of a source that is not authenticated."""
FIRST_LINES_AUTHENTICATED_MAX = 1_000
"""The same for one that is: with fewer certificates than this, one client's lines displace no other's."""
SOURCES_MAX = 4096
"""Distinguished within a second, by kind. When there are more, all begin anew, in what is left of the lines."""
NAMED_MAX = 5
"""Sources named for what was left out."""

_Key = tuple[str, str]


class LineLimit:
    """Limit of one log."""

    __slots__ = ("_authenticated", "_log", "_others", "_second", "_timer")

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._second = 0
        self._authenticated = _Share(FIRST_LINES_AUTHENTICATED_MAX)
        self._others = _Share(FIRST_LINES_MAX)
        self._timer: asyncio.TimerHandle | None = None

    def allows(self, monotonic: float, kind: str, source: str, *, authenticated: bool = False) -> bool:
        """Whether a line may be written at this time, in seconds of a monotonic clock.

        `kind` is one of few words of ours; `source` is what caused it: what TLS has proved (`authenticated`), or an
        address.
        """
        second = int(monotonic)
        if second != self._second:
            self.report()
            self._second = second
            self._authenticated.begin()
            self._others.begin()
        allowed = (self._authenticated if authenticated else self._others).takes(kind, source)
        if not allowed and self._timer is None:
            self._report_later()
        return allowed

    def report(self) -> None:
        """Log what was left out since the last report."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left_out = self._authenticated.left_out + self._others.left_out
        most = left_out.most_common(NAMED_MAX)
        for (kind, source), lines in most:
            log_event(self._log, logging.WARNING, "log.suppressed", of=kind, source=source, lines=lines)
        others = left_out.total() - sum(lines for _, lines in most)
        if others:
            log_event(self._log, logging.WARNING, "log.suppressed", of="others", lines=others)
        self._authenticated.left_out.clear()
        self._others.left_out.clear()

    def _report_later(self) -> None:
        """Report in a second, unless the next line does."""
        with suppress(RuntimeError):  # no loop runs: the next line does, or the end of the server
            self._timer = asyncio.get_running_loop().call_later(1.0, self.report)


class _Share:
    """Lines of one second."""

    __slots__ = ("_came", "_first", "_first_max", "_of_kind", "left_out")

    def __init__(self, first_max: int) -> None:
        self.left_out: Counter[_Key] = Counter()
        self._first_max = first_max
        self._came: Counter[_Key] = Counter()
        self._of_kind: Counter[str] = Counter()  # lines written
        self._first = 0

    def begin(self) -> None:
        self._came.clear()
        self._of_kind.clear()
        self._first = 0

    def takes(self, kind: str, source: str) -> bool:
        """Count a line of `source`, and say whether it is written."""
        key = (kind, source)
        if key not in self._came and len(self._came) >= SOURCES_MAX:
            self._came.clear()  # so that no new source is counted as one that has had its line
        came = self._came[key]
        self._came[key] = came + 1
        if came < LINES_EACH_MAX and self._has_room(kind, is_first=came == 0):
            self._of_kind[kind] += 1
            return True
        if key not in self.left_out and len(self.left_out) >= SOURCES_MAX:
            key = (kind, "")
        self.left_out[key] += 1
        return False

    def _has_room(self, kind: str, *, is_first: bool) -> bool:
        if self._of_kind[kind] < LINES_OF_KIND_MAX and self._of_kind.total() < LINES_PER_SECOND_MAX:
            return True
        if is_first and self._first < self._first_max:
            self._first += 1
            return True
        return False
