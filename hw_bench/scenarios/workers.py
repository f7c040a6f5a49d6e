"""Scaling with workers: enrollments of two workers on two cores beside one worker on one.

The load needs cores too, so the figure cannot be observed on a machine with two. It is computed from CPU time, idle and
under load.
"""

import contextlib
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from hw_bench.cpu_time import cpu_seconds
from hw_bench.peers.contract import Environment
from hw_bench.peers.engine import Engine, engine_of
from hw_bench.peers.fleet_tls import version
from hw_bench.peers.home import serve
from hw_bench.processes import on_cores
from hw_bench.report import Figure, Report, Turn
from hw_bench.scenarios.contract import Findings, conclude, file_system, new_environment
from hw_bench.scenarios.enroll import Enroll, token_login
from hw_bench.turns import Contender, Outcome, Plan, Progress, take_turns

WORKERS = {"one-worker": 1, "two-workers": 2}
SEPARATE = "two-servers"  # one worker each, separate homes
THROUGHPUT_MIN = 1.7
AT_ONCE = 32  # in each of the two drivers: two workers have the 32 each that `enroll` gives to one
SETTLE_SECONDS, REST_SECONDS = 1.5, 4.0  # the last seal and the last note; then long against a tick
CAVEAT = (
    "computed from CPU time, not observed: the load shared the cores with the servers, and time spent waiting for the "
    "other worker or for the disk is not CPU time"
)


@dataclass(frozen=True, slots=True)
class Workers:
    """Servers and load share both cores, which is why the figure is computed from CPU time."""

    name: str = "workers"
    enroll: Enroll = field(default_factory=lambda: Enroll(at_once=AT_ONCE))

    def description(self) -> str:
        return (
            "enrollments by token at `fleet serve` with one worker and with two, load included on the same two cores: "
            "throughput of two workers on two cores beside one on one, computed from CPU time idle and per enrollment"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        with contextlib.ExitStack() as stack:
            apart = stack.enter_context(new_environment())
            environment = replace(apart, cores=apart.cores.together())
            engine = engine_of(plan.database)
            stack.callback(engine.stop)
            with on_cores(*environment.server_cores):
                engine.start()
            contenders = [self._contender(name, count, engine, environment, stack) for name, count in WORKERS.items()]
            half = replace(self, enroll=replace(self.enroll, drivers=max(1, self.enroll.drivers // 2)))
            halves = [half._contender(f"{SEPARATE}-{n}", 1, engine, environment, stack) for n in (1, 2)]
            contenders.append(together(SEPARATE, *halves))
            turns = take_turns(contenders, plan, environment.cores, progress)
            progress("measuring idle cost")
            rest = at_rest(contenders)
            one, two = WORKERS
            findings = Findings(
                "enrollments",
                environment.cores,
                dict.fromkeys((*WORKERS, SEPARATE), version()),
                pairs=((two, one), (two, SEPARATE)),
                ratios_by=("per_core", "per_second"),
                checks=(f"the registry is {engine.name} on {file_system(environment.folder)}", CAVEAT),
            )
            report = conclude(self, plan, turns, findings)
        title = "throughput of two workers on two cores over one worker on one, computed"
        figures = [Figure(title, statistics.median(scaling(turns, rest)), "x", at_least=THROUGHPUT_MIN)]
        figures += [Figure(f"{name} idle", share, "CPU s a second") for name, share in rest.items()]
        return replace(report, figures=tuple(figures))

    def _contender(
        self, name: str, workers: int, engine: Engine, environment: Environment, stack: contextlib.ExitStack
    ) -> Contender:
        home = engine.home(environment.folder / name)
        pool = stack.enter_context(self.enroll.pool(name, token_login(home), environment))
        served = stack.enter_context(serve(home, environment, "--workers", str(workers)))
        return self.enroll.contender(pool, served.with_others(engine.pids).est_server(name))


def together(name: str, one: Contender, other: Contender) -> Contender:
    """Two contenders as one: both under their own load at the same time."""

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
    """Idle cost: CPU seconds per second of each server without load."""
    time.sleep(SETTLE_SECONDS)
    before = {one.name: cpu_seconds(one.server_pids) for one in contenders}
    begun = time.monotonic()
    time.sleep(REST_SECONDS)
    seconds = time.monotonic() - begun
    return {one.name: (cpu_seconds(one.server_pids) - before[one.name]) / seconds for one in contenders}


def scaling(turns: Sequence[Turn], rest: dict[str, float]) -> list[float]:
    """Per round: throughput of two workers on two cores divided by that of one on one."""
    rates = {
        name: {turn.round: throughput(turn, count, rest[name]) for turn in turns if turn.contender == name}
        for name, count in WORKERS.items()
    }
    one, two = rates.values()
    return [two[number] / one[number] for number in sorted(one.keys() & two.keys())]


def throughput(turn: Turn, cores: int, rest: float) -> float:
    """Enrollments per second that fill `cores` cores, for a server with the idle cost `rest`.

    The idle cost is subtracted from the turn first: a turn that shares its cores with the load has few enrollments to
    spread it over, and a server with the cores to itself has many.
    """
    each = (turn.server_cpu - rest * turn.wall) / turn.operations
    return (cores - rest) / each
