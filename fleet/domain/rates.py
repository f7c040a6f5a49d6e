"""How often somebody may ask: token buckets, and backoff after failures.

Time is an argument, in seconds of a clock that never goes back.

Each key costs one number, and no more than KEYS_MAX keys are remembered: whoever has been quiet longest is forgotten
first, and then starts with a full bucket again. That is the price of a bounded memory, and the cap on connections from
one address stands beside it.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

KEYS_MAX = 100_000  # about 15 MB
BURST_SECONDS = 10.0  # so much of its rate may come at once, after a quiet time


@dataclass(frozen=True, slots=True)
class RateLimits:
    """How much of each is taken a second, before 429 is the answer; 0 for no limit."""

    address_per_second: float = 100.0
    """Requests from one address (of IPv6, one /64): a fleet behind one NAT."""
    credential_per_second: float = 20.0
    """Requests with one certificate or one token from one address: a station at full speed does ten."""
    failures_max: int = 5
    """Refusals (401, 403) in a row of one credential, before it has to wait."""
    backoff_seconds_max: float = 300.0
    """The first wait is a second, and each failure after it doubles that, up to here."""


class Buckets:
    """One bucket a key (GCRA): `take` while there is something in it."""

    __slots__ = ("_burst_s", "_full_at", "_interval_s", "_keys_max")

    def __init__(self, per_second: float, keys_max: int = KEYS_MAX) -> None:
        self._interval_s = 1 / per_second if per_second else 0.0
        self._burst_s = max(BURST_SECONDS, self._interval_s)
        self._keys_max = keys_max
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def take(self, key: Hashable, now: float) -> float:
        """0.0 when one was taken; otherwise the seconds until there is one, and nothing was taken."""
        if not self._interval_s:
            return 0.0
        full_at = max(self._full_at.get(key, now), now) + self._interval_s
        too_early = full_at - now - self._burst_s
        if too_early > 0:
            return too_early
        self._full_at[key] = full_at
        self._full_at.move_to_end(key)
        if len(self._full_at) > self._keys_max:
            self._full_at.popitem(last=False)
        return 0.0


class Backoff:
    """Who has failed too often in a row waits, twice as long each time."""

    __slots__ = ("_failed", "_failures_max", "_keys_max", "_seconds_max")

    def __init__(self, failures_max: int, seconds_max: float, keys_max: int = KEYS_MAX) -> None:
        self._failures_max, self._seconds_max, self._keys_max = failures_max, seconds_max, keys_max
        self._failed: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()

    def wait_s(self, key: Hashable, now: float) -> float:
        """The seconds that `key` has to wait still; 0.0 for none."""
        _, until = self._failed.get(key, (0, 0.0))
        return max(0.0, until - now)

    def failed(self, key: Hashable, now: float) -> None:
        if not self._failures_max:
            return
        count = self._failed.get(key, (0, 0.0))[0] + 1
        over = min(count - self._failures_max, 30)  # 2**30 s is longer than any cap
        self._failed[key] = count, now + min(self._seconds_max, 2.0**over) if over >= 0 else 0.0
        self._failed.move_to_end(key)
        if len(self._failed) > self._keys_max:
            self._failed.popitem(last=False)

    def succeeded(self, key: Hashable) -> None:
        self._failed.pop(key, None)


class Rates:
    """What one server takes from each address and each credential."""

    __slots__ = ("_addresses", "_backoff", "_credentials")

    def __init__(self, limits: RateLimits) -> None:
        self._addresses = Buckets(limits.address_per_second)
        self._credentials = Buckets(limits.credential_per_second)
        self._backoff = Backoff(limits.failures_max, limits.backoff_seconds_max)

    def wait_s(self, source: str, credential: Hashable | None, now: float) -> float:
        """0.0 when a request may be answered; otherwise after how many seconds to come again.

        The credential is asked first: one that is too quick does not use up what its neighbours behind the same
        address may have.
        """
        if credential is not None:
            wait = self._backoff.wait_s(credential, now) or self._credentials.take(credential, now)
            if wait:
                return wait
        return self._addresses.take(source, now)

    def answered(self, credential: Hashable | None, status: int, now: float) -> None:
        """A request was answered with `status`: refusals count against its credential."""
        if credential is None:
            return
        if status in (401, 403):
            self._backoff.failed(credential, now)
        elif status < 400:
            self._backoff.succeeded(credential)
