"""Which process of this machine something belongs to, for as long as that runs: worth nothing after a reboot."""

import os
from functools import cache
from pathlib import Path


def this_process() -> str:
    """The mark of the process that asks."""
    return mark(os.getpid())


@cache
def mark(pid: int) -> str:
    """Of the process `pid`, which runs."""
    return f"{pid}.{_started(pid)}"


def runs(mark: str) -> bool:
    """Whether the process with this mark runs. A later one with its number has another mark."""
    pid, _, started = mark.partition(".")
    return pid.isdecimal() and len(pid) < 12 and _started(int(pid)) == started != ""


def _started(pid: int) -> str:
    """Clock ticks from boot to the start of the process; "" if there is none (proc(5), field 22 of stat)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    return stat[stat.rindex(b")") :].split()[20].decode()
