"""Unix sockets in a private directory: access to it grants every device's identity at the broker."""

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

PATH_SIZE_MAX = 100  # sockaddr_un holds 108 bytes, its terminating zero included
RETRY_SECONDS = 0.005


def private_directory(path: Path) -> Path:
    """Absolute form of `path`, created or checked to be a directory of ours, with mode 0700.

    Raises: OSError: another user owns it, or it can't be created.
    """
    path = path.absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()  # not stat: a link could lead to another user's directory
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{path} is not a directory owned by this user")
    path.chmod(0o700)
    return path


async def connect_unix(path: Path, factory: Callable[[], asyncio.BaseProtocol]) -> None:
    """Connect `factory()` to the socket at `path`, waiting while the listener's backlog is full. Raises: OSError.

    `factory()` must not close in its `connection_made`: uvloop then does not mark the socket as closed, and once
    garbage-collected it closes whatever has reused its file descriptor.
    """
    sock = await _connected(path)
    try:
        await asyncio.get_running_loop().create_unix_connection(factory, sock=sock)
    except BaseException:
        sock.close()
        raise


async def probe_unix(path: Path) -> None:
    """Check that a process listens at `path`. Raises: OSError: none does."""
    (await _connected(path)).close()


async def _connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        while True:
            try:
                # Not by the event loop, which takes EAGAIN of a full backlog for EINPROGRESS.
                _connect(sock, path)
            except BlockingIOError:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return sock
    except BaseException:
        sock.close()
        raise


def _connect(sock: socket.socket, path: Path) -> None:
    if len(os.fsencode(path)) <= PATH_SIZE_MAX:
        sock.connect(os.fspath(path))
        return
    # Too long for sockaddr_un: relative to its directory.
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
