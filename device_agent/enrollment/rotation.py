"""Rotation of the certificate: the child process, the retries, and the callers that await the outcome."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from device_agent.enrollment.enrollment import EnrollmentChild, EnrollmentJob, EnrollmentProcess, Outcome
from device_agent.renewal import ENDED_SECONDS_MAX, Backoff, renewal_backoff
from device_agent.store.identity_store import Identity
from fleet.est_client.validity import Lifetime

PROMOTE_RETRY_SECONDS = 10.0  # after the switch could not be stored
RETRY_AFTER_FRACTION_MAX = 1 / 4  # of the lifetime left: no server puts a renewal off until it is too late
PATIENCE_SECONDS = 10.0  # of a renewal that somebody waits for: the server's wish to retry later is then its outcome
QUIESCING_SECONDS_MAX = 15.0  # for acknowledgements, before a candidate is proven

OnRenewed = Callable[[str, str], None]
"""Called with ("", "") once the new certificate is in use, or with a message and advice on failure."""


@dataclass(slots=True)
class Rotation:
    """Mutable, and owned by the runner. Times are monotonic seconds."""

    refused_floor_seconds: float
    chance: Callable[[], float]
    monotonic: Callable[[], float]
    child: EnrollmentChild = field(init=False)
    forced: bool = False
    candidate_refused: bool = False
    renew_at: float = 0.0
    prove_at: float = 0.0
    promote_at: float = 0.0
    quiescing_until: float = 0.0
    ended: bool = False
    """The current certificate can never be renewed, as the server has said, or for want of its key; the next attempt is
    another one."""
    recovers: bool = False
    """The last child was started to enroll with the bootstrap credential."""
    renews: str = ""
    """Fingerprint of the certificate that the last child was started to renew."""
    done: int = 0
    """Number of rotations since the start."""
    _failures: int = 0
    _known: tuple[Identity | None, Identity | None] | None = None
    """The current identity and the candidate, as last seen in the store."""
    _waiting: list[OnRenewed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.child = EnrollmentChild(self.monotonic, lambda job: EnrollmentProcess(job))

    def force(self, on_renewed: OnRenewed | None) -> None:
        """Renew now, even if not due. `on_renewed` is called with the outcome."""
        self.forced = True
        self.renew_at = self.prove_at = 0.0
        if on_renewed is not None:
            self._waiting.append(on_renewed)

    def start(self, job: EnrollmentJob) -> None:
        """Start the child."""
        self.forced = False
        self.renews, self.recovers = job.renews, job.operation == "recover"
        if self._waiting:
            job = replace(job, patience_seconds=PATIENCE_SECONDS)
        self.child.start(job)

    def follow(self, current: Identity | None, candidate: Identity | None) -> None:
        """Take note of what the store holds, whichever process has put it there."""
        known, self._known = self._known, (current, candidate)
        if known is None:
            return  # as the agent starts
        if current is not None and current != known[0]:
            self.succeeded()
        if candidate is not None and candidate != known[1]:
            self.fetched()

    def fetched(self) -> None:
        """A candidate is in place."""
        self.candidate_refused = False
        self.prove_at = 0.0

    def fetch_failed(self, outcome: Outcome, lifetime: Lifetime, now: datetime, *, final: bool = False) -> float:
        """Schedule the next attempt, and return the seconds until then.

        `final`: every credential is refused permanently. A Retry-After counts up to a fraction of what is left of the
        lifetime, or up to the backoff's own maximum.
        """
        backoff = renewal_backoff(lifetime)
        left = min(lifetime.length, lifetime.not_after - now).total_seconds()  # the clock may not be set
        asked = min(outcome.retry_after_seconds, max(left * RETRY_AFTER_FRACTION_MAX, backoff.cap_seconds))
        if outcome.refused:
            # Refused by the last rung: nothing is lost by waiting, until somebody acts.
            cap = max(backoff.cap_seconds, ENDED_SECONDS_MAX) if final else backoff.cap_seconds
            backoff = Backoff(backoff.base_seconds, cap, self.refused_floor_seconds)
        wait = max(backoff.delay_seconds(self._failures, self.chance()), asked)
        self._failures += 1
        self.ended = outcome.ended
        self.renew_at = self.monotonic() + wait
        self.answer_waiting(outcome.message, outcome.advice)
        return wait

    def proof_failed(self, message: str, *, refused: bool, lifetime: Lifetime) -> float:
        """The candidate failed, or could not be tried. Schedule the next attempt, and return the seconds until then."""
        wait = renewal_backoff(lifetime).delay_seconds(self._failures, self.chance())
        self._failures += 1
        self.candidate_refused = refused
        self.prove_at = self.renew_at = self.monotonic() + wait
        self.answer_waiting(message, "The working certificate is kept.")
        return wait

    def key_is_lost(self, *, is_candidates: bool) -> None:
        """The key of the candidate, or of the current certificate, is of another TPM: it proves and renews nothing."""
        if is_candidates:
            self.candidate_refused = True
        else:
            self.ended = True

    def succeeded(self) -> None:
        """The candidate is current."""
        self.done += 1
        self._failures = 0
        self.candidate_refused = self.ended = False
        self.renew_at = 0.0
        self.answer_waiting("", "")

    def answer_waiting(self, message: str, advice: str) -> None:
        """Call back all callers that wait."""
        waiting, self._waiting = self._waiting, []
        self.forced = False
        for on_renewed in waiting:
            on_renewed(message, advice)
