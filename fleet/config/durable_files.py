"""Write a file whole or not at all: a new name first, then one atomic step to the name that was asked for."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MODE_SECRET = 0o600
MODE_PUBLIC = 0o644  # less what the umask takes away: a root to trust, a head to remember, is for its owner to change


def write_file(path: Path, data: bytes, *, secret: bool, force: bool = False) -> None:
    """Put `data` at `path`, durable when this returns. A secret is readable by its owner alone from the first byte on.

    Raises: FileExistsError when `path` is there already and not `force`; OSError: as when it is a device or a pipe.
    """
    with new_file(path, secret=secret, force=force) as file:
        file.write(data)


@contextlib.contextmanager
def new_file(path: Path, *, secret: bool, force: bool = False) -> Iterator[BinaryIO]:
    """A file to write into; it is at `path`, whole and durable, when the block has ended well, and else nowhere.

    Raises: as `write_file`.
    """
    if secret:
        must_be_ours(path.parent)
    if force:
        _must_not_be_special(path)
    else:
        must_be_absent(path)
    fresh = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE_SECRET if secret else MODE_PUBLIC)
    except OSError as error:
        error.filename = str(path)  # as it was asked for
        raise
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _put_in_place(fresh, path, force=force)
    finally:
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
    sync(path.parent)


def must_be_ours(folder: Path) -> None:
    """Others who may change `folder` could put a file of theirs in the place of a secret.

    Allowed are root's folders, a group that is our own, and a sticky folder such as /tmp.

    Raises: PermissionError. OSError.
    """
    if os.name != "posix":
        return
    found = folder.stat()
    others = found.st_mode & (stat.S_IWOTH if found.st_gid == os.getegid() else stat.S_IWOTH | stat.S_IWGRP)
    if found.st_uid not in (0, os.geteuid()) or (others and not found.st_mode & stat.S_ISVTX):
        raise PermissionError(
            errno.EPERM, "the folder belongs to another user, or others may write into it", str(folder)
        )


def must_be_absent(path: Path) -> None:
    """Raises: FileExistsError."""
    if os.path.lexists(path):
        raise FileExistsError(None, "the file is there already", str(path))


def _must_not_be_special(path: Path) -> None:
    """Raises: OSError: it is, or leads to, a device, pipe or socket, which a rename would remove from its folder."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def _put_in_place(fresh: Path, path: Path, *, force: bool) -> None:
    if force:
        fresh.replace(path)
        return
    try:
        os.link(fresh, path)  # unlike a rename, it never overwrites
    except FileExistsError:
        raise FileExistsError(None, "the file is there already", str(path)) from None
    except OSError:
        # FAT and some network mounts know no hard links; the check above has to do there.
        fresh.replace(path)


def sync(path: Path) -> None:
    """Fsync the file or folder `path`."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
