"""Supervised child process of a broker: started, restarted when it exits, stopped, never orphaned.

It ends with us even when we are killed: the kernel sends it SIGTERM. It holds a lock for as long as it runs, so that
after our own restart its successor waits until it has exited.
"""

import asyncio
import ctypes
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from fleet.config.logs import log_event
from fleet.servers.gateway.broker.private_socket import probe_unix
from fleet.servers.gateway.broker.upstream import UnixUpstream

log = logging.getLogger("fleet.broker")

READY_SECONDS_MAX = 10.0  # of doing nothing, before it accepts connections
LOAD_SECONDS_MAX = 300.0  # of loading what it has saved: killed for that, it would begin anew for ever
STOP_SECONDS_MAX = 3.0
PREDECESSOR_SECONDS_MAX = 8.0  # after its parent's death it first writes its sessions to disk
POLL_SECONDS = 0.02
RESTART_SECONDS_MIN, RESTART_SECONDS_MAX = 0.2, 10.0
STEADY_SECONDS = 30.0  # after running for so long, the restart delay starts over
LINE_MAX = 500

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class BrokerProcess:
    """`argv` runs in `directory` and listens on the Unix socket `socket` there."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        directory: Path,
        socket: Path,
        on_line: Callable[[str], None],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._argv = tuple(argv)
        self._directory = directory
        self._socket = socket
        self._on_line = on_line
        self._env = env
        self._process: asyncio.subprocess.Process | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._lines: asyncio.Task[None] | None = None
        self.recover: Callable[[], bool] = lambda: False
        """Called when it has exited at once: whether the cause is removed, and it should be started again."""
        self.restarts = 0
        self.is_ready = False
        """Whether it accepts connections, as far as we know; signals that it handles may be sent from then on."""

    async def start(self) -> None:
        """Returns when it accepts connections; from then on it is restarted when it exits.

        Raises: OSError: it can't be started, or exited at once. TimeoutError: it accepts no connections.
        """
        try:
            await self._start_recovering()
        except BaseException:
            await self._stop_process()
            raise
        self._supervision = asyncio.create_task(self._supervise())

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal if it is running."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def bytes_read(self) -> int | None:
        """What it has read from sockets and files so far: unchanged while nobody talks to it. None if unknown."""
        if self._process is None:
            return None
        try:
            text = Path(f"/proc/{self._process.pid}/io").read_text("ascii")
        except OSError:
            return None
        return int(text.partition("rchar:")[2].split(maxsplit=1)[0])

    def work_done(self) -> str | None:
        """Its processor time, as the kernel tells: constant while it does nothing. None if unknown, and while it waits
        for the disk.
        """
        if self._process is None:
            return None
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] == "D" else f"{fields[11]} {fields[12]}"

    async def close(self, seconds_max: float = STOP_SECONDS_MAX) -> None:
        """Stop it and its supervision; one that has not exited after `seconds_max` is killed. Safe to call twice."""
        supervision, self._supervision = self._supervision, None
        if supervision is not None:
            supervision.cancel()
            await asyncio.gather(supervision, return_exceptions=True)
        await self._stop_process(seconds_max)

    async def _supervise(self) -> None:
        delay, loop = RESTART_SECONDS_MIN, asyncio.get_running_loop()
        while True:
            started_at = loop.time()
            if self._process is not None:
                code = await self._process.wait()
                self.is_ready = False
                log_event(log, logging.ERROR, "broker.ended", broker=f"unix:{self._socket}", code=code)
            if loop.time() - started_at > STEADY_SECONDS:
                delay = RESTART_SECONDS_MIN
            await asyncio.sleep(delay)
            delay = min(delay * 2, RESTART_SECONDS_MAX)
            try:
                await self._start_recovering()
            except (OSError, TimeoutError) as error:
                log_event(log, logging.ERROR, "broker.not-started", broker=f"unix:{self._socket}", error=error)
                await self._stop_process()
                continue
            self.restarts += 1
            log_event(log, logging.WARNING, "broker.restarted", broker=f"unix:{self._socket}", restarts=self.restarts)

    async def _start_recovering(self) -> None:
        try:
            await self._start_once()
        except OSError:
            if not self.recover():
                raise
            await self._start_once()

    async def _start_once(self) -> None:
        lock = await self._lock()
        try:
            self._socket.unlink(missing_ok=True)
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                cwd=self._directory,
                env=self._env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(lock,),
                preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),  # in the child, before exec
            )
        finally:
            os.close(lock)  # the child's descriptor keeps it locked
        self._lines = asyncio.create_task(self._read_lines(self._process))
        await self._until_ready(self._process)
        self.is_ready = True

    async def _lock(self) -> int:
        """Descriptor of this directory's lock, once no predecessor holds it. Raises: OSError."""
        lock = os.open(self._directory / "broker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            for _ in range(round(PREDECESSOR_SECONDS_MAX / POLL_SECONDS)):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await asyncio.sleep(POLL_SECONDS)
                else:
                    return lock
            raise OSError(f"Another broker is still running in {self._directory}.")
        except BaseException:
            os.close(lock)
            raise

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        clock = asyncio.get_running_loop().time
        working_at, worked = clock(), self.work_done()
        async with asyncio.timeout(LOAD_SECONDS_MAX):
            while True:
                if process.returncode is not None:
                    if self._lines is not None:
                        await self._lines  # its last words say why
                    raise OSError(f"{self._name} exited at once with code {process.returncode}.")
                try:
                    async with asyncio.timeout(READY_SECONDS_MAX):
                        await probe_unix(self._socket)
                except (ConnectionError, FileNotFoundError):
                    await asyncio.sleep(POLL_SECONDS)
                else:
                    return
                work = self.work_done()
                if work is None or work != worked:
                    working_at, worked = clock(), work
                elif clock() - working_at > READY_SECONDS_MAX:
                    raise TimeoutError(f"{self._name} did not accept connections.")

    async def _read_lines(self, process: asyncio.subprocess.Process) -> None:
        if process.stderr is None:
            return
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:
                continue  # longer than the reader's limit: dropped
            if not line:
                return
            text = line.decode(errors="replace").strip()[:LINE_MAX]
            log.debug("%s: %s", self._name, text)
            self._on_line(text)

    async def _stop_process(self, seconds_max: float = STOP_SECONDS_MAX) -> None:
        self.is_ready = False
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds_max):
                await process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await process.wait()


class OwnBroker(UnixUpstream):
    """An Upstream that is a process of ours, started by `start` of its class."""

    is_ours = True
    process: BrokerProcess

    async def close(self, seconds_max: float = STOP_SECONDS_MAX) -> None:
        await self.process.close(seconds_max)


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Have the kernel send us the signal `number` when our parent process `parent` dies; exit if it already has.

    Linux only; does nothing elsewhere.
    """
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
