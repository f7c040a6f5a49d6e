"""The ways back, each from a state in which it alone helps: the slot in use, the other slot, a renewal in its grace
period, the bootstrap credential; and then a state that an operator sees."""

import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from device_agent.apps.control import socket_address
from device_agent.cli import cli, enrollment
from device_agent.config.agent_config import read_config
from device_agent.doctor import health
from device_agent.doctor.health import LOCKED_OUT, examine
from device_agent.enroll_child import outcome_of
from device_agent.enrollment.enrollment import EnrollmentJob, enroll_and_wait
from device_agent.errors import AgentError
from device_agent.store.bootstrap import bootstrap_of, keep_token
from device_agent.store.device_key import certificate_info, load_key
from device_agent.store.identity_store import Identity, IdentityStore
from fleet.est_client.errors import BadCredentials
from tests.device_agent.fleet_parts import Authority, pem
from tests.device_agent.store import crash_life
from tests.device_agent.store.crash_life import NOW, ModelServer, enroll, in_process, run, working_identity
from tests.device_agent.wild_servers import alerting_server


@pytest.fixture
def home(tmp_path: Path, authority: Authority) -> Path:
    crash_life.new_home(tmp_path / "home", authority)
    return tmp_path / "home"


@pytest.fixture
def server(authority: Authority) -> Iterator[ModelServer]:
    server = ModelServer(authority)
    with in_process(server):
        yield server


def revoke(server: ModelServer, number: int) -> None:
    fingerprint = crash_life.fingerprint_of(server.registry.issued[number])
    server.change(ended=server.registry.ended | {fingerprint})


def current_of(home: Path) -> Identity:
    current = IdentityStore(home).current()
    assert current is not None
    return current


def expire(home: Path, server: ModelServer) -> None:
    """The current certificate is over, by everybody's clock."""
    current = current_of(home)
    key = load_key(current.key_file)
    end = NOW - timedelta(hours=1)
    issued, _ = server.authority.issue(
        "cam-7", key=SimpleNamespace(public_key=key.public_key), begin=end - timedelta(days=9), end=end
    )
    store = IdentityStore(home)
    (home / "current").unlink()
    (current.certificate_file.parent / "meta.json").unlink()
    chain = pem(issued, server.authority.issuing)
    store.promote(store.complete(current.slot, chain, certificate_info(issued, "cam-7", end - timedelta(days=9))))
    server.change(issued=(issued,), used=frozenset({crash_life.fingerprint_of(issued)}))
    server.expired = frozenset({crash_life.fingerprint_of(issued)})


def candidate_beside(home: Path, server: ModelServer) -> Identity:
    enroll(home)
    run(home)
    assert outcome_of(EnrollmentJob(home, "reenroll"), NOW).ok
    candidate = IdentityStore(home).candidate()
    assert candidate is not None
    return candidate


def test_the_slot_in_use(home: Path, server: ModelServer) -> None:
    """The server is asked for nothing, and would give nothing."""
    enroll(home)
    server.refusals = [AssertionError("it asks")] * 9
    run(home)
    working_identity(home, server)
    assert len(server.registry.issued) == 1


@pytest.mark.parametrize("name", ["key.pem", "cert.pem", "meta.json"])
def test_the_other_slot_where_the_one_in_use_is_damaged(home: Path, server: ModelServer, name: str) -> None:
    candidate = candidate_beside(home, server)
    (home / "current" / name).write_bytes(b"")
    server.refusals = [AssertionError("it asks")] * 9
    run(home)
    assert working_identity(home, server) == candidate


def test_the_slot_before_where_the_new_one_is_refused(home: Path, server: ModelServer) -> None:
    before = candidate_beside(home, server) and current_of(home)
    revoke(server, 1)
    run_until_connected(home)
    assert current_of(home) == before
    run(home, renew=True)
    working_identity(home, server)


def run_until_connected(home: Path) -> None:
    with pytest.raises(AssertionError, match="connected"):
        run(home)  # the refused candidate stays, and is tried again


def test_a_renewal_after_the_end_in_the_grace_period(home: Path, server: ModelServer) -> None:
    enroll(home)
    expire(home, server)
    server.grace = True
    run(home)
    working_identity(home, server)
    assert len(server.registry.issued) == 2


def by_certificate(home: Path, server: ModelServer) -> None:
    server.maker = server.authority.client("maker")
    enroll(home, server.maker, keep=True)


def by_token(home: Path, server: ModelServer) -> None:
    server.readmits = True
    enroll(home, keep=True)


def lose_both_slots(home: Path, server: ModelServer) -> None:
    for slot in ("slot-a", "slot-b"):
        shutil.rmtree(home / slot, ignore_errors=True)


def end_it(home: Path, server: ModelServer) -> None:
    revoke(server, 0)


def let_it_expire(home: Path, server: ModelServer) -> None:
    expire(home, server)


Step = Callable[[Path, ModelServer], None]


@pytest.mark.parametrize("kept", [by_certificate, by_token])
@pytest.mark.parametrize("lost", [lose_both_slots, end_it, let_it_expire])
def test_the_bootstrap_credential_where_nothing_can_be_renewed(
    home: Path, server: ModelServer, kept: Step, lost: Step
) -> None:
    kept(home, server)
    run(home)
    lost(home, server)
    run(home)
    working_identity(home, server)
    assert len(server.registry.issued) == 2
    assert examine(read_config(home), NOW).last_refusal == {}


def test_a_suspended_device_does_not_use_it(home: Path, server: ModelServer) -> None:
    """The server refuses to renew for now, and not for ever: another enrollment would be no way around that."""
    by_certificate(home, server)
    run(home)
    outcome = outcome_of(EnrollmentJob(home, "reenroll"), NOW)
    assert outcome.ok
    assert not outcome.ended


def test_an_alert_of_somebody_on_the_way_is_final_for_no_credential(home: Path, server: ModelServer) -> None:
    """It lets the next one be tried, and delays nothing."""
    by_token(home, server)
    run(home)
    with alerting_server() as port:
        config = home / "agent.toml"
        config.write_text(re.sub(r"https://[^\"]*", f"https://localhost:{port}", config.read_text()))
        renewal = enroll_and_wait(EnrollmentJob(home, "reenroll"))
        recovery = enroll_and_wait(EnrollmentJob(home, "recover"))
    assert "CERTIFICATE_REVOKED" in renewal.message
    assert (renewal.refused, renewal.ended) == (False, True)
    assert (recovery.refused, recovery.ended) == (False, False)


@pytest.mark.parametrize(("kept", "lost"), [(True, end_it), (True, let_it_expire), (False, let_it_expire)])
def test_then_an_operator_sees_it_and_a_new_token_helps(
    home: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch, lost: Step, kept: bool
) -> None:
    """With a bootstrap credential that the model does not admit again, and without any."""
    by_certificate(home, server) if kept else enroll(home)
    run(home)
    lost(home, server)
    server.maker = None
    with pytest.raises(AssertionError, match="renewal-failed"):
        run(home)
    state = examine(read_config(home), NOW)
    assert state.state == LOCKED_OUT
    assert not state.healthy
    assert state.problem.startswith("The server refuses every credential that this device has.")
    assert state.last_refusal["final"] is True
    shown = CliRunner().invoke(cli, ["--home", str(home), "status"])
    assert shown.exit_code == 1
    assert "locked out" in shown.output
    assert json.loads(CliRunner().invoke(cli, ["--home", str(home), "status", "-o", "json"]).output)["last_refusal"]
    server.readmits = True
    enrollment.enroll(read_config(home), enrollment.EnrollmentRequest("EC-P256", crash_life.TOKEN, again=True), NOW)
    run(home)
    working_identity(home, server)
    assert examine(read_config(home), NOW).state == health.ENROLLED


def test_a_certificate_that_the_gateway_refuses_is_not_healthy(home: Path, server: ModelServer) -> None:
    """Without a bootstrap credential, and before a renewal is due: nothing is asked of EST, and nothing is final."""
    enroll(home)
    run(home)
    end_it(home, server)
    with pytest.raises(AssertionError, match="cause=refused"):
        run(home)
    state = examine(read_config(home), NOW)
    assert (state.state, state.healthy, state.last_refusal["final"]) == (health.REFUSED, False, False)
    assert state.problem == "The server refuses this device: not authorized"
    assert len(server.registry.issued) == 1


def test_what_cannot_enroll_is_not_kept(home: Path, server: ModelServer) -> None:
    chain, _ = server.authority.client("maker")
    _, key = server.authority.client("another")
    with pytest.raises(BadCredentials):
        enroll(home, (chain, key), keep=True)
    assert bootstrap_of(home) is None


def test_a_bootstrap_is_private_and_a_damaged_one_is_none(home: Path) -> None:
    keep_token(home, "id.secret")
    file = home / "bootstrap" / "token"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    found = bootstrap_of(home)
    assert found is not None
    assert found.token == "id.secret"
    assert "secret" not in repr(found)
    for damaged in (b"", b"\xff\xfe", b"x" * 5000):
        file.write_bytes(damaged)
        assert bootstrap_of(home) is None


def test_without_any_credential_nothing_is_started(home: Path) -> None:
    assert not outcome_of(EnrollmentJob(home, "recover"), NOW).ok
    with pytest.raises(AgentError):
        enrollment.renew(read_config(home))


def test_an_agent_that_is_there_and_does_not_answer_is_not_healthy(
    home: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(home)
    run(home)
    assert examine(read_config(home), NOW).healthy  # none runs
    monkeypatch.setattr(health, "ASK_SECONDS_MAX", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        with socket_address(home) as address:
            listener.bind(address)
        listener.listen(0)
        silent = examine(read_config(home), NOW)  # its connection fills the queue
        full = examine(read_config(home), NOW)
    for found, said in ((silent, "has not answered"), (full, "its socket is full")):
        assert (found.state, found.running, found.connected, found.healthy) == (health.ENROLLED, True, False, False)
        assert said in found.last_error
