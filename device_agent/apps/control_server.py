"""Server of the control socket: accepts clients and dispatches their requests to handlers. Non-blocking."""

import json
import os
import select
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_agent.apps.control import LINE_SIZE_MAX, SOCKET_NAME, Answer, socket_address
from device_agent.apps.shares import is_owner
from device_agent.errors import AgentError
from fleet.est_client.errors import ClientError

CLIENTS_MAX = 32
CLIENTS_OF_USER_MAX = 8  # unless it is the agent's own, or root: one that floods leaves room for others
SILENT_SECONDS_MAX = 30.0  # of a connection that has never completed a request
REQUESTS_OF_TURN_MAX = 16  # of one client, before others and the connections to the fleet have their turn
OPEN_REQUESTS_MAX = 64  # of one client; its further requests are not read until some are answered
DELIVERY_SIZE_MAX = 64 * 1024  # bytes not yet written to a client, beyond which nothing more is delivered to it
_ID_SIZE_MAX = 64  # characters
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
_READ_SIZE = 65536


@dataclass(frozen=True, slots=True)
class Peer:
    """Whose process is at the other end, as the kernel says (SO_PEERCRED)."""

    uid: int
    gid: int


class Client:
    """One accepted connection. Non-blocking."""

    def __init__(self, connection: socket.socket, accepted_at: float = 0.0) -> None:
        self._socket = connection
        self.accepted_at = accepted_at
        self.has_asked = False
        """It has completed a request."""
        _, uid, gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        self.peer = Peer(uid, gid)
        self.open_requests = 0
        self._inbound = b""
        self._lines: deque[bytes] = deque()
        """Of `_inbound`, complete and not served yet."""
        self._outbound = b""
        self._ended = False
        """It has said its last (shutdown), and is closed once what it is due is sent."""
        self._is_deaf = False
        """It reads no answer: what it has asked for before counts."""
        self._has_hung_up = False
        """Its end is closed: so does what has not been read yet."""
        self.closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """What it has sent waits for its answers to fit: as long as it does not read them, nothing is served."""
        return bool(self._outbound) or self._is_serving

    @property
    def _is_serving(self) -> bool:
        return bool(self._lines) and (self._is_deaf or self.open_requests < OPEN_REQUESTS_MAX)

    @property
    def wants_read(self) -> bool:
        return not (self._ended or self._is_deaf or self._lines) and self.open_requests < OPEN_REQUESTS_MAX

    @property
    def has_room(self) -> bool:
        """Whether it reads what it is sent: more may be delivered."""
        return not self.closed and not self._is_deaf and len(self._outbound) < DELIVERY_SIZE_MAX

    def receive(self) -> None:
        """Read what has arrived. Closes at a line that is too long, and at the end of the stream: at once if the other
        end is closed, else once the answers still due are sent."""
        if self._lines:
            return
        try:
            data = self._socket.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended = True
            if self._has_hung_up:
                self.close()
            self.close_if_done()
            return
        *lines, self._inbound = (self._inbound + data).split(b"\n")
        self._lines.extend(lines)
        if len(self._inbound) > LINE_SIZE_MAX:
            self.refuse(f"A request is longer than {LINE_SIZE_MAX} bytes.")
            self.close()

    def requests(self) -> Iterator[dict[str, Any]]:
        """The requests that it may make in this turn. Closes at an invalid line."""
        for _ in range(REQUESTS_OF_TURN_MAX):
            if self.closed or not self._is_serving:
                break
            try:
                request = json.loads(self._lines.popleft())
            except (ValueError, RecursionError):  # the latter: deeply nested brackets
                request = None
            if not isinstance(request, dict):
                self.refuse("Not a request: one JSON object a line is expected.")
                self.close()
                return
            self.has_asked = True
            yield request
        if self._is_deaf and not self._has_hung_up and not self._lines:
            self.close()

    def refuse(self, message: str) -> None:
        """Say what is wrong with a line that is no request."""
        self.send({"ok": False, "message": message, "advice": ""})

    def too_slow(self) -> None:
        """Close it: others are to be served, and it holds the most."""
        self.send({"event": "closed", "message": "This program takes its messages too slowly."})
        self.close()

    def hung_up(self) -> None:
        """It has gone."""
        self._has_hung_up = self._is_deaf = True
        self._outbound = b""
        self.receive()

    def flush(self) -> None:
        """Write as much as the socket accepts now."""
        if self.closed or not self._outbound:
            return
        try:
            written = self._socket.send(self._outbound)
        except BlockingIOError:
            return
        except OSError:
            self._is_deaf, self._outbound = True, b""
            return
        self._outbound = self._outbound[written:]
        self.close_if_done()

    def close_if_done(self) -> None:
        """Close it if it has said its last, and has been told all."""
        if self._ended and not (self.open_requests or self._outbound or self._lines or self.closed):
            self.close()

    def close(self) -> None:
        self.closed = True
        self._socket.close()

    def send(self, line: Answer) -> None:
        """Send an answer or an event; dropped if the client has closed."""
        if self.closed or self._is_deaf:
            return
        self._outbound += json.dumps(line).encode() + b"\n"
        if len(self._outbound) > LINE_SIZE_MAX + DELIVERY_SIZE_MAX:  # a client that sends requests and never reads
            self.close()
            return
        self.flush()


class Exchange:
    """One request of a client, to be answered once. Its "id", if it has one, is repeated in the answer."""

    def __init__(self, client: Client, request: dict[str, Any]) -> None:
        self.client = client
        identifier = request.get("id")
        is_short = isinstance(identifier, str) and len(identifier) <= _ID_SIZE_MAX
        is_plain = is_short or (type(identifier) is int and abs(identifier) < 2**53)
        self._id = {"id": identifier} if is_plain else {}
        self.answered = False
        client.open_requests += 1

    @property
    def closed(self) -> bool:
        return self.client.closed

    def answer(self, **values: Any) -> None:
        """Send {"ok": true, ...values}; dropped if the client has closed."""
        self._end({"ok": True} | values)

    def refuse(self, message: str, advice: str = "", code: str = AgentError.code) -> None:
        """Send {"ok": false, ...}."""
        self._end({"ok": False, "message": message, "advice": advice, "code": code})

    def silent(self) -> None:
        """This request has no answer."""
        self._end(None)

    def _end(self, line: Answer | None) -> None:
        if not self.answered:
            self.answered = True
            self.client.open_requests -= 1
            if line is not None:
                self.client.send(line | self._id)
            self.client.close_if_done()


Handler = Callable[[Exchange, dict[str, Any]], None]
"""Answers now, or keeps the exchange and answers later. Raises ClientError to refuse."""


def _ignore(_: Client) -> None:
    pass


class ControlServer:
    """Create it while holding the home's lock: the socket of a killed agent is replaced. `gid`: a group that may open
    it. Raises: OSError."""

    def __init__(
        self,
        home: Path,
        handlers: Mapping[str, Handler],
        on_closed: Callable[[Client], None] = _ignore,
        gid: int | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._home = home
        self._handlers = handlers
        self._on_closed = on_closed
        self._clients: dict[int, Client] = {}
        self._listener = _listen(home, gid)

    def watched(self) -> dict[int, int]:
        """Descriptors and their poll events."""
        self._close_silent()
        self._forget_closed()
        watched = {
            fd: (select.POLLIN if c.wants_read else 0) | (select.POLLOUT if c.wants_write else 0)
            for fd, c in self._clients.items()
        }
        if self._has_room:
            watched[self._listener.fileno()] = select.POLLIN
        return watched

    @property
    def _has_room(self) -> bool:
        """For a newcomer, or to be made for one."""
        return len(self._clients) < CLIENTS_MAX or not all(is_owner(each.peer.uid) for each in self._clients.values())

    def handle(self, ready: Mapping[int, int]) -> None:
        """Serve the descriptors that are ready."""
        self._forget_closed()
        for descriptor in self._clients.keys() & ready.keys():
            client = self._clients[descriptor]
            client.flush()
            if ready[descriptor] & (select.POLLHUP | select.POLLERR):
                client.hung_up()
            elif ready[descriptor] & select.POLLIN:
                client.receive()
            for request in client.requests():
                self._serve(client, request)
        self._forget_closed()
        if self._listener.fileno() in ready:
            self._accept()

    def _forget_closed(self) -> None:
        # Before anything else can get one of their descriptors.
        for descriptor, client in tuple(self._clients.items()):
            if client.closed:
                del self._clients[descriptor]
                self._on_closed(client)

    def close(self) -> None:
        """Close all connections and remove the socket."""
        self._listener.close()
        (self._home / SOCKET_NAME).unlink(missing_ok=True)
        for client in self._clients.values():
            client.close()
        self._clients = {}

    def _accept(self) -> None:
        for _ in range(CLIENTS_MAX):
            if not self._has_room:
                return  # it waits at the door
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # there is none, or it was closed before it was accepted
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        client = Client(connection, self._monotonic())
        uid = client.peer.uid
        of_users = Counter(each.peer.uid for each in self._clients.values())
        if not is_owner(uid) and of_users[uid] >= CLIENTS_OF_USER_MAX:
            client.refuse(f"This user has {of_users[uid]} connections already.")
            client.close()
        elif len(self._clients) >= CLIENTS_MAX and not self._make_room(client, of_users):
            client.refuse(f"The agent has {CLIENTS_MAX} connections already.")
            client.close()
        else:
            self._clients[connection.fileno()] = client

    def _make_room(self, newcomer: Client, of_users: Counter[int]) -> bool:
        """Close a connection of the user other than the owner who has the most, if that is more than the newcomer's
        user would have: the oldest of those that ask for nothing, first of those that never have."""
        others = [each for each in self._clients.values() if not is_owner(each.peer.uid)]
        most = max((of_users[each.peer.uid] for each in others), default=0)
        if most <= (0 if is_owner(newcomer.peer.uid) else of_users[newcomer.peer.uid] + 1):
            return False
        holders = [each for each in others if of_users[each.peer.uid] == most]
        victim = min(holders, key=lambda each: (each.has_asked, each.open_requests > 0, each.accepted_at))
        victim.refuse("This user's connections are the most, and others are to be served.")
        victim.close()
        self._clients = {fd: each for fd, each in self._clients.items() if each is not victim}
        self._on_closed(victim)
        return True

    def _close_silent(self) -> None:
        oldest = self._monotonic() - SILENT_SECONDS_MAX
        for client in self._clients.values():
            if not client.has_asked and client.accepted_at <= oldest:
                client.refuse(f"There was no request in {SILENT_SECONDS_MAX:g} seconds.")
                client.close()

    def _serve(self, client: Client, request: dict[str, Any]) -> None:
        exchange = Exchange(client, request)
        handler = self._handlers.get(str(request.get("do")))
        if handler is None:
            exchange.refuse("The agent does not know this request.", f"One of: {', '.join(sorted(self._handlers))}.")
            return
        try:
            handler(exchange, request)
        except ClientError as error:
            exchange.refuse(error.message, error.advice, getattr(error, "code", AgentError.code))


def _listen(home: Path, gid: int | None) -> socket.socket:
    """The listening socket of a running agent: 0600, or with a group 0660, in a home that the group may enter."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    (home / SOCKET_NAME).unlink(missing_ok=True)
    before = os.umask(0o177)  # so that the socket is created 0600
    try:
        with socket_address(home) as address:
            listener.bind(address)
            if gid is not None:
                os.chown(address, -1, gid)
                Path(address).chmod(0o660)
                os.chown(home, -1, gid)
                home.chmod(0o710)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(CLIENTS_MAX)
    return listener
