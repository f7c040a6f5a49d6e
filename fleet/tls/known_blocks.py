"""Address blocks: those that clients have been admitted from, and which of all holds most of a listener."""

from fleet.domain.recent import HolderCounts, Recent

KNOWN_MAX = 10_000
"""Address blocks remembered."""
KNOWN_WEIGHT = 8
"""A known block may hold so many times more than another, and arrive as much faster."""


class KnownBlocks(Recent[str, None]):
    """Address blocks of admitted clients; the least recent one is forgotten first."""

    def __init__(self) -> None:
        super().__init__(KNOWN_MAX)

    def add(self, block: str) -> None:
        self.put(block, None)


class Ranking:
    """Finds the block that holds most. What a known one holds counts an eighth."""

    __slots__ = ("_known", "_of_known", "_of_strangers")

    def __init__(self, known: KnownBlocks) -> None:
        self._known = known
        self._of_known, self._of_strangers = HolderCounts(), HolderCounts()

    def set(self, block: str, count: int) -> None:
        """`block` now holds `count`."""
        own, other = self._of_strangers, self._of_known
        if block in self._known:
            own, other = other, own
        own.set(block, count)
        if other.most:  # it may have become known, or been forgotten, meanwhile
            other.set(block, 0)

    def biggest(self) -> str | None:
        """The block that holds most; None when none holds any."""
        while (block := self._of_strangers.biggest()) is not None and block in self._known:
            self.set(block, self._of_strangers.most)  # a client of it has been admitted meanwhile
        if self._of_strangers.most * KNOWN_WEIGHT >= max(self._of_known.most, 1):
            return self._of_strangers.biggest()
        return self._of_known.biggest()
