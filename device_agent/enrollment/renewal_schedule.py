"""Renewal schedule of the current certificate: by its lifetime, or earlier if the server suggests it.

The server's renewal information (as in RFC 9773, under EST's path) is polled every few hours, and soon after the server
has refused the certificate, in a child process like an enrollment. A server that does not support it, or cannot be
reached, changes nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from device_agent.enrollment.enrollment import EnrollmentChild, EnrollmentJob, EnrollmentProcess, Outcome
from device_agent.renewal import renewal_due_at, renewal_is_due
from device_agent.store.identity_store import Identity
from fleet.est_client.validity import clock_is_credible

ASK_SECONDS = 6 * 3600.0  # without Retry-After
ASK_SECONDS_MIN = 60.0
ASK_SECONDS_MAX = 24 * 3600.0
FIRST_FRACTION = 1 / 20  # of the lifetime: the first poll is within this time from the start
JITTER = 0.1  # of the polling interval, to either side
DEADLINE_SECONDS = 60.0


@dataclass(slots=True)
class RenewalSchedule:
    """Mutable, and owned by the runner. Times are monotonic seconds, unless they are datetimes."""

    home: Path
    fraction: float
    chance: Callable[[], float]
    monotonic: Callable[[], float]
    refused_seconds: float = ASK_SECONDS_MIN
    """At least, between two polls while the server refuses the certificate."""
    child: EnrollmentChild = field(init=False)
    _ask_at: float | None = None
    _asked_at: float = -math.inf
    _share: float = 0.0
    _suggested: dict[str, datetime] = field(default_factory=dict)
    """By certificate fingerprint; one entry."""
    _renewable: tuple[str, float] = ("", -math.inf)
    """Fingerprint of the certificate that the server has last suggested to renew, and when it was asked."""

    def __post_init__(self) -> None:
        self._share = self.chance()
        self.child = EnrollmentChild(self.monotonic, lambda job: EnrollmentProcess(job))

    def due_at(self, identity: Identity) -> datetime:
        own = renewal_due_at(identity.lifetime, self._share, self.fraction)
        return min(own, self._suggested.get(identity.certificate.fingerprint, own))

    def planned(self, identity: Identity | None) -> dict[str, datetime]:
        """For the log: when the agent renews by itself, unless the server suggests an earlier time."""
        return {} if identity is None else {"renewal_due_at": self.due_at(identity)}

    def is_due(self, identity: Identity, now: datetime) -> bool:
        if renewal_is_due(identity.lifetime, now, self._share, self.fraction):
            return True
        return clock_is_credible(now, identity.lifetime) and now >= self.due_at(identity)

    def was_renewable(self, identity: Identity, since: float) -> bool:
        """Whether the server, asked at `since` or later, has said that `identity` can be renewed."""
        fingerprint, asked_at = self._renewable
        return fingerprint == identity.certificate.fingerprint and asked_at >= since

    def poll_if_due(self, identity: Identity) -> None:
        """Poll the server about `identity`, if due."""
        now = self.monotonic()
        if self._ask_at is None:
            within = min(ASK_SECONDS, identity.lifetime.length.total_seconds() * FIRST_FRACTION)
            self._ask_at = now + within * self.chance()
        if self.child.running or now < self._ask_at:
            return
        self._asked_at = now
        fingerprint = identity.certificate.fingerprint
        self.child.start(EnrollmentJob(self.home, "window", replaces=fingerprint, deadline_seconds=DEADLINE_SECONDS))

    @property
    def ask_at(self) -> float:
        """When the server is polled next; now, before the first poll is planned."""
        return self._ask_at if self._ask_at is not None else self.monotonic()

    def refused(self) -> None:
        """The server refuses the certificate, and may want it renewed: poll soon, each device at another moment."""
        soon = max(self.monotonic(), self._asked_at + self.refused_seconds) + self.refused_seconds * self.chance()
        self._ask_at = min(soon, self._ask_at if self._ask_at is not None else math.inf)

    def read(self) -> datetime | None:
        """The newly suggested time, for the log; None if there is none."""
        outcome = self.child.read()
        return self._on_outcome(outcome) if outcome is not None else None

    def _on_outcome(self, outcome: Outcome) -> datetime | None:
        again = outcome.retry_after_seconds or ASK_SECONDS
        again = min(ASK_SECONDS_MAX, max(ASK_SECONDS_MIN, again))
        self._ask_at = self.monotonic() + again * (1 - JITTER + 2 * JITTER * self.chance())
        if not outcome.ok or not outcome.window:
            return None
        self._renewable = (outcome.slot, self._asked_at)
        start, end = (datetime.fromisoformat(text) for text in outcome.window)
        due = start + (end - start) * self.chance()
        known = self._suggested.get(outcome.slot)
        if known is not None and start <= known <= end:
            return None  # drawn from the same window before: repeated draws would favor its beginning
        self._suggested = {outcome.slot: due}
        return due
