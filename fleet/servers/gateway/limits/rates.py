"""Rates of each device: packets and bytes per second, whatever number of connections it sends them on.

    budget = budgets.of_device("cam-7", rules, now)
    meter = RateMeter(budget, relay.to_broker, transport, session.close, loop)
    meter.size += len(data)         # after each read: what was read is paid afterwards, when it is more than
    meter.pay()                     # budget.lease_size

A packet that costs as much as several counts as so many: a SUBSCRIBE or UNSUBSCRIBE as one for each of its filters, and
for each 32 that a persistent session has; one with many properties for each eight of them.

A device that is over its rate is not read until it has paid, so that TCP slows it down. One that has been over it for
OVER_SECONDS_MAX is closed. The budget is the device's: who connects again goes on with what is left.
"""

import asyncio
import time
from collections.abc import Callable
from math import ceil, inf
from typing import Protocol

from fleet.domain.mqtt_rules import SESSIONS_MAX, MqttRules
from fleet.domain.recent import Swept
from fleet.servers.gateway.close_reasons import BYTE_RATE, MESSAGE_RATE, CloseReason
from fleet.servers.gateway.limits.flow_control import FlowControlledTransport, Pause
from fleet.servers.gateway.limits.in_flight import InFlight, InFlightTotal
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS, Limits

OVER_SECONDS_MAX = 30.0
REPLAYED_PER_SECOND = 20_000  # retained messages that the broker sends for what a device asks: a quarter of its time
REPLAY_SECONDS_MAX = 5.0  # in which a device is not read for them: shorter than most keep-alives
PACKETS_PER_TURN = 4_096  # of one session in a turn of the event loop, and what one read more brings: 1 to 25 ms
LEASE_SIZE = 4_096  # bytes read before the clock is asked, where the model's burst is far more than that


class _Bucket:
    """A token bucket as one number: when it will be full again (GCRA)."""

    __slots__ = ("full_at", "interval_s")

    def __init__(self) -> None:
        self.full_at = self.interval_s = 0.0

    def set_rate(self, per_second: int, now: float) -> None:
        """What is owed stays the same number of packets or bytes."""
        interval_s = 1 / per_second if per_second else 0.0
        if self.interval_s:
            self.full_at = now + self.missing_s(now) * interval_s / self.interval_s
        self.interval_s = interval_s

    def take(self, count: int, now: float) -> None:
        self.full_at = max(self.full_at, now) + count * self.interval_s

    def missing_s(self, now: float) -> float:
        """Seconds until it is full."""
        return max(0.0, self.full_at - now)


class Budget:
    """What one device may still send. `now` is the loop's time in seconds."""

    __slots__ = (
        "_burst_s", "_bytes", "_messages", "_others", "_replayed", "_shares", "_total", "in_flight", "lease_size",
        "over_since", "users")  # fmt: skip

    def __init__(self, total: InFlightTotal) -> None:
        self._messages, self._bytes = _Bucket(), _Bucket()
        self._replayed = _Bucket()
        self._replayed.set_rate(REPLAYED_PER_SECOND, 0.0)
        self._burst_s = 0.0
        self.lease_size = 0
        self.over_since: float | None = None
        """Since when it has been over its rate without saving half of a burst in between."""
        self._total, self._shares = total, 1
        self.in_flight = InFlight(total)
        """What the broker holds for its own client id."""
        self._others: dict[str, InFlight] = {}
        self.users = 0
        """Open sessions."""

    def set_rules(self, rules: MqttRules, now: float) -> None:
        self._shares = rules.sessions
        self._messages.set_rate(rules.messages_per_second, now)
        self._bytes.set_rate(rules.bytes_per_second, now)
        self._burst_s = rules.burst.total_seconds()
        bursts = [ceil(rate * self._burst_s) for rate in (rules.messages_per_second, rules.bytes_per_second) if rate]
        self.lease_size = LEASE_SIZE if all(burst >= 8 * LEASE_SIZE for burst in bursts) else 0

    def in_flight_of(self, client_id: str, device_id: str) -> InFlight:
        """What the broker holds for a client id of the device."""
        found = self.in_flight if client_id == device_id else self._others.get(client_id)
        if found is None:
            found = InFlight(self._total)
            if len(self._others) >= 2 * SESSIONS_MAX:
                self._others = {key: held for key, held in self._others.items() if held}
            self._others[client_id] = found
        found.shares = self._shares
        return found

    def clear(self) -> None:
        """The broker holds nothing any more."""
        for held in (self.in_flight, *self._others.values()):
            held.clear()

    def spend(self, messages: int, size: int, now: float) -> None:
        if self.over_since is not None and self._missing_s(now) <= self._burst_s / 2:
            self.over_since = None
        self._messages.take(messages, now)
        self._bytes.take(size, now)
        if self.over_since is None and self.wait_s(now) > 0:
            self.over_since = now

    def replay(self, messages: int, now: float) -> None:
        self._replayed.take(messages, now)
        self._replayed.full_at = min(self._replayed.full_at, now + REPLAY_SECONDS_MAX)

    def replay_s(self, now: float) -> float:
        """Seconds in which it is not to ask for more retained messages."""
        return self._replayed.missing_s(now)

    def wait_s(self, now: float) -> float:
        """Seconds until it may send again; at most 0 when it may now."""
        return self._missing_s(now) - self._burst_s

    def is_full(self, now: float) -> bool:
        """Whether forgetting it would forgive nothing."""
        owes = self._missing_s(now) > 0 or self.replay_s(now) > 0
        return not owes and not self.in_flight and not any(self._others.values())

    def exceeded(self, now: float) -> CloseReason:
        """The reason to close for, when it has been over its rate for too long."""
        return MESSAGE_RATE if self._messages.missing_s(now) >= self._bytes.missing_s(now) else BYTE_RATE

    def _missing_s(self, now: float) -> float:
        return max(self._messages.missing_s(now), self._bytes.missing_s(now))


class Budgets:
    """By device id. Only a budget that is full and not in use is forgotten: nobody loses his debts to a newcomer."""

    def __init__(
        self, devices_max: int, limits: Limits = DEFAULT_LIMITS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._devices_max = devices_max
        self._budgets: Swept[str, Budget] = Swept(lambda budget, now: not budget.users and budget.is_full(now))
        self._in_flight = InFlightTotal(limits, clock)

    def __len__(self) -> int:
        return len(self._budgets)

    def of_device(self, device_id: str, rules: MqttRules, now: float) -> Budget:
        """Its budget, under `rules` from now on. When the table is full of debtors, a newcomer's is not kept."""
        budget = self._budgets.get(device_id)
        if budget is None:
            budget = Budget(self._in_flight)
            if len(self._budgets) >= self._devices_max:
                self._in_flight.expire()
                self._budgets.sweep(now)
            if len(self._budgets) < self._devices_max:
                self._budgets[device_id] = budget
        budget.set_rules(rules, now)
        return budget

    def set_limits(self, limits: Limits) -> None:
        """Of messages in flight, from the next one on."""
        self._in_flight.limits = limits

    def session_purged(self, device_id: str) -> None:
        """The broker's sessions of the device are purged, and what it holds for the device with them."""
        if (budget := self._budgets.get(device_id)) is not None:
            budget.clear()


class _Counted(Protocol):
    @property
    def packets(self) -> int:
        """Packets that have come so far, or what they count as."""

    @property
    def growth(self) -> int:
        """Bytes that the broker got beyond those of the device."""


class RateMeter:
    """Charges one session's packets to its device's budget, and does not read the device while that is overdrawn."""

    __slots__ = ("_charged", "_close", "_device", "_grown", "_loop", "_packets", "_timer", "budget", "size")

    def __init__(
        self,
        budget: Budget,
        packets: _Counted,
        device: FlowControlledTransport,
        close: Callable[[CloseReason], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.budget = budget
        self._packets = packets
        self._device = device
        self._close = close
        self._loop = loop
        self.size = 0
        """Bytes that were read and are not paid for yet, as their packets are not."""
        self._charged = self._grown = 0  # packets, and bytes of growth, charged so far
        self._timer: asyncio.TimerHandle | None = None
        budget.users += 1
        if (wait := budget.replay_s(loop.time())) > 0:
            self._wait(wait)

    def pay(self) -> None:
        """For what was read so far."""
        if self._charge() > PACKETS_PER_TURN:
            self._device.end_turn()
        self._check()

    def replayed(self, messages: int) -> None:
        """The broker has sent the device so many retained messages: it is not read for as long as that may take."""
        self.budget.replay(messages, self._loop.time())
        self._check()

    def set_rules(self, rules: MqttRules) -> None:
        """Apply the model's `rules` from now on."""
        self._charge()
        self.budget.set_rules(rules, self._loop.time())
        self._check()

    def stop(self) -> None:
        """The session has closed. Call it once."""
        self._charge()
        self._cancel()
        self.budget.users -= 1

    def _charge(self) -> int:
        """The number of packets."""
        packets, growth = self._packets.packets, self._packets.growth
        count = packets - self._charged
        self.budget.spend(count, self.size + growth - self._grown, self._loop.time())
        self.size, self._charged, self._grown = 0, packets, growth
        return count

    def _check(self) -> None:
        self._cancel()
        now, budget = self._loop.time(), self.budget
        over, left = budget.wait_s(now), inf
        wait = max(over, budget.replay_s(now))
        if wait <= 0:
            self._device.resume(Pause.OVER_RATE)
            return
        if over > 0:
            left = OVER_SECONDS_MAX - (now - budget.over_since if budget.over_since is not None else 0.0)
        if left <= 0:
            self._close(budget.exceeded(now))
            return
        self._wait(min(wait, left))

    def _wait(self, seconds: float) -> None:
        self._device.pause(Pause.OVER_RATE)
        self._timer = self._loop.call_later(seconds, self._check)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
