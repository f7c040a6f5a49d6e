"""What a second worker brings: how many enrollments two workers would complete on two cores, beside one on one.

The load needs cores too, so this cannot be watched on two. It is computed from what was watched: CPU time at rest, and
CPU time under a load.
"""

import contextlib
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from hw_bench.clock import cpu_seconds
from hw_bench.peers.contract import Ground
from hw_bench.peers.engine import Engine, engine_of
from hw_bench.peers.home import serve
from hw_bench.peers.ours import version
from hw_bench.processes import on_cores
from hw_bench.report import Figure, Report, Turn
from hw_bench.scenarios.contract import Findings, conclude, file_system, ground_for
from hw_bench.scenarios.enroll import Enroll, token_login
from hw_bench.turns import Contender, Outcome, Plan, Progress, take_turns

WORKERS = {"one-worker": 1, "two-workers": 2}
SEPARATE = "two-servers"  # of one worker each, with nothing in common but the machine
THROUGHPUT_MIN = 1.7
AT_ONCE = 32  # in each of the two drivers: two workers have the 32 each that `enroll` gives to one
SETTLE_SECONDS, REST_SECONDS = 1.5, 4.0  # the last seal and the last note; then long against a tick
CAVEAT = (
    "computed from CPU time, not observed: the load has shared the cores with the servers, and the time in which one "
    "worker waits for the other or for the disk is in no CPU second"
)


@dataclass(frozen=True, slots=True)
class Workers:
    """Both servers may use both cores, and so may the load, which would leave two workers nothing to share."""

    name: str = "workers"
    enroll: Enroll = field(default_factory=lambda: Enroll(at_once=AT_ONCE))

    def description(self) -> str:
        return (
            "enrollments by token at `fleet serve` with one worker and with two, load included on the same two cores: "
            "what two cores would give with two workers beside one with one, by the CPU time that each costs at rest "
            "and for an enrollment"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        with contextlib.ExitStack() as stack:
            apart = stack.enter_context(ground_for())
            ground = replace(apart, cores=apart.cores.together())
            engine = engine_of(plan.database)
            stack.callback(engine.stop)
            with on_cores(*ground.server_cores):
                engine.start()
            contenders = [self._contender(name, count, engine, ground, stack) for name, count in WORKERS.items()]
            half = replace(self, enroll=replace(self.enroll, drivers=max(1, self.enroll.drivers // 2)))
            halves = [half._contender(f"{SEPARATE}-{n}", 1, engine, ground, stack) for n in (1, 2)]
            contenders.append(together(SEPARATE, *halves))
            turns = take_turns(contenders, plan, ground.cores, progress)
            progress("looking at both at rest")
            rest = at_rest(contenders)
            one, two = WORKERS
            findings = Findings(
                "enrollments",
                ground.cores,
                dict.fromkeys((*WORKERS, SEPARATE), version()),
                pairs=((two, one), (two, SEPARATE)),
                ratios_by=("per_core", "per_second"),
                checks=(f"the registry is {engine.name} on {file_system(ground.folder)}", CAVEAT),
            )
            report = conclude(self, plan, turns, findings)
        title = "throughput of two workers on two cores over one worker on one, computed"
        figures = [Figure(title, statistics.median(scaling(turns, rest)), "x", at_least=THROUGHPUT_MIN)]
        figures += [Figure(f"{name} at rest", share, "CPU s a second") for name, share in rest.items()]
        return replace(report, figures=tuple(figures))

    def _contender(
        self, name: str, workers: int, engine: Engine, ground: Ground, stack: contextlib.ExitStack
    ) -> Contender:
        home = engine.home(ground.folder / name)
        crew = stack.enter_context(self.enroll.crew(name, token_login(home), ground))
        served = stack.enter_context(serve(home, ground, "--workers", str(workers)))
        return self.enroll.contender(crew, served.with_others(engine.pids).est_server(name))


def together(name: str, one: Contender, other: Contender) -> Contender:
    """Both as one: each is put under its own load, at the same time."""

    def act(seconds: float) -> Outcome:
        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(lambda contender: contender.act(seconds), (one, other)))
        return Outcome(sum(each.operations for each in outcomes), sum(each.failed for each in outcomes))

    def prepare(seconds: float) -> None:
        one.prepare(seconds)
        other.prepare(seconds)

    pids = tuple(dict.fromkeys((*one.server_pids, *other.server_pids)))
    return Contender(name, one.version, pids, act, lambda: one.load_cpu() + other.load_cpu(), prepare)


def at_rest(contenders: Sequence[Contender]) -> dict[str, float]:
    """CPU seconds a second of each server while nobody asks it anything."""
    time.sleep(SETTLE_SECONDS)
    before = {one.name: cpu_seconds(one.server_pids) for one in contenders}
    begun = time.monotonic()
    time.sleep(REST_SECONDS)
    seconds = time.monotonic() - begun
    return {one.name: (cpu_seconds(one.server_pids) - before[one.name]) / seconds for one in contenders}


def scaling(turns: Sequence[Turn], rest: dict[str, float]) -> list[float]:
    """For each round, the throughput of two workers on two cores over that of one on one."""
    rates = {
        name: {turn.round: throughput(turn, count, rest[name]) for turn in turns if turn.contender == name}
        for name, count in WORKERS.items()
    }
    one, two = rates.values()
    return [two[number] / one[number] for number in sorted(one.keys() & two.keys())]


def throughput(turn: Turn, cores: int, rest: float) -> float:
    """Enrollments a second that fill `cores` cores, of a server that takes `rest` CPU seconds a second anyway.

    What it takes anyway was spread over the few enrollments of a turn that shared its cores with the load; on cores of
    its own the server makes more in the same second.
    """
    each = (turn.server_cpu - rest * turn.wall) / turn.operations
    return (cores - rest) / each
