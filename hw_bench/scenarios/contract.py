"""Interface of a scenario, and what scenarios share."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hw_bench.certificates import make_certificates
from hw_bench.peers.contract import Environment, Peer, Running
from hw_bench.processes import Cores, pick_cores
from hw_bench.report import Goal, Report, Turn, judge, ratio, summarize
from hw_bench.turns import Plan, Progress, machine


class Scenario(Protocol):
    """A benchmark with its parameters."""

    @property
    def name(self) -> str: ...
    def description(self) -> str:
        """One sentence: what is counted, and beside which servers."""
        ...

    def run(self, plan: Plan, progress: Progress) -> Report:
        """Measure. No process and no file is left behind. Raises: BenchError."""
        ...


@dataclass(frozen=True, slots=True)
class Findings:
    """What a report says besides its turns."""

    unit: str
    """The operation, in the plural."""
    cores: Cores
    versions: dict[str, str]
    """Contender -> its version, in the order of the report."""
    pairs: tuple[tuple[str, str], ...] = ()
    """(subject, peer) to be compared."""
    ratios_by: tuple[str, ...] = ()
    """The measures by which each pair is compared."""
    goals: tuple[Goal, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    """Peer -> why it took no part."""
    checks: tuple[str, ...] = ()


@contextlib.contextmanager
def new_environment(devices: int = 1) -> Iterator[Environment]:
    """A temporary private folder with certificates, and two cores."""
    with tempfile.TemporaryDirectory(prefix="hw-bench-") as name:
        folder = Path(name)
        yield Environment(folder, make_certificates(folder / "certificates", devices), pick_cores())


def start_peers(
    peers: Sequence[Peer], environment: Environment, stack: contextlib.ExitStack, progress: Progress
) -> tuple[list[Running], dict[str, str]]:
    """(started peers, name -> why it is missing). They stop when `stack` closes.

    Raises: BenchError when one fails to start.
    """
    started, missing = [], {}
    for peer in peers:
        reason = peer.missing()
        if reason is not None:
            progress(f"leaving out {peer.name}: {reason}")
            missing[peer.name] = reason
            continue
        progress(f"starting {peer.name}")
        started.append(stack.enter_context(peer.start(environment)))
    return started, missing


def conclude(scenario: Scenario, plan: Plan, turns: Sequence[Turn], findings: Findings) -> Report:
    """Summaries, ratios and verdicts of all turns."""
    summaries = tuple(
        summarize(name, version, [turn for turn in turns if turn.contender == name])
        for name, version in findings.versions.items()
    )
    ratios = tuple(
        ratio(subject, peer, measure, turns) for subject, peer in findings.pairs for measure in findings.ratios_by
    )
    verdicts = (judge(goal, summaries, ratios) for goal in findings.goals)
    return Report(
        scenario=scenario.name,
        description=scenario.description(),
        unit=findings.unit,
        seconds=plan.seconds,
        rounds=plan.rounds,
        machine=machine(findings.cores),
        turns=tuple(turns),
        summaries=summaries,
        ratios=ratios,
        verdicts=tuple(verdict for verdict in verdicts if verdict is not None),
        missing=findings.missing,
        checks=findings.checks,
    )


def file_system(path: Path) -> str:
    """The file system that holds `path`: "ext4", or "tmpfs", where an fsync costs nothing."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(Path(point), kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    return max(holding, key=lambda mount: len(mount[0].parts))[1] if holding else "an unknown file system"
