"""A device without a token waits for an operator: alone with a made-up server, and against a real one."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from device_agent.enrollment.enrollment import EnrollmentJob, Outcome
from device_agent.enrollment.pending_enrollment import AGAIN_SECONDS, pending_note, poll_until_decided
from device_agent.store.device_key import fingerprint
from fleet.domain.access import Act
from fleet.domain.approval import ApprovalRequest, WaitingLimits, key_fingerprint
from fleet.domain.device import Model
from fleet.domain.model_rules import AdmissionPath, AdmissionRules, ModelRules
from fleet.services import approvals, inventory
from tests.device_agent.fleet_parts import Authority, Device, EstServer, device_id_for
from tests.free_ports import free_port
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.usefixtures("forked_programs")
PENDING = Outcome(ok=False, message="Waiting for approval.", retry_after_seconds=30, pending=True)
DOWN = Outcome(ok=False, message="The EST server cannot be reached.")
ISSUED = Outcome(ok=True, slot="slot-a")
DENIED = Outcome(ok=False, message="denied", refused=True)


def test_a_key_has_the_fingerprint_that_operators_see() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert fingerprint(key) == key_fingerprint(hashlib.sha256(spki).digest())


class TestAskUntilDecided:
    def run(self, home: Path, *outcomes: Outcome) -> tuple[Outcome, list[str], list[float]]:
        said, pauses, coming = list[str](), list[float](), iter(outcomes)
        job = EnrollmentJob(home, "enroll")
        end = poll_until_decided(job, said.append, ask=lambda _: next(coming), pause=pauses.append)
        assert next(coming, None) is None
        return end, said, pauses

    @pytest.mark.parametrize("end", [ISSUED, DENIED])
    def test_as_long_as_the_server_says(self, tmp_path: Path, end: Outcome) -> None:
        assert self.run(tmp_path, PENDING, PENDING, end) == (end, ["Waiting for approval."], [30, 30])
        assert pending_note(tmp_path) == ""

    def test_the_model_is_remembered_over_an_interruption(self, tmp_path: Path) -> None:
        asked = list[str]()
        answers = iter([PENDING, None, PENDING, ISSUED])

        def ask(job: EnrollmentJob) -> Outcome:
            asked.append(job.label)
            answer = next(answers)
            if answer is None:
                raise KeyboardInterrupt
            return answer

        def poll(label: str) -> Outcome:
            job = EnrollmentJob(tmp_path, "enroll", label=label)
            return poll_until_decided(job, lambda _: None, ask=ask, pause=lambda _: None)

        with pytest.raises(KeyboardInterrupt):
            poll("lab")
        assert pending_note(tmp_path)
        assert poll("").ok
        assert asked == ["lab"] * 4
        assert list(tmp_path.iterdir()) == []

    def test_a_server_that_is_down_meanwhile_is_asked_again(self, tmp_path: Path) -> None:
        end, said, pauses = self.run(tmp_path, PENDING, DOWN, DOWN, PENDING, ISSUED)
        assert end == ISSUED
        assert said == [PENDING.message, DOWN.message, PENDING.message]
        assert pauses == [30, AGAIN_SECONDS, AGAIN_SECONDS, 30]

    def test_one_that_never_took_it_in_is_a_failure(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, DOWN) == (DOWN, [], [])

    def test_the_note_stands_while_it_waits(self, tmp_path: Path) -> None:
        outcomes = iter((PENDING, ISSUED))
        notes: list[str] = []
        poll_until_decided(
            EnrollmentJob(tmp_path, "enroll"),
            notes.append,
            ask=lambda _: next(outcomes),
            pause=lambda _: notes.append(pending_note(tmp_path)),
        )
        assert notes == ["Waiting for approval."] * 2

    def test_a_note_cannot_draw_on_a_terminal(self, tmp_path: Path) -> None:
        (tmp_path / "waiting").write_bytes(b"a\x1b[31m\xff\n" + b"x" * 5000)
        assert pending_note(tmp_path).isprintable()
        assert len(pending_note(tmp_path)) < 1001


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[EstServer]:
    """An EST server that has a device that waits come again after a second, and the model cam that lets it wait."""
    server = EstServer(Authority(tmp_path / "ca"), tmp_path / "registry.db", WaitingLimits(ask_again_seconds=1))
    rules = ModelRules(admission=AdmissionRules((AdmissionPath.APPROVAL,)))
    server.call(inventory.add_model(server.registry, Model("cam", rules=rules), act=Act("test", server.clock())))
    yield server
    server.close()


@pytest.fixture
def lone(patient: EstServer, tmp_path: Path, request: pytest.FixtureRequest) -> Device:
    device = Device(tmp_path / "a home", patient, free_port(), device_id_for(request.node.name))
    device.init()
    return device


def request_of(server: EstServer, process: "subprocess.Popen[str]") -> ApprovalRequest:
    """What `process` asks for."""

    def requests() -> Sequence[ApprovalRequest]:
        return server.call(server.registry.requests(now=server.clock()))

    wait_until_while_it_runs(requests, process)
    return requests()[0]


def wait_until_while_it_runs(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    def holds() -> object:
        assert process.poll() is None, process.communicate()
        return condition()

    wait_until(holds, "it never asked")


def enrolling(device: Device) -> subprocess.Popen[str]:
    """`device-agent enroll --approval` in the background."""
    words = ["-m", "device_agent", "--home", str(device.home), "enroll", "--approval", "--model", "cam"]
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_asked_approved_and_enrolled(lone: Device, patient: EstServer) -> None:
    process = enrolling(lone)
    request = request_of(patient, process)
    wait_until_while_it_runs(lambda: lone.status()["state"] == "waiting for approval", process)
    assert request.fingerprint in lone.status()["problem"]
    patient.call(approvals.approve(patient.registry, request.id, act=Act("operator", patient.clock())))
    said, told = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, told
    assert f"Waiting for approval. This device's key is {request.fingerprint}." in told
    assert f"Enrolled as {lone.device_id}" in said
    assert lone.status()["state"] == "enrolled"
    assert len(patient.call(patient.registry.credentials(lone.device_id))) == 1


def test_denied(lone: Device, patient: EstServer) -> None:
    process = enrolling(lone)
    patient.call(
        approvals.deny(patient.registry, request_of(patient, process).id, act=Act("operator", patient.clock()))
    )
    assert "An operator has denied this request" in process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 1
    assert lone.status()["state"] == "not enrolled"


def test_a_model_that_lets_nobody_wait(lone: Device, patient: EstServer) -> None:
    patient.call(inventory.add_model(patient.registry, Model("pump"), act=Act("test", patient.clock())))
    told = lone.call("enroll", "--approval", "--model", "pump", expect=1)
    assert "A token, a certificate that enrolls devices, or a key on the manifest is needed." in told.stderr
    assert lone.status()["state"] == "not enrolled"


@pytest.mark.parametrize("words", [("--approval", "--token-env", "X"), ("--model", "cam", "--token-env", "X")])
def test_what_does_not_go_together(lone: Device, words: tuple[str, ...]) -> None:
    assert "--approval" in lone.call("enroll", *words, expect=2).stderr
