"""External brokers that run behind the gateway: each as a program of this machine that can be stopped and started."""

import base64
import json
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.free_ports import free_ports
from tests.interop.rabbitmq import PROGRAMS, names_service, rabbitmq
from tests.interop.relying_parties import listening, running
from tests.interop.stock_device import needs
from tests.waiting import wait_until

PASSWORD = b"between-them"
BOUND_SECONDS = 1.0
"""From a revocation to the end of the session, half of the times: much longer than it takes on an idle machine."""
ADMINISTRATOR = "_fleet"


@dataclass
class Broker:
    """One of them."""

    kind: str
    port: int
    run: Callable[[], AbstractContextManager["subprocess.Popen[bytes]"]]
    introduce: Callable[[str], None] = lambda name: None
    """Has it know the user of this name."""
    password: bytes | None = None
    """Of its users."""
    _running: ExitStack | None = None

    def start(self) -> None:
        self._running = ExitStack()
        process = self._running.enter_context(self.run())
        wait_until(lambda: listening(self.port), f"{self.kind} does not listen", process)

    def stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None


@contextmanager
def mosquitto(folder: Path) -> Iterator[Broker]:
    needs("mosquitto")
    [port] = free_ports(1)
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nlog_dest stderr\nuser root\n"
        f"persistence true\npersistence_location {folder}/\n"
    )
    yield Broker("mosquitto", port, lambda: running(folder, "mosquitto", "-c", config))


@contextmanager
def nats(folder: Path) -> Iterator[Broker]:
    needs("nats-server")
    own, port = free_ports(2)
    config = folder / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{own}"\nserver_name: nats\njetstream {{ store_dir: "{folder}/jetstream" }}\n'
        f'mqtt {{ listen: "127.0.0.1:{port}" }}\n'
    )
    yield Broker("NATS", port, lambda: running(folder, "nats-server", "-c", config))


@contextmanager
def rabbit(folder: Path) -> Iterator[Broker]:
    needs(*PROGRAMS)
    port, management, distribution, names = free_ports(4)
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp = none\nmqtt.listeners.tcp.default = 127.0.0.1:{port}\nmqtt.allow_anonymous = false\n"
        f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n"
        f"default_user = {ADMINISTRATOR}\ndefault_pass = {PASSWORD.decode()}\n"
    )

    def introduce(name: str) -> None:
        put(f"users/{name}", {"password": PASSWORD.decode(), "tags": ""})
        put(f"permissions/%2F/{name}", {"configure": ".*", "write": ".*", "read": ".*"})

    def put(path: str, members: dict[str, str]) -> None:
        login = base64.b64encode(f"{ADMINISTRATOR}:".encode() + PASSWORD).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        url = f"http://127.0.0.1:{management}/api/{path}"
        asked = urllib.request.Request(url, json.dumps(members).encode(), headers, method="PUT")
        with urllib.request.urlopen(asked, timeout=60) as response:
            assert response.status in (201, 204)

    @contextmanager
    def run() -> Iterator["subprocess.Popen[bytes]"]:
        with rabbitmq(folder, distribution, names) as process:
            wait_until(lambda: listening(management), "RabbitMQ's API does not listen", process)
            yield process

    with names_service(folder, names):
        yield Broker("RabbitMQ", port, run, introduce, PASSWORD)


KINDS: dict[str, Callable[[Path], AbstractContextManager[Broker]]] = {
    "mosquitto": mosquitto,
    "NATS": nats,
    "RabbitMQ": rabbit,
}


def spread(seconds: Sequence[float]) -> str:
    """What was measured, for people."""
    return f"p50 {median(seconds) * 1000:.0f} ms, max {max(seconds) * 1000:.0f} ms of {len(seconds)}"


def table_of(page: Path, first: str) -> dict[str, dict[str, str]]:
    """The table of `page` whose first column is headed `first`: cells by row and by the first word of their column."""
    lines = page.read_text().splitlines()
    [start] = [number for number, line in enumerate(lines) if line.startswith(f"| {first} |")]
    head, _, *rows = (_cells(line) for line in lines[start : _end(lines, start)])
    return {row[0]: dict(zip((each.split()[0] for each in head[1:]), row[1:], strict=True)) for row in rows}


def _end(lines: list[str], start: int) -> int:
    return next((n for n in range(start, len(lines)) if not lines[n].startswith("|")), len(lines))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
