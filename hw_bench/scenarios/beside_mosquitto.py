"""The gateway with its broker, and mosquitto's own TLS listener: same devices, same certificates, same cores."""

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hw_bench.certificates import Certificates, Identity
from hw_bench.cpu_time import process_tree
from hw_bench.drivers.pool import DriverPool
from hw_bench.peers import mosquitto
from hw_bench.peers.contract import Environment, Running
from hw_bench.peers.fleet_tls import version
from hw_bench.peers.home import FleetHome, Served, enroll_devices, make_home, serve
from hw_bench.processes import BenchError
from hw_bench.scenarios.contract import new_environment
from hw_bench.turns import Progress

GATEWAY = "gateway"
MOSQUITTO = "mosquitto"


@dataclass(frozen=True, slots=True)
class Pair:
    """Both servers, running."""

    gateway: Running
    peer: Running
    served: Served
    devices: list[Identity]
    environment: Environment

    @property
    def servers(self) -> tuple[Running, Running]:
        return self.gateway, self.peer

    @property
    def versions(self) -> dict[str, str]:
        return {server.name: server.version for server in self.servers}

    def clients(
        self, server: Running, *, tls: str, devices: Sequence[Identity] | None = None, **config: Any
    ) -> DriverPool:
        """A driver whose MQTT clients connect to `server`."""
        host, port = server.address
        names = [
            {"name": one.name, "certificate": str(one.certificate), "key": str(one.key)}
            for one in (self.devices if devices is None else devices)
        ]
        config = {"host": host, "port": port, "tls": tls, "mqtt": True, "devices": names, **config}
        config |= {"broker": server.broker, "user": mosquitto.SUBSCRIBER}
        folder = self.environment.new_folder(f"clients-{server.name}")
        return DriverPool("hw_bench.drivers.clients", 1, config, cores=self.environment.load_cores, folder=folder)


@contextlib.contextmanager
def beside_mosquitto(devices: int, progress: Progress, *words: str) -> Iterator[Pair]:
    """Start both, with `words` added to the command line of `fleet serve`, and enroll `devices`.

    Raises: BenchError when mosquitto is not installed, or one does not start.
    """
    reason = mosquitto.missing()
    if reason is not None:
        raise BenchError(f"{reason}; there is nothing to compare with.")
    with contextlib.ExitStack() as stack:
        apart = stack.enter_context(new_environment())
        # A gateway with its broker is two processes and mosquitto is one: pinning either would choose the winner.
        environment = replace(apart, cores=apart.cores.together())
        progress("making a home")
        home = make_home(environment)
        progress("starting fleet serve")
        served = stack.enter_context(serve(home, environment, *words))
        progress(f"enrolling {devices} devices")
        enrolled = enroll_devices(home, served, environment, devices)
        progress("starting mosquitto")
        certificates = _certificates(home, enrolled)
        peer = stack.enter_context(mosquitto.start(replace(environment, certificates=certificates)))
        yield Pair(_gateway(served), peer, served, enrolled, replace(environment, certificates=certificates))


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """(p50, p99). Raises: BenchError: fewer than two values."""
    if len(values) < 2:
        raise BenchError("nothing was measured.")
    points = statistics.quantiles(values, n=100, method="inclusive")
    return points[49], points[98]


def _gateway(served: Served) -> Running:
    """The gateway with the mosquitto behind it, as one server. Raises: BenchError when there is no mosquitto."""
    names = [(Path("/proc") / str(pid) / "comm").read_text().strip() for pid in process_tree(served.pids)]
    if "mosquitto" not in names:
        raise BenchError("fleet serve started no mosquitto.")
    versions = f"{version()}; {mosquitto.version()}"
    broker = str(served.home.path / "run" / "broker.sock")
    return Running(GATEWAY, versions, served.mqtt, served.pids, broker)


def _certificates(home: FleetHome, devices: list[Identity]) -> Certificates:
    """The home's own, for another server to use."""
    return Certificates(
        anchors=home.write_anchors(home.path / "anchors.pem"),
        root=home.files.root_certificate,
        server=Identity("server", home.files.server_chain, home.files.server_key),
        devices=tuple(devices),
        stranger=devices[0],
    )
