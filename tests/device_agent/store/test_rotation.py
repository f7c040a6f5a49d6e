"""Rotation of the certificate: retries, deadlines, and who hears of the outcome. No child, no clock."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from device_agent.enrollment import rotation
from device_agent.enrollment.enrollment import EnrollmentJob, Outcome
from device_agent.enrollment.rotation import PATIENCE_SECONDS, Rotation
from device_agent.renewal import renewal_backoff
from device_agent.store.identity_store import CertificateInfo, Identity
from fleet.est_client.validity import Lifetime

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
LIFETIME = Lifetime(BEGIN, BEGIN + timedelta(days=90))
JOB = EnrollmentJob(Path("/home"), "reenroll", deadline_seconds=100.0)
FLOOR = 60.0
NOW = BEGIN + timedelta(days=60)
DAY = 86400.0


def identity(generation: int) -> Identity:
    info = CertificateInfo("cam-7", str(generation), f"{generation}", "CN=test", BEGIN, NOW)
    return Identity("slot-a", generation, info, Path("cert.pem"), Path("key.pem"))


class Child:
    """Stands in for the child process."""

    def __init__(self, job: EnrollmentJob) -> None:
        self.job = job
        self.outcome: Outcome | None = None
        self.killed = False

    def read(self) -> Outcome | None:
        return self.outcome

    def kill(self) -> Outcome:
        self.killed = True
        return Outcome(ok=False, message="killed")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(rotation, "EnrollmentProcess", Child)
    return Clock()


@pytest.fixture
def turn(clock: Clock) -> Rotation:
    return Rotation(FLOOR, chance=lambda: 0.5, monotonic=clock)


def started(turn: Rotation) -> Child:
    turn.start(JOB)
    assert isinstance(turn.child.process, Child)
    return turn.child.process


def test_a_forced_renewal_waits_for_nothing_and_reports_once(turn: Rotation) -> None:
    heard: list[tuple[str, str]] = []
    turn.renew_at = turn.prove_at = 5000.0
    turn.force(lambda message, advice: heard.append((message, advice)))
    turn.force(None)
    assert (turn.forced, turn.renew_at, turn.prove_at) == (True, 0.0, 0.0)
    started(turn)
    assert (turn.forced, turn.child.running) == (False, True)
    turn.succeeded()
    turn.succeeded()
    assert heard == [("", "")]
    assert (turn.done, turn.renew_at) == (2, 0.0)


def test_the_outcome_of_the_child_ends_it(turn: Rotation) -> None:
    child = started(turn)
    assert turn.child.read() is None
    assert turn.child.running
    child.outcome = Outcome(ok=True, slot="slot-a")
    assert turn.child.read() == child.outcome
    assert not turn.child.running
    assert not child.killed
    assert turn.child.read() is None


def test_a_child_that_hangs_is_killed_after_its_own_deadline(turn: Rotation, clock: Clock) -> None:
    child = started(turn)
    clock.now += JOB.deadline_seconds + 4.9
    assert turn.child.read() is None
    clock.now += 0.1
    assert turn.child.read() == Outcome(ok=False, message="killed")
    assert child.killed
    assert not turn.child.running


def test_an_outcome_that_comes_late_still_counts(turn: Rotation, clock: Clock) -> None:
    child = started(turn)
    child.outcome = Outcome(ok=True, slot="slot-a")
    clock.now += 1000.0
    assert turn.child.read() == child.outcome
    assert not child.killed


def test_at_first_nothing_runs_and_nothing_is_put_off(turn: Rotation) -> None:
    assert turn.child.read() is None
    assert (turn.child.running, turn.forced, turn.candidate_refused, turn.done) == (False, False, False, 0)
    assert (turn.renew_at, turn.prove_at, turn.promote_at, turn.quiescing_until) == (0.0, 0.0, 0.0, 0.0)


def test_stopping_kills_the_child(turn: Rotation) -> None:
    turn.child.stop()
    child = started(turn)
    turn.child.stop()
    assert child.killed
    assert not turn.child.running


def test_failures_back_off_and_success_resets(turn: Rotation, clock: Clock) -> None:
    backoff = renewal_backoff(LIFETIME)
    failed = Outcome(ok=False, message="no network", advice="check it")
    for attempt in range(4):
        wait = turn.fetch_failed(failed, LIFETIME, NOW)
        assert wait == backoff.delay_seconds(attempt, 0.5)
        assert turn.renew_at == clock.now + wait
    turn.succeeded()
    assert turn.fetch_failed(failed, LIFETIME, NOW) == backoff.delay_seconds(0, 0.5)


def test_a_refusal_waits_at_least_the_floor(turn: Rotation) -> None:
    plain = renewal_backoff(LIFETIME).delay_seconds(0, 0.5)
    assert turn.fetch_failed(Outcome(ok=False, refused=True), LIFETIME, NOW) == FLOOR + plain


def test_the_servers_retry_after_is_the_least(turn: Rotation, clock: Clock) -> None:
    assert turn.fetch_failed(Outcome(ok=False, retry_after_seconds=7200.0), LIFETIME, NOW) == 7200.0
    assert turn.renew_at == clock.now + 7200.0
    again = turn.fetch_failed(Outcome(ok=False, retry_after_seconds=0.001), LIFETIME, NOW)
    assert again == renewal_backoff(LIFETIME).delay_seconds(1, 0.5)


@pytest.mark.parametrize(
    ("now", "wait"),
    [
        (NOW, 30 / 4 * DAY),
        (BEGIN + timedelta(days=86), DAY),
        (BEGIN + timedelta(days=90, seconds=-1), 3600.0),  # as long as our own backoff may become
        (BEGIN + timedelta(days=91), 3600.0),
        (datetime(1970, 1, 1, tzinfo=UTC), 90 / 4 * DAY),  # the clock is not set
    ],
)
@pytest.mark.parametrize("seconds", [99999999999.0, float("inf")])
def test_the_servers_retry_after_leaves_time_to_try_again(
    turn: Rotation, clock: Clock, now: datetime, wait: float, seconds: float
) -> None:
    assert turn.fetch_failed(Outcome(ok=False, retry_after_seconds=seconds), LIFETIME, now) == wait
    assert turn.renew_at == clock.now + wait


def test_a_moderate_retry_after_counts_to_the_end(turn: Rotation) -> None:
    late = LIFETIME.not_after - timedelta(minutes=1)
    assert turn.fetch_failed(Outcome(ok=False, retry_after_seconds=600.0), LIFETIME, late) == 600.0


def test_who_waits_hears_why_it_failed(turn: Rotation) -> None:
    heard: list[tuple[str, str]] = []
    for _ in range(2):
        turn.force(lambda message, advice: heard.append((message, advice)))
    turn.fetch_failed(Outcome(ok=False, message="no", advice="wait"), LIFETIME, NOW)
    assert heard == [("no", "wait")] * 2
    assert not turn.forced


@pytest.mark.parametrize("refused", [True, False])
def test_a_failed_proof_is_tried_again_later(turn: Rotation, clock: Clock, refused: bool) -> None:
    heard: list[str] = []
    turn.force(lambda message, _: heard.append(message))
    wait = turn.proof_failed("It did not work.", refused=refused, lifetime=LIFETIME)
    assert wait == renewal_backoff(LIFETIME).delay_seconds(0, 0.5)
    assert turn.prove_at == turn.renew_at == clock.now + wait
    assert turn.candidate_refused is refused
    assert heard == ["It did not work."]
    assert turn.proof_failed("", refused=refused, lifetime=LIFETIME) > wait
    turn.fetched()
    assert (turn.candidate_refused, turn.prove_at) == (False, 0.0)


def test_a_new_current_certificate_forgets_the_refusal(turn: Rotation) -> None:
    turn.proof_failed("", refused=True, lifetime=LIFETIME)
    turn.succeeded()
    assert not turn.candidate_refused


def test_what_another_process_stores_has_no_history(turn: Rotation) -> None:
    old, new, newer = (identity(generation) for generation in (1, 2, 3))
    heard: list[tuple[str, str]] = []
    turn.follow(old, new)  # as the agent starts
    turn.force(lambda message, advice: heard.append((message, advice)))
    turn.forced = False
    turn.candidate_refused, turn.prove_at, turn.renew_at = True, 5000.0, 5000.0
    turn.follow(old, new)
    assert (turn.candidate_refused, turn.prove_at, turn.renew_at) == (True, 5000.0, 5000.0)
    turn.follow(old, newer)
    assert (turn.candidate_refused, turn.prove_at, turn.renew_at) == (False, 0.0, 5000.0)
    assert (turn.done, heard) == (0, [])
    turn.follow(newer, None)
    assert (turn.done, turn.renew_at, heard) == (1, 0.0, [("", "")])
    turn.follow(None, None)  # the disk is damaged
    assert turn.done == 1


def test_a_renewal_that_somebody_waits_for_does_not_wait_long_itself(turn: Rotation) -> None:
    """A server that asks to retry in a second, for ever: its wish, and its reason, are the answer."""
    assert started(turn).job.patience_seconds is None
    turn.force(lambda *_: None)
    assert started(turn).job.patience_seconds == PATIENCE_SECONDS


def test_a_process_that_cannot_be_started_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no memory, or no process left: the agent goes on."""
    monkeypatch.setattr("device_agent.child_process.module_command", lambda _: ["/nowhere/python"])
    turn = Rotation(FLOOR, chance=lambda: 0.5, monotonic=Clock())
    heard: list[str] = []
    turn.force(lambda message, _: heard.append(message))
    turn.start(JOB)
    assert turn.child.running
    outcome = turn.child.read()
    assert outcome is not None
    assert not turn.child.running
    turn.fetch_failed(outcome, LIFETIME, NOW)
    assert heard == ["No process could be started: No such file or directory."]
    assert turn.child.read() is None
