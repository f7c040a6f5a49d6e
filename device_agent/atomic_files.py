"""Atomic, durable files: after a power loss each has its old or its new content, never a part.

`checkpoint` is called with a name after every change that reaches the disk, so that tests can stop the process there.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from device_agent.errors import Busy

_LOCK_POLL_SECONDS = 0.05

Checkpoint = Callable[[str], None]


def no_checkpoint(_: str) -> None:
    """Do nothing."""


def write_atomically(path: Path, data: bytes, checkpoint: Checkpoint = no_checkpoint) -> None:
    """Write `data` to `path`, mode 0600, replacing it atomically: readers see the old content or the new.

    Raises: OSError.
    """
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    checkpoint(f"{path.name} unlinked old draft")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb", buffering=0) as file:
        checkpoint(f"{path.name} opened")
        file.write(data)
        checkpoint(f"{path.name} written")
        # Before the rename, which may reach the disk before the data and leave an empty file after a power loss.
        os.fsync(descriptor)
        checkpoint(f"{path.name} synced")
    fresh.rename(path)
    checkpoint(f"{path.name} renamed")
    sync_directory(path.parent)
    checkpoint(f"{path.name} durable")


def symlink_atomically(link: Path, target: str, checkpoint: Checkpoint = no_checkpoint) -> None:
    """Point the symbolic link at `target`, atomically.

    Raises: OSError.
    """
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    checkpoint(f"{link.name} drafted")
    fresh.rename(link)
    checkpoint(f"{link.name} switched")
    sync_directory(link.parent)
    checkpoint(f"{link.name} durable")


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable: fsync of a file does not cover its name."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held_lock(path: Path, busy: str, advice: str = "", wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. The kernel releases it when the process dies.

    Raises: Busy with this message if another process still holds it after `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(busy, advice) from None
            time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
