"""A broker of our own as a child process: started, kept running, told to stop, and never left behind.

It dies with us even when we are killed: the kernel sends it SIGTERM. And it holds a lock for as long as it lives, so
that its successor after our own restart waits until it is gone.
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

from fleet.servers.gateway.private_socket import probe_unix

log = logging.getLogger("fleet.broker")

READY_SECONDS_MAX = 10.0
STOP_SECONDS_MAX = 3.0
PREDECESSOR_SECONDS_MAX = 8.0  # one that dies with its parent writes its sessions to disk first
POLL_SECONDS = 0.02
RESTART_SECONDS_MIN, RESTART_SECONDS_MAX = 0.2, 10.0
STEADY_SECONDS = 30.0  # having run for so long, the next restart is a first one again
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
        self._keeper: asyncio.Task[None] | None = None
        self._lines: asyncio.Task[None] | None = None
        self.restarts = 0

    async def start(self) -> None:
        """Returns when it takes connections; from then on it is kept running.

        Raises: OSError: it can't be started, or has ended at once. TimeoutError: it does not answer.
        """
        try:
            await self._start_once()
        except BaseException:
            await self._stop_process()
            raise
        self._keeper = asyncio.create_task(self._keep())

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, when it is there."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def close(self) -> None:
        """Stop it for good. Safe to call twice."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        await self._stop_process()

    async def _keep(self) -> None:
        delay, loop = RESTART_SECONDS_MIN, asyncio.get_running_loop()
        while True:
            began = loop.time()
            if self._process is not None:
                code = await self._process.wait()
                log.error("event=broker.ended name=%s code=%s", self._name, code)
            if loop.time() - began > STEADY_SECONDS:
                delay = RESTART_SECONDS_MIN
            await asyncio.sleep(delay)
            delay = min(delay * 2, RESTART_SECONDS_MAX)
            try:
                await self._start_once()
            except (OSError, TimeoutError) as error:
                log.error("event=broker.not-started name=%s error=%s", self._name, error)
                await self._stop_process()
                continue
            self.restarts += 1
            log.warning("event=broker.restarted name=%s restarts=%d", self._name, self.restarts)

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
                preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),  # in the child, before its program
            )
        finally:
            os.close(lock)  # the child's copy keeps it locked
        self._lines = asyncio.create_task(self._read_lines(self._process))
        await self._until_it_answers(self._process)

    async def _lock(self) -> int:
        """The lock of this directory's broker, taken once no predecessor holds it. Raises: OSError."""
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

    async def _until_it_answers(self, process: asyncio.subprocess.Process) -> None:
        async with asyncio.timeout(READY_SECONDS_MAX):
            while True:
                if process.returncode is not None:
                    raise OSError(f"{self._name} has ended at once with code {process.returncode}.")
                try:
                    await probe_unix(self._socket)
                except OSError:
                    await asyncio.sleep(POLL_SECONDS)
                else:
                    return

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

    async def _stop_process(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await process.wait()


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Have the kernel send us `number` when `parent`, who has started us, dies; end at once when it has died meanwhile.

    Does nothing where the kernel can't: on anything but Linux.
    """
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
