"""A certificate's validity by a clock that may not be set."""

from datetime import UTC, datetime, timedelta

import pytest

from fleet.est_client.validity import CLOCK_FLOOR, Lifetime, clock_is_credible, has_expired

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
END = BEGIN + timedelta(days=30)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("obtained_at", "begin"),
    [
        (None, BEGIN),
        (BEGIN, BEGIN),
        (BEGIN + timedelta(hours=1), BEGIN + timedelta(hours=1)),
        (END - SECOND, END - SECOND),
        (END, BEGIN),  # received when it was over, or by a clock that was not set
        (BEGIN - SECOND, BEGIN),
    ],
)
def test_its_age_counts_from_its_arrival(obtained_at: datetime | None, begin: datetime) -> None:
    lifetime = Lifetime(BEGIN, END, obtained_at)
    assert (lifetime.begin, lifetime.length) == (begin, END - begin)


@pytest.mark.parametrize(
    ("now", "credible", "expired"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), False, False),
        (BEGIN - SECOND, False, False),
        (BEGIN, True, False),
        (END - SECOND, True, False),
        (END, True, True),
        (END + timedelta(days=3650), True, True),
    ],
)
def test_a_clock_from_before_the_certificate_proves_nothing(now: datetime, *, credible: bool, expired: bool) -> None:
    lifetime = Lifetime(BEGIN, END)
    assert (clock_is_credible(now, lifetime), has_expired(lifetime, now)) == (credible, expired)


def test_no_clock_from_before_2020_is_credible() -> None:
    old = Lifetime(datetime(2010, 1, 1, tzinfo=UTC), datetime(2011, 1, 1, tzinfo=UTC))
    assert datetime(2020, 1, 1, tzinfo=UTC) == CLOCK_FLOOR
    assert [clock_is_credible(CLOCK_FLOOR - SECOND, each) for each in (None, old)] == [False, False]
    assert [clock_is_credible(CLOCK_FLOOR, each) for each in (None, old)] == [True, True]
    assert not has_expired(old, CLOCK_FLOOR - SECOND)
    assert has_expired(old, CLOCK_FLOOR)
