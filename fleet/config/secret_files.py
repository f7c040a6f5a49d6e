"""Files with a secret, which nobody but their owner may read."""

import errno
import os
import shlex
from pathlib import Path

_OTHERS = 0o077


class ExposedFile(Exception):
    """Other users can read the file, or change it."""

    def __init__(self, file: Path) -> None:
        super().__init__(f"{file} can be read by others.")
        self.advice = f"Run: chmod 600 {shlex.quote(str(file))}"


class LargeFile(OSError):
    """The file is larger than such a file is."""


def read_secret(file: Path, size_max: int) -> bytes:
    """The content of `file`, at most `size_max` bytes; its mode is that of the file that was opened.

    Raises: ExposedFile. LargeFile. OSError.
    """
    with file.open("rb") as opened:
        if os.fstat(opened.fileno()).st_mode & _OTHERS:
            raise ExposedFile(file)
        content = opened.read(size_max + 1)
    if len(content) > size_max:
        raise LargeFile(errno.EFBIG, os.strerror(errno.EFBIG), str(file))
    return content
