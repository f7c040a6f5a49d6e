"""When an agent renews: by itself, and sooner when the real server suggests it, asked in a real child."""

import select
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec import structs

from device_agent.enrollment.enrollment import EnrollmentJob, Outcome
from device_agent.enrollment.renewal_schedule import ASK_SECONDS, RenewalSchedule
from device_agent.store.identity_store import Identity, IdentityStore
from fleet.domain.access import Act
from fleet.domain.model_rules import rules_of
from fleet.est_client.client import EstClient
from fleet.est_client.errors import EstBadAnswer
from fleet.services import inventory
from tests.device_agent.fleet_parts import Authority, Device, EstServer
from tests.device_agent.wild_servers import answers, http, tls_server

pytestmark = pytest.mark.usefixtures("forked_programs")
DEADLINE_SECONDS = 120.0


class Time:
    """Monotonic time that passes when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def schedule_of(home: Path, chance: float = 0.0) -> tuple[RenewalSchedule, Time]:
    clock = Time()
    return RenewalSchedule(home, 2 / 3, lambda: chance, clock), clock


def heard(schedule: RenewalSchedule) -> datetime | None:
    """What the child that is running brings."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    said = None
    while schedule.child.process is not None:
        left = deadline - time.monotonic()
        assert left > 0, "the child did not end"
        select.select([schedule.child.process], [], [], left)
        said = schedule.read()
    return said


def current(device: Device) -> Identity:
    identity = IdentityStore(device.home).current()
    assert identity is not None
    return identity


def call_campaign(est: EstServer, device: Device) -> None:
    """Now, for every certificate so far, at once."""

    async def call() -> None:
        name = f"of-{device.device_id}".replace(":", ".")
        model = await est.registry.model(name)
        assert model is not None
        now = datetime.now(UTC)
        campaign = {"before": now.isoformat(), "start": now.isoformat(), "spread_seconds": 0}
        rules = rules_of({"renewal": {"campaign": campaign}}, model.rules)
        await inventory.set_model(est.registry, structs.replace(model, rules=rules), act=Act("test", now))

    est.call(call())


def test_a_campaign_is_heard_and_heeded(device: Device, est: EstServer) -> None:
    identity = current(device)
    schedule, clock = schedule_of(device.home)
    now = datetime.now(UTC)
    schedule.poll_if_due(identity)
    assert heard(schedule) is not None
    assert not schedule.is_due(identity, now)
    call_campaign(est, device)
    schedule.poll_if_due(identity)
    assert schedule.child.process is None  # not before it is time again
    clock.now += ASK_SECONDS
    schedule.poll_if_due(identity)
    assert heard(schedule) == schedule.due_at(identity)
    assert schedule.due_at(identity) <= datetime.now(UTC)
    assert schedule.is_due(identity, datetime.now(UTC))
    successor = replace(identity, certificate=replace(identity.certificate, fingerprint="ab" * 32))
    assert not schedule.is_due(successor, now)  # what was said of one certificate says nothing of the next
    before_boot = datetime(1970, 1, 2, tzinfo=UTC)
    assert not schedule.is_due(identity, before_boot)


def test_an_agent_renews_for_a_campaign(device: Device, est: EstServer) -> None:
    call_campaign(est, device)
    text = (device.home / "agent.toml").read_text()
    assert "at_fraction" in text
    before = device.status()["serial"]
    schedule, _ = schedule_of(device.home)
    schedule.poll_if_due(current(device))
    heard(schedule)
    assert schedule.is_due(current(device), datetime.now(UTC))
    device.call("renew")
    assert device.status()["serial"] != before
    assert not schedule.is_due(current(device), datetime.now(UTC))


def test_a_server_that_cannot_be_reached_changes_nothing(device: Device, est: EstServer) -> None:
    identity = current(device)
    schedule, clock = schedule_of(device.home)
    due = schedule.due_at(identity)
    est.shut()
    schedule.poll_if_due(identity)
    assert heard(schedule) is None
    assert schedule.due_at(identity) == due
    clock.now += ASK_SECONDS / 2
    schedule.poll_if_due(identity)
    assert schedule.child.process is None


def test_the_first_question_is_spread_over_the_fleet(device: Device) -> None:
    identity = current(device)
    schedule, clock = schedule_of(device.home, chance=0.5)
    schedule.poll_if_due(identity)
    assert schedule.child.process is None
    clock.now += ASK_SECONDS / 2 - 1
    schedule.poll_if_due(identity)
    assert schedule.child.process is None
    clock.now += 2
    schedule.poll_if_due(identity)
    assert schedule.child.process is not None
    schedule.child.stop()
    assert schedule.child.process is None


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_that_does_not_know_the_question(authority: Authority, status: int) -> None:
    with tls_server(authority, answers(http(f"{status} No", b"no\n", "Content-Type: text/plain"))) as port:
        client = EstClient(f"https://localhost:{port}", authority.ca_file)
        assert client.renewal_info("ab" * 32) == (None, 0.0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"suggestedWindow": {}}',
        b'{"suggestedWindow": {"start": 1, "end": 2}}',
        b'{"suggestedWindow": {"start": "soon", "end": "later"}}',
        b'{"suggestedWindow": {"start": "2026-03-02T00:00:00Z", "end": "2026-03-01T00:00:00Z"}}',
        b"[" * 20_000,
    ],
)
def test_a_window_that_makes_no_sense_is_refused(authority: Authority, body: bytes) -> None:
    with tls_server(authority, answers(http("200 OK", body, "Content-Type: application/json"))) as port:
        client = EstClient(f"https://localhost:{port}", authority.ca_file)
        with pytest.raises(EstBadAnswer):
            client.renewal_info("ab" * 32)


def test_the_job_and_its_outcome_survive_the_pipe() -> None:
    job = EnrollmentJob(Path("/somewhere"), "window", replaces="ab" * 32)
    assert EnrollmentJob.from_json(job.to_json()) == job
    assert '"window"' in Outcome(ok=True, window=("2026-03-01T00:00:00+00:00",) * 2).to_json()


def test_it_is_asked_again_within_bounds(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = current(device)
    for seconds, least, most in ((0.0, 19_000, 24_000), (1.0, 50, 70), (10e9, 70_000, 100_000)):
        schedule, clock = schedule_of(device.home)
        schedule.child.process = None
        started: list[Callable[[], object]] = []
        schedule._on_outcome(Outcome(ok=True, retry_after_seconds=seconds))
        monkeypatch.setattr("device_agent.enrollment.renewal_schedule.EnrollmentProcess", started.append)
        clock.now += least
        schedule.poll_if_due(identity)
        assert not started
        clock.now += most - least
        schedule.poll_if_due(identity)
        assert started


def test_it_asks_soon_after_a_refusal_and_not_at_each(device: Device, est: EstServer) -> None:
    identity = current(device)
    schedule, clock = schedule_of(device.home, chance=0.5)
    schedule.poll_if_due(identity)
    assert schedule.child.process is None
    for _ in range(3):
        schedule.refused()
        schedule.poll_if_due(identity)
        assert schedule.child.process is None  # within a minute, each device at another moment
        clock.now += 31.0
        schedule.poll_if_due(identity)
        assert schedule.child.process is not None
        heard(schedule)
        schedule.refused()
        clock.now += 60.0  # a minute after the last, and not sooner
        schedule.poll_if_due(identity)
        assert schedule.child.process is None
