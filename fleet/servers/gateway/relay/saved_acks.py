"""Acknowledgements to devices that wait until our own mosquitto has saved what they acknowledge (`durable = true`).

mosquitto acknowledges a message before it writes it. But it does one thing at a time: what it has acknowledged before
a save is in that save, and what it acknowledges later it sends when the save is over. It saves into a new file, which
it renames once the data is on disk. So an acknowledgement may go on when the file is another than at its arrival, and
the process that sent it has not ended: its successor's file need not have the message.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Protocol

POLL_SECONDS = 0.005
HELD_BYTES_MAX = 524_288  # of a session: its 65,535 packet identifiers at once

Stamp = tuple[int, int, int] | None
"""Which file it is: inode, time of its last write, size; None: there is none."""


class Receiver(Protocol):
    """Where a session's acknowledgements go."""

    @property
    def between_packets(self) -> bool: ...

    def inject(self, packet: bytes) -> None: ...


class Saves:
    """Of one database, in one process. `spawn` runs a task."""

    def __init__(self, database: Path, spawn: Callable[[Coroutine[object, object, None]], None]) -> None:
        self._database = database
        self._spawn = spawn
        self._waiting: set[HeldAcks] = set()
        self._watching = False

    def stamp(self) -> Stamp:
        try:
            found = self._database.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def wait(self, held: "HeldAcks") -> None:
        """Tell `held` of the next save."""
        self._waiting.add(held)
        if not self._watching:
            self._watching = True
            self._spawn(self._watch())

    def forget(self, held: "HeldAcks") -> None:
        self._waiting.discard(held)

    async def _watch(self) -> None:
        seen: Stamp = None
        try:
            while self._waiting:
                await asyncio.sleep(POLL_SECONDS)
                stamp = self.stamp()
                if stamp is None or stamp == seen:
                    continue
                for held in self._waiting:
                    held.mark(stamp)
                await asyncio.to_thread(_sync_directory, self._database.parent)  # or a power failure undoes the rename
                seen = stamp
                for held in tuple(self._waiting):
                    held.release()
        finally:
            self._watching = False


class HeldAcks:
    """Of one session, whose broker is the process `pid`."""

    def __init__(self, saves: Saves, pid: int, receiver: Receiver) -> None:
        self._saves = saves
        self._pid = pid
        self._receiver = receiver
        self._groups: list[tuple[Stamp, bytearray]] = []  # in order, each with the file at its arrival
        self._saved = bytearray()
        self._size = 0  # of all
        self._is_closed = False

    def add(self, packet: bytes) -> bool:
        """Hold back an acknowledgement that has just arrived; False: there are too many."""
        if self._is_closed or self._size + len(packet) > HELD_BYTES_MAX:
            return False
        stamp = self._saves.stamp()
        if not self._groups or self._groups[-1][0] != stamp:
            self._groups.append((stamp, bytearray()))
        self._groups[-1][1].extend(packet)
        self._size += len(packet)
        self._saves.wait(self)
        return True

    def mark(self, stamp: Stamp) -> None:
        """The file is now `stamp`: whatever came while it was another is saved."""
        while self._groups and self._groups[0][0] != stamp:
            self._saved += self._groups.pop(0)[1]

    def release(self) -> None:
        """Send what is marked: it is on disk."""
        if not self._saved or not self._receiver.between_packets or not _is_running(self._pid):
            return
        packets = bytes(self._saved)
        self._saved.clear()
        self._size -= len(packets)
        if not self._groups:
            self._saves.forget(self)
        self._receiver.inject(packets)

    def close(self) -> None:
        """The session has closed. Its device sends again what was not acknowledged."""
        self._is_closed = True
        self._groups.clear()
        self._saved.clear()
        self._saves.forget(self)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
