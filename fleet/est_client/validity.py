"""Validity of a certificate, judged by a clock that may not be set. Pure: the time is an argument."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

CLOCK_FLOOR = datetime(2020, 1, 1, tzinfo=UTC)  # a device without a battery-backed clock boots in 1970 or 2000


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Validity period of a certificate: both ends aware, UTC."""

    not_before: datetime
    not_after: datetime
    obtained_at: datetime | None = None
    """When this device received it, if known. Issuers backdate notBefore by minutes or a day: counted from there, a
    short-lived certificate would be due for renewal on arrival, again and again."""

    @property
    def begin(self) -> datetime:
        """Start of its age."""
        if self.obtained_at is not None and self.not_before <= self.obtained_at < self.not_after:
            return self.obtained_at
        return self.not_before

    @property
    def length(self) -> timedelta:
        return self.not_after - self.begin


def clock_is_credible(now: datetime, lifetime: Lifetime | None) -> bool:
    """Whether `now` can be the real time.

    Before 2020, or before our own certificate was valid, the clock has not been set since boot. It then proves neither
    that a certificate has expired nor that it has not.
    """
    return now >= CLOCK_FLOOR and (lifetime is None or now >= lifetime.not_before)


def has_expired(lifetime: Lifetime, now: datetime) -> bool:
    """Whether the certificate has expired, by a credible clock."""
    return clock_is_credible(now, lifetime) and now >= lifetime.not_after
