"""The last events that this process has committed: who follows the feed closely need not read them back."""

from collections import deque
from collections.abc import Sequence
from itertools import islice

from fleet.domain.changes import Event

RECENT_MAX = 1000  # as many as a follower reads at once


class RecentEvents:
    """A run of events without a gap. One that another process commits in between ends it, and is found by a read."""

    def __init__(self) -> None:
        self._run: deque[Event] = deque(maxlen=RECENT_MAX)

    def add(self, events: Sequence[Event]) -> None:
        """`events` have been committed; their numbers follow one another."""
        if self._run and events[0].seq != self._run[-1].seq + 1:
            self._run.clear()
        self._run.extend(events)

    def after(self, seq: int) -> list[Event]:
        """Every event of the run after `seq`; none when the next one is not of this run: then it must be read."""
        if not self._run or not self._run[0].seq <= seq + 1 <= self._run[-1].seq:
            return []
        found = list(islice(reversed(self._run), self._run[-1].seq - seq))
        found.reverse()
        return found
