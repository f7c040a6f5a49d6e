"""From turns to a report: medians, spreads, ratios pair by pair, and a verdict on the measurement itself.

Pure: no clock, no processes. A Turn is what was counted and read in one turn of one contender; everything else follows.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

BUSY = 0.9  # a core this busy has nothing left to give
DISTURBED = 0.15  # of a core, taken by programs that are no part of the run


@dataclass(frozen=True, slots=True)
class Turn:
    """One contender's turn. Times in seconds."""

    contender: str
    round: int
    operations: int
    failed: int
    wall: float
    server_cpu: float
    """CPU time of the server's processes."""
    load_cpu: float
    processes_cpu: float
    """CPU time of all processes on the run's cores, other programs included."""
    server_core_busy: float
    """Share of the time, 0 to 1, in which the core was busy."""
    load_core_busy: float
    cores: int = 2
    """How many cores the run had, in all."""
    apart: bool = True
    """Whether server and load had cores of their own."""

    @property
    def per_second(self) -> float:
        """Operations per second of wall time."""
        return self.operations / self.wall if self.wall > 0 else 0.0

    @property
    def per_core(self) -> float:
        """Operations per CPU second of the server: what one of its cores does in a second when it does nothing else."""
        return self.operations / self.server_cpu if self.server_cpu > 0 else 0.0

    @property
    def milliseconds(self) -> float:
        """CPU milliseconds of the server for one operation."""
        return 1000 * self.server_cpu / self.operations if self.operations else 0.0

    @property
    def load_bound(self) -> bool:
        """The load's core was full and the server's was not: the server could have done more."""
        return self.apart and self.load_core_busy > BUSY and self.server_core_busy < BUSY

    @property
    def idle(self) -> bool:
        """Neither core was full: the run waited for something else."""
        return self.server_core_busy < BUSY and self.load_core_busy < BUSY

    @property
    def others(self) -> float:
        """Average number of cores used by other programs."""
        taken = self.processes_cpu - self.server_cpu - self.load_cpu
        return max(0.0, taken / self.wall) if self.wall > 0 else 0.0


def merged(parts: Sequence[Turn]) -> Turn:
    """One turn that was taken in several parts: sums, and shares weighted by time.

    Raises: ValueError when there are none.
    """
    if not parts:
        raise ValueError("nothing was measured")
    wall = sum(part.wall for part in parts)

    def share(of: Callable[[Turn], float]) -> float:
        return sum(of(part) * part.wall for part in parts) / wall if wall > 0 else 0.0

    return replace(
        parts[0],
        operations=sum(part.operations for part in parts),
        failed=sum(part.failed for part in parts),
        wall=wall,
        server_cpu=sum(part.server_cpu for part in parts),
        load_cpu=sum(part.load_cpu for part in parts),
        processes_cpu=sum(part.processes_cpu for part in parts),
        server_core_busy=share(lambda part: part.server_core_busy),
        load_core_busy=share(lambda part: part.load_core_busy),
    )


@dataclass(frozen=True, slots=True)
class Spread:
    """Several values of one thing."""

    median: float
    min: float
    max: float


@dataclass(frozen=True, slots=True)
class Summary:
    """All turns of one contender, aggregated."""

    name: str
    version: str
    operations: int
    failed: int
    per_core: Spread
    per_second: Spread
    milliseconds: Spread
    server_core_busy: float
    load_core_busy: float
    at_least: bool
    """In most turns the load was the bottleneck: the server's true figures are these or better."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """`subject` divided by `peer`, round by round."""

    subject: str
    peer: str
    measure: str
    spread: Spread


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure to reach: a rate of `subject`, or its ratio to `peer` when there is one."""

    subject: str
    measure: str
    at_least: float
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    goal: Goal
    value: float
    reached: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """One value that was measured, with the goal that it has, if any."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the goal is met; true without a goal."""
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )


@dataclass(frozen=True, slots=True)
class Report:
    """Result of one run. `as_json()` and `lines()` hold the same values."""

    scenario: str
    description: str
    unit: str
    """The operation, in the plural: "handshakes"."""
    seconds: float
    rounds: int
    machine: Mapping[str, str]
    turns: tuple[Turn, ...]
    summaries: tuple[Summary, ...]
    ratios: tuple[Ratio, ...]
    verdicts: tuple[Verdict, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    """Peer -> why it did not take part."""
    checks: tuple[str, ...] = ()
    """What was verified besides the figures, one sentence each."""
    figures: tuple[Figure, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def spread(values: Iterable[float]) -> Spread:
    """Raises: ValueError when there are none."""
    found = list(values)
    if not found:
        raise ValueError("nothing was measured")
    return Spread(statistics.median(found), min(found), max(found))


def summarize(name: str, version: str, turns: Sequence[Turn]) -> Summary:
    """Aggregate one contender's turns. Raises: ValueError when there are none."""
    return Summary(
        name=name,
        version=version,
        operations=sum(turn.operations for turn in turns),
        failed=sum(turn.failed for turn in turns),
        per_core=spread(turn.per_core for turn in turns),
        per_second=spread(turn.per_second for turn in turns),
        milliseconds=spread(turn.milliseconds for turn in turns),
        server_core_busy=statistics.median(turn.server_core_busy for turn in turns),
        load_core_busy=statistics.median(turn.load_core_busy for turn in turns),
        at_least=_most(turns, lambda turn: turn.load_bound),
        notes=_notes(turns),
    )


def ratio(subject: str, peer: str, measure: str, turns: Sequence[Turn]) -> Ratio:
    """`subject` against `peer`, turn by turn of the same round, so that drift affects both alike.

    Raises: ValueError when they share no round in which the peer did anything.
    """
    ours = {turn.round: getattr(turn, measure) for turn in turns if turn.contender == subject}
    theirs = {turn.round: getattr(turn, measure) for turn in turns if turn.contender == peer}
    pairs = [(ours[number], theirs[number]) for number in sorted(ours.keys() & theirs.keys()) if theirs[number]]
    return Ratio(subject, peer, measure, spread(mine / other for mine, other in pairs))


def judge(goal: Goal, summaries: Sequence[Summary], ratios: Sequence[Ratio]) -> Verdict | None:
    """Whether the median reaches `goal`; None when its subject or peer was not measured."""
    if goal.peer:
        wanted = (goal.subject, goal.peer, goal.measure)
        values = [found.spread.median for found in ratios if (found.subject, found.peer, found.measure) == wanted]
    else:
        values = [getattr(found, goal.measure).median for found in summaries if found.name == goal.subject]
    return Verdict(goal, values[0], values[0] >= goal.at_least) if values else None


def lines(report: Report) -> list[str]:
    """The report as text."""
    text = [f"{report.scenario}: {report.description}", ""]
    text += [f"  {key}: {value}" for key, value in report.machine.items()]
    if report.summaries:
        rounds = "1 round" if report.rounds == 1 else f"{report.rounds} rounds"
        text += [f"  {rounds} of {report.seconds:g} s each, taking turns; medians (min to max)", ""]
        text += _aligned(_rows(report))
    for one in report.ratios:
        text.append(
            f"  {one.subject} / {one.peer}, {_words(one.measure)}: {one.spread.median:.2f}x"
            f" ({one.spread.min:.2f} to {one.spread.max:.2f})"
        )
    text += [f"  {_verdict(verdict, report.unit)}" for verdict in report.verdicts]
    text += [f"  {summary.name}: {note}" for summary in report.summaries for note in summary.notes]
    text += [f"  {name} took no part: {reason}" for name, reason in report.missing.items()]
    text += [f"  {_figure(figure)}" for figure in report.figures]
    text += [f"  {check}" for check in report.checks]
    return text


def _rows(report: Report) -> list[list[str]]:
    rows = [["", f"{report.unit} per CPU second", "per second", "CPU ms each", "server core", "load core", "failed"]]
    for summary in report.summaries:
        mark = "at least " if summary.at_least else ""
        rows.append(
            [
                summary.name,
                mark + _range(summary.per_core, "{:,.0f}"),
                mark + _range(summary.per_second, "{:,.0f}"),
                _range(summary.milliseconds, "{:.3f}"),
                f"{summary.server_core_busy:.0%}",
                f"{summary.load_core_busy:.0%}",
                str(summary.failed),
            ]
        )
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _range(values: Spread, form: str) -> str:
    return f"{form.format(values.median)} ({form.format(values.min)} to {form.format(values.max)})"


def _words(measure: str) -> str:
    return {"per_core": "per CPU second", "per_second": "per second"}[measure]


def _figure(figure: Figure) -> str:
    text = f"{figure.name}: {figure.value:,.4g} {figure.unit}".rstrip()
    bounds = (("at most", figure.at_most), ("at least", figure.at_least))
    goal = " and ".join(f"{word} {bound:,g}" for word, bound in bounds if bound is not None)
    return f"{text} (goal: {goal}: {'reached' if figure.reached else 'NOT reached'})" if goal else text


def _verdict(verdict: Verdict, unit: str) -> str:
    goal = verdict.goal
    word = "reached" if verdict.reached else "NOT reached"
    if goal.peer:
        what = f"{goal.at_least:g}x {goal.peer} {_words(goal.measure)}"
        return f"goal for {goal.subject}, at least {what}: {word} ({verdict.value:.2f}x)"
    what = f"{goal.at_least:,.0f} {unit} {_words(goal.measure)}"
    return f"goal for {goal.subject}, at least {what}: {word} ({verdict.value:,.0f})"


def _notes(turns: Sequence[Turn]) -> tuple[str, ...]:
    notes = []
    if _most(turns, lambda turn: turn.load_bound):
        notes.append("the load generator was the bottleneck; the server could have done more")
    elif _most(turns, lambda turn: turn.idle):
        notes.append("neither core was full; per second says less than per CPU second")
    if turns and turns[0].cores == 1:
        notes.append("server and load had one core between them; per second says little")
    others = statistics.median(turn.others for turn in turns)
    if others > DISTURBED:
        notes.append(f"other programs took {others:.2f} cores; per second is too low")
    return tuple(notes)


def _most(turns: Sequence[Turn], holds: Callable[[Turn], bool]) -> bool:
    return sum(map(holds, turns)) * 2 > len(turns)
