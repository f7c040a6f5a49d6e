"""Rate limit for log lines that unauthenticated clients can cause: a flood must not fill a disk."""

import logging

from fleet.config.logs import log_event

LINES_PER_SECOND_MAX = 50


class LineLimit:
    """Limit of one log. Suppressed lines are counted, and the count is logged with the next line."""

    __slots__ = ("_lines", "_log", "_max", "_second")

    def __init__(self, log: logging.Logger, lines_per_second_max: int = LINES_PER_SECOND_MAX) -> None:
        self._log = log
        self._max = lines_per_second_max
        self._second = 0
        self._lines = 0

    def allows(self, monotonic: float) -> bool:
        """Whether a line may be written at this time, in seconds of a monotonic clock."""
        second = int(monotonic)
        if second != self._second:
            if self._lines > self._max:
                log_event(self._log, logging.WARNING, "log.suppressed", lines=self._lines - self._max)
            self._second, self._lines = second, 0
        self._lines += 1
        return self._lines <= self._max
