"""Half-open connections, with an incomplete handshake: capped in number, by address and by time.

A handshake costs the server more than the client, and an idle one costs the client nothing. So their number is capped,
and each has a deadline. When there is no room, it is made at the expense of the address block that holds most, and of
connections on which nothing has arrived first, never of a newcomer from another block. What a block holds counts less
when a client has been admitted from there before.
"""

import asyncio
from dataclasses import replace
from typing import Protocol

from fleet.config.deadlines import Deadlines
from fleet.domain.peer import network_of
from fleet.domain.rates import Buckets
from fleet.tls.errors import Refusal
from fleet.tls.known_blocks import KNOWN_WEIGHT, KnownBlocks, Ranking
from fleet.tls.limits import ListenerLimits

SILENT_SECONDS = 1.0
"""For a client's first octets: within its own address block, only who is silent for longer gives way."""


class Expiring(Protocol):
    """A half-open connection."""

    address: str

    def expire(self) -> None:
        """Called when its deadline has passed."""

    def give_way(self) -> None:
        """Called when a newcomer gets its place."""

    def dismiss(self) -> None:
        """Called when the listener closes."""


class _Holder:
    """The half-open connections of one address block, each in order of arrival."""

    __slots__ = ("heard", "silent")

    def __init__(self) -> None:
        self.silent: dict[Expiring, None] = {}
        self.heard: dict[Expiring, None] = {}

    def __len__(self) -> int:
        return len(self.silent) + len(self.heard)


class HalfOpen:
    """The set of half-open connections. Each entry must `leave` exactly once, however it ends."""

    __slots__ = ("_arrivals", "_closed", "_due", "_holders", "_known_arrivals", "_limits", "_loop", "_ranking",
                 "_waiting", "known")  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limits: ListenerLimits, known: KnownBlocks | None = None
    ) -> None:
        self._loop = loop
        self._limits = limits
        self._due: Deadlines[Expiring] = Deadlines(loop, limits.deadline_s, lambda entry: entry.expire())
        self._waiting: set[Expiring] = set()
        self._closed = False
        self._holders: dict[str, _Holder] = {}
        self._arrivals = Buckets(limits.per_address_per_second)
        self._known_arrivals = Buckets(limits.per_address_per_second * KNOWN_WEIGHT)
        self.known = KnownBlocks() if known is None else known
        self._ranking = Ranking(self.known)

    def set_limits(self, limits: ListenerLimits) -> None:
        """For the connections to come; the deadline stays as it was."""
        self._limits = replace(limits, deadline_s=self._limits.deadline_s)
        self._arrivals.set_rate(limits.per_address_per_second)
        self._known_arrivals.set_rate(limits.per_address_per_second * KNOWN_WEIGHT)

    def __len__(self) -> int:
        return len(self._due) + len(self._waiting)

    def enter(self, entry: Expiring, *, from_balancer: bool = False) -> Refusal | None:
        """Add `entry`; the reason if it is refused. A balancer's address is that of many: no limit of one is applied
        to it.
        """
        if self._closed:
            return Refusal.GONE  # accepted in the turn of the loop before
        block = network_of(entry.address)
        holder = self._holders.get(block)
        is_full = holder is not None and len(holder) >= self._limits.per_address_max
        if holder is not None and is_full and not from_balancer and not self._drop_silent(holder):
            return Refusal.ADDRESS_CAP
        if len(self) >= self._limits.total_max and not self.make_room(block):
            return Refusal.TOTAL_CAP
        budget = self._limits.descriptor_budget
        if budget is not None and not budget.make_room(block, self._limits.descriptors_each):
            return Refusal.NO_DESCRIPTOR
        arrivals = self._known_arrivals if block in self.known else self._arrivals
        if not from_balancer and arrivals.take(block, self._loop.time()):
            return Refusal.ADDRESS_RATE
        # Looked up again: it is gone when its last connection has just given way.
        holder = self._holders.setdefault(block, _Holder())
        holder.silent[entry] = None
        self._ranking.set(block, len(holder))
        self._due.enter(entry)
        return None

    def heard(self, entry: Expiring) -> None:
        """The first octets of an entry have arrived."""
        holder = self._holders.get(network_of(entry.address))
        if holder is not None and entry in holder.silent:
            del holder.silent[entry]
            holder.heard[entry] = None

    def waits(self, entry: Expiring) -> None:
        """Others are before it: it has no deadline until it `begins`."""
        if self._due.leave(entry):
            self._waiting.add(entry)

    def begins(self, entry: Expiring) -> None:
        """It waits no longer, and has as long as one that has just arrived."""
        if entry in self._waiting:
            self._waiting.remove(entry)
            self._due.enter(entry)

    def age(self, entry: Expiring) -> float:
        """Seconds since an entry, which has to be there and not to wait, has entered."""
        return self._due.age(entry)

    def shorten(self, entry: Expiring, spent: float) -> None:
        """The entry's deadline began `spent` seconds before it entered; up to SILENT_SECONDS are passed over. One that
        waits, or has left, is left alone.
        """
        if spent > SILENT_SECONDS and entry in self._due:
            self._loop.call_later(max(0.0, self._limits.deadline_s - spent), self._expire, entry)

    def _expire(self, entry: Expiring) -> None:
        if entry in self._due:
            entry.expire()

    def leave(self, entry: Expiring) -> None:
        """Remove an entry, completed or failed. An unknown entry is ignored."""
        if entry in self._waiting:
            self._waiting.remove(entry)
        elif not self._due.leave(entry):
            return
        block = network_of(entry.address)
        holder = self._holders[block]
        if entry in holder.silent:
            del holder.silent[entry]
        else:
            del holder.heard[entry]
        self._ranking.set(block, len(holder))
        if not holder:
            del self._holders[block]

    def make_room(self, newcomer: str) -> bool:
        """End a connection of the block that holds most; False when only the newcomer's own block could give way."""
        block = self._ranking.biggest()
        if block is None:
            return False
        holder = self._holders[block]
        if self._drop_silent(holder):
            return True
        if block == newcomer:
            return False
        self._drop(next(iter(holder.silent or holder.heard)))
        return True

    def _drop_silent(self, holder: _Holder) -> bool:
        """End the oldest one that has had time to send something and has not; False when there is none."""
        oldest = next(iter(holder.silent), None)
        if oldest is None or self._due.age(oldest) < SILENT_SECONDS:
            return False
        self._drop(oldest)
        return True

    def _drop(self, entry: Expiring) -> None:
        self.leave(entry)
        entry.give_way()

    def close(self) -> None:
        """Close every entry, and take no other."""
        self._closed = True
        for entry in [*self._due, *self._waiting]:
            entry.dismiss()
        self._due.stop()
