"""Reading small files of which somebody else says what they are: a pipe, perhaps, or a device without an end."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

CERTIFICATES_SIZE_MAX = 1_048_576  # a chain takes some KiB, all public roots 220

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class LargeFile(OSError):
    """The file is larger than such a file is."""


def read_small(file: Path, size_max: int, check: Callable[[os.stat_result], None] = lambda found: None) -> bytes:
    """The content of `file`, which others may replace, at most `size_max` bytes; `check` gets what was opened, before
    it is read. Never waits.

    Raises: LargeFile. OSError: as when it is no regular file. What `check` raises.
    """
    descriptor = os.open(file, _FLAGS)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(file))
        check(found)
        return _read(file, descriptor, size_max)
    finally:
        os.close(descriptor)


def read_argument(file: Path, size_max: int = CERTIFICATES_SIZE_MAX) -> bytes:
    """The content of `file`, which the user of a command names, at most `size_max` bytes: a pipe is awaited.

    Raises: LargeFile, OSError.
    """
    with file.open("rb", buffering=0) as opened:
        return _read(file, opened.fileno(), size_max)


def _read(file: Path, descriptor: int, size_max: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as opened:
        content = opened.read(size_max + 1)
    if len(content) > size_max:
        raise LargeFile(errno.EFBIG, os.strerror(errno.EFBIG), str(file))
    return content
