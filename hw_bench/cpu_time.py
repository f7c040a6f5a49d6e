"""CPU seconds of processes and load of each core, from /proc.

CPU time comes from /proc in ticks (usually of 10 ms), so a turn must be long against a tick to mean something.
"""

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessTime:
    """One line of /proc/PID/stat, as far as it concerns time."""

    pid: int
    parent: int
    seconds: float
    """User and system time of all its threads and of its reaped children."""


@dataclass(frozen=True, slots=True)
class CoreTime:
    """How a core has spent its time since boot, in seconds."""

    processes: float
    """User and system time of processes."""
    kernel: float
    """Interrupts, and time stolen by the host."""
    idle: float

    def since(self, earlier: "CoreTime") -> "CoreTime":
        return CoreTime(self.processes - earlier.processes, self.kernel - earlier.kernel, self.idle - earlier.idle)

    @property
    def share_busy(self) -> float:
        """0 to 1: the part of the time in which the core ran anything at all."""
        busy = self.processes + self.kernel
        return busy / (busy + self.idle) if busy + self.idle > 0 else 0.0


def parse_process_stat(line: str) -> ProcessTime:
    """The values of one line of /proc/PID/stat. See proc(5).

    Raises: ValueError when it is none.
    """
    # The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    opening, closing = line.index("("), line.rindex(")")
    fields = line[closing + 2 :].split()
    if len(fields) < 15:
        raise ValueError(f"not a line of /proc/PID/stat: {line[:80]!r}")
    utime, stime, children_utime, children_stime = (int(field) for field in fields[11:15])
    ticks = utime + stime + children_utime + children_stime
    return ProcessTime(int(line[:opening]), int(fields[1]), ticks / TICKS_PER_SECOND)


def parse_core_times(text: str) -> dict[int, CoreTime]:
    """Core number -> its time, from the text of /proc/stat."""
    times = {}
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if not name.startswith("cpu") or name == "cpu":
            continue
        # user nice system idle iowait irq softirq steal; guest time is already part of user time.
        user, nice, system, idle, wait, *kernel = (int(field) / TICKS_PER_SECOND for field in rest.split()[:8])
        times[int(name[3:])] = CoreTime(user + nice + system, sum(kernel), idle + wait)
    return times


def core_times() -> dict[int, CoreTime]:
    """Core number -> its time, now."""
    return parse_core_times((PROC / "stat").read_text())


def process_time(pid: int) -> ProcessTime | None:
    """The time of one process; None when there is none of that number."""
    try:
        return parse_process_stat((PROC / str(pid) / "stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def process_tree(pids: tuple[int, ...]) -> dict[int, ProcessTime]:
    """pid -> time of the processes `pids` and of everything that descends from them, those still running."""
    found = {process.pid: process for process in _all_processes()}
    children: dict[int, list[int]] = {}
    for process in found.values():
        children.setdefault(process.parent, []).append(process.pid)
    tree, waiting = {}, [pid for pid in pids if pid in found]
    while waiting:
        pid = waiting.pop()
        if pid not in tree:
            tree[pid] = found[pid]
            waiting += children.get(pid, [])
    return tree


def cpu_seconds(pids: tuple[int, ...]) -> float:
    """CPU time that `pids` and their descendants have used so far."""
    return sum(process.seconds for process in process_tree(pids).values())


def _all_processes() -> list[ProcessTime]:
    processes = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            process = process_time(int(entry.name))
            if process is not None:
                processes.append(process)
    return processes
