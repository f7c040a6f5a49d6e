"""What the service manager is told, and what it notices."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.runtime.service_manager import ALIVE, READY, STOPPING, keep_alive, notify
from tests.serving import ANY_PORTS, run_fleet
from tests.waiting import PATIENCE_SECONDS

PERIOD_US = 900_000


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Its socket: `tmp_path / "notify"`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(os.fspath(tmp_path / "notify"))
        receiver.settimeout(PATIENCE_SECONDS)
        yield receiver


async def test_it_is_told_three_times_in_each_period(manager: socket.socket, tmp_path: Path) -> None:
    environment = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "30000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    telling = asyncio.create_task(keep_alive(environment))
    for _ in range(4):
        assert await asyncio.to_thread(manager.recv, 100) == ALIVE.encode()
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)


@pytest.mark.parametrize(
    "watchdog", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}]
)
async def test_who_is_not_asked_says_nothing(manager: socket.socket, tmp_path: Path, watchdog: dict[str, str]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await keep_alive({"NOTIFY_SOCKET": str(tmp_path / "notify"), **watchdog})
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_an_abstract_socket_and_one_that_is_gone(tmp_path: Path) -> None:
    name = f"fleet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        notify(READY, {"NOTIFY_SOCKET": f"@{name}"})
        assert receiver.recv(100) == READY.encode()
    notify(READY, {"NOTIFY_SOCKET": f"@{name}"})
    notify(READY, {"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    notify(READY, {"NOTIFY_SOCKET": "vsock:2:1"})


def test_a_worker_that_stands_still_is_noticed(manager: socket.socket, tmp_path: Path) -> None:
    home = tmp_path / "home"
    run_fleet(home, "init")
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": str(PERIOD_US)}
    serve = subprocess.Popen(
        [sys.executable, "-m", "fleet", "serve", "--home", str(home), "--workers", "1", *ANY_PORTS],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        heard = {manager.recv(100) for _ in range(8)}
        assert heard == {READY.encode(), ALIVE.encode()}
        serve.send_signal(signal.SIGSTOP)
        manager.settimeout(PERIOD_US / 1_000_000)
        with pytest.raises(TimeoutError):  # systemd kills it now
            for _ in range(100):
                manager.recv(100)
        serve.send_signal(signal.SIGCONT)
        manager.settimeout(PATIENCE_SECONDS)
        assert manager.recv(100) == ALIVE.encode()
        serve.terminate()
        while (said := manager.recv(100)) == ALIVE.encode():
            pass
        assert said == STOPPING.encode()
        assert serve.wait(PATIENCE_SECONDS) == 0
    finally:
        serve.kill()
        serve.wait()
