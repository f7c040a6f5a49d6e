"""What systemd is told, over a real datagram socket."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.systemd.manager import ServiceManager
from tests.device_agent.fleet_parts import Device
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.usefixtures("forked_programs")


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    """The manager's socket: `tmp_path / "notify"`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(os.fspath(tmp_path / "notify"))
        opened.settimeout(PATIENCE_SECONDS)
        yield opened


def test_the_watchdog_is_fed_by_the_loop_alone(receiver: socket.socket, tmp_path: Path) -> None:
    now = [100.0]
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "9000000"}
    manager = ServiceManager(environment, lambda: now[0])
    assert manager.turn(60.0) == 3.0  # a third of its period
    assert receiver.recv(200) == b"WATCHDOG=1"
    assert manager.turn(1.0) == 1.0
    now[0] += 2.5
    assert manager.turn(60.0) == 0.5
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        receiver.recv(200)
    now[0] += 0.5
    manager.turn(60.0)
    assert receiver.recv(200) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-1"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}],
)
def test_a_manager_without_a_watchdog_is_fed_nothing(
    receiver: socket.socket, tmp_path: Path, watchdog: dict[str, str]
) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")} | watchdog)
    assert manager.turn(60.0) == 60.0
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        receiver.recv(200)


def test_events_of_the_log_become_states(receiver: socket.socket, tmp_path: Path) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")}, lambda: 12.5)
    said = []
    for name, fields in {
        "started": {},
        "connected": {"protocol": "MQTT 5.0"},
        "connect-failed": {"reason": "no\nREADY=1 answer" + "x" * 500},
        "reloading": {},
        "reloaded": {},
        "stopping": {},
    }.items():
        manager.heard(name, dict(fields))
        said.append(receiver.recv(1000).decode().split("\n"))
    assert said[0] == ["READY=1", "STATUS=Not connected yet."]
    assert said[1] == ["STATUS=Connected over MQTT 5.0."]
    assert len(said[2]) == 1
    assert said[2][0].startswith("STATUS=Not connected: no READY=1 answerxxx")
    assert said[3] == ["RELOADING=1", "MONOTONIC_USEC=12500000"]
    assert said[4] == ["READY=1"]
    assert said[5][0] == "STOPPING=1"
    manager.heard("renewal-suggested", {})
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        receiver.recv(200)


def test_an_abstract_socket_and_one_that_is_gone(tmp_path: Path) -> None:
    name = f"agent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).heard("reloaded", {})
        assert receiver.recv(100) == b"READY=1"
    ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).heard("started", {})
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).heard("started", {})
    ServiceManager({"NOTIFY_SOCKET": "vsock:2:1"}).heard("started", {})


def test_a_running_agent_is_ready_alive_and_stopping(
    device: Device, receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    agent = device.run()

    def wait_for(state: str) -> None:
        while state not in receiver.recv(1000).decode().split("\n"):
            pass

    wait_for("READY=1")
    wait_for("WATCHDOG=1")
    agent.wait_for("connected")
    agent.process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.005)
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):  # what was sent before it stopped
        while receiver.recv(1000):
            pass
    receiver.settimeout(0.3)
    with pytest.raises(TimeoutError):  # systemd restarts it now
        receiver.recv(1000)
    receiver.settimeout(PATIENCE_SECONDS)
    agent.process.send_signal(signal.SIGCONT)
    wait_for("WATCHDOG=1")
    agent.process.terminate()
    wait_for("STOPPING=1")
    assert agent.wait() == 0
