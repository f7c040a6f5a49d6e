"""Folders that no other user has a part in the way to."""

import errno
import os
import stat
from pathlib import Path

from device_agent.errors import AgentError

LINKS_MAX = 16  # on the way

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def opened_folder(path: Path, below: Path, users: set[int]) -> int:
    """A descriptor of the folder `path`, each part of which belongs to one of `users`: whoever owns one, or may write
    into it, could put another folder in its place. One that is neither root nor we leads to folders of its own alone.

    Raises: AgentError, OSError.
    """
    led_by: set[int] = set()
    parts, links = list(reversed(path.relative_to(below).parts)), 0
    folder = os.open(below, _FOLDER)
    try:
        while True:
            found = os.fstat(folder)
            if found.st_mode & stat.S_IWOTH and not (parts and found.st_mode & stat.S_ISVTX):
                raise AgentError(f"{_name(folder)} may be written by every user")
            if not parts and led_by - {found.st_uid}:
                raise AgentError(f"{_name(folder)} is not a folder of user {max(led_by)}, who leads to it")
            if not parts:
                return folder
            part = parts.pop()
            entry = os.stat(part, dir_fd=folder, follow_symlinks=False)
            if entry.st_uid not in users:
                raise AgentError(f"{_name(folder)}/{part} belongs to user {entry.st_uid}, who could replace it")
            led_by |= {entry.st_uid} - {0, os.geteuid()}
            inner, links = folder, links + stat.S_ISLNK(entry.st_mode)
            if not stat.S_ISLNK(entry.st_mode):
                inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            elif links > LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            else:
                target = Path(os.readlink(part, dir_fd=folder))
                parts += reversed(target.parts[target.is_absolute() :])
                inner = os.open(below if target.is_absolute() else ".", _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
    except BaseException:
        os.close(folder)
        raise


def _name(folder: int) -> str:
    return str(Path(f"/proc/self/fd/{folder}").readlink()).rstrip("/")
