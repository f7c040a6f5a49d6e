"""Newcomers at a listener while strangers hold as many silent connections as they can."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hw_bench.drivers.pool import DriverPool
from hw_bench.peers.contract import Running
from hw_bench.report import Figure, Report
from hw_bench.scenarios.beside_mosquitto import Pair, beside_mosquitto, percentiles
from hw_bench.scenarios.contract import Findings, conclude
from hw_bench.turns import Plan, Progress

SOURCES = tuple(f"127.0.1.{number}" for number in range(1, 6))
P99_RATIO_MAX = 2.0
CONNECT_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Starve:
    """Each listener in turn: without the attack, then under it."""

    name: str = "starve"
    tls: str = "TLSv1.3"
    devices: int = 50
    at_once: int = 2
    """Newcomers at one time."""
    passes: int = 4
    """How often all devices connect, without the attack and under it."""
    strangers: int = 2050
    """Connections that never send an octet."""

    def description(self) -> str:
        return (
            f"newcomers while {self.strangers:,} connections from {len(SOURCES)} addresses send nothing: refused, and "
            "milliseconds to CONNACK, or to the end of the handshake at EST, beside the same listener without them"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        with beside_mosquitto(self.devices, progress) as pair:
            est = pair.served.est_server("est")
            figures = tuple(
                figure
                for server, ours in ((pair.gateway, True), (est, True), (pair.peer, False))
                for figure in self._measure(pair, server, ours, progress)
            )
        return replace(conclude(self, plan, (), Findings("connects", pair.environment.cores, {})), figures=figures)

    def _measure(self, pair: Pair, server: Running, ours: bool, progress: Progress) -> Iterator[Figure]:
        config = {"count": self.strangers, "sources": SOURCES}
        folder = pair.environment.new_folder(f"strangers-{server.name}")
        cores = pair.environment.load_cores
        host, port = server.address
        with (
            pair.clients(server, tls=self.tls, mqtt=server.name != "est") as clients,
            DriverPool("hw_bench.drivers.idle_connections", 1, config, cores=cores, folder=folder) as strangers,
        ):
            progress(f"{server.name}: newcomers alone")
            _, quiet = self._newcomers(clients)
            progress(f"{server.name}: newcomers and {self.strangers:,} silent connections")
            strangers.send({"do": "begin", "host": host, "port": port})
            refused, attacked = self._newcomers(clients)
            (answer,) = strangers.send({"do": "end"})
        connects = self.devices * self.passes
        bound = 0.0 if ours else None
        yield Figure(f"{server.name}: newcomers refused under attack, of {connects}", refused, "", at_most=bound)
        yield Figure(f"{server.name}: silent connections opened", answer["opened"], "")
        if len(attacked) > 1:
            before, after = percentiles(quiet)[1], percentiles(attacked)[1]
            yield Figure(f"{server.name}: p99 without the attack", before, "ms")
            yield Figure(f"{server.name}: p99 under attack", after, "ms")
            most = P99_RATIO_MAX if ours else None
            yield Figure(f"{server.name}: p99 under attack / without", after / before, "x", at_most=most)

    def _newcomers(self, clients: DriverPool) -> tuple[int, list[float]]:
        """(how many were refused, milliseconds of the others)."""
        refused, times = 0, list[float]()
        command = {"do": "connect", "at_once": self.at_once, "seconds": CONNECT_SECONDS_MAX, "retry": 0}
        for _ in range(self.passes):
            (answer,) = clients.send(command, CONNECT_SECONDS_MAX)
            refused += answer["refused"]
            times += (1000 * value for value in answer["times"])
            clients.send({"do": "cut"})
        return refused, times
