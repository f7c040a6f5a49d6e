"""Address blocks: those that clients have been admitted from, and which of all holds most of a listener."""

from collections import OrderedDict

from fleet.domain.recent import Recent

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


class _ByCount:
    """Blocks by the number of connections that each holds."""

    __slots__ = ("_blocks", "most")

    def __init__(self) -> None:
        self._blocks: dict[int, OrderedDict[str, None]] = {}
        self.most = 0

    def add(self, block: str, count: int, *, before_others: bool) -> None:
        blocks = self._blocks.setdefault(count, OrderedDict())
        blocks[block] = None
        if before_others:
            blocks.move_to_end(block, last=False)
        self.most = max(self.most, count)

    def remove(self, block: str, count: int) -> None:
        blocks = self._blocks[count]
        del blocks[block]
        if not blocks:
            del self._blocks[count]
        while self.most and self.most not in self._blocks:
            self.most -= 1

    def first(self) -> str:
        """The block that has held that many for longest."""
        return next(iter(self._blocks[self.most]))


class Ranking:
    """Finds the block that holds most, in a time that doesn't depend on their number. What a known one holds counts
    an eighth.
    """

    __slots__ = ("_counts", "_known", "_of_known", "_of_strangers")

    def __init__(self, known: KnownBlocks) -> None:
        self._known = known
        self._counts: dict[str, tuple[_ByCount, int]] = {}
        self._of_known, self._of_strangers = _ByCount(), _ByCount()

    def set(self, block: str, count: int) -> None:
        """`block` now holds `count`."""
        before = self._counts.pop(block, None)
        if count:
            ranks = self._of_known if block in self._known else self._of_strangers
            # Before it is removed: its old rank is the next to its new one.
            ranks.add(block, count, before_others=before is not None and before[1] > count)
            self._counts[block] = ranks, count
        if before is not None and before != self._counts.get(block):
            before[0].remove(block, before[1])

    def biggest(self) -> str | None:
        """The block that holds most; None when none holds any."""
        while (most := self._of_strangers.most) and (block := self._of_strangers.first()) in self._known:
            self.set(block, most)  # a client of it has been admitted meanwhile
        if self._of_strangers.most * KNOWN_WEIGHT >= max(self._of_known.most, 1):
            return self._of_strangers.first()
        return self._of_known.first() if self._of_known.most else None
