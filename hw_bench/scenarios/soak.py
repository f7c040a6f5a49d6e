"""Devices that connect, publish and disconnect, again and again: resident memory and descriptors of every process.

What a fleet does in a day is a number of cycles, and not of hours: 1,000 devices that each connect every quarter of an
hour make 96,000. After the first quarter of the run, in which caches fill, nothing may grow.
"""

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hw_bench.cpu_time import PROC, process_tree
from hw_bench.drivers.pool import DriverPool
from hw_bench.processes import BenchError
from hw_bench.report import Figure, Report
from hw_bench.scenarios.beside_mosquitto import Pair, beside_mosquitto
from hw_bench.scenarios.contract import Findings, conclude
from hw_bench.turns import Plan, Progress

SAMPLES = 20
GROWTH_MAX = 4 * 2**20  # octets of resident memory; with 100,000 cycles 40 a cycle: no object that is leaked is smaller
DESCRIPTORS_GROWTH_MAX = 2
CONNECT_SECONDS_MAX = 60.0
SETTLED_LOOKS, LOOK_SECONDS = 8, 0.05  # the registry's feed opens a file for a moment now and then


@dataclass(frozen=True, slots=True)
class Use:
    """What one process uses at a moment when no device is connected."""

    memory: int
    """Octets of resident memory."""
    descriptors: int


@dataclass(frozen=True, slots=True)
class Soak:
    """A process that grows, ends or is replaced fails the run."""

    name: str = "soak"
    tls: str = "TLSv1.3"
    cycles: int = 100_000
    devices: int = 50
    at_once: int = 16
    workers: int = 2
    growth_max: int = GROWTH_MAX

    def description(self) -> str:
        return (
            f"--cycles cycles (default {self.cycles:,}) of connect, publish, disconnect or cut: a day of 1,000 devices "
            f"that connect every quarter of an hour, at fleet serve --workers {self.workers}; resident memory and "
            f"descriptors of every process, after the first quarter at most {self.growth_max / 2**20:g} MiB more"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        cycles = plan.cycles or self.cycles
        with beside_mosquitto(self.devices, progress, "--workers", str(self.workers)) as pair:
            processes = _processes(pair)
            with pair.clients(pair.gateway, tls=self.tls, topic="soak", size=64) as clients:
                curve = self._curve(pair, clients, processes, cycles, progress)
        figures = tuple(figure for name in processes for figure in self._growth(name, curve))
        grown = [f"{one.name} {one.value:.2f} {one.unit}".strip() for one in figures if not one.reached]
        if grown:
            raise BenchError(f"after {cycles:,} cycles, more than allowed: {', '.join(grown)}.")
        checks = tuple(_line(done, uses) for done, uses in curve)
        report = conclude(self, plan, (), Findings("cycles", pair.environment.cores, {}, checks=checks))
        return replace(report, figures=figures)

    def _curve(
        self, pair: Pair, clients: DriverPool, processes: dict[str, int], cycles: int, progress: Progress
    ) -> list[tuple[int, dict[str, Use]]]:
        curve, done, turn = list[tuple[int, dict[str, Use]]](), 0, 0
        for sample in range(1, SAMPLES + 1):
            while done < cycles * sample // SAMPLES:
                turn += 1
                done += self._turn(clients, turn)
            _settle(processes)
            if _processes(pair) != processes:
                raise BenchError("a process of fleet serve has ended and was replaced.")
            curve.append((done, {name: _use(pid) for name, pid in processes.items()}))
            progress(_line(*curve[-1]))
        return curve

    def _turn(self, clients: DriverPool, number: int) -> int:
        """All devices once; every second time they are cut off in place of DISCONNECT."""
        command = {"do": "connect", "at_once": self.at_once, "seconds": CONNECT_SECONDS_MAX, "retry": 0}
        (answer,) = clients.send(command, CONNECT_SECONDS_MAX)
        if answer["refused"]:
            raise BenchError(f"the gateway refused {answer['refused']} of {self.devices} devices.")
        clients.send({"do": "leave", "cut": number % 2})
        return self.devices

    def _growth(self, name: str, curve: Sequence[tuple[int, dict[str, Use]]]) -> tuple[Figure, Figure]:
        """From the second quarter of the samples to the last."""
        uses = [sample[name] for _, sample in curve]
        quarter = len(uses) // 4
        first, last = uses[quarter : 2 * quarter], uses[-quarter:]
        memory = statistics.median(one.memory for one in last) - statistics.median(one.memory for one in first)
        descriptors = min(one.descriptors for one in last) - min(one.descriptors for one in first)
        most = self.growth_max / 2**20
        return (
            Figure(f"{name}: growth of resident memory", memory / 2**20, "MiB", at_most=most),
            Figure(f"{name}: growth of descriptors", descriptors, "", at_most=DESCRIPTORS_GROWTH_MAX),
        )


def _processes(pair: Pair) -> dict[str, int]:
    """Name -> process of `fleet serve` and its descendants."""
    names = dict[str, int]()
    for pid in sorted(process_tree(pair.gateway.pids)):
        words = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        if b"fleet.runtime.worker_main" in words:
            names[f"worker {sum(name.startswith('worker') for name in names) + 1}"] = pid
        else:
            names["supervisor" if pid in pair.gateway.pids else Path(os.fsdecode(words[0])).name] = pid
    return names


def _use(pid: int) -> Use:
    """Raises: BenchError: it has ended."""
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
        memory = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
        return Use(memory, sum(1 for _ in (PROC / str(pid) / "fd").iterdir()))
    except (OSError, StopIteration):
        raise BenchError(f"process {pid} of fleet serve has ended.") from None


def _settle(processes: dict[str, int]) -> None:
    """Return when no process has closed or opened anything for a while: every connection has ended."""
    before, same = dict[str, int](), 0
    while same < SETTLED_LOOKS:
        now = {name: _use(pid).descriptors for name, pid in processes.items()}
        same, before = same + 1 if now == before else 0, now
        time.sleep(LOOK_SECONDS)


def _line(done: int, uses: dict[str, Use]) -> str:
    shown = (f"{name} {use.memory / 2**20:.1f} MiB {use.descriptors} fd" for name, use in uses.items())
    return f"{done:>9,} cycles: {', '.join(shown)}"
