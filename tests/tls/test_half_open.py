"""The set of half-open connections, on a clock that the test moves: caps, deadlines, and one timer for all."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from fleet.tls.errors import Refusal
from fleet.tls.half_open import HalfOpen
from fleet.tls.limits import ListenerLimits

DEADLINE_S = 10.0


class Timer:
    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due, self.call, self.is_cancelled = due, call, False

    def cancel(self) -> None:
        self.is_cancelled = True


class Clock:
    """What HalfOpen uses of an event loop."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        return self.call_at(self.now + delay, call)

    def call_at(self, due: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(due, call))
        return self.timers[-1]

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.due <= self.now and not timer.is_cancelled]:
            self.timers.remove(timer)
            timer.call()

    @property
    def due(self) -> list[float]:
        return [timer.due for timer in self.timers if not timer.is_cancelled]


class Entry:
    def __init__(self, half_open: HalfOpen, address: str = "192.0.2.1") -> None:
        self.address, self.ends = address, list[str]()
        self._half_open = half_open

    def expire(self) -> None:
        self.ends.append("expired")
        self._half_open.leave(self)

    def give_way(self) -> None:
        self.ends.append("gave way")

    def dismiss(self) -> None:
        self.ends.append("dismissed")
        self._half_open.leave(self)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def half_open(clock: Clock, **limits: Any) -> HalfOpen:
    return HalfOpen(cast(Any, clock), ListenerLimits(deadline_s=DEADLINE_S, **limits))


def test_one_timer_serves_all_and_each_has_its_own_deadline(clock: Clock) -> None:
    waiting = half_open(clock)
    first, second = Entry(waiting), Entry(waiting)
    assert waiting.enter(first) is None
    clock.advance(4)
    assert waiting.enter(second) is None
    assert clock.due == [110.0]
    clock.advance(6)
    assert (first.ends, second.ends, len(waiting)) == (["expired"], [], 1)
    assert clock.due == [114.0]
    clock.advance(4)
    assert (first.ends, second.ends, len(waiting)) == (["expired"], ["expired"], 0)
    assert clock.due == []
    third = Entry(waiting)
    assert waiting.enter(third) is None
    assert clock.due == [124.0]


def test_whoever_has_left_does_not_expire_and_leaves_once(clock: Clock) -> None:
    waiting = half_open(clock, per_address_max=1)
    entry = Entry(waiting)
    assert waiting.enter(entry) is None
    waiting.leave(entry)
    waiting.leave(entry)
    waiting.leave(Entry(waiting))
    other = Entry(waiting)
    assert waiting.enter(other) is None
    assert waiting.enter(Entry(waiting)) is Refusal.ADDRESS_CAP
    clock.advance(DEADLINE_S)
    assert (entry.ends, other.ends) == ([], ["expired"])


def test_the_caps_count_what_is_there_now(clock: Clock) -> None:
    waiting = half_open(clock, total_max=3, per_address_max=2)
    one, two = Entry(waiting), Entry(waiting)
    assert [waiting.enter(one), waiting.enter(two)] == [None, None]
    assert waiting.enter(Entry(waiting)) is Refusal.ADDRESS_CAP
    assert waiting.enter(Entry(waiting, "192.0.2.2")) is None
    assert waiting.enter(Entry(waiting, "192.0.2.3")) is None  # at the expense of the first, who holds two
    assert (one.ends, two.ends, len(waiting)) == (["gave way"], [], 3)
    assert waiting.enter(Entry(waiting, "192.0.2.4")) is None  # all hold one: the oldest
    assert (two.ends, len(waiting)) == (["gave way"], 3)
    waiting = half_open(clock, total_max=2)
    assert [waiting.enter(Entry(waiting)) for _ in range(3)] == [None, None, Refusal.TOTAL_CAP]


def test_within_a_block_who_has_been_silent_for_long_gives_way_and_who_has_not_does_not(clock: Clock) -> None:
    waiting = half_open(clock, per_address_max=2)
    silent, heard = Entry(waiting), Entry(waiting)
    assert [waiting.enter(heard), waiting.enter(silent)] == [None, None]
    waiting.heard(heard)
    assert waiting.enter(Entry(waiting)) is Refusal.ADDRESS_CAP
    clock.advance(0.9)
    assert waiting.enter(Entry(waiting)) is Refusal.ADDRESS_CAP
    clock.advance(0.1)
    newcomer = Entry(waiting)
    assert waiting.enter(newcomer) is None
    assert (silent.ends, heard.ends, newcomer.ends) == (["gave way"], [], [])
    waiting.heard(newcomer)
    clock.advance(5)
    assert waiting.enter(Entry(waiting)) is Refusal.ADDRESS_CAP  # both have sent something


@pytest.mark.parametrize("speaks", [False, True])
def test_strangers_that_fill_the_listener_pay_for_every_newcomer(clock: Clock, speaks: bool) -> None:
    waiting = half_open(clock, total_max=50)
    held = {}
    for number in range(200):
        entry = held[number] = Entry(waiting, f"192.0.2.{number % 5}")
        assert number >= 50 or waiting.enter(entry) is None
        if number >= 50:
            waiting.enter(entry)
        if speaks:
            waiting.heard(entry)
    newcomers = [Entry(waiting, f"198.51.100.{number}") for number in range(8)]
    assert [waiting.enter(entry) for entry in newcomers] == [None] * 8
    assert [entry.ends for entry in newcomers] == [[]] * 8
    assert len(waiting) == 50


def test_where_somebody_has_authenticated_before_eight_times_as_many_are_allowed(clock: Clock) -> None:
    waiting = half_open(clock, total_max=20)
    waiting.known.add("192.0.2.1")
    fleet = [Entry(waiting, "192.0.2.1") for _ in range(16)]
    strangers = [Entry(waiting, "192.0.2.2") for _ in range(4)]
    assert {waiting.enter(entry) for entry in [*fleet, *strangers]} == {None}
    assert waiting.enter(Entry(waiting, "198.51.100.1")) is None
    assert [entry.ends for entry in strangers] == [["gave way"], [], [], []]
    assert not any(entry.ends for entry in fleet)
    assert waiting.enter(Entry(waiting, "192.0.2.1")) is None
    assert [entry.ends for entry in strangers] == [["gave way"], ["gave way"], [], []]


def test_known_blocks_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr("fleet.tls.known_blocks.KNOWN_MAX", 2)
    known = half_open(clock).known
    for block in ("a", "b", "a", "c"):
        known.add(block)
    assert [block in known for block in ("a", "b", "c")] == [True, False, True]


def test_known_blocks_arrive_eight_times_as_fast(clock: Clock) -> None:
    waiting = half_open(clock, per_address_per_second=1.0)
    waiting.known.add("192.0.2.1")
    refused = []
    for _ in range(100):
        entry = Entry(waiting)
        refused.append(waiting.enter(entry))
        waiting.leave(entry)
    assert refused == [None] * 80 + [Refusal.ADDRESS_RATE] * 20


def test_addresses_that_have_left_cost_no_memory(clock: Clock) -> None:
    waiting = half_open(clock)
    for n in range(100):
        entry = Entry(waiting, f"192.0.2.{n}")
        waiting.enter(entry)
        waiting.leave(entry)
    assert not waiting._holders


def test_arrivals_are_counted_for_each_address_whatever_becomes_of_them(clock: Clock) -> None:
    waiting = half_open(clock, per_address_per_second=1.0)
    refused = []
    for _ in range(20):
        entry = Entry(waiting)
        refused.append(waiting.enter(entry))
        waiting.leave(entry)
    assert refused == [None] * 10 + [Refusal.ADDRESS_RATE] * 10
    assert waiting.enter(Entry(waiting, "192.0.2.2")) is None
    clock.advance(1)
    assert waiting.enter(Entry(waiting)) is None


def test_close_dismisses_all_and_stops_the_timer(clock: Clock) -> None:
    waiting = half_open(clock)
    entries = [Entry(waiting) for _ in range(3)]
    for entry in entries:
        waiting.enter(entry)
    waiting.close()
    assert [entry.ends for entry in entries] == [["dismissed"]] * 3
    assert clock.due == []
    half_open(clock).close()  # nothing to stop


@pytest.mark.parametrize(
    "limits", [{"total_max": 0}, {"per_address_max": 0}, {"deadline_s": 0.0}, {"per_address_per_second": -0.1}]
)
def test_limits_are_positive(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        ListenerLimits(**limits)


def test_the_least_limits() -> None:
    least = ListenerLimits(total_max=1, per_address_max=1, deadline_s=0.1, per_address_per_second=0.0)
    assert (least.connected_max, least.connected_per_address_max) == (None, None)
