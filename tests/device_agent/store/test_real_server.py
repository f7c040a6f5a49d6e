"""Ways back that depend on the server, against the fleet's own EST server; and processes that are really killed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from device_agent.config.agent_config import read_config
from device_agent.doctor.health import problem_of
from device_agent.enroll_child import outcome_of
from device_agent.enrollment.enrollment import EnrollmentJob
from device_agent.store.bootstrap import keep_certificate, keep_token
from device_agent.store.device_key import generate_key, key_pem, spki_der
from device_agent.store.identity_store import IdentityStore
from fleet.domain.access import Act
from fleet.domain.device import Model
from fleet.domain.model_rules import AdmissionPath, AdmissionRules, ModelRules, RenewalRules
from fleet.services import inventory
from fleet.services.claims import NewClaim, enroll_claim
from tests.device_agent.fleet_parts import DEADLINE_SECONDS, Device, EstServer, pem

KILLS = 200
SHORT = timedelta(seconds=60)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def device(est: EstServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Device]:
    device = Device(tmp_path / "home", est, 1, f"real-{abs(hash(request.node.name)) % 10**9}").init()
    yield device
    device.close()


def certificates_of(device: Device) -> int:
    return len(device.est.call(device.est.registry.credentials(device.device_id)))


def refusals_of(device: Device) -> list[str]:
    """What the fleet's operator sees: `fleet audit list --subject 'device ID'`."""
    rows = device.est.call(device.est.registry.audit(limit=100_000))
    own = [row.entry for row in rows if row.entry.subject == f"device {device.device_id}"]
    return [f"{each.action} {each.outcome}" for each in own if each.outcome != "ok"]


def enroll(device: Device, token: str) -> None:
    assert outcome_of(EnrollmentJob(device.home, "enroll", token), now()).ok
    store = IdentityStore(device.home)
    candidate = store.candidate()
    assert candidate is not None
    store.promote(candidate)


@pytest.mark.parametrize("grace", [timedelta(days=1), timedelta(0)])
def test_an_expired_certificate_is_renewed_in_its_grace_period_and_not_else(
    est: EstServer, device: Device, grace: timedelta
) -> None:
    rules = ModelRules(renewal=RenewalRules(grace=grace))
    enroll(device, est.token(device.device_id, certificate_lifetime=SHORT, rules=rules))
    est.shift = SHORT * 2  # and two clocks that differ by as much agree
    outcome = outcome_of(EnrollmentJob(device.home, "reenroll"), now())
    assert (outcome.ok, outcome.ended) == (bool(grace), not grace)
    assert certificates_of(device) == 1 + bool(grace)
    if not grace:
        assert "certificate-expired" in outcome.message
    assert refusals_of(device) == ([] if grace else ["device.reenroll certificate-expired"])


def test_a_token_that_may_be_used_again_gets_a_lost_device_back(est: EstServer, device: Device) -> None:
    est.token(device.device_id)
    terms = inventory.TokenTerms(uses=3, takes_over=True)
    _, token = est.call(
        inventory.create_token(est.registry, device=device.device_id, terms=terms, act=Act("test", now()))
    )
    keep_token(device.home, token)
    enroll(device, token)
    shutil.rmtree(device.home / "slot-a")
    assert IdentityStore(device.home).current() is None
    assert outcome_of(EnrollmentJob(device.home, "recover"), now()).ok
    found = IdentityStore(device.home).candidate()  # to be proven beside what is there
    assert found is not None
    assert not problem_of(read_config(device.home), found, now())
    assert certificates_of(device) == 2


def test_a_claim_enrolls_a_new_device_and_no_second_key_of_it(est: EstServer, device: Device) -> None:
    """A claim is for new devices: one that has a certificate needs an operator's token, and the refusal says so."""
    name, model = f"lot-{device.device_id}", f"of-{device.device_id}"
    rules = ModelRules(admission=AdmissionRules((AdmissionPath.CLAIM, AdmissionPath.TOKEN)))
    key = generate_key("EC-P256")

    async def make() -> bytes:
        act = Act("test", now())
        await inventory.add_model(est.registry, Model(model, rules=rules), act=act)
        new = NewClaim(name, model, 5, spki_der(key), now() + timedelta(days=1))
        _, credential = await enroll_claim(est.registry, est.authority.issuer, new, act=act)
        return credential.der

    certificate = x509.load_der_x509_certificate(est.call(make()))
    keep_certificate(device.home, pem(certificate, est.authority.issuing), key_pem(key))
    assert outcome_of(EnrollmentJob(device.home, "recover"), now()).ok
    store = IdentityStore(device.home)
    candidate = store.candidate()
    assert candidate is not None
    store.promote(candidate)
    shutil.rmtree(device.home / candidate.slot)
    outcome = outcome_of(EnrollmentJob(device.home, "recover"), now())
    assert not outcome.ok
    assert outcome.refused
    assert "already-enrolled" in outcome.message
    assert refusals_of(device) == ["device.enroll already-enrolled"]


def killed(command: list[str], seconds: float, said: str = "") -> bool:
    """Run a program and all that it starts, and kill them after `seconds`. Whether it had not ended by then."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *command],
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        process.communicate(said, timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=DEADLINE_SECONDS)
        return True
    return False


@pytest.mark.long
def test_two_hundred_kills(est: EstServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of first enrollments and of renewals, at any moment. Whatever is left, the next attempt ends enrolled."""
    chance, kills, extra, number = random.Random(14), {"enroll": 0, "renew": 0}, 0, 0
    token = tmp_path / "token"
    whole = 0.0
    while sum(kills.values()) < KILLS:
        device = Device(tmp_path / "home", est, 1, f"kill-{number}").init()
        token.write_text(est.token(device.device_id))
        enroll_it = ["device_agent", "--home", str(device.home), "enroll", "--token-file", str(token)]
        if not whole:
            began = time.monotonic()
            assert not killed(enroll_it, DEADLINE_SECONDS)
            whole = time.monotonic() - began
        for _ in range(2):
            kills["enroll"] += killed(enroll_it, chance.uniform(0.2, 1.0) * whole)
        if IdentityStore(device.home).current() is None:
            device.call(*enroll_it[3:])
        job = EnrollmentJob(device.home, "reenroll").to_json()
        for _ in range(2):
            kills["renew"] += killed(["device_agent.enroll_child"], chance.uniform(0.2, 0.8) * whole, job)
        assert outcome_of(EnrollmentJob(device.home, "reenroll"), now()).ok
        for identity in IdentityStore(device.home).pair():
            assert identity is not None
            assert not problem_of(read_config(device.home), identity, now())
        held = certificates_of(device)
        assert held <= 3
        extra += held - 2
        number += 1
        shutil.rmtree(device.home)
    with capsys.disabled():
        print(f"\nSIGKILLs {kills} of {number} devices: all renewed, {extra} certificates too many")
