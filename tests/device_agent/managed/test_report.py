"""The child's work, against the fleet's own EST server: what it reports, and how it answers a trust update."""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from device_agent.enroll_child import outcome_of
from device_agent.enrollment.enrollment import EnrollmentJob, Outcome
from device_agent.managed.report import ITEMS_MAX, TEXT_MAX, _cut
from device_agent.store.identity_store import IdentityStore
from fleet.est_client.client import EstClient
from tests.device_agent.fleet_parts import Device, EstServer


@pytest.fixture
def device(est: EstServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Device]:
    device = Device(tmp_path / "home", est, 1, f"reports-{abs(hash(request.node.name)) % 10**9}").enrolled()
    store = IdentityStore(device.home)
    if (candidate := store.candidate()) is not None:
        store.promote(candidate)
    yield device
    device.close()


def report(device: Device, name: str) -> Outcome:
    answered = json.dumps({"id": "command1", "name": name, "outcome": "ok"})
    return outcome_of(EnrollmentJob(device.home, "report", answers=answered), datetime.now(UTC))


def kept(device: Device) -> dict[str, object]:
    found = device.est.call(device.est.registry.report_of(device.device_id))
    assert found is not None
    tree: dict[str, object] = json.loads(found.text)
    return tree


def test_it_is_sent_and_has_no_secret(device: Device) -> None:
    identity = IdentityStore(device.home).current()
    assert identity is not None
    assert report(device, "report").ok
    found = kept(device)
    assert found["command"] == {"id": "command1", "name": "report", "outcome": "ok"}
    assert (found["device_id"], found["serial"]) == (device.device_id, identity.certificate.serial)
    assert "PRIVATE" not in json.dumps(found)


def test_a_trust_update_that_cannot_be_used_is_the_answer(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    ca_file = device.home / "ca.pem"
    ca_file.write_bytes(ca_file.read_bytes() + device.est.authority.server_file.read_bytes())  # two anchors
    before = ca_file.read_bytes()
    monkeypatch.setattr(EstClient, "trust_update", lambda _: b"{}")
    assert report(device, "trust-update").ok
    command = kept(device)["command"]
    assert isinstance(command, dict)
    assert "trust update is refused" in command["outcome"]
    assert ca_file.read_bytes() == before
    monkeypatch.setattr(EstClient, "trust_update", lambda _: None)
    assert report(device, "trust-update").ok
    assert kept(device)["command"] == {"id": "command1", "name": "trust-update", "outcome": "ok"}


def test_without_a_server_or_a_certificate_it_fails_with_a_reason(device: Device) -> None:
    device.set("url", '"https://localhost:1"')
    assert "cannot be reached" in report(device, "report").message
    shutil.rmtree(device.home / "slot-a")
    assert "no certificate" in report(device, "report").message


def test_one_that_is_too_large_is_not_sent(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_agent.managed.report._report_of", lambda *_: {"problem": ["x" * 300] * 100})
    monkeypatch.setattr("device_agent.managed.report._cut", lambda report: report)
    outcome = report(device, "report")
    assert not outcome.ok
    assert "larger than" in outcome.message


def test_it_is_cut_to_what_a_report_may_hold() -> None:
    assert _cut({"a": "x" * 1000, "b": ["y"] * 1000, "c": {str(n): n for n in range(1000)}}) == {
        "a": "x" * TEXT_MAX,
        "b": ["y"] * ITEMS_MAX,
        "c": {str(n): n for n in range(ITEMS_MAX)},
    }
