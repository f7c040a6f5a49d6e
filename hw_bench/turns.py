"""Contenders in turns: A B C, A B C, ... so that drift of the machine affects all alike."""

import os
import platform
import ssl
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from OpenSSL import SSL

from hw_bench.cpu_time import CoreTime, core_times, cpu_seconds
from hw_bench.processes import Cores
from hw_bench.report import Turn, merged

WARM_UP_SECONDS = 0.3  # caches, allocators and Python's specialized bytecode settle in much less
SLICE_SECONDS = 0.5  # long against a tick of 10 ms, short against the drift of a shared machine

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """Options of a run."""

    seconds: float = 3.0
    """Of one turn."""
    rounds: int = 3
    """Turns of each contender."""
    devices: int = 100_000
    """Devices in the registry, of the scenario `registry`."""
    kills: int = 200
    """Kills, of the scenario `crash`."""
    seed: int | None = None
    """Of the random choices; None for a new one."""
    database: str = ""
    """The registry's engine; empty for the scenario's own choice."""
    sessions: int | None = None
    """Connected devices; None for the scenario's own number."""
    cycles: int | None = None
    """Connections, of the scenario `soak`; None for its own number."""
    keep: Path | None = None
    """Folder of a registry that is kept between runs."""
    qos: int | None = None
    """Of the messages of the scenario `publish`; None for 0 and 1, in turns."""
    picture: Path | None = None
    """File for the curve of the scenarios `fleet-year` and `reconnect-storm`, SVG."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the load counted in one turn."""

    operations: int
    failed: int
    wall: float | None = None
    """Seconds, when measured by the load itself."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A server under its load."""

    name: str
    version: str
    server_pids: tuple[int, ...]
    act: Callable[[float], Outcome]
    """Apply load for that many seconds. No request is under way when it returns."""
    load_cpu: Callable[[], float]
    """CPU seconds that the load has used so far."""
    prepare: Callable[[float], None] = lambda seconds: None
    """Called before each act, outside the measurement, with the seconds that it will be given."""


def take_turns(contenders: Sequence[Contender], plan: Plan, cores: Cores, progress: Progress) -> list[Turn]:
    """`plan.rounds` turns of each, after a short warm-up each.

    Within a round, each turn is cut into slices that alternate with those of the others: the machine's speed can change
    within seconds. Raises: whatever an act raises.
    """
    for contender in contenders:
        progress(f"warming up: {contender.name}")
        _slice(contender, 0, min(WARM_UP_SECONDS, plan.seconds), cores)
    slices = max(1, round(plan.seconds / SLICE_SECONDS))
    turns = []
    for number in range(1, plan.rounds + 1):
        parts: dict[str, list[Turn]] = {contender.name: [] for contender in contenders}
        for _ in range(slices):
            for contender in contenders:
                parts[contender.name].append(_slice(contender, number, plan.seconds / slices, cores))
        for name in parts:
            turn = merged(parts[name])
            turns.append(turn)
            progress(
                f"round {number} of {plan.rounds}: {name}, {turn.operations:,} in {turn.wall:.1f} s,"
                f" {turn.milliseconds:.3f} CPU ms each"
            )
    return turns


def _slice(contender: Contender, number: int, seconds: float, cores: Cores) -> Turn:
    """Read the clocks, apply load, read them again."""
    contender.prepare(seconds)
    before = _Reading.of(contender)
    outcome = contender.act(seconds)
    after = _Reading.of(contender)
    used = {core: after.cores[core].since(before.cores[core]) for core in cores.all}
    return Turn(
        contender=contender.name,
        round=number,
        operations=outcome.operations,
        failed=outcome.failed,
        wall=after.wall - before.wall if outcome.wall is None else outcome.wall,
        server_cpu=after.server - before.server,
        load_cpu=after.load - before.load,
        processes_cpu=sum(core.processes for core in used.values()),
        server_core_busy=statistics.mean(used[core].share_busy for core in cores.server),
        load_core_busy=statistics.mean(used[core].share_busy for core in cores.load),
        cores=len(used),
        apart=cores.apart,
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    wall: float
    server: float
    load: float
    cores: dict[int, CoreTime]

    @classmethod
    def of(cls, contender: Contender) -> "_Reading":
        server, load = cpu_seconds(contender.server_pids), contender.load_cpu()
        return cls(time.monotonic(), server, load, core_times())


def machine(cores: Cores) -> dict[str, str]:
    """Description of this machine and its TLS libraries."""
    model = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {
        "machine": f"{model}, {os.cpu_count()} cores; {_places(cores)}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "TLS": f"ours on {SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode()}; the system's is {ssl.OPENSSL_VERSION}",
    }


def _places(cores: Cores) -> str:
    server, load = (", ".join(map(str, numbers)) for numbers in (cores.server, cores.load))
    return f"server on core {server}, load on core {load}" if cores.apart else f"server and load on the same: {server}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
