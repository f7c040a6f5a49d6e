"""Listener without TLS for programs of this machine: a Unix socket, or a loopback port.

The host binds it once; each worker accepts from the same socket, so that a worker that dies leaves nobody waiting.
"""

import asyncio
import errno
import grp
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fleet.config.addresses import Address, LocalAddress
from fleet.config.logs import log_event
from fleet.domain.errors import Invalid
from fleet.domain.peer import Peer
from fleet.runtime.binding import bound_socket, cannot_listen, socket_addresses
from fleet.runtime.descriptors import LOCAL_CONNECTIONS_MAX
from fleet.servers.http import HttpServer

logger = logging.getLogger("fleet.listeners")

BACKLOG = 1024
PAUSE_SECONDS = 0.1  # after an accept that failed: most fail for want of descriptors
NO_ROOM = "connections-full"
"""Counter of connections that were closed at once: every other one was busy."""


@contextmanager
def bound(name: str, address: LocalAddress | None, home: Path, group: str = "") -> Iterator[socket.socket | None]:
    """The bound socket while the block runs; None: the listener is off. A path is relative to `home`.

    Raises: Unavailable (`cannot-listen`). Invalid (`no-such-group`).
    """
    if address is None:
        yield None
        return
    try:
        if address.address is not None:
            taken = _bound_port(address.address)
        else:
            taken = _bound_path(home / address.path, _group_id(group))
    except OSError as error:
        raise cannot_listen(name, address, error) from error
    with taken:
        try:
            yield taken
        finally:
            if address.path:
                with suppress(OSError):
                    (home / address.path).unlink()


def _bound_port(address: Address) -> socket.socket:
    taken = bound_socket(*socket_addresses(address)[0])
    try:
        taken.listen(BACKLOG)
    except BaseException:
        taken.close()
        raise
    return taken


def _bound_path(path: Path, group: int) -> socket.socket:
    """Mode 600, or 660 for `group` (-1: none): any peer that can connect is trusted."""
    _remove_former(path)
    taken = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o117 if group >= 0 else 0o177)  # chmod would follow a link that has taken its place
        try:
            taken.bind(os.fspath(path))
        finally:
            os.umask(before)
        if group >= 0:
            os.chown(path, -1, group, follow_symlinks=False)
            if (folder := closed_folder(path, group)) is not None:
                why = f"the group of {path} cannot enter {folder}"
                log_event(logger, logging.WARNING, "listen", outcome="unreachable", reason=why)
        taken.listen(BACKLOG)
    except BaseException:
        taken.close()
        raise
    return taken


def closed_folder(path: Path, group: int) -> Path | None:
    """The first folder above `path` that members of `group` cannot enter."""
    for folder in reversed(path.resolve().parents):
        found = folder.stat()
        may_enter = stat.S_IXGRP if found.st_gid == group else stat.S_IXOTH
        if not found.st_mode & may_enter:
            return folder
    return None


def _remove_former(path: Path) -> None:
    """Remove the socket of a server that has ended. Raises: OSError: a server listens, or it is no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(os.fspath(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    path.unlink()


def _group_id(name: str) -> int:
    """-1 for none. Raises: Invalid (`no-such-group`)."""
    if not name:
        return -1
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise Invalid(
            "no-such-group", f"This machine has no group {name}.", "Name the proxy's in fleet.toml."
        ) from None


class LocalListener:
    """Accepts connections for `server` on a socket that may be shared with other processes.

    One after the other: how many there are is known when the next one comes, however many programs connect at once.
    """

    def __init__(self, server: HttpServer) -> None:
        self._http = server
        self._accepting: asyncio.Task[None] | None = None

    async def open(self, taken: socket.socket) -> None:
        """Raises: OSError."""
        taken.setblocking(False)
        self._accepting = asyncio.create_task(self._accept_all(taken))

    def close(self) -> None:
        """Stop accepting; connections go on."""
        if self._accepting is not None:
            self._accepting.cancel()

    async def _accept_all(self, taken: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(taken)
                if self._has_room():
                    await loop.connect_accepted_socket(lambda: self._http(Peer("-")), connection)
                else:
                    self._http.counters[NO_ROOM] += 1
                    connection.close()
            except OSError:
                await asyncio.sleep(PAUSE_SECONDS)

    def _has_room(self) -> bool:
        """Whether there is room for another connection, after one that is idle has been closed if need be."""
        http = self._http
        if len(http.connections) < LOCAL_CONNECTIONS_MAX:
            return True
        strangers = (connection for connection in http.idle if not connection.is_known)
        leaving = next(strangers, None) or http.idle.oldest()
        if leaving is None:
            return False
        leaving.close()
        return True
