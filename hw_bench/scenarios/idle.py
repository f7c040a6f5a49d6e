"""Memory of a session that does nothing: growth of the server's resident memory by the sessions that it holds."""

from dataclasses import dataclass, replace
from pathlib import Path

from hw_bench.cpu_time import process_tree
from hw_bench.peers import fleet_tls
from hw_bench.peers.contract import Running
from hw_bench.report import Figure, Report
from hw_bench.scenarios.beside_mosquitto import GATEWAY, Pair, beside_mosquitto
from hw_bench.scenarios.contract import Findings, conclude
from hw_bench.scenarios.fanin import connect_all
from hw_bench.turns import Plan, Progress

OCTETS_MAX = 32 * 1024
BROKER = "mosquitto"


@dataclass(frozen=True, slots=True)
class Idle:
    """The gateway's broker is not counted with the gateway, and mosquitto is as a server of its own."""

    name: str = "idle"
    tls: str = "TLSv1.3"
    sessions: int = 2000
    at_once: int = 100
    """Connections under way while the devices connect."""

    def description(self) -> str:
        return (
            f"resident memory of an idle session, over --sessions sessions (default {self.sessions:,}) on {self.tls}: "
            "the gateway without its broker, mosquitto's own TLS listener, and the fleet's TLS alone"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        count = plan.sessions or self.sessions
        with beside_mosquitto(count, progress) as pair, fleet_tls.start_listener(pair.environment) as alone:
            ours, theirs, floor = (
                self._growth(pair, server, count, progress) for server in (pair.gateway, pair.peer, alone)
            )
        figures = (
            Figure("idle sessions", count, ""),
            Figure("gateway, resident memory of a session", ours / 1024, "KiB", at_most=OCTETS_MAX / 1024),
            Figure("TLS alone, of a connection", floor / 1024, "KiB"),
            Figure("mosquitto, of a session", theirs / 1024, "KiB"),
        )
        return replace(conclude(self, plan, (), Findings("sessions", pair.environment.cores, {})), figures=figures)

    def _growth(self, pair: Pair, server: Running, count: int, progress: Progress) -> float:
        """Octets for each session."""
        progress(f"connecting {count:,} devices to {server.name}")
        with pair.clients(server, tls=self.tls, mqtt=server.name in (GATEWAY, BROKER)) as pool:
            before = resident(server)
            connect_all(pool, server, self.at_once)
            pool.send({"do": "open"})
            return (resident(server) - before) / count


def resident(server: Running) -> int:
    """Octets of resident memory of its processes; those of the gateway's broker are left out."""
    pids = process_tree(server.pids)
    if server.name == GATEWAY:
        pids = {
            pid: one for pid, one in pids.items() if (Path("/proc") / str(pid) / "comm").read_text() != "mosquitto\n"
        }
    return sum(_kilobytes(pid) for pid in pids) * 1024


def _kilobytes(pid: int) -> int:
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
