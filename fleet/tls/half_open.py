"""Half-open connections, with an incomplete handshake: capped in number, by address and by time.

A handshake costs the server more than the client, and an idle one costs the client nothing. So their number is capped,
in total and for each address, and each has a deadline. The time allowed is the same for all, so the oldest is always
due next and one timer serves them all.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from fleet.domain.peer import network_of
from fleet.domain.rates import Buckets
from fleet.tls.errors import Refusal


@dataclass(frozen=True, slots=True)
class ListenerLimits:
    """Resources that clients of a listener may use, above all before they are authenticated."""

    total_max: int = 2000
    """Handshakes in progress: about 100 MB of the engine's memory."""
    per_address_max: int = 500
    """From one IP address: a factory or fleet behind one NAT reconnects all at once after an outage."""
    deadline_s: float = 10.0
    """From accept to Finished: three round trips over a poor mobile link."""
    connected_max: int | None = None
    """Established connections; None for no cap."""
    connected_per_address_max: int | None = None
    per_address_per_second: float = 0.0
    """New connections from one address, whatever their outcome; 0 for no limit. A full handshake costs half a
    millisecond of a core."""
    close_deadline_s: float = 10.0
    """For a peer to read what a closing connection still sends."""
    backlog: int = 1024
    """Pending connections in the kernel during a burst, which caps it at somaxconn."""

    def __post_init__(self) -> None:
        if self.total_max < 1 or self.per_address_max < 1 or self.deadline_s <= 0 or self.per_address_per_second < 0:
            raise ValueError("A listener's limits must be positive.")


class Expiring(Protocol):
    """A half-open connection."""

    address: str

    def expire(self) -> None:
        """Called when its deadline has passed."""

    def dismiss(self) -> None:
        """Called when the listener closes."""


class HalfOpen:
    """The set of half-open connections. Each entry must `leave` exactly once, however it ends."""

    __slots__ = ("_arrivals", "_by_address", "_due", "_limits", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: ListenerLimits) -> None:
        self._loop = loop
        self._limits = limits
        self._due: dict[Expiring, float] = {}  # in order of arrival, hence of deadline
        self._by_address: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._arrivals = Buckets(limits.per_address_per_second)

    def __len__(self) -> int:
        return len(self._due)

    def enter(self, entry: Expiring) -> Refusal | None:
        """Add `entry`; the reason if it is refused."""
        if len(self._due) >= self._limits.total_max:
            return Refusal.TOTAL_CAP
        source = network_of(entry.address)
        if self._by_address[source] >= self._limits.per_address_max:
            return Refusal.ADDRESS_CAP
        if self._arrivals.take(source, self._loop.time()):
            return Refusal.ADDRESS_RATE
        self._by_address[source] += 1
        self._due[entry] = self._loop.time() + self._limits.deadline_s
        if self._timer is None:
            self._timer = self._loop.call_later(self._limits.deadline_s, self._expire_due)
        return None

    def leave(self, entry: Expiring) -> None:
        """Remove an entry, completed or failed. An unknown entry is ignored."""
        if self._due.pop(entry, None) is None:
            return
        source = network_of(entry.address)
        self._by_address[source] -= 1
        if not self._by_address[source]:
            del self._by_address[source]

    def _expire_due(self) -> None:
        self._timer = None
        now = self._loop.time()
        for entry in [entry for entry, due in self._due.items() if due <= now]:
            entry.expire()
        first = next(iter(self._due.values()), None)
        if first is not None and self._timer is None:
            self._timer = self._loop.call_at(first, self._expire_due)

    def close(self) -> None:
        """Close every entry."""
        for entry in list(self._due):
            entry.dismiss()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
