"""When to renew and how to wait: pure functions of time and chance."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.renewal import Backoff, renewal_backoff, renewal_due_at, renewal_is_due
from fleet.est_client.validity import Lifetime, clock_is_credible, has_expired

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
MONTH = Lifetime(BEGIN, BEGIN + timedelta(days=30))
SHARES = st.floats(0, 1, exclude_max=True)


def test_two_thirds_and_a_part_of_a_twelfth() -> None:
    assert renewal_due_at(MONTH, share=0.0) == BEGIN + timedelta(days=20)
    assert renewal_due_at(MONTH, share=1.0) - (BEGIN + timedelta(days=22.5)) < timedelta(seconds=1)
    assert renewal_due_at(MONTH, share=0.0, fraction=0.5) == BEGIN + timedelta(days=15)


@given(SHARES, st.floats(0.05, 0.95), st.integers(60, 10**9))
def test_always_inside_the_lifetime(share: float, fraction: float, seconds: int) -> None:
    lifetime = Lifetime(BEGIN, BEGIN + timedelta(seconds=seconds))
    assert BEGIN < renewal_due_at(lifetime, share, fraction) < lifetime.not_after


def test_a_certificate_dated_back_is_not_due_as_it_arrives() -> None:
    arrived = BEGIN + timedelta(minutes=5)
    minute = Lifetime(BEGIN, arrived + timedelta(minutes=1), obtained_at=arrived)
    assert not renewal_is_due(minute, arrived, share=0.0)
    assert renewal_is_due(minute, arrived + timedelta(seconds=40), share=0.0)


@pytest.mark.parametrize("obtained_at", [BEGIN - timedelta(days=9000), BEGIN + timedelta(days=30)])
def test_an_arrival_outside_the_validity_says_nothing(obtained_at: datetime) -> None:
    assert Lifetime(MONTH.not_before, MONTH.not_after, obtained_at).length == MONTH.length


@pytest.mark.parametrize(
    ("now", "credible"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), False),
        (datetime(2019, 12, 31, tzinfo=UTC), False),
        (BEGIN - timedelta(seconds=1), False),
        (BEGIN, True),
        (BEGIN + timedelta(days=9999), True),
    ],
)
def test_whether_the_clock_can_be_right(now: datetime, credible: bool) -> None:
    assert clock_is_credible(now, MONTH) is credible


def test_without_a_certificate_only_the_year_counts() -> None:
    assert clock_is_credible(datetime(2020, 1, 1, tzinfo=UTC), None)
    assert not clock_is_credible(datetime(2019, 12, 31, tzinfo=UTC), None)


def test_a_clock_that_is_not_set_declares_nothing() -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    old = Lifetime(datetime(1960, 1, 1, tzinfo=UTC), datetime(1965, 1, 1, tzinfo=UTC))
    assert not has_expired(old, epoch)
    assert not renewal_is_due(MONTH, epoch, share=0.0)


def test_expired_means_from_not_after_on() -> None:
    assert not has_expired(MONTH, MONTH.not_after - timedelta(seconds=1))
    assert has_expired(MONTH, MONTH.not_after)


def test_a_jump_forward_makes_it_due_at_once() -> None:
    assert renewal_is_due(MONTH, BEGIN + timedelta(days=4000), share=0.99)


@given(st.integers(0, 5000), SHARES)
def test_backoff_stays_between_floor_and_cap(attempt: int, share: float) -> None:
    delay = Backoff(base_seconds=1, cap_seconds=120, floor_seconds=60).delay_seconds(attempt, share)
    assert 60 <= delay <= 180


def test_backoff_doubles_and_is_jittered_in_full() -> None:
    backoff = Backoff(base_seconds=1, cap_seconds=120)
    assert [backoff.delay_seconds(attempt, 0.5) for attempt in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff.delay_seconds(5, 0.0) == 0  # the whole range, from nothing: that is what spreads a fleet


@pytest.mark.parametrize(
    "lifetime", [timedelta(minutes=1), timedelta(hours=1), timedelta(days=90), timedelta(days=3650)]
)
def test_many_renewals_can_fail_before_the_end(lifetime: timedelta) -> None:
    backoff = renewal_backoff(Lifetime(BEGIN, BEGIN + lifetime))
    worst, tries = 0.0, 0
    while worst < lifetime.total_seconds() / 4:
        worst += backoff.delay_seconds(tries, 0.5)
        tries += 1
    assert tries >= 4


@pytest.mark.parametrize(
    ("lifetime", "base", "cap"),
    [
        (timedelta(minutes=1), 1.0, 5.0),
        (timedelta(hours=1), 3.6, 72.0),
        (timedelta(hours=10), 36.0, 720.0),
        (timedelta(days=90), 60.0, 3600.0),
    ],
)
def test_failed_renewals_are_spaced_by_the_lifetime(lifetime: timedelta, base: float, cap: float) -> None:
    assert renewal_backoff(Lifetime(BEGIN, BEGIN + lifetime)) == Backoff(base, cap, floor_seconds=0.0)


def test_a_late_window_leaves_half_of_what_is_left() -> None:
    late = renewal_due_at(MONTH, share=1.0, fraction=0.9)
    assert abs(late - (BEGIN + timedelta(days=28.5))) < timedelta(seconds=1)
    assert renewal_due_at(MONTH, share=0.0) == renewal_due_at(MONTH, share=0.0, fraction=2 / 3)


def test_due_means_from_that_moment_on() -> None:
    due = renewal_due_at(MONTH, share=0.5)
    assert renewal_is_due(MONTH, due, share=0.5)
    assert not renewal_is_due(MONTH, due - timedelta(seconds=1), share=0.5)


def test_age_is_counted_from_the_arrival() -> None:
    arrived = BEGIN + timedelta(days=10)
    lifetime = Lifetime(MONTH.not_before, MONTH.not_after, arrived)
    assert (lifetime.begin, lifetime.length) == (arrived, timedelta(days=20))
    assert Lifetime(MONTH.not_before, MONTH.not_after, BEGIN).begin == BEGIN
    assert Lifetime(MONTH.not_before, MONTH.not_after).length == timedelta(days=30)
