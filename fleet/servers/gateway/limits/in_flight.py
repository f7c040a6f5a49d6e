"""Messages of QoS 2 that the broker holds for a device until it has got their PUBREL (MQTT, 4.3.3).

The broker holds each in memory, with a persistent session over connections, and nothing makes the device release them.
QoS 1 needs no such limit: the broker passes a message on at once, and what it has not read yet blocks its sender.
"""

import time
from collections.abc import Callable
from math import inf

from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS, Limits

SHARE_BYTES = 65_536  # a device that holds no more than this is not refused for what others hold
MESSAGE_BYTES = 512  # of the broker's memory for a message besides its bytes
LATE_SECONDS = 5.0  # mosquitto looks once a second, while it is not busy, which sessions have expired


class InFlightTotal:
    """What the broker holds for all devices of this process, and the limits of it. `clock` returns seconds."""

    __slots__ = ("_away", "_next", "bytes", "clock", "limits")

    def __init__(self, limits: Limits = DEFAULT_LIMITS, clock: Callable[[], float] = time.monotonic) -> None:
        self.bytes = 0
        self.limits = limits
        self.clock = clock
        self._away: dict[InFlight, float] = {}  # those without a connection: when the broker drops the session
        self._next = inf  # no session expires before

    def leaves(self, held: "InFlight", seconds: float) -> None:
        """The connection has ended, and the session ends after `seconds`."""
        if held and seconds < inf:
            self._away[held] = expires_at = self.clock() + seconds + LATE_SECONDS
            self._next = min(self._next, expires_at)

    def returns(self, held: "InFlight") -> None:
        self._away.pop(held, None)

    def expire(self) -> None:
        """Count no longer what the broker has dropped with a session that has expired."""
        now = self.clock()
        if now < self._next:
            return
        for held in [held for held, expires_at in self._away.items() if expires_at <= now]:
            del self._away[held]
            held.clear()
        self._next = min(self._away.values(), default=inf)


class InFlight:
    """What it holds for one client id. Those of one device have equal shares of what a device may have."""

    __slots__ = ("_asked_seconds", "_bytes", "_seconds", "_sizes", "_total", "shares")

    def __init__(self, total: InFlightTotal) -> None:
        self._total = total
        self.shares = 1
        self._sizes: dict[int, int] = {}  # by packet identifier
        self._bytes = 0
        self._seconds = 0.0  # for which the broker keeps its session without a connection
        self._asked_seconds = 0.0  # the same, if the broker has accepted a CONNECT whose answer we have not got

    def __bool__(self) -> bool:
        return bool(self._sizes)

    @property
    def session_seconds(self) -> float:
        """How long the broker may keep its session without a connection."""
        return max(self._seconds, self._asked_seconds)

    def add(self, packet_id: int, size: int) -> bool:
        """A PUBLISH of `size` bytes, or one sent again, is on its way. False: there is no room for it."""
        before = self._sizes.get(packet_id, 0)
        growth = size + MESSAGE_BYTES - before
        held = self._bytes + growth
        alone = self._bytes == before
        limits = self._total.limits
        if held > limits.in_flight_bytes_per_device_max // self.shares and not alone:
            return False
        if held > SHARE_BYTES and growth > 0 and self._total.bytes + growth > limits.in_flight_bytes_max:
            self._total.expire()
            if self._total.bytes + growth > limits.in_flight_bytes_max:
                return False
        self._sizes[packet_id] = size + MESSAGE_BYTES
        self._grow(growth)
        return True

    def release(self, packet_id: int) -> None:
        """The broker has confirmed its release, or refused it."""
        self._grow(-self._sizes.pop(packet_id, 0))

    def clear(self) -> None:
        """The broker holds nothing any more."""
        self._sizes.clear()
        self._grow(-self._bytes)

    def connecting(self, seconds: float) -> None:
        """The broker gets a CONNECT for a session that lasts for `seconds` after its connection."""
        self._total.returns(self)
        self._asked_seconds = seconds

    def connected(self, session_present: bool, seconds: float | None) -> None:
        """The broker has accepted it. `seconds`: what it has said instead."""
        self._seconds = self._asked_seconds = self._asked_seconds if seconds is None else seconds
        if not session_present:
            self.clear()

    def disconnected(self, seconds: float | None = None) -> None:
        """The connection has ended. `seconds`: what a DISCONNECT has said, which the broker may not have got."""
        # [MQTT-3.14.2-2] only a session that outlives its connection is prolonged by DISCONNECT; nor does it begin
        # with a CONNECT that has not been answered, before which nothing is forwarded.
        if self._seconds:
            self._seconds = max(self._seconds, self._asked_seconds, seconds or 0.0)
            self._total.leaves(self, self._seconds)
        else:
            self.clear()

    def _grow(self, growth: int) -> None:
        self._bytes += growth
        self._total.bytes += growth
