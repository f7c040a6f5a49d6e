"""A small file that the workers of a gateway, and their successors, read and write one after the other.

    with locked(path, os.O_RDWR | os.O_CREAT) as descriptor:
        write_at(descriptor, data, 0)

No lock is needed to remove it: what another writes to it meanwhile is as if written before.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, flags: int) -> Iterator[int]:
    """The descriptor of the file that is at `path` while its lock is held. Raises: OSError, as os.open."""
    descriptor = _locked(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_at(descriptor: int, data: bytes, start: int) -> None:
    """Write `data` from `start` on, and end the file behind it. Raises: OSError: also when the disk is full."""
    if os.pwrite(descriptor, data, start) < len(data):
        raise OSError("The disk is full.")
    os.ftruncate(descriptor, start + len(data))


def _locked(path: Path, flags: int) -> int:
    while True:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for microseconds
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed meanwhile
