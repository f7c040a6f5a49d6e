"""How many lines a second a log takes of what strangers can make us say: a flood must not fill a disk."""

import logging

LINES_PER_SECOND_MAX = 50


class LineLimit:
    """The share of one log. What is left out is counted, and told when lines are next allowed."""

    __slots__ = ("_lines", "_log", "_max", "_second")

    def __init__(self, log: logging.Logger, lines_per_second_max: int = LINES_PER_SECOND_MAX) -> None:
        self._log = log
        self._max = lines_per_second_max
        self._second = 0
        self._lines = 0

    def allows(self, monotonic: float) -> bool:
        """Whether a line may be written at this time, in seconds of a clock that never goes back."""
        second = int(monotonic)
        if second != self._second:
            if self._lines > self._max:
                self._log.warning("event=log.suppressed lines=%d", self._lines - self._max)
            self._second, self._lines = second, 0
        self._lines += 1
        return self._lines <= self._max
