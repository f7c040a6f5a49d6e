"""Files with a secret, which nobody but their owner may read."""

import codecs
import errno
import os
import shlex
from pathlib import Path

from fleet.config.small_files import read_small

_OTHERS = 0o077


class ExposedFile(Exception):
    """Other users can read the file, or change it."""

    def __init__(self, file: Path) -> None:
        super().__init__(f"{file} can be read by others.")
        self.advice = f"Run: chmod 600 {shlex.quote(str(file))}"


def first_line(file: Path, size_max: int) -> bytes:
    """Of a file with one secret. Raises: as `read_secret`."""
    return read_secret(file, size_max).partition(b"\n")[0].removesuffix(b"\r")


def read_secret(file: Path, size_max: int) -> bytes:
    """The content of `file`, at most `size_max` bytes, without the byte order mark that some editors write; its mode is
    that of the file that was opened.

    Raises: ExposedFile. LargeFile. OSError: also of UTF-16 text, of which every other byte is 0.
    """

    def check(found: os.stat_result) -> None:
        if found.st_mode & _OTHERS:
            raise ExposedFile(file)

    content = read_small(file, size_max, check)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in content:
        raise OSError(errno.EINVAL, "it is UTF-16 text; save it as UTF-8", str(file))
    return content.removeprefix(codecs.BOM_UTF8)
