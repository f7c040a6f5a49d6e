"""What a second worker costs: enrollments for each CPU second of a server with two workers, beside one with one."""

import contextlib
from dataclasses import dataclass, field, replace

from hw_bench.peers.contract import Ground
from hw_bench.peers.engine import Engine, engine_of
from hw_bench.peers.home import serve
from hw_bench.peers.ours import version
from hw_bench.processes import on_cores
from hw_bench.report import Figure, Report
from hw_bench.scenarios.contract import Findings, conclude, file_system, ground_for
from hw_bench.scenarios.enroll import Enroll, token_login
from hw_bench.turns import Contender, Plan, Progress, take_turns

WORKERS = {"one-worker": 1, "two-workers": 2}
CORES = 2
THROUGHPUT_MIN = 1.7
CAVEAT = (
    "computed from CPU time, not observed: the load has shared the cores with the servers, and the time in which one "
    "worker waits for the other or for the disk is in no CPU second"
)


@dataclass(frozen=True, slots=True)
class Workers:
    """Both servers may use both cores, and so may the load, which would leave two workers nothing to share."""

    name: str = "workers"
    enroll: Enroll = field(default_factory=Enroll)

    def description(self) -> str:
        return (
            "enrollments by token at `fleet serve` with one worker and with two, load included on the same two cores: "
            "what two cores would give with two workers, by the CPU time that an enrollment costs with either"
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
            turns = take_turns(contenders, plan, ground.cores, progress)
            one, two = WORKERS
            findings = Findings(
                versions=dict.fromkeys(WORKERS, version()),
                pairs=((two, one),),
                missing={},
                checks=(f"the registry is {engine.name} on {file_system(ground.folder)}", CAVEAT),
            )
            cores = ground.cores
            report = conclude(
                self, "enrollments", plan, turns, findings, ratios_by=("per_core", "per_second"), goals=(), cores=cores
            )
        beside_one = next(found for found in report.ratios if found.measure == "per_core").spread.median
        title = "throughput two cores would give: enrollments per CPU second with two workers over one, times two"
        return replace(report, figures=(Figure(title, CORES * beside_one, "x", at_least=THROUGHPUT_MIN),))

    def _contender(
        self, name: str, workers: int, engine: Engine, ground: Ground, stack: contextlib.ExitStack
    ) -> Contender:
        home = engine.home(ground.folder / name)
        crew = stack.enter_context(self.enroll.crew(name, token_login(home), ground))
        served = stack.enter_context(serve(home, ground, "--workers", str(workers)))
        return self.enroll.contender(name, crew, served.with_others(engine.pids))
