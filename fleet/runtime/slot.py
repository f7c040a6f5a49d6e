"""A worker's place beneath its supervisor: listening sockets, and the process that accepts on them.

The sockets are the supervisor's. While a worker has died, or is being replaced, its successor gets them: connections
that were not accepted wait in the kernel for it, where a closed socket would reset them.
"""

import asyncio
import itertools
import socket
from collections.abc import Collection, Container, Mapping, Sequence

from fleet.config.listeners import NAMES
from fleet.config.settings import Settings
from fleet.runtime.listeners import close_all, shared_sockets
from fleet.runtime.worker_process import WorkerProcess


class Slot:
    """One of `count` places; `number` is from 1 on."""

    def __init__(self, number: int, count: int) -> None:
        self.number = number
        self.lock = asyncio.Lock()
        """Held while its next process is started."""
        self._count = count
        self._process: WorkerProcess | None = None
        self._listening_since: float | None = None
        self._taken = asyncio.Event()
        self._sockets: Mapping[str, Sequence[socket.socket]] = {}

    @property
    def process(self) -> WorkerProcess:
        """Its current one. Raises: RuntimeError: it has never had one."""
        if self._process is None:
            raise RuntimeError(f"Worker {self.number} has not been started.")
        return self._process

    def next_number(self, taken: Container[int]) -> int:
        """For one that runs beside others: of two with one number, presence would take the first for dead."""
        return next(each for each in itertools.count(self.number, self._count) if each not in taken)

    def take(self, process: WorkerProcess, listening_since: float | None) -> None:
        """`process` is its current one; it listens since that time of the loop, or not yet."""
        self._process, self._listening_since = process, listening_since
        self._taken.set()
        self._taken = asyncio.Event()

    def listened_seconds(self, now: float) -> float | None:
        """None: its process has never listened."""
        return None if self._listening_since is None else now - self._listening_since

    async def changed(self) -> WorkerProcess:
        """Its current process, once that has exited or is no longer its current one."""
        process = self.process
        waits = (asyncio.create_task(process.ended()), asyncio.create_task(self._taken.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        return process

    def descriptors(self, settings: Settings) -> dict[str, list[int]]:
        """Of its sockets, by listener. Raises: Unavailable (`cannot-listen`)."""
        if not self._sockets:
            self._sockets = shared_sockets(settings)
        return {name: [one.fileno() for one in sockets] for name, sockets in self._sockets.items()}

    def release(self, names: Collection[str] = NAMES) -> None:
        """Close the sockets of these listeners: without a process, the kernel gives others what would wait for one."""
        close_all({name: sockets for name, sockets in self._sockets.items() if name in names})
        self._sockets = {name: sockets for name, sockets in self._sockets.items() if name not in names}
