"""Child processes of a run: pinned to cores, and ended with the run, however it ends."""

import contextlib
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hw_bench.cpu_time import process_tree

START_SECONDS_MAX = 60.0  # a Python server with its imports, on a busy machine
STOP_SECONDS_MAX = 15.0  # ten more than `fleet serve` promises for draining: on a busy machine
# Below those that a system gives to clients, and to who listens on port 0: nobody is given one before it is used, or
# while who listened there is restarted.
PORTS = range(10_000, 32_000)
LOG_TAIL_SIZE = 2000  # of a failed program's output, quoted in the error


class BenchError(Exception):
    """The measurement failed; the message says why."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores of the server and of the load."""

    server: tuple[int, ...]
    load: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        return tuple(sorted({*self.server, *self.load}))

    @property
    def apart(self) -> bool:
        """Whether server and load share no core."""
        return not set(self.server) & set(self.load)

    def together(self) -> "Cores":
        """All cores for server and load alike: the scheduler places each process."""
        return Cores(self.all, self.all)


def pick_cores() -> Cores:
    """One core for the server and one for the load; the same one if only one is available."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores((allowed[0],), (allowed[min(1, len(allowed) - 1)],))


@contextlib.contextmanager
def on_cores(*cores: int) -> Iterator[None]:
    """Run the block on `cores`; child processes start there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def running(
    argv: list[str], *, cores: tuple[int, ...], log: Path, cwd: Path | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `argv` during the block, with its output in `log`; then end it with all its descendants.

    It runs in a new session: Ctrl-C reaches the run, which then stops it in order.
    """
    with on_cores(*cores), log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, start_new_session=True
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, after STOP_SECONDS_MAX SIGKILL, then SIGKILL for descendants that are left."""
    family = _handles(pid for pid in process_tree((process.pid,)) if pid != process.pid)
    process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for handle in family:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [])  # readable when it has ended
        os.close(handle)


def _handles(pids: Iterable[int]) -> list[int]:
    """A pidfd stays with its process; a pid may be reused."""
    handles = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    return handles


@contextlib.contextmanager
def handle_of(pid: int) -> Iterator[int]:
    """A pidfd of the process `pid`. Raises: ProcessLookupError."""
    handle = os.pidfd_open(pid)
    try:
        yield handle
    finally:
        os.close(handle)


def program(name: str) -> str | None:
    """Path of the program `name`, or None. Also searches /usr/sbin, where Debian keeps servers."""
    return shutil.which(
        name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    )


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1, no two alike, on which nobody listened a moment ago."""
    with contextlib.ExitStack() as probes:
        listening: list[socket.socket] = []
        while len(listening) < count:
            with contextlib.suppress(OSError):  # not from the run's seed: which ports are free is not reproducible
                probe = socket.create_server(("127.0.0.1", secrets.choice(PORTS)))
                listening.append(probes.enter_context(probe))
        return [each.getsockname()[1] for each in listening]


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]


def wait_until(
    ready: Callable[[], bool],
    what: str,
    process: "subprocess.Popen[bytes]",
    log: Path,
    seconds_max: float = START_SECONDS_MAX,
) -> None:
    """Return when `ready()` holds.

    Raises: BenchError when `process` ends first or `seconds_max` pass, with the end of its log.
    """
    deadline = time.monotonic() + seconds_max
    while not ready():
        if process.poll() is not None:
            raise BenchError(f"{what} ended with exit code {process.returncode}: {tail(log)}")
        if time.monotonic() > deadline:
            raise BenchError(f"{what} was not ready within {seconds_max:.0f} s: {tail(log)}")
        time.sleep(0.01)


def accepts(address: tuple[str, int]) -> bool:
    """Whether something listens at `address`."""
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


def tail(log: Path) -> str:
    """The last output of a program."""
    text = log.read_bytes()[-LOG_TAIL_SIZE:].decode(errors="replace").strip()
    return text or "no output"
