"""Rates of a device: its budget over time and over connections, and a device that is not read while it is over it."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.domain.model_rules import DEFAULT_RULES
from fleet.domain.mqtt_rules import MqttRules
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason
from fleet.servers.gateway.limits import rates as device_rates
from fleet.servers.gateway.limits.flow_control import FlowControlledTransport
from fleet.servers.gateway.limits.in_flight import LATE_SECONDS
from fleet.servers.gateway.limits.rates import (
    OVER_SECONDS_MAX,
    REPLAY_SECONDS_MAX,
    REPLAYED_PER_SECOND,
    Budget,
    Budgets,
    RateMeter,
)
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from tests.servers.gateway_fixtures import open_gateway, populate, up
from tests.servers.test_gateway_session_machine import FakeTransport

RULES = MqttRules(messages_per_second=10, bytes_per_second=2_000, burst=timedelta(seconds=10))


def of(rules: MqttRules = RULES) -> Budget:
    return Budgets(1).of_device("cam-1", rules, 0.0)


def test_a_burst_then_the_rate() -> None:
    budget = of()
    budget.spend(100, 0, 0.0)
    assert budget.wait_s(0.0) <= 0
    budget.spend(1, 0, 0.0)
    assert budget.wait_s(0.0) == pytest.approx(0.1)
    assert budget.over_since == 0.0
    budget.spend(0, 0, 4.0)
    assert budget.over_since == 0.0  # 4 of the 10 seconds are saved: less than half
    budget.spend(0, 0, 6.0)
    assert budget.over_since is None
    assert not budget.is_full(10.0)
    assert budget.is_full(10.2)


def test_bytes_count_beside_messages() -> None:
    budget = of()
    budget.spend(1, 22_000, 0.0)
    assert budget.wait_s(0.0) == pytest.approx(1.0)
    assert budget.exceeded(0.0) is close_reasons.BYTE_RATE


def test_no_limit() -> None:
    budget = of(replace(RULES, messages_per_second=0, bytes_per_second=0))
    budget.spend(10**9, 10**12, 0.0)
    assert budget.wait_s(0.0) < 0
    assert budget.is_full(0.0)


def test_a_debt_outlives_a_change_of_the_rate() -> None:
    budget = of()
    budget.spend(200, 0, 0.0)
    assert budget.wait_s(0.0) == pytest.approx(10.0)
    budget.set_rules(replace(RULES, messages_per_second=100), 0.0)
    assert budget.wait_s(0.0) < 0  # 200 of 1,000
    budget.set_rules(RULES, 0.0)
    assert budget.wait_s(0.0) == pytest.approx(10.0)


def test_a_debt_is_not_evicted_and_a_full_budget_is() -> None:
    budgets = Budgets(2)
    debtor = budgets.of_device("cam-1", RULES, 0.0)
    debtor.spend(300, 0, 0.0)
    open_session = budgets.of_device("cam-2", RULES, 0.0)
    open_session.users = 1
    for number in range(50):
        budgets.of_device(f"new-{number}", RULES, 2.0 * number / 10).spend(300, 0, 2.0 * number / 10)
    assert len(budgets) == 2
    assert budgets.of_device("cam-1", RULES, 9.0) is debtor
    assert budgets.of_device("cam-2", RULES, 9.0) is open_session
    newer = budgets.of_device("cam-3", RULES, 60.0)
    assert budgets.of_device("cam-3", RULES, 60.0) is newer
    assert budgets.of_device("cam-1", RULES, 60.0) is not debtor


class Clock:
    """An event loop of which only time and timers are asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: asyncio.TimerHandle | None = None

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: object) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        self.due = asyncio.TimerHandle(self.now + delay, callback, (), loop)  # type: ignore[arg-type]
        return self.due

    def advance(self) -> None:
        """To the moment that the timer is set for."""
        due, self.due = self.due, None
        assert due is not None
        assert not due.cancelled()
        self.now = due.when() + 1e-6
        due._run()


class Metered:
    def __init__(self, budget: Budget, clock: Clock) -> None:
        self.packets = self.growth = 0
        self.transport = FakeTransport()
        self.closed: list[CloseReason] = []
        self.meter = RateMeter(
            budget,
            self,
            FlowControlledTransport(self.transport),
            self.closed.append,
            clock,  # type: ignore[arg-type]
        )

    def read(self, packets: int, size: int) -> None:
        self.packets += packets
        self.meter.size += size
        if self.meter.size > self.meter.budget.lease_size:
            self.meter.pay()


async def test_over_the_rate_it_is_not_read_and_then_closed() -> None:
    clock = Clock()
    device = Metered(of(), clock)
    device.read(120, 10)
    assert not device.transport.reading
    clock.advance()
    assert clock.now == pytest.approx(2.0, abs=0.01)
    assert device.transport.reading
    while not device.closed:  # as fast as it is read
        device.read(20, 10)
        if not device.closed:
            clock.advance()
    assert device.closed == [close_reasons.MESSAGE_RATE]
    assert clock.now == pytest.approx(OVER_SECONDS_MAX, abs=0.01)


async def test_retained_messages_that_it_has_the_broker_send_again_and_again() -> None:
    clock = Clock()
    budgets = Budgets(10)
    device = Metered(budgets.of_device("cam-1", RULES, 0.0), clock)
    for turn in range(1, 1_000):
        device.meter.replayed(6_000)
        assert not device.transport.reading
        clock.advance()
        assert clock.now == pytest.approx(turn * 6_000 / REPLAYED_PER_SECOND, abs=0.01)
        assert device.transport.reading
    assert not device.closed
    before = clock.now
    device.meter.replayed(1_000_000)
    clock.advance()
    assert clock.now - before == pytest.approx(REPLAY_SECONDS_MAX, abs=0.01)
    device.meter.replayed(6_000)
    device.meter.stop()
    again = Metered(budgets.of_device("cam-1", RULES, clock.now), clock)
    assert not again.transport.reading
    clock.advance()
    assert again.transport.reading


async def test_within_the_rate_for_ever() -> None:
    clock = Clock()
    device = Metered(of(), clock)
    for _ in range(10_000):
        device.read(10, 2_000)
        clock.now += 1.0
    assert device.transport.reading
    assert not device.closed


async def test_who_connects_again_goes_on_with_the_same_budget() -> None:
    clock = Clock()
    budgets = Budgets(10)
    first = Metered(budgets.of_device("cam-1", RULES, 0.0), clock)
    first.read(200, 10)
    first.meter.stop()
    clock.now = 1.0
    second = Metered(budgets.of_device("cam-1", RULES, 1.0), clock)
    second.read(1, 10)
    assert not second.transport.reading
    bystander = Metered(budgets.of_device("cam-2", RULES, 1.0), clock)
    bystander.read(100, 10)
    assert bystander.transport.reading


def test_whose_session_has_expired_is_forgotten() -> None:
    time = 0.0
    budgets = Budgets(1, clock=lambda: time)
    held = budgets.of_device("cam-1", RULES, 0.0).in_flight
    held.connecting(60)
    held.connected(False, None)
    assert held.add(1, 100)
    held.disconnected()
    budgets.of_device("cam-2", RULES, 30.0)
    assert budgets.of_device("cam-1", RULES, 30.0).in_flight is held
    time = 60 + LATE_SECONDS
    newcomer = budgets.of_device("cam-2", RULES, time)
    assert budgets.of_device("cam-2", RULES, time) is newcomer


async def test_a_higher_rate_ends_the_pause() -> None:
    clock = Clock()
    device = Metered(of(), clock)
    device.read(200, 10)
    assert not device.transport.reading
    device.meter.set_rules(replace(RULES, messages_per_second=0))
    assert device.transport.reading


async def test_by_default_the_clock_is_not_asked_for_each_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    budget = of(DEFAULT_RULES.mqtt)
    device = Metered(budget, clock)
    asked: list[float] = []

    def time() -> float:
        asked.append(0.0)
        return 0.0

    monkeypatch.setattr(clock, "time", time)
    for _ in range(40):
        device.read(1, 100)
    assert not asked
    device.read(1, 100)
    assert asked


@pytest.mark.parametrize(
    ("version", "last"),
    [(V311, b""), (V5, acks.disconnect(V5, Reason.MESSAGE_RATE_TOO_HIGH, close_reasons.MESSAGE_RATE.text))],
)
async def test_a_flood_is_held_back_then_disconnected(
    tmp_path: Path, version: int, last: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_rates, "OVER_SECONDS_MAX", 0.05)
    async with open_gateway(tmp_path) as h:
        cam, other = await populate(h.registry, "cam-1", "cam-2")
        wire, side = await h.live(cam, version)
        bystander, bystander_side = await h.live(other, version)
        rules = MqttRules(messages_per_second=1, burst=timedelta(seconds=1))
        await h.set_model(rules=replace(DEFAULT_RULES, mqtt=rules))
        await h.count("mqtt.model.applied")
        wire.send(up("cam-1", version=version) * 100)
        await wire.until_closed()
        assert wire.raw == last
        assert len(await side.until_closed()) == 100  # what was read before is forwarded
        assert h.gateway.stats["mqtt.session.message-rate"] == 1
        bystander.send(up("cam-2", version=version))
        assert (await bystander_side.packet()).type is PacketType.PUBLISH
