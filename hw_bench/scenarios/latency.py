"""How much later a message arrives because it went through the gateway, at half of the load that it can carry."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hw_bench.peers.contract import Running
from hw_bench.report import Figure, Report
from hw_bench.scenarios.beside_mosquitto import GATEWAY, MOSQUITTO, Pair, beside_mosquitto, percentiles
from hw_bench.scenarios.contract import Findings, conclude
from hw_bench.scenarios.fanin import connect_all
from hw_bench.turns import Contender, Outcome, Plan, Progress, take_turns

P50_MILLISECONDS_MAX = 0.2
P99_MILLISECONDS_MAX = 2.0
PROBE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Latency:
    """From the moment at which a message was due until the subscriber at the broker has it."""

    name: str = "latency"
    tls: str = "TLSv1.3"
    devices: int = 50
    size: int = 64
    under_way: int = 500
    """Messages on their way while the greatest rate is found."""

    def description(self) -> str:
        return (
            f"milliseconds from {self.devices} devices on {self.tls} to a subscriber at the broker, at half of the "
            "rate that the gateway carries; the same rate at mosquitto's own TLS listener"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        with contextlib.ExitStack() as stack:
            pair = stack.enter_context(beside_mosquitto(self.devices, progress))
            found: dict[str, list[float]] = {server.name: [] for server in pair.servers}
            rates: list[float] = []
            contenders = [
                stack.enter_context(self._contender(pair, server, rates, found[server.name], progress))
                for server in pair.servers
            ]
            for values in found.values():
                values.clear()
            turns = take_turns(contenders, plan, pair.environment.cores, progress)
        findings = Findings("messages", pair.environment.cores, pair.versions)
        return replace(conclude(self, plan, turns, findings), figures=figures(rates[0], found))

    @contextlib.contextmanager
    def _contender(
        self, pair: Pair, server: Running, rates: list[float], found: list[float], progress: Progress
    ) -> Iterator[Contender]:
        clients = pair.clients(server, tls=self.tls, topic="latency", size=self.size, under_way=self.under_way)
        with clients as pool:
            connect_all(pool, server, self.devices)
            if not rates:  # the gateway, which comes first
                (answer,) = pool.send({"do": "publish", "rate": 0, "seconds": PROBE_SECONDS}, PROBE_SECONDS)
                rates.append(answer["operations"] / answer["wall"] / 2)
                progress(f"half of what {server.name} carries: {rates[0]:,.0f} messages a second")

            def act(seconds: float) -> Outcome:
                (answer,) = pool.send({"do": "publish", "rate": rates[0], "seconds": seconds}, seconds)
                found.extend(1000 * value for value in answer["latencies"])
                return Outcome(answer["operations"], answer["failed"], answer["wall"])

            yield Contender(server.name, server.version, server.pids, act, pool.cpu_seconds)


def figures(rate: float, found: dict[str, list[float]]) -> tuple[Figure, ...]:
    """`found`: milliseconds by server."""
    ours, theirs = percentiles(found[GATEWAY]), percentiles(found[MOSQUITTO])
    each = [
        Figure(f"{name}, {point}", value, "ms")
        for name, values in ((GATEWAY, ours), (MOSQUITTO, theirs))
        for point, value in zip(("p50", "p99"), values, strict=True)
    ]
    return (
        Figure("rate", rate, "messages a second"),
        *each,
        Figure("added by the gateway, p50", ours[0] - theirs[0], "ms", at_most=P50_MILLISECONDS_MAX),
        Figure("added by the gateway, p99", ours[1] - theirs[1], "ms", at_most=P99_MILLISECONDS_MAX),
    )
