"""Bounded tables: what is evicted is the oldest entry, what is over, or an entry of the holder that has most."""

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


class HolderCounts:
    """How many entries each holder has, and who has most, in a time that does not depend on the number of holders."""

    __slots__ = ("_counts", "_ranks", "most")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._ranks: dict[int, OrderedDict[str, None]] = {}  # holders by their number of entries
        self.most = 0
        """Number of entries of the holder that has most."""

    def __getitem__(self, holder: str) -> int:
        return self._counts.get(holder, 0)

    def set(self, holder: str, count: int) -> None:
        """`holder` now has `count`."""
        before = self._counts.get(holder, 0)
        if count == before:
            return
        if count:
            self._counts[holder] = count
        else:
            del self._counts[holder]
        if count:  # before it is removed: its old rank is the next to its new one
            rank = self._ranks.get(count)
            if rank is None:
                rank = self._ranks[count] = OrderedDict()
            rank[holder] = None
            if before > count:
                rank.move_to_end(holder, last=False)
            if count > self.most:
                self.most = count
        if before:
            rank = self._ranks[before]
            del rank[holder]
            if not rank:
                del self._ranks[before]
            while self.most and self.most not in self._ranks:
                self.most -= 1

    def biggest(self) -> str | None:
        """The holder that has most, of several the one that has had so many for longest; None: nobody has any."""
        return next(iter(self._ranks[self.most])) if self.most else None
