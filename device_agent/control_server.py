"""Server of the control socket: accepts clients and dispatches their requests to handlers. Non-blocking."""

import json
import os
import select
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from device_agent.control import LINE_SIZE_MAX, SOCKET_NAME, Answer, socket_address
from fleet.est_client.errors import ClientError

CLIENTS_MAX = 32
_READ_SIZE = 65536


class Client:
    """One accepted connection. Non-blocking."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._inbound = b""
        self._outbound = b""
        self.closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        return bool(self._outbound)

    def receive(self) -> list[dict[str, Any]]:
        """The requests that have arrived completely. Closes at the end of the stream, or at an invalid line."""
        try:
            data = self._socket.recv(_READ_SIZE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.close()
            return []
        *lines, self._inbound = (self._inbound + data).split(b"\n")
        requests = []
        for line in lines:
            try:
                request = json.loads(line)
            except (ValueError, RecursionError):  # the latter: deeply nested brackets
                request = None
            if not isinstance(request, dict):
                self.refuse("Not a request: one JSON object a line is expected.")
                self.close()
                break
            requests.append(request)
        if len(self._inbound) > LINE_SIZE_MAX:
            self.refuse(f"A request is longer than {LINE_SIZE_MAX} bytes.")
            self.close()
        return requests

    def answer(self, **values: Any) -> None:
        """Send {"ok": true, ...values}; dropped if the client has closed."""
        self._send({"ok": True} | values)

    def refuse(self, message: str, advice: str = "") -> None:
        """Send {"ok": false, ...}."""
        self._send({"ok": False, "message": message, "advice": advice})

    def flush(self) -> None:
        """Write as much as the socket accepts now."""
        if self.closed or not self._outbound:
            return
        try:
            written = self._socket.send(self._outbound)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._outbound = self._outbound[written:]

    def close(self) -> None:
        self.closed = True
        self._socket.close()

    def _send(self, answer: Answer) -> None:
        if self.closed:
            return
        self._outbound += json.dumps(answer).encode() + b"\n"
        if len(self._outbound) > LINE_SIZE_MAX:  # a client that sends requests and never reads
            self.close()
            return
        self.flush()


Handler = Callable[[Client, dict[str, Any]], None]
"""Answers now, or keeps the client and answers later. Raises ClientError to refuse."""


class ControlServer:
    """Create it while holding the home's lock: the socket of a killed agent is replaced. Raises: OSError."""

    def __init__(self, home: Path, handlers: Mapping[str, Handler]) -> None:
        self._home = home
        self._handlers = handlers
        self._clients: dict[int, Client] = {}
        self._listener = _listen(home)

    def watched(self) -> dict[int, int]:
        """Descriptors and their poll events."""
        watched = {fd: select.POLLIN | (select.POLLOUT if c.wants_write else 0) for fd, c in self._clients.items()}
        if len(watched) < CLIENTS_MAX:
            watched[self._listener.fileno()] = select.POLLIN
        return watched

    def handle(self, ready: Mapping[int, int]) -> None:
        """Serve the descriptors that are ready."""
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
        """Close all connections and remove the socket."""
        self._listener.close()
        (self._home / SOCKET_NAME).unlink(missing_ok=True)
        for client in self._clients.values():
            client.close()
        self._clients = {}

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # closed before it was accepted
        connection.setblocking(False)
        self._clients[connection.fileno()] = Client(connection)

    def _serve(self, client: Client, request: dict[str, Any]) -> None:
        handler = self._handlers.get(str(request.get("do")))
        if handler is None:
            client.refuse("The agent does not know this request.", f"One of: {', '.join(sorted(self._handlers))}.")
            return
        try:
            handler(client, request)
        except ClientError as error:
            client.refuse(error.message, error.advice)


def _listen(home: Path) -> socket.socket:
    """The listening socket of a running agent. 0600."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    (home / SOCKET_NAME).unlink(missing_ok=True)
    before = os.umask(0o177)  # so that the socket is created 0600
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
