"""`fleet serve --workers N` for runs that kill and restart it: one worker, or the supervisor with all its children."""

import contextlib
import random
import re
import select
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from hw_bench.cpu_time import PROC, process_time, process_tree
from hw_bench.peers.home import FleetHome
from hw_bench.processes import BenchError, free_ports, handle_of, running, wait_until

WORKER_PROGRAM = b"fleet.runtime.worker_main"
ORPHAN_SECONDS_MAX = 60.0  # a hang is found, a busy machine is not: the broker saves its state first
LAST_LINES = 5
LISTENERS = ("est", "mqtt", "http")


class KillableServer:
    """`fleet serve` on one home, through many restarts. A context manager: all processes end with it."""

    def __init__(self, home: FleetHome, folder: Path, workers: int, cores: tuple[int, ...]) -> None:
        self.est = ("127.0.0.1", 0)
        self.starts = 0
        self._home, self._folder, self._workers, self._cores = home, folder, workers, cores
        self._ready = folder / "ready.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._running = contextlib.ExitStack()
        self._logs: list[Path] = []
        self._words: list[str] = []

    def __enter__(self) -> "KillableServer":
        ports = dict(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True))
        self.est = ("127.0.0.1", ports["est"])
        self._words = [word for name, port in ports.items() for word in (f"--{name}", f"127.0.0.1:{port}")]
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._running.close()

    def start(self) -> None:
        """Start it, and return when every worker listens. Raises: BenchError."""
        self.starts += 1
        self._ready.unlink(missing_ok=True)
        log = self._folder / f"serve-{self.starts}.log"
        self._logs.append(log)
        argv = [sys.executable, "-m", "fleet", "serve", "--home", str(self._home.path), *self._words]
        argv += ["--workers", str(self._workers), "--ready-file", str(self._ready), "--log-level", "warning"]
        self._process = self._running.enter_context(running(argv, cores=self._cores, log=log))
        wait_until(self._ready.exists, "fleet serve", self._process, log)

    @property
    def supervisor(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise BenchError("fleet serve has not been started.")
        return self._process

    def worker_pids(self) -> list[int]:
        """Worker processes that are alive, listening or still starting."""
        family = process_tree((self.supervisor.pid,))
        return [pid for pid, one in family.items() if one.parent == self.supervisor.pid and _is_worker(pid)]

    def kill_worker(self, chance: random.Random) -> bool:
        """kill -9 one worker; False when none is alive. Raises: BenchError when the supervisor has ended."""
        if self.supervisor.poll() is not None:
            raise BenchError(f"fleet serve has ended by itself with exit code {self.supervisor.returncode}.")
        alive = sorted(self.worker_pids())
        if not alive:
            return False
        pid = chance.choice(alive)
        with contextlib.suppress(ProcessLookupError), handle_of(pid) as handle:
            # The pid may have been reused since it was read; the handle pins it now, so check again.
            found = process_time(pid)
            if found is not None and found.parent == self.supervisor.pid and _is_worker(pid):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [])
                return True
        return False

    def kill_supervisor(self) -> None:
        """kill -9 the supervisor; its workers and broker must end by themselves. Call `start` to restart it.

        Raises: BenchError when one of them survives.
        """
        with contextlib.ExitStack() as handles:
            family = []
            for pid in process_tree((self.supervisor.pid,)):
                with contextlib.suppress(ProcessLookupError):
                    family.append(handles.enter_context(handle_of(pid)))
            self.supervisor.kill()
            self.supervisor.wait()
            for handle in family:
                if not select.select([handle], [], [], ORPHAN_SECONDS_MAX)[0]:
                    raise BenchError("A child process survived the kill of its supervisor.")
        self._running.close()
        self._running = contextlib.ExitStack()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self._running.close()
        return self.supervisor.returncode

    def log_tail(self) -> str:
        """The last lines of its log."""
        lines = self._logs[-1].read_text("utf-8", "replace").splitlines() if self._logs else []
        return " | ".join(lines[-LAST_LINES:]) or "nothing"

    def restart_milliseconds(self) -> list[int]:
        """From each worker's end to its replacement listening, as the supervisor logged it."""
        text = b"".join(log.read_bytes() for log in self._logs)
        return [int(ms) for ms in re.findall(rb"event=worker\.restarted .* ms=(\d+)", text)]

    def restart_summary(self) -> str:
        times = self.restart_milliseconds()
        if not times:
            return "no worker was replaced"
        median = statistics.median(times)
        return f"a killed worker was replaced after {median:.0f} ms (median), {max(times)} ms at most"


def _is_worker(pid: int) -> bool:
    try:
        return WORKER_PROGRAM in (PROC / str(pid) / "cmdline").read_bytes()  # empty for a zombie
    except (FileNotFoundError, ProcessLookupError):
        return False
