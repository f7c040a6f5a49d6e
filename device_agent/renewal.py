"""Renewal time and retry delays. Pure: time and randomness are arguments.

`share` is a random number in [0, 1), drawn by the caller.
"""

from dataclasses import dataclass
from datetime import datetime

from fleet.est_client.validity import Lifetime, clock_is_credible

RENEW_AT_FRACTION = 2 / 3  # of the lifetime: a third is left for outages
ENDED_SECONDS_MAX = 6 * 3600.0  # between two attempts with what the server has refused permanently
RENEW_WINDOW_FRACTION = 1 / 12  # of the lifetime: spreads the renewals of a fleet that was enrolled at once


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter: delays are drawn from [floor, floor + min(cap, base·2ⁿ))."""

    base_seconds: float
    cap_seconds: float
    floor_seconds: float = 0.0

    def delay_seconds(self, attempt: int, share: float) -> float:
        """The delay after failure number `attempt`, counted from 0."""
        # min() on the exponent: 2.0 ** 1100 overflows a float, and a device may retry for years.
        return self.floor_seconds + share * min(self.cap_seconds, self.base_seconds * 2.0 ** min(attempt, 60))


def renewal_due_at(lifetime: Lifetime, share: float, fraction: float = RENEW_AT_FRACTION) -> datetime:
    """When to renew this certificate: in a window that opens at `fraction` of its lifetime."""
    window = min(RENEW_WINDOW_FRACTION, (1 - fraction) / 2)  # with a late fraction, time is still left for retries
    return lifetime.begin + lifetime.length * (fraction + share * window)


def renewal_is_due(lifetime: Lifetime, now: datetime, share: float, fraction: float = RENEW_AT_FRACTION) -> bool:
    """Whether to renew now. Never by a clock that is not credible: the renewal would be repeated in vain."""
    return clock_is_credible(now, lifetime) and now >= renewal_due_at(lifetime, share, fraction)


def renewal_backoff(lifetime: Lifetime) -> Backoff:
    """Backoff of failed renewals: several dozen attempts fit into the last third of any lifetime."""
    seconds = lifetime.length.total_seconds()
    return Backoff(
        base_seconds=min(60.0, max(1.0, seconds / 1000)),
        cap_seconds=min(3600.0, max(5.0, seconds / 50)),
    )
