"""Tables that forget: one of bounded size, of its oldest entries, and one of entries that are over."""

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

SWEEP_SECONDS_MIN = 1.0


class Recent(OrderedDict[K, V]):
    """At most `entries_max` entries: when there are more, the one that was put longest ago is evicted."""

    def __init__(self, entries_max: int) -> None:
        super().__init__()
        self.entries_max = entries_max

    def put(self, key: K, value: V) -> None:
        """Set `key`, as the newest entry."""
        self[key] = value
        self.move_to_end(key)
        if len(self) > self.entries_max:
            self.popitem(last=False)


class Swept(dict[K, V]):
    """`is_over` says, of a value and a time in seconds, whether the entry may be forgotten."""

    def __init__(self, is_over: Callable[[V, float], bool]) -> None:
        super().__init__()
        self._is_over = is_over
        self._swept_at = float("-inf")

    def sweep(self, now: float) -> None:
        """Forget what is over, at most once in SWEEP_SECONDS_MIN: it looks at every entry."""
        if now - self._swept_at < SWEEP_SECONDS_MIN:
            return
        self._swept_at = now
        for key in [key for key, value in self.items() if self._is_over(value, now)]:
            del self[key]
