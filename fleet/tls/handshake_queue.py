"""Handshake queue: which of the handshakes whose ClientHello has arrived is begun next.

The first flight costs a key exchange and a signature, and an engine of 50 KB until the end. So few are under way at
once, few begin in one turn of the event loop, and when more want to, the next one is taken from each address block in
turn, and more often from a known one. A connection that waits is not refused, and its deadline begins with its turn.
"""

import asyncio
from collections import Counter, OrderedDict
from typing import Protocol

from fleet.domain.peer import network_of
from fleet.tls.known_blocks import KNOWN_WEIGHT, KnownBlocks

UNDER_WAY_MAX = 256
"""Handshakes under way: at 700 a second of a core, enough for round trips of 0.3 s."""
OF_KNOWN_MAX = UNDER_WAY_MAX * 3 // 4
"""From one known address block, such as a fleet behind one NAT: the rest stays for others."""
OF_STRANGERS_MAX = UNDER_WAY_MAX // 8
"""From another one."""
COUNTS_SECONDS = 1.0
"""A client that takes longer for its second flight no longer keeps others waiting."""
AT_ONCE_MAX = 32
"""Begun in one turn of the loop while no connection waits: about 10 ms."""
FROM_QUEUE_MAX = 8
"""Begun in one turn of the loop when others wait: accepted connections and open sessions have the rest of the time."""


class Waiting(Protocol):
    """A handshake that has not begun."""

    address: str

    def begin(self) -> None:
        """Called when it is its turn."""


class _Ring:
    """Handshakes that wait, by address block; each block that may begin one is taken in turn."""

    __slots__ = ("_blocks", "_ready")

    def __init__(self) -> None:
        self._blocks: dict[str, dict[Waiting, None]] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._ready)

    def add(self, block: str, entry: Waiting, *, ready: bool) -> None:
        self._blocks.setdefault(block, {})[entry] = None
        if ready:
            self._ready[block] = None

    def make_ready(self, block: str) -> None:
        if block in self._blocks:
            self._ready[block] = None

    def remove(self, block: str, entry: Waiting) -> None:
        entries = self._blocks.get(block)
        if entries is not None and entry in entries:
            del entries[entry]
            if not entries:
                del self._blocks[block]
                self._ready.pop(block, None)

    def take(self) -> tuple[str, Waiting]:
        """The next one, which waits no longer. Its block is ready again when it is made so."""
        block, _ = self._ready.popitem(last=False)
        entry = next(iter(self._blocks[block]))
        self.remove(block, entry)
        return block, entry


class HandshakeQueue:
    """The handshakes of one listener that wait or are under way. Each must `leave`, however it ends."""

    __slots__ = ("_begun", "_by_block", "_in_a_row", "_known", "_loop", "_of_known", "_of_strangers", "_scheduled",
                 "_timer", "_under_way", "_waiting")  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, known: KnownBlocks) -> None:
        self._loop = loop
        self._known = known
        self._under_way: dict[Waiting, float] = {}  # and when they began, in that order
        self._by_block: Counter[str] = Counter()
        self._waiting: dict[Waiting, _Ring] = {}
        self._of_known, self._of_strangers = _Ring(), _Ring()
        self._in_a_row = 0
        """Taken from known blocks since another one's turn."""
        self._begun = 0
        """In this turn of the loop."""
        self._scheduled: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take(self, entry: Waiting) -> bool:
        """Whether `entry` may begin now; otherwise its `begin` is called when it may."""
        block = network_of(entry.address)
        self._forget_slow()
        if not self._waiting and self._begun < AT_ONCE_MAX and self._has_room() and self._may(block):
            self._start(block, entry)
            self._schedule()  # where the number begun in this turn is reset
            return True
        ring = self._waiting[entry] = self._of_known if block in self._known else self._of_strangers
        ring.add(block, entry, ready=self._may(block))
        self._schedule()
        return False

    def leave(self, entry: Waiting) -> None:
        """It has ended, completed or not. An unknown one is ignored."""
        block = network_of(entry.address)
        if (ring := self._waiting.pop(entry, None)) is not None:
            ring.remove(block, entry)
        elif entry in self._under_way:
            self._stop(block, entry)
            if self._waiting:
                self._schedule()

    def close(self) -> None:
        """Begin none any more."""
        for handle in (self._scheduled, self._timer):
            if handle is not None:
                handle.cancel()
        self._waiting.clear()
        self._of_known, self._of_strangers = _Ring(), _Ring()

    def _has_room(self) -> bool:
        return len(self._under_way) < UNDER_WAY_MAX

    def _may(self, block: str) -> bool:
        return self._by_block[block] < (OF_KNOWN_MAX if block in self._known else OF_STRANGERS_MAX)

    def _start(self, block: str, entry: Waiting) -> None:
        self._under_way[entry] = self._loop.time()
        self._by_block[block] += 1
        self._begun += 1

    def _stop(self, block: str, entry: Waiting) -> None:
        del self._under_way[entry]
        self._by_block[block] -= 1
        if not self._by_block[block]:
            del self._by_block[block]
        if self._waiting:
            for ring in (self._of_known, self._of_strangers):  # it may have become known meanwhile
                ring.make_ready(block)

    def _forget_slow(self) -> None:
        earliest = self._loop.time() - COUNTS_SECONDS
        while (first := next(iter(self._under_way), None)) is not None and self._under_way[first] <= earliest:
            self._stop(network_of(first.address), first)

    def _schedule(self) -> None:
        if self._scheduled is None and (self._begun or self._may_begin()):
            self._scheduled = self._loop.call_soon(self._next_turn)
        elif self._timer is None and self._waiting:
            self._timer = self._loop.call_later(COUNTS_SECONDS, self._on_time)

    def _may_begin(self) -> bool:
        return bool(self._waiting) and self._has_room() and bool(self._of_known or self._of_strangers)

    def _on_time(self) -> None:
        self._timer = None
        self._forget_slow()
        self._schedule()

    def _next_turn(self) -> None:
        self._scheduled = None
        self._begun = 0
        self._forget_slow()
        try:
            while self._begun < FROM_QUEUE_MAX and self._has_room() and (ring := self._next_ring()):
                block, entry = ring.take()
                del self._waiting[entry]
                self._start(block, entry)
                if self._may(block):
                    ring.make_ready(block)
                entry.begin()
        finally:
            self._schedule()

    def _next_ring(self) -> _Ring | None:
        """Where known and other blocks wait, the latter have one turn in nine."""
        if self._of_known and (self._in_a_row < KNOWN_WEIGHT or not self._of_strangers):
            self._in_a_row += 1
            return self._of_known
        self._in_a_row = 0
        return self._of_strangers or None
