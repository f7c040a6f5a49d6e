"""A whole fleet back after a power cut: all connections end at once, and all devices connect again at once."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hw_bench.cpu_time import cpu_seconds
from hw_bench.peers.contract import Running
from hw_bench.processes import BenchError
from hw_bench.report import Figure, Report
from hw_bench.scenarios.beside_mosquitto import GATEWAY, Pair, beside_mosquitto, percentiles
from hw_bench.scenarios.contract import Findings, conclude
from hw_bench.scenarios.idle import resident
from hw_bench.turns import Plan, Progress

WORKERS = 2
SECONDS_MAX = 15.0
GIVE_UP_SECONDS = 120.0
CPU_RATIO_MIN = 1.5
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Storm:
    """Load and server share the cores: the time includes what the devices' own handshakes take."""

    name: str = "storm"
    tls: str = "TLSv1.3"
    sessions: int = 10_000
    at_once: int = 100
    """Connections under way before the storm, while the devices connect for the first time."""

    def description(self) -> str:
        return (
            f"--sessions devices (default {self.sessions:,}) on {self.tls} that are cut off at once and connect again "
            f"at once: seconds until all are back at fleet serve --workers {WORKERS}, and at mosquitto's own listener"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        count = plan.sessions or self.sessions
        per_cpu_second: dict[str, float] = {}
        with beside_mosquitto(count, progress, "--workers", str(WORKERS)) as pair:
            figures = [
                figure
                for server in pair.servers
                for figure in self._measure(pair, server, count, per_cpu_second, progress)
            ]
        ours, theirs = per_cpu_second.values()
        figures.append(Figure("connects a CPU second, gateway / mosquitto", ours / theirs, "x", at_least=CPU_RATIO_MIN))
        findings = Findings("connects", pair.environment.cores, {})
        return replace(conclude(self, plan, (), findings), figures=tuple(figures))

    def _measure(
        self, pair: Pair, server: Running, count: int, per_cpu_second: dict[str, float], progress: Progress
    ) -> Iterator[Figure]:
        command = {"do": "connect", "seconds": GIVE_UP_SECONDS, "retry": RETRY_SECONDS}
        with pair.clients(server, tls=self.tls) as clients:
            progress(f"{server.name}: {count:,} devices connect, {self.at_once} at a time")
            clients.send({**command, "at_once": self.at_once}, GIVE_UP_SECONDS)
            before = resident(server)
            clients.send({"do": "cut"})
            progress(f"{server.name}: {count:,} devices connect at once")
            used = cpu_seconds(server.pids)
            (answer,) = clients.send({**command, "at_once": count}, GIVE_UP_SECONDS)
            used = cpu_seconds(server.pids) - used
            (alive,) = clients.send({"do": "open"})
            after = resident(server)
        if not answer["times"]:
            raise BenchError(f"no device came back to {server.name}.")
        per_cpu_second[server.name] = len(answer["times"]) / used
        ours = server.name == GATEWAY
        name = server.name
        yield Figure(f"{name}: devices back, of {count:,}", alive["open"], "", at_least=count if ours else None)
        yield Figure(f"{name}: until all were back", answer["wall"], "s", at_most=SECONDS_MAX if ours else None)
        yield Figure(f"{name}: a device's time, p50", percentiles(answer["times"])[0], "s")
        yield Figure(f"{name}: a device's time, p99", percentiles(answer["times"])[1], "s")
        yield Figure(f"{name}: refused, and tried again", answer["retries"], "", at_most=0 if ours else None)
        yield Figure(f"{name}: connects a CPU second", per_cpu_second[name], "")
        yield Figure(f"{name}: resident memory, before the storm", before / 2**20, "MiB")
        yield Figure(f"{name}: resident memory, after", after / 2**20, "MiB")
