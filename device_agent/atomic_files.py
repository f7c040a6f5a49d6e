"""Files that survive a power cut: each is there whole or not at all.

`step` is called after every change that reaches the disk, with a word for it. It lets a test stop the process there.
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
    """Go on."""


def write_atomically(path: Path, data: bytes, step: Checkpoint = no_checkpoint) -> None:
    """Put `data` at `path`, mode 0600, replacing what was there: a reader sees the old bytes or the new, never a part.

    Raises: OSError.
    """
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    step(f"{path.name} unlinked old draft")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb", buffering=0) as file:
        step(f"{path.name} opened")
        file.write(data)
        step(f"{path.name} written")
        # Before the rename: a rename can reach the disk ahead of the data, and leave an empty file after a power cut.
        os.fsync(descriptor)
        step(f"{path.name} synced")
    fresh.rename(path)
    step(f"{path.name} renamed")
    sync_directory(path.parent)
    step(f"{path.name} durable")


def symlink_atomically(link: Path, target: str, step: Checkpoint = no_checkpoint) -> None:
    """Point the symbolic link at `target`, in one atomic step.

    Raises: OSError.
    """
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    step(f"{link.name} drafted")
    fresh.rename(link)
    step(f"{link.name} switched")
    sync_directory(link.parent)
    step(f"{link.name} durable")


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable: fsync of a file does not do that for its name."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held_lock(path: Path, busy: str, advice: str = "", wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` for as long as the block runs. The kernel lets go of it when the process dies.

    Raises: Busy with these words when another process holds it, and has not let go after `wait_seconds`.
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
