"""Notices another process's commit at once: a commit writes to the lock's file, and inotify(7) wakes the followers.

Where there is no inotify, the poll of `PRAGMA data_version` notices it later.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fleet.storage.sqlite.connection import WriteLock

IN_MODIFY = 0x2  # from <sys/inotify.h>
_EVENTS_SIZE = 65_536


class CommitWatch:
    """Calls `on_commit` after a commit with events by another process. Belongs to the running event loop."""

    def __init__(self, lock: WriteLock, on_commit: Callable[[], None]) -> None:
        """`lock` has been used, so that its file exists. Raises: OSError: there is no inotify, or no more of it."""
        self._lock = lock
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._file = os.open(lock.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._inotify = _watch(lock.path)
        except OSError:
            os.close(self._file)
            raise
        self._loop.add_reader(self._inotify, self._on_written)

    def close(self) -> None:
        self._loop.remove_reader(self._inotify)
        os.close(self._inotify)
        os.close(self._file)

    def _on_written(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._inotify, _EVENTS_SIZE)
        # Followers know of commits of this process; one of another just before ends in a gap, which they read.
        if self._lock.read_newest(self._file) != self._lock.announced:
            self._on_commit()


def _watch(path: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "inotify_init1"):
        raise OSError("this system has no inotify")
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1 failed")
    if libc.inotify_add_watch(descriptor, os.fsencode(path), IN_MODIFY) < 0:
        error = ctypes.get_errno()
        os.close(descriptor)
        raise OSError(error, "inotify_add_watch failed")
    return int(descriptor)
