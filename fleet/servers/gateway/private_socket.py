"""Unix sockets in a directory of our own: who may open the directory may be any device, so nobody else may."""

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

PATH_SIZE_MAX = 100  # sockaddr_un holds 108 bytes, its terminating zero included
RETRY_SECONDS = 0.005


def private_directory(path: Path) -> Path:
    """The absolute form of `path`, made or found to be a directory that only its owner, us, may enter.

    Raises: OSError: it is somebody else's, or can't be made.
    """
    path = path.absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()  # a link could lead into somebody else's
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{path} is not a directory of this user's own")
    path.chmod(0o700)
    return path


async def connect_unix(path: Path, factory: Callable[[], asyncio.BaseProtocol]) -> None:
    """Connect `factory()` to the socket at `path`, waiting while the listener's backlog is full. Raises: OSError.

    `factory()` must not close in its `connection_made`: uvloop then forgets to tell the socket that it is closed, and
    the socket, once collected, closes whatever has been given its number.
    """
    sock = await _connected(path)
    try:
        await asyncio.get_running_loop().create_unix_connection(factory, sock=sock)
    except BaseException:
        sock.close()
        raise


async def probe_unix(path: Path) -> None:
    """Ask only whether somebody listens at `path`. Raises: OSError: nobody does."""
    (await _connected(path)).close()


async def _connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        while True:
            try:
                # By hand: on a full backlog a Unix socket says EAGAIN, which event loops take for "in progress".
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
    # Too long for an address: by way of its directory.
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
