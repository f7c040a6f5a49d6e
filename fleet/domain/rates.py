"""Rate limits: token buckets, and exponential backoff after failures.

Time is an argument, in seconds of a monotonic clock.

Each key costs one number, and at most KEYS_MAX keys are kept: the least recently active is evicted first, and starts
with a full bucket again. That is the price of bounded memory; connections from one address are capped separately.
"""

from collections.abc import Hashable

from msgspec import Struct

from fleet.domain.recent import Recent

KEYS_MAX = 100_000  # about 15 MB
BURST_SECONDS = 10.0  # burst allowed after an idle time, in seconds of the rate


class RateLimits(Struct, frozen=True):
    """Rates per second, beyond which the response is 429; 0 for no limit."""

    address_per_second: float = 100.0
    """Requests from one address (of IPv6, one /64): a fleet behind one NAT."""
    credential_per_second: float = 20.0
    """Requests with one certificate or token from one address: a station at full speed makes ten."""
    failures_max: int = 5
    """Consecutive refusals (401, 403) of one credential before it must wait."""
    backoff_seconds_max: float = 300.0
    """Upper bound of the wait, which starts at one second and doubles with each failure."""


class Buckets:
    """One bucket for each key (GCRA)."""

    __slots__ = ("_burst_s", "_full_at", "_interval_s")

    def __init__(self, per_second: float, keys_max: int = KEYS_MAX) -> None:
        self.set_rate(per_second)
        self._full_at: Recent[Hashable, float] = Recent(keys_max)

    def set_rate(self, per_second: float) -> None:
        """From now on; what a key has taken stays taken."""
        self._interval_s = 1 / per_second if per_second else 0.0
        self._burst_s = max(BURST_SECONDS, self._interval_s)

    def take(self, key: Hashable, now: float) -> float:
        """0.0 if one was taken; otherwise the seconds until one is available."""
        if not self._interval_s:
            return 0.0
        full_at = max(self._full_at.get(key, now), now)
        too_early = full_at - now - (self._burst_s - self._interval_s)  # exact for a key's first, whatever `now` is
        if too_early > 0:
            return too_early
        self._full_at.put(key, full_at + self._interval_s)
        return 0.0


class Backoff:
    """Exponential backoff of keys with consecutive failures."""

    __slots__ = ("_failed", "_failures_max", "_seconds_max")

    def __init__(self, failures_max: int, seconds_max: float, keys_max: int = KEYS_MAX) -> None:
        self.set_limits(failures_max, seconds_max)
        self._failed: Recent[Hashable, tuple[int, float]] = Recent(keys_max)

    def set_limits(self, failures_max: int, seconds_max: float) -> None:
        """For the failures to come."""
        self._failures_max, self._seconds_max = failures_max, seconds_max

    def wait_s(self, key: Hashable, now: float) -> float:
        """Seconds that `key` must still wait; 0.0 for none."""
        _, until = self._failed.get(key, (0, 0.0))
        return max(0.0, until - now)

    def failed(self, key: Hashable, now: float) -> None:
        if not self._failures_max:
            return
        count = self._failed.get(key, (0, 0.0))[0] + 1
        over = min(count - self._failures_max, 30)  # 2**30 s is longer than any cap
        self._failed.put(key, (count, now + min(self._seconds_max, 2.0**over) if over >= 0 else 0.0))

    def succeeded(self, key: Hashable) -> None:
        self._failed.pop(key, None)


class Rates:
    """Rate limits of one server, by address and by credential."""

    __slots__ = ("_addresses", "_backoff", "_credentials")

    def __init__(self, limits: RateLimits) -> None:
        self._addresses = Buckets(limits.address_per_second)
        self._credentials = Buckets(limits.credential_per_second)
        self._backoff = Backoff(limits.failures_max, limits.backoff_seconds_max)

    def set_limits(self, limits: RateLimits) -> None:
        """From now on; nobody's debts are forgotten."""
        self._addresses.set_rate(limits.address_per_second)
        self._credentials.set_rate(limits.credential_per_second)
        self._backoff.set_limits(limits.failures_max, limits.backoff_seconds_max)

    def wait_s(self, source: str, credential: Hashable | None, now: float) -> float:
        """0.0 if a request is allowed; otherwise the seconds for Retry-After.

        The credential's limit is checked first, so that one over its limit does not consume the share of others behind
        the same address.
        """
        if credential is not None:
            wait = self._backoff.wait_s(credential, now) or self._credentials.take(credential, now)
            if wait:
                return wait
        return self._addresses.take(source, now)

    def answered(self, credential: Hashable | None, status: int, now: float) -> None:
        """Record a response `status`: refusals count against the credential."""
        if credential is None:
            return
        if status in (401, 403):
            self._backoff.failed(credential, now)
        elif status < 400:
            self._backoff.succeeded(credential)
