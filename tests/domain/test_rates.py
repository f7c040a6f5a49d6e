"""Token buckets and backoff, walked through time."""

import pytest

from fleet.domain.rates import BURST_SECONDS, Backoff, Buckets, RateLimits, Rates


class TestBuckets:
    def test_a_burst_and_then_its_rate(self) -> None:
        buckets = Buckets(2.0)
        burst = int(2 * BURST_SECONDS)
        assert [buckets.take("a", 100.0) for _ in range(burst)] == [0.0] * burst
        wait = buckets.take("a", 100.0)
        assert wait == pytest.approx(0.5)
        assert buckets.take("a", 100.0 + wait / 2) == pytest.approx(wait / 2)
        assert buckets.take("a", 100.0 + wait) == 0.0
        assert buckets.take("a", 100.0 + wait) > 0.0

    def test_what_was_refused_is_not_taken(self) -> None:
        buckets = Buckets(1.0)
        while not buckets.take("a", 0.0):
            pass
        assert {buckets.take("a", 0.0) for _ in range(100)} == {1.0}

    def test_one_does_not_pay_for_another(self) -> None:
        buckets = Buckets(1.0)
        while not buckets.take("a", 0.0):
            pass
        assert buckets.take("b", 0.0) == 0.0

    def test_a_slow_rate_still_lets_one_in(self) -> None:
        buckets = Buckets(0.01)
        assert buckets.take("a", 0.0) == 0.0
        assert buckets.take("a", 1.0) == pytest.approx(99.0)
        assert buckets.take("a", 100.0) == 0.0

    def test_the_first_is_let_in_at_any_time(self) -> None:
        buckets = Buckets(0.001)
        assert {buckets.take(number, 64_000 + number / 7) for number in range(1_000)} == {0.0}

    def test_no_limit(self) -> None:
        buckets = Buckets(0.0)
        assert {buckets.take("a", 0.0) for _ in range(10_000)} == {0.0}

    def test_memory_is_bounded_and_the_busy_are_remembered(self) -> None:
        buckets = Buckets(1.0, keys_max=10)
        while not buckets.take("busy", 0.0):
            pass
        for n in range(9):
            buckets.take(n, 0.0)
        assert buckets.take("busy", 0.0) > 0.0
        assert len(buckets._full_at) == 10
        for n in range(1000):
            buckets.take(n, 0.0)
        assert len(buckets._full_at) == 10

    def test_beyond_the_memory_the_least_recently_active_is_forgotten(self) -> None:
        buckets = Buckets(1.0, keys_max=3)
        for key in ("a", "b", "c"):
            while not buckets.take(key, 0.0):
                pass
        assert [buckets.take(key, 1.0) for key in ("a", "d")] == [0.0, 0.0]
        used_up = {key: [buckets.take(key, 1.0) > 0.0 for _ in range(2)] for key in ("a", "c", "b")}
        assert used_up == {"a": [True, True], "c": [False, True], "b": [False, False]}


class TestBackoff:
    def test_it_doubles_up_to_its_cap_and_ends_with_a_success(self) -> None:
        backoff = Backoff(failures_max=3, seconds_max=10.0)
        waits = []
        for _ in range(8):
            backoff.failed("a", 0.0)
            waits.append(backoff.wait_s("a", 0.0))
        assert waits == [0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
        assert backoff.wait_s("a", 9.0) == 1.0
        assert backoff.wait_s("a", 11.0) == 0.0
        assert backoff.wait_s("b", 0.0) == 0.0
        backoff.succeeded("a")
        backoff.failed("a", 0.0)
        assert backoff.wait_s("a", 0.0) == 0.0

    def test_switched_off(self) -> None:
        backoff = Backoff(failures_max=0, seconds_max=10.0)
        for _ in range(100):
            backoff.failed("a", 0.0)
        assert backoff.wait_s("a", 0.0) == 0.0

    def test_years_of_failures_fit(self) -> None:
        backoff = Backoff(failures_max=1, seconds_max=300.0)
        for _ in range(5000):
            backoff.failed("a", 0.0)
        assert backoff.wait_s("a", 0.0) == 300.0

    def test_a_wait_stays_a_number_whatever_the_cap(self) -> None:
        backoff = Backoff(failures_max=1, seconds_max=1e300)
        for _ in range(5000):
            backoff.failed("a", 0.0)
        assert backoff.wait_s("a", 0.0) == 2.0**30

    def test_a_wait_is_counted_from_the_last_failure(self) -> None:
        backoff = Backoff(failures_max=2, seconds_max=100.0)
        for now in (5.0, 6.0, 7.0):
            backoff.failed("a", now)
        assert backoff.wait_s("a", 7.0) == 2.0
        assert backoff.wait_s("a", 8.5) == 0.5

    def test_whoever_failed_last_is_remembered_longest(self) -> None:
        backoff = Backoff(failures_max=1, seconds_max=10.0, keys_max=3)
        for key in ("a", "b", "c", "a", "d"):
            backoff.failed(key, 0.0)
        assert [backoff.wait_s(key, 0.0) for key in "abcd"] == [2.0, 0.0, 1.0, 1.0]

    def test_memory_is_bounded(self) -> None:
        backoff = Backoff(failures_max=1, seconds_max=10.0, keys_max=10)
        for n in range(1000):
            backoff.failed(n, 0.0)
        assert len(backoff._failed) == 10


class TestRates:
    def test_by_default_the_fifth_refusal_in_a_row_costs_a_second_and_a_wait_is_at_most_five_minutes(self) -> None:
        rates = Rates(RateLimits())
        for expected in [0.0, 0.0, 0.0, 0.0, 1.0, 2.0]:
            rates.answered("a", 401, 0.0)
            assert rates.wait_s("x", "a", 0.0) == expected
        for _ in range(20):
            rates.answered("a", 401, 0.0)
        assert rates.wait_s("x", "a", 0.0) == 300.0

    def test_a_hasty_credential_leaves_its_neighbors_their_share(self) -> None:
        rates = Rates(RateLimits(address_per_second=10.0, credential_per_second=1.0))
        let_in = sum(not rates.wait_s("nat", "noisy", 0.0) for _ in range(10_000))
        assert let_in == BURST_SECONDS
        assert rates.wait_s("nat", "quiet", 0.0) == 0.0
        assert sum(not rates.wait_s("nat", None, 0.0) for _ in range(10_000)) == 10 * BURST_SECONDS - let_in - 1

    def test_refusals_count_and_other_failures_do_not(self) -> None:
        rates = Rates(RateLimits(failures_max=2))
        for status in (400, 404, 409, 413, 500, 503):
            for _ in range(5):
                rates.answered("a", status, 0.0)
        assert rates.wait_s("x", "a", 0.0) == 0.0
        rates.answered("a", 401, 0.0)
        rates.answered("a", 200, 0.0)
        rates.answered("a", 403, 0.0)
        assert rates.wait_s("x", "a", 0.0) == 0.0
        rates.answered("a", 403, 0.0)
        assert rates.wait_s("x", "a", 0.0) == 1.0
        assert rates.wait_s("x", "b", 0.0) == 0.0
        for _ in range(100):
            rates.answered(None, 401, 0.0)
        assert rates.wait_s("x", None, 0.0) == 0.0

    def test_only_an_answer_that_is_no_failure_forgives_earlier_refusals(self) -> None:
        for status, forgives in ((200, True), (304, True), (399, True), (400, False), (404, False), (500, False)):
            rates = Rates(RateLimits(failures_max=2))
            rates.answered("a", 401, 0.0)
            rates.answered("a", status, 0.0)
            rates.answered("a", 403, 0.0)
            assert (rates.wait_s("x", "a", 0.0) == 0.0) is forgives, status

    def test_a_credential_that_has_to_wait_takes_nothing_from_its_address(self) -> None:
        rates = Rates(RateLimits(address_per_second=1.0, credential_per_second=100.0, failures_max=1))
        rates.answered("a", 401, 0.0)
        assert all(rates.wait_s("nat", "a", 0.0) for _ in range(100))
        assert sum(not rates.wait_s("nat", None, 0.0) for _ in range(100)) == BURST_SECONDS


def test_a_changed_rate_counts_from_now_on_and_forgets_no_debt() -> None:
    rates = Rates(RateLimits(address_per_second=1, credential_per_second=0, failures_max=0))
    assert all(rates.wait_s("a", None, 0.0) == 0.0 for _ in range(10))
    assert rates.wait_s("a", None, 0.0) > 0
    rates.set_limits(RateLimits(address_per_second=0, credential_per_second=1, failures_max=1))
    assert rates.wait_s("a", None, 0.0) == 0.0
    assert all(rates.wait_s("a", "key", 0.0) == 0.0 for _ in range(10))
    assert rates.wait_s("a", "key", 0.0) > 0
    rates.answered("other", 401, 0.0)
    assert rates.wait_s("a", "other", 0.0) == 1.0
    rates.set_limits(RateLimits(address_per_second=1))
    assert rates.wait_s("a", None, 0.0) > 0
