"""The running agent's end of its Unix socket: it takes clients in, and hands their requests to whoever can answer."""

import os
import select
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from device_agent.control import SOCKET_NAME, Client, socket_address
from device_agent.errors import AgentError

CLIENTS_MAX = 32

Handler = Callable[[Client, dict[str, Any]], None]
"""Answers now, or keeps the client and answers later. Raises AgentError to refuse."""


class Desk:
    """Call it while holding the home's lock: a socket left by a dead agent is replaced. Raises: OSError."""

    def __init__(self, home: Path, handlers: Mapping[str, Handler]) -> None:
        self._home = home
        self._handlers = handlers
        self._clients: dict[int, Client] = {}
        self._listener = _listen(home)

    def watched(self) -> dict[int, int]:
        """Descriptors and the poll events to wait for."""
        watched = {fd: select.POLLIN | (select.POLLOUT if c.wants_write else 0) for fd, c in self._clients.items()}
        if len(watched) < CLIENTS_MAX:
            watched[self._listener.fileno()] = select.POLLIN
        return watched

    def handle(self, ready: Mapping[int, int]) -> None:
        """Serve what is ready."""
        for descriptor in self._clients.keys() & ready.keys():
            client = self._clients[descriptor]
            client.flush()
            if ready[descriptor] & ~select.POLLOUT:
                for request in client.receive():
                    self._serve(client, request)
        if self._listener.fileno() in ready:
            self._accept()
        self._clients = {descriptor: client for descriptor, client in self._clients.items() if not client.closed}

    def close(self) -> None:
        """Hang up on everybody, and take the socket away."""
        self._listener.close()
        (self._home / SOCKET_NAME).unlink(missing_ok=True)
        for client in self._clients.values():
            client.close()
        self._clients = {}

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it hung up before we came
        connection.setblocking(False)
        self._clients[connection.fileno()] = Client(connection)

    def _serve(self, client: Client, request: dict[str, Any]) -> None:
        handler = self._handlers.get(str(request.get("do")))
        if handler is None:
            client.refuse("The agent does not know this request.", f"One of: {', '.join(sorted(self._handlers))}.")
            return
        try:
            handler(client, request)
        except AgentError as error:
            client.refuse(error.message, error.advice)


def _listen(home: Path) -> socket.socket:
    """The listening socket of a running agent. 0600."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    (home / SOCKET_NAME).unlink(missing_ok=True)
    before = os.umask(0o177)  # so the socket is 0600 from its first moment
    try:
        with socket_address(home) as address:
            listener.bind(address)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(CLIENTS_MAX)
    return listener
