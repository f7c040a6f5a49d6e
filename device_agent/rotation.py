"""From one certificate to the next: the child that fetches it, when to try again, and who waits for the outcome."""

from collections.abc import Callable
from dataclasses import dataclass, field

from device_agent.enrollment import EnrollmentJob, EnrollmentProcess, Outcome
from device_agent.renewal import Backoff, renewal_backoff
from fleet.est_client.validity import Lifetime

PROMOTE_RETRY_SECONDS = 10.0  # when the disk would not take the switch
QUIESCING_SECONDS_MAX = 15.0  # for acknowledgements, before a candidate is proven

OnRenewed = Callable[[str, str], None]
"""Called with ("", "") when the new certificate is in use, or with a message and advice when it is not."""


@dataclass(slots=True)
class Rotation:
    """Mutable, and owned by the runner. Times are monotonic seconds."""

    refused_floor_seconds: float
    chance: Callable[[], float]
    monotonic: Callable[[], float]
    process: EnrollmentProcess | None = None
    process_until: float = 0.0
    forced: bool = False
    candidate_refused: bool = False
    renew_at: float = 0.0
    prove_at: float = 0.0
    promote_at: float = 0.0
    quiescing_until: float = 0.0
    done: int = 0
    """Certificates that became current since the start."""
    _failures: int = 0
    _waiting: list[OnRenewed] = field(default_factory=list)

    @property
    def running(self) -> bool:
        return self.process is not None

    def force(self, told: OnRenewed | None) -> None:
        """Renew now, whatever the clock says; `told` hears how it went."""
        self.forced = True
        self.renew_at = self.prove_at = 0.0
        if told is not None:
            self._waiting.append(told)

    def start(self, job: EnrollmentJob) -> None:
        """Start the child."""
        self.forced = False
        self.process = EnrollmentProcess(job)
        # The child keeps the same deadline itself, and is a little earlier: then its own words are heard.
        self.process_until = self.monotonic() + job.deadline_seconds + 5

    def read(self) -> Outcome | None:
        """The child's outcome, once it is there."""
        outcome = self.process.read() if self.process else None
        if outcome is None and self.process and self.monotonic() >= self.process_until:
            outcome = self.process.kill()
        if outcome is not None:
            self.process = None
        return outcome

    def stop(self) -> None:
        """End the child, if there is one. What it left half done is taken up by the next."""
        if self.process is not None:
            self.process.kill()
            self.process = None

    def fetched(self) -> None:
        """A candidate is in place."""
        self.candidate_refused = False
        self.prove_at = 0.0

    def fetch_failed(self, outcome: Outcome, lifetime: Lifetime) -> float:
        """Plan the next try, and return the seconds until then."""
        backoff = renewal_backoff(lifetime)
        if outcome.refused:
            backoff = Backoff(backoff.base_seconds, backoff.cap_seconds, self.refused_floor_seconds)
        wait = max(backoff.delay_seconds(self._failures, self.chance()), outcome.retry_after_seconds)
        self._failures += 1
        self.renew_at = self.monotonic() + wait
        self.tell(outcome.message, outcome.advice)
        return wait

    def proof_failed(self, message: str, *, refused: bool, lifetime: Lifetime) -> float:
        """The candidate did not work, or could not be tried. Plan the next try, and return the seconds until then."""
        wait = renewal_backoff(lifetime).delay_seconds(self._failures, self.chance())
        self._failures += 1
        self.candidate_refused = refused
        self.prove_at = self.renew_at = self.monotonic() + wait
        self.tell(message, "The working certificate is kept.")
        return wait

    def succeeded(self) -> None:
        """The candidate is current."""
        self.done += 1
        self._failures = 0
        self.candidate_refused = False
        self.renew_at = 0.0
        self.tell("", "")

    def tell(self, message: str, advice: str) -> None:
        """Answer everybody who waits."""
        waiting, self._waiting = self._waiting, []
        self.forced = False
        for told in waiting:
            told(message, advice)
