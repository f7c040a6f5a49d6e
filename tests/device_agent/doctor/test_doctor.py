"""`device-agent doctor`: a healthy device, and each way in which one is broken, with the one finding that says so."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from device_agent.cli import cli
from device_agent.doctor.diagnosis import CHECKS, examine_device, is_healthy
from device_agent.doctor.findings import Finding, State
from device_agent.doctor.local_checks import disk_has_room
from device_agent.link.clock import WITNESS_NAME
from device_agent.store.atomic_files import held_lock
from device_agent.store.device_key import certificate_info
from device_agent.store.identity_store import IdentityStore
from device_agent.store.locks import AGENT_LOCK
from tests.device_agent.fleet_parts import Authority, Broker, Device, EstServer, key_pem, pem
from tests.free_ports import free_port

pytestmark = pytest.mark.usefixtures("forked_programs")

DEVICE = "cam-of-the-doctor"


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def model(shared_est: EstServer, shared_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """Enrolled and connected once; each test breaks a copy."""
    device = Device(tmp_path_factory.mktemp("doctor") / "a home", shared_est, shared_broker.port, DEVICE).enrolled()
    yield device
    device.close()


@pytest.fixture
def device(model: Device, est: EstServer, broker: Broker, tmp_path: Path) -> Device:
    shutil.copytree(model.home, tmp_path / "a home", symlinks=True)
    return Device(tmp_path / "a home", est, broker.port, DEVICE)


def failures(home: Path, at: datetime | None = None) -> dict[str, Finding]:
    found = [each for each in examine_device(home, at or now()) if each.state is State.FAILED]
    assert all(each.advice and each.detail.endswith(".") and ".." not in each.detail for each in found)
    return {each.check: each for each in found}


def fail_of(device: Device) -> Finding:
    """The only failure."""
    found = failures(device.home)
    assert len(found) == 1, found
    return next(iter(found.values()))


def test_a_healthy_device_and_nothing_is_changed(device: Device) -> None:
    def state() -> dict[Path, tuple[int, int, bytes]]:
        paths = [path for path in device.home.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes()) for path in paths}

    before = state()
    told = json.loads(device.call("doctor", "-o", "json").stdout)
    assert state() == before
    assert told["healthy"]
    assert {each["state"] for each in told["findings"]} == {"ok"}
    checks = ["settings", "permissions", "disk", "anchors", "key", "certificate"]
    checks += ["dns", "dns", "tcp", "tcp", "clock", "tls", "tls", "est", "mqtt"]
    assert [each["check"] for each in told["findings"]] == checks
    text = device.call("doctor").stdout
    assert "ok       mqtt" in text
    assert "BEGIN" not in text


def test_a_running_agent_is_asked_instead_of_the_gateway(device: Device) -> None:
    agent = device.run()
    try:
        agent.wait_for("connected")
        assert "The agent is connected" in device.call("doctor").stdout
        assert len([line for line in agent.lines if "connected" in line]) == 1  # it was not taken over
    finally:
        agent.kill()


def test_an_agent_that_does_not_answer_is_not_taken_over(device: Device) -> None:
    with held_lock(device.home / AGENT_LOCK, "busy"):
        found = fail_of(device)
    assert found.check == "mqtt"
    assert "does not answer" in found.detail
    assert failures(device.home) == {}


def test_settings_that_cannot_be_read(device: Device) -> None:
    (device.home / "agent.toml").write_text("device_id = ")
    assert fail_of(device).check == "settings"
    assert device.call("doctor", expect=1).stdout.startswith("failed   settings")
    assert CliRunner().invoke(cli, ["doctor"], env={"DEVICE_HOME": ""}).exit_code == 2


def test_a_home_that_others_read(device: Device) -> None:
    (device.home / "slot-a" / "key.pem").chmod(0o644)
    found = fail_of(device)
    assert found.check == "permissions"
    assert "slot-a/key.pem" in found.detail
    assert "chmod" in found.advice


@pytest.mark.skipif(os.getuid() != 0, reason="changes owners: needs root")
def test_files_of_another_user(device: Device) -> None:
    os.chown(device.home / "slot-a" / "cert.pem", 65534, -1)
    assert "chown" in fail_of(device).advice


def test_a_disk_that_is_full_or_read_only(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(device.home)
    monkeypatch.setattr("os.statvfs", lambda _: os.statvfs_result((*real[:4], 3, 3, *real[6:], real.f_fsid)))
    assert "KiB" in fail_of(device).detail
    monkeypatch.setattr("os.statvfs", lambda _: os.statvfs_result((*real[:8], os.ST_RDONLY, real[9], real.f_fsid)))
    assert "read-only" in fail_of(device).detail


def test_no_trust_anchors(device: Device) -> None:
    (device.home / "ca.pem").write_text("hello")
    found = failures(device.home)
    assert "fleet ca export" in found["anchors"].advice
    assert set(found) == {"anchors", "certificate"}


def test_anchors_of_another_fleet(device: Device, tmp_path: Path) -> None:
    (device.home / "ca.pem").write_bytes(Authority(tmp_path / "other", "other").ca_file.read_bytes())
    found = failures(device.home)
    assert set(found) == {"certificate", "tls"}
    assert "another fleet" in found["tls"].advice


def test_servers_without_a_pinned_key(device: Device) -> None:
    file = device.home / "agent.toml"
    file.write_text(file.read_text() + f"\n[trust]\npins = ['sha256:{'0f' * 32}']\n")
    found = failures(device.home)
    assert set(found) == {"tls"}
    assert "[trust] pins" in found["tls"].advice


def test_a_key_of_another_certificate(device: Device, authority: Authority) -> None:
    store = IdentityStore(device.home)
    _, key = authority.issue(DEVICE)
    certificate, _ = authority.issue(DEVICE)
    put(device, pem(certificate, authority.issuing), key_pem(key), certificate)
    assert store.current() is not None
    found = failures(device.home)
    assert "belongs to another certificate" in found["key"].detail
    assert "enroll --again" in found["key"].advice
    assert set(found) == {"key", "certificate"}


def put(device: Device, chain: bytes, key: bytes, certificate: Any) -> None:
    """Put it in use, whatever it is."""
    store = IdentityStore(device.home)
    slot = store.spare_slot()
    store.clear(slot)
    store.write_key(slot, key)
    store.promote(store.complete(slot, chain, certificate_info(certificate, DEVICE, now())))


def test_files_that_are_not_what_was_written(device: Device) -> None:
    with (device.home / "slot-a" / "cert.pem").open("a") as file:
        file.write("x")
    found = failures(device.home)
    assert "slot-a do not match" in found["key"].detail
    assert "no certificate" in found["certificate"].detail


def test_an_expired_certificate(device: Device, authority: Authority) -> None:
    yesterday = now() - timedelta(days=1)
    certificate, key = authority.issue(DEVICE, begin=yesterday - timedelta(days=9), end=yesterday)
    put(device, pem(certificate, authority.issuing), key_pem(key), certificate)
    found = failures(device.home)
    assert "expired" in found["certificate"].detail
    assert "new token" in found["certificate"].advice
    assert "does not admit" in found["mqtt"].detail
    assert "SSL:" not in found["mqtt"].detail
    assert "_ssl.c" not in found["mqtt"].detail


def test_no_certificate_yet(device: Device) -> None:
    (device.home / "current").unlink()
    shutil.rmtree(device.home / "slot-a")
    found = fail_of(device)
    assert found.check == "certificate"
    assert "enroll" in found.advice


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (datetime(1970, 1, 1, 0, 5, tzinfo=UTC), "not set"),
        (None, "ahead of the EST server"),
        (datetime(2050, 1, 1, tzinfo=UTC), "ahead of the EST server"),
    ],
)
def test_a_clock_that_is_wrong(device: Device, at: datetime | None, said: str) -> None:
    """Its dates are not judged by it: EST has said what time it is, at the enrollment."""
    found = failures(device.home, at or now() + timedelta(days=20))
    assert said in found["clock"].detail
    assert "NTP" in found["clock"].advice
    assert set(found) == {"clock"}


def test_every_command_judges_by_the_clock_that_a_server_has_corrected(device: Device, est: EstServer) -> None:
    witness = json.loads((device.home / WITNESS_NAME).read_text())
    witness["server_time"] = (now() + timedelta(days=9000)).isoformat()
    (device.home / WITNESS_NAME).write_text(json.dumps(witness))
    assert device.status()["state"] == "expired"
    assert {"certificate", "anchors", "tls"} <= set(failures(device.home))
    assert "already enrolled" not in device.call("enroll", give="a token", expect=1).output


def test_a_name_that_does_not_resolve(device: Device) -> None:
    set_host(device, "no-such-host.invalid")
    found = fail_of(device)
    assert (found.check, "MQTT server no-such-host.invalid" in found.detail) == ("dns", True)


def set_host(device: Device, host: str) -> None:
    device.set("host", json.dumps(host))


def test_a_port_that_nobody_serves(device: Device) -> None:
    device.set("port", str(free_port()))
    found = fail_of(device)
    assert found.check == "tcp"
    assert "refused" in found.detail.lower()
    assert found.advice.startswith("Check [mqtt] port in agent.toml; a fleet serves MQTT on port 8883")


def test_an_est_port_that_nobody_serves(device: Device) -> None:
    device.set("url", json.dumps(f"https://localhost:{free_port()}"))
    found = failures(device.home)
    assert set(found) == {"tcp"}
    assert found["tcp"].advice.startswith("Check [est] url in agent.toml; a fleet serves EST on port 8443")


def test_a_server_whose_certificate_names_another(device: Device) -> None:
    set_host(device, "2130706433")  # a name of 127.0.0.1 that no certificate has
    found = fail_of(device)
    assert found.check == "tls"
    assert "agent.toml" in found.advice


def test_the_gateways_port_where_est_answers(device: Device) -> None:
    device.set("port", str(device.est.port))
    found = fail_of(device)
    assert found.check == "mqtt"
    assert found.detail.endswith("HTTP answers, as on an EST port.")
    assert (
        found.advice == "Check [mqtt] port in agent.toml; a fleet serves MQTT on port 8883 unless it is set otherwise."
    )


def test_the_est_url_where_mqtt_answers(device: Device, broker: Broker) -> None:
    device.set("url", json.dumps(f"https://localhost:{broker.port}"))
    found = fail_of(device)
    assert found.check == "est"
    assert found.detail == f"At the EST server localhost:{broker.port}, MQTT answers."
    assert found.advice == "Check [est] url in agent.toml; a fleet serves EST on port 8443 unless it is set otherwise."


def test_a_running_agent_whose_port_is_est(device: Device) -> None:
    device.set("port", str(device.est.port))
    agent = device.run()
    try:
        agent.wait_for("connect-failed")
        told = [each for each in examine_device(device.home, now()) if each.check == "mqtt"]
    finally:
        agent.kill()
    assert told[0].detail.startswith("The agent is not connected")
    assert told[1].advice.startswith("Check [mqtt] port")


def test_a_hook_that_fails(device: Device) -> None:
    with (device.home / "agent.toml").open("a") as file:
        file.write('[[hook]]\nname = "x"\nrun = ["sh", "-c", "echo no such unit >&2; exit 5"]\n')
    warned = [each for each in examine_device(device.home, now()) if each.state is State.WARNING]
    assert [each.check for each in warned] == ["hook"]
    device.call("deploy", expect=1)
    assert "no such unit" in fail_of(device).detail


def test_a_check_that_cannot_read_the_home_is_a_finding(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.statvfs", fail)
    found = examine_device(device.home, now(), (disk_has_room,))
    assert [each.state for each in found] == [State.OK, State.FAILED]
    assert not is_healthy(found)


def test_each_check_is_one_rule() -> None:
    names: list[Callable[..., object]] = list(CHECKS)
    assert len(set(names)) == len(names) == 13
