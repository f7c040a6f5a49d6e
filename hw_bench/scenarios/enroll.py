"""How many first enrollments a second one core of `fleet serve` completes, durable ones."""

import asyncio
import contextlib
from dataclasses import dataclass

from fleet.home.layout import open_registry
from hw_bench.drivers.crew import Crew, total
from hw_bench.peers.contract import Ground
from hw_bench.peers.home import MODEL, FleetHome, Served, make_home, serve
from hw_bench.peers.ours import version
from hw_bench.processes import BenchError
from hw_bench.report import Goal, Report
from hw_bench.scenarios.contract import Findings, conclude, file_system, ground_for
from hw_bench.turns import Contender, Outcome, Plan, Progress, take_turns

READY_FACTOR = 2  # requests made ahead for a turn, against the best rate seen so far
READY_RATE_MIN = 1500  # a second, before anything is known
TOKEN_USES = 100_000  # the most that a token may have; a minute and a half of enrolling


@dataclass(frozen=True, slots=True)
class Enroll:
    """Fresh TLS connection, CSR up, certificate committed with an fsync and back, connection closed."""

    name: str = "enroll"
    tls: str = "TLSv1.3"
    drivers: int = 2
    at_once: int = 16
    """Connections under way in each driver: concurrent commits share one fsync, as in a real storm."""
    goals: tuple[Goal, ...] = (Goal("token", "per_core", 900), Goal("station", "per_core", 900))

    def description(self) -> str:
        return (
            f"first enrollments by token and by a station's certificate at `fleet serve`, each on a fresh {self.tls} "
            f"connection and committed with an fsync before the answer, {self.drivers * self.at_once} at once"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        with contextlib.ExitStack() as stack:
            ground = stack.enter_context(ground_for())
            progress("making a home")
            home = make_home(ground)
            logins = {"token": token_login(home), "station": _station(home, ground)}
            progress("starting fleet serve")
            served = stack.enter_context(serve(home, ground))
            crews = {name: stack.enter_context(self.crew(name, login, ground)) for name, login in logins.items()}
            contenders = [self.contender(name, crew, served) for name, crew in crews.items()]
            cores = ground.cores
            turns = take_turns(contenders, plan, cores, progress)
            progress("holding every certificate against the registry")
            received = [
                fingerprint
                for crew in crews.values()
                for answer in crew.order({"do": "collect"})
                for fingerprint in answer["fingerprints"]
            ]
            checks = (*_check(received, home), f"the registry is on {file_system(ground.folder)}")
        findings = Findings(dict.fromkeys(logins, version()), pairs=(), missing={}, checks=checks)
        return conclude(self, "enrollments", plan, turns, findings, ratios_by=(), goals=self.goals, cores=cores)

    def crew(self, name: str, login: dict[str, str], ground: Ground) -> Crew:
        """The load that enrolls by `login`: devices whose ids begin with `name`."""
        folder = ground.room(f"load-{name}")
        config = {**login, "tls": self.tls, "model": MODEL, "prefix": name}
        return Crew("hw_bench.drivers.enroll", self.drivers, config, cores=ground.load_cores, folder=folder)

    def contender(self, name: str, crew: Crew, served: Served) -> Contender:
        """`served` under the load of `crew`."""
        host, port = served.est
        best = [float(READY_RATE_MIN)]

        def prepare(seconds: float) -> None:
            count = round(best[0] * READY_FACTOR * seconds / self.drivers)
            crew.order({"do": "top-up", "count": count}, seconds)

        def act(seconds: float) -> Outcome:
            order = {"do": "run", "host": host, "port": port, "seconds": seconds, "at_once": self.at_once}
            answers = crew.order(order, seconds)
            done = total(answers, "operations")
            if not done:
                problems = [problem for answer in answers for problem in answer["problems"]]
                raise BenchError(f"no enrollment by {name} succeeded: {' | '.join(problems[:1])}")
            best[0] = max(best[0], done / seconds)
            return Outcome(done, total(answers, "failed"))

        return Contender(name, version(), served.pids, act, crew.cpu_seconds, prepare)


def token_login(home: FleetHome) -> dict[str, str]:
    """What a crew needs to enroll by a token of many uses."""
    text = home.fleet("token", "create", "--model", MODEL, "--uses", str(TOKEN_USES)).strip()
    return {"password": text, "certificate": "", "key": ""}


def _station(home: FleetHome, ground: Ground) -> dict[str, str]:
    folder = ground.folder / "station"
    home.fleet("station", "add", "bench", "--model", MODEL, "--out", str(folder))
    return {"password": "", "certificate": str(folder / "station.pem"), "key": str(folder / "station.key")}


def _check(received: list[str], home: FleetHome) -> tuple[str, ...]:
    """Raises: BenchError when two are the same, or one is not in the registry."""
    if len(set(received)) != len(received):
        raise BenchError(f"{len(received) - len(set(received))} certificates were issued twice.")
    unknown = asyncio.run(_unknown(received, home))
    if unknown:
        raise BenchError(f"{unknown} of {len(received)} certificates that clients hold are not in the registry.")
    return (f"all {len(received):,} certificates received were distinct, for the key sent, and in the registry",)


async def _unknown(received: list[str], home: FleetHome) -> int:
    registry = await open_registry(home.files)
    try:
        facts = await asyncio.gather(*(registry.holder_facts(bytes.fromhex(one)) for one in received))
    finally:
        await registry.close()
    return sum(fact is None for fact in facts)
