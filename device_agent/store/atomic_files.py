"""Atomic, durable files: after a power loss each has its old or its new content, never a part.

`checkpoint` is called with a name after every change that reaches the disk, so that tests can stop the process there.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from device_agent.errors import Busy

_LOCK_POLL_SECONDS = 0.05
CERTIFICATES_SIZE_MAX = 1024 * 1024  # bytes; a bundle of every public CA has 200 KB
_NAME_SIZE_MAX = 64  # bytes; a slot's name has 6
_WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # what symlink(2) says on FAT, and on some mounts

Checkpoint = Callable[[str], None]


def no_checkpoint(_: str) -> None:
    """Do nothing."""


def write_atomically(path: Path, data: bytes, checkpoint: Checkpoint = no_checkpoint) -> None:
    """Write `data` to `path`, mode 0600, replacing it atomically: readers see the old content or the new.

    All of it is on the disk, and has been read back, before the old content goes.

    Raises: OSError; `path` is unchanged then.
    """
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    checkpoint(f"{path.name} unlinked old draft")
    descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        checkpoint(f"{path.name} opened")
        write_durably(descriptor, data, path, checkpoint)
        checkpoint(f"{path.name} synced")
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()  # on a full disk, its space is what the next attempt needs
        raise
    finally:
        os.close(descriptor)
    fresh.rename(path)
    checkpoint(f"{path.name} renamed")
    sync_directory(path.parent)
    checkpoint(f"{path.name} durable")


def write_durably(descriptor: int, data: bytes, path: Path, checkpoint: Checkpoint = no_checkpoint) -> None:
    """Write `data` to a new file, sync it and read it back, before a rename makes it `path`. Raises: OSError."""
    _write_all(descriptor, data)
    checkpoint(f"{path.name} written")
    # Before the rename, which may reach the disk before the data and leave an empty file after a power loss.
    os.fsync(descriptor)
    _must_be(descriptor, data, path)


def _write_all(descriptor: int, data: bytes) -> None:
    left = data
    while left:  # a disk that is nearly full takes a part, and refuses the next
        left = left[os.write(descriptor, left) :]


def _must_be(descriptor: int, data: bytes, path: Path) -> None:
    """Raises: OSError: the file does not hold `data`."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # what is read then comes from the disk
    if os.pread(descriptor, len(data) + 1, 0) != data:
        raise OSError(errno.EIO, "what was written cannot be read back: the disk is damaged", str(path))


def point_atomically(pointer: Path, name: str, checkpoint: Checkpoint = no_checkpoint) -> None:
    """Make `pointer` name its sibling `name`, atomically: as a symbolic link, or as a file with that name where the
    file system has no links (FAT). A directory in its place, as a copy that follows links makes, is erased.

    Raises: OSError.
    """
    fresh = pointer.with_name(f".{pointer.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        fresh.symlink_to(name)
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS:
            raise
        _point_by_file(pointer, name, checkpoint)
        return
    checkpoint(f"{pointer.name} drafted")
    _erase_copy(pointer, checkpoint)
    fresh.rename(pointer)
    checkpoint(f"{pointer.name} switched")
    sync_directory(pointer.parent)
    checkpoint(f"{pointer.name} durable")


def _point_by_file(pointer: Path, name: str, checkpoint: Checkpoint) -> None:
    _erase_copy(pointer, checkpoint)
    write_atomically(pointer, name.encode(), checkpoint)


def _erase_copy(pointer: Path, checkpoint: Checkpoint) -> None:
    if pointer.is_symlink() or not pointer.is_dir():
        return
    for file in pointer.iterdir():
        file.unlink()
        checkpoint(f"{pointer.name} copy of {file.name} removed")
    pointer.rmdir()
    checkpoint(f"{pointer.name} copy removed")


def pointed(pointer: Path) -> str | None:
    """The name that `point_atomically` has stored, whichever way; None if there is none."""
    try:
        if pointer.is_symlink():
            return pointer.readlink().name
        return read_capped(pointer, _NAME_SIZE_MAX).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def opened_file(path: Path) -> BinaryIO:
    """The regular file `path`, to be read. A FIFO, which would be waited for, is refused. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return open(descriptor, "rb")


def read_capped(path: Path, size_max: int) -> bytes:
    """The content of the file `path`. Raises: OSError: EFBIG if it is larger."""
    with opened_file(path) as file:
        data = file.read(size_max + 1)
    if len(data) > size_max:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data


def read_file(path: Path) -> bytes:
    """The content of a file of certificates or of a key. Raises: OSError: EFBIG if it is no such."""
    return read_capped(path, CERTIFICATES_SIZE_MAX)


def others_may_write(found: os.stat_result) -> bool:
    """Whether others may, by its mode. A group that is our own may write."""
    return bool(found.st_mode & (stat.S_IWOTH if found.st_gid == os.getegid() else stat.S_IWOTH | stat.S_IWGRP))


def made_folder(folder: Path) -> bool:
    """Make `folder`, 0700, durably; False if it is there. A link is none: what it points to may be another's.

    Raises: OSError.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "it must be a folder, and no link", str(folder)) from None
        return False
    sync_directory(folder.parent)
    return True


def must_be_ours(folder: Path) -> None:
    """Others who may change `folder` could put a key or a CA of theirs into it.

    Raises: PermissionError. OSError.
    """
    found = folder.stat()
    if found.st_uid != os.geteuid() or others_may_write(found):
        problem = "it belongs to another user, or others may write into it: choose another folder, or take it over"
        raise PermissionError(errno.EPERM, problem, str(folder))


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
