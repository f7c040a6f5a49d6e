"""How long a reverse proxy waits for our answer: one request after another on one kept connection to the Unix socket.

Each names the certificate of another device, as nginx does; its model has a rule, and each answer must be 200 with that
device's id.
"""

import contextlib
import itertools
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from msgspec.structs import replace

from fleet.config.addresses import LocalAddress
from fleet.config.settings_file import read_settings
from fleet.config.template import render
from hw_bench.certificates import Identity
from hw_bench.peers.contract import Environment
from hw_bench.peers.home import MODEL, enroll_devices, make_home, serve
from hw_bench.processes import BenchError, on_cores
from hw_bench.report import Figure, Report
from hw_bench.scenarios.contract import file_system, new_environment
from hw_bench.turns import Plan, Progress, machine

P50_MILLISECONDS_MAX = 1.0
SOCKET = "auth.sock"
ANSWER_SIZE_MAX = 8192
ANSWER_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class ForwardAuth:
    """Any other answer fails the run."""

    name: str = "forward-auth"
    devices: int = 100

    def description(self) -> str:
        return (
            "milliseconds from a proxy's question to our answer, one at a time on a kept connection to the Unix "
            f"socket, for the certificates of {self.devices} devices in turn, whose model has a rule for the path"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        with contextlib.ExitStack() as stack:
            environment = stack.enter_context(new_environment())
            questions = stack.enter_context(self._served(environment, progress))
            progress(f"asking for {plan.seconds:.0f} s")
            with on_cores(*environment.cores.load):
                times = ask(environment.folder / SOCKET, questions, plan.seconds)
            checks = (
                f"every answer was 200, with the id of the device whose certificate was named ({len(times):,})",
                f"the registry is sqlite on {file_system(environment.folder)}",
            )
        return Report(
            self.name,
            self.description(),
            "requests",
            plan.seconds,
            1,
            machine(environment.cores),
            (),
            (),
            (),
            (),
            checks=checks,
            figures=figures(times),
        )

    @contextlib.contextmanager
    def _served(self, environment: Environment, progress: Progress) -> Iterator[list[tuple[bytes, bytes]]]:
        """A served home; each device's question, and what its answer must hold."""
        home = make_home(environment)
        home.fleet("model", "set", MODEL, "--http-allow", "GET /v1/devices/{id}/**")
        settings = home.files.settings_file
        listening = replace(read_settings(settings), forward_auth=LocalAddress(str(environment.folder / SOCKET)))
        settings.write_text(render(listening), "utf-8")
        progress("starting fleet serve")
        with serve(home, environment) as served:
            progress(f"enrolling {self.devices} devices")
            devices = enroll_devices(home, served, environment, self.devices)
            yield [(question(device), f"X-Device-Id: {device.name}\r\n".encode()) for device in devices]


def question(device: Identity) -> bytes:
    """What nginx sends for a request of `device`."""
    headers = (
        "GET /nginx HTTP/1.1",
        "Host: fleet_auth",
        f"X-Client-Cert: {quote(device.certificate.read_text('ascii'), safe='')}",
        "X-Original-Method: GET",
        f"X-Original-URI: /v1/devices/{device.name}/readings?limit=10",
        "X-Real-IP: 192.0.2.7",
    )
    return "\r\n".join((*headers, "", "")).encode()


def ask(path: Path, questions: Sequence[tuple[bytes, bytes]], seconds: float) -> list[float]:
    """Milliseconds of each answer, for `seconds` after each device has been asked for once. Raises: BenchError."""
    times: list[float] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_SECONDS_MAX)
        connection.connect(str(path))
        for asked in questions:  # the first use of a certificate is a write
            _answered(connection, *asked)
        ends = time.perf_counter() + seconds
        for asked in itertools.cycle(questions):
            started = time.perf_counter()
            if started >= ends and len(times) > 1:
                return times
            _answered(connection, *asked)
            times.append((time.perf_counter() - started) * 1000)
    return times


def _answered(connection: socket.socket, asked: bytes, wanted: bytes) -> None:
    connection.sendall(asked)
    answer = connection.recv(ANSWER_SIZE_MAX)  # it leaves in one piece
    if not answer.startswith(b"HTTP/1.1 200 ") or wanted not in answer:
        raise BenchError(f"An answer was {answer[:80]!r}.")


def figures(times: Sequence[float]) -> tuple[Figure, ...]:
    """`times`: milliseconds of each answer. Raises: statistics.StatisticsError: fewer than two."""
    percentiles = statistics.quantiles(times, n=1000, method="inclusive")
    return (
        Figure("answers", len(times), ""),
        Figure("rate of one connection", 1000 / statistics.fmean(times), "a second"),
        Figure("p50", percentiles[499], "ms", at_most=P50_MILLISECONDS_MAX),
        Figure("p99", percentiles[989], "ms"),
        Figure("max", max(times), "ms"),
    )
