"""Many devices, each with one small message a second: what a connection costs that is mostly quiet."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from hw_bench.drivers.pool import DriverPool
from hw_bench.peers.contract import Running
from hw_bench.processes import BenchError
from hw_bench.report import Goal, Report
from hw_bench.scenarios.beside_mosquitto import GATEWAY, MOSQUITTO, Pair, beside_mosquitto
from hw_bench.scenarios.contract import Findings, conclude
from hw_bench.turns import Contender, Outcome, Plan, Progress, take_turns

CONNECT_SECONDS_MAX = 60.0
CPU_RATIO_MAX = 1.8


@dataclass(frozen=True, slots=True)
class FanIn:
    """CPU time of a message, with the gateway's broker counted with the gateway."""

    name: str = "fanin"
    tls: str = "TLSv1.3"
    sessions: int = 2000
    size: int = 32
    """Octets of payload."""
    rate: float = 1.0
    """Messages a second of each device."""
    at_once: int = 100
    """Connections under way while the devices connect."""
    goals: tuple[Goal, ...] = (Goal(GATEWAY, "per_core", 1 / CPU_RATIO_MAX, MOSQUITTO),)

    def description(self) -> str:
        return (
            f"--sessions devices (default {self.sessions:,}) on {self.tls}, each with {self.rate:g} messages of "
            f"{self.size} octets a second: CPU time a message, gateway with its broker beside mosquitto's own listener"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        count = plan.sessions or self.sessions
        with contextlib.ExitStack() as stack:
            pair = stack.enter_context(beside_mosquitto(count, progress))
            contenders = [
                stack.enter_context(self._contender(pair, server, count, progress)) for server in pair.servers
            ]
            turns = take_turns(contenders, plan, pair.environment.cores, progress)
            lost = sum(turn.failed for turn in turns)
        findings = Findings(
            "messages",
            pair.environment.cores,
            pair.versions,
            pairs=((GATEWAY, MOSQUITTO),),
            ratios_by=("per_core",),
            goals=self.goals,
            checks=(f"{count:,} devices connected to each, {lost} messages lost",),
        )
        return conclude(self, plan, turns, findings)

    @contextlib.contextmanager
    def _contender(self, pair: Pair, server: Running, count: int, progress: Progress) -> Iterator[Contender]:
        with pair.clients(server, tls=self.tls, topic="fanin", size=self.size, under_way=0) as pool:
            progress(f"connecting {count:,} devices to {server.name}")
            connect_all(pool, server, self.at_once)

            def act(seconds: float) -> Outcome:
                (answer,) = pool.send({"do": "publish", "rate": count * self.rate, "seconds": seconds}, seconds)
                return Outcome(answer["operations"], answer["failed"], answer["wall"])

            yield Contender(server.name, server.version, server.pids, act, pool.cpu_seconds)


def connect_all(pool: DriverPool, server: Running, at_once: int) -> None:
    """Raises: BenchError when one is refused."""
    command = {"do": "connect", "at_once": at_once, "seconds": CONNECT_SECONDS_MAX, "retry": 0}
    (answer,) = pool.send(command, CONNECT_SECONDS_MAX)
    if answer["refused"]:
        raise BenchError(f"{server.name} refused {answer['refused']} of the devices.")
