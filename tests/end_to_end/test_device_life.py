"""A device through its life at a real server: rotation, suspension, revocation, restarts on either side."""

import json
import shutil
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.demo.harness import AGENT, Running
from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import EstRefused
from fleet.wire.csr import build_csr
from fleet.wire.mqtt.codes import V311
from tests.serving import Served, run_agent, run_fleet, start

DEVICE = "cam-7"


class LiveDevice:
    """An enrolled device and its running agent."""

    def __init__(self, served: Served, folder: Path, name: str = DEVICE) -> None:
        self.served, self.name, self.home = served, name, folder / name
        host, port = served.address("mqtt")
        run_fleet(served.home, "device", "add", name, "--model", "default")
        token = run_fleet(served.home, "token", "create", "--device", name)
        words = ["--device-id", name, "--est", served.est, "--mqtt", f"{host}:{port}", "--ca", str(served.ca_file)]
        self.call("init", *words)
        self.call("enroll", give=token)
        settings = self.home / "agent.toml"  # asks again at once, where a device in the field would wait a minute
        text = settings.read_text()
        assert "refused_seconds = 60.0" in text
        settings.write_text(text.replace("refused_seconds = 60.0", "refused_seconds = 0.2"))
        self.agent: Running | None = None

    def call(self, *words: str, expect: int | None = 0, give: str | None = None) -> str:
        return run_agent(self.home, *words, expect=expect, give=give)

    def run(self) -> Running:
        self.agent = start("agent", *AGENT, "--home", str(self.home), "run", "--stdin")
        self.agent.wait_for(lambda line: " connected " in line, "that it is connected")
        return self.agent

    def pair(self, place: str = "current") -> tuple[Path, Path]:
        return self.home / place / "cert.pem", self.home / place / "key.pem"

    def stop(self) -> None:
        if self.agent is not None:
            self.agent.stop()


@pytest.fixture
def device(served: Served, tmp_path: Path) -> Iterator[LiveDevice]:
    live = LiveDevice(served, tmp_path)
    yield live
    live.stop()


def mqtt_answer(served: Served, pair: tuple[Path, Path], client_id: str) -> int:
    """The return code of CONNACK (MQTT 3.1.1, 3.2.2.3) for a connection with this certificate."""
    with mqtt_connected(served, pair, client_id) as (_, code):
        return code


@contextmanager
def mqtt_connected(served: Served, pair: tuple[Path, Path], client_id: str) -> Iterator[tuple[ssl.SSLSocket, int]]:
    """A connection with this certificate, and the return code of its CONNACK."""
    host, port = served.address("mqtt")
    context = ssl.create_default_context(cafile=served.ca_file)
    context.load_cert_chain(*pair)
    body = b"\x00\x04MQTT" + bytes((V311,)) + b"\x02\x00\x3c" + len(client_id).to_bytes(2, "big") + client_id.encode()
    with socket.create_connection((host, port), 20) as raw, context.wrap_socket(raw, server_hostname=host) as tls:
        tls.sendall(b"\x10" + bytes((len(body),)) + body)
        answer = tls.recv(4)
        assert answer[:1] == b"\x20"
        yield tls, answer[3]


def renewal_with(served: Served, pair: tuple[Path, Path]) -> EstClient:
    return EstClient(served.est, served.ca_file, certificate=pair, policy=Policy(patience_seconds=0))


def csr_for(name: str) -> bytes:
    return build_csr(ec.generate_private_key(ec.SECP256R1()), (("2.5.4.3", name),), ())


def test_the_old_certificate_is_worth_nothing_once_the_new_one_has_been_used(
    served: Served, device: LiveDevice, tmp_path: Path
) -> None:
    device.run()
    old = tmp_path / "old"
    shutil.copytree(device.home / "current", old)
    device.call("renew")
    assert mqtt_answer(served, (old / "cert.pem", old / "key.pem"), DEVICE) == 5  # not authorized
    with pytest.raises(EstRefused):
        renewal_with(served, (old / "cert.pem", old / "key.pem")).simplereenroll(csr_for(DEVICE))
    states = [c["state"] for c in credentials(served)]
    assert states == ["superseded", "active"]
    assert '"running": true, "connected": true' in device.call("status", "-o", "json")


def credentials(served: Served) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(run_fleet(served.home, "device", "show", DEVICE, "-o", "json"))[
        "certificates"
    ]
    return found


def test_another_devices_certificate_renews_nobody_else(served: Served, device: LiveDevice, tmp_path: Path) -> None:
    other = LiveDevice(served, tmp_path, "meter-3")
    with pytest.raises(EstRefused):
        renewal_with(served, other.pair()).simplereenroll(csr_for(DEVICE))
    with pytest.raises(EstRefused):
        renewal_with(served, other.pair()).simpleenroll(csr_for(DEVICE))
    assert mqtt_answer(served, other.pair(), DEVICE) == 2  # identifier rejected
    assert len(credentials(served)) == 1


def test_a_suspended_device_is_cut_and_comes_back_when_resumed(served: Served, device: LiveDevice) -> None:
    agent = device.run()
    run_fleet(served.home, "device", "suspend", DEVICE, "--reason", "test")
    seen = len(agent.lines)
    agent.wait_for(lambda line: "setback=refused" in line, "that it is refused")
    run_fleet(served.home, "device", "resume", DEVICE)
    agent.wait_for(lambda line: " connected " in line, "that it is back", since=seen)
    assert device.call("status").count("enrolled")


def test_a_revoked_device_stays_out_and_cannot_be_added_again(served: Served, device: LiveDevice) -> None:
    agent = device.run()
    run_fleet(served.home, "device", "revoke", DEVICE, "--reason", "lost")
    agent.wait_for(lambda line: "setback=refused" in line, "that it is refused")
    run_fleet(served.home, "device", "add", DEVICE, "--model", "default", expect=1)
    run_fleet(served.home, "device", "resume", DEVICE, expect=1)
    device.call("renew", expect=1)
    assert mqtt_answer(served, device.pair(), DEVICE) == 5


def test_both_sides_come_back_after_a_kill(served: Served, device: LiveDevice) -> None:
    served.stay_on_these_ports()
    agent = device.run()
    seen = len(agent.lines)
    served.kill()
    served.start()
    agent.wait_for(lambda line: " connected " in line, "that it is back", since=seen)
    device.call("send", "devices/{id}/up/t", "after the server's fall", "--wait")
    agent.process.kill()
    agent.stop()
    device.run()
    device.call("send", "devices/{id}/up/t", "after the agent's fall", "--wait")


def contains(word: str, line: str) -> bool:
    return word in line


def test_an_agent_killed_anywhere_in_a_rotation_comes_back(served: Served, device: LiveDevice) -> None:
    for word in ("renewing", "certificate-received", "renewed"):
        agent = device.run()
        seen = len(agent.lines)
        agent.process.send_signal(signal.SIGUSR1)  # renew now
        agent.wait_for(partial(contains, f" {word}"), word, since=seen)
        agent.process.kill()
        agent.stop()
    device.run()
    device.call("send", "devices/{id}/up/t", "still here", "--wait")
    assert [c["state"] for c in credentials(served)].count("active") == 1
