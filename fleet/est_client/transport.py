"""One HTTPS exchange within one deadline: it covers name lookup, connect, handshake, request and answer.

http.client alone restarts its timeout at each byte received: a server that sends one byte every 29 s would hold a
client for hours.
"""

import base64
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_READ_SIZE = 16384


class AnswerTooLarge(Exception):
    """The body is larger than BODY_SIZE_MAX."""


class AnswerCutOff(Exception):
    """The server closed the connection before the whole body had arrived."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: Callable[[ssl.SSLSocket], bytes | None]
    """Called once the handshake is done: a body may be bound to its connection (RFC 7030, 3.5)."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str
    retry_after: str
    body: bytes
    date: str = ""
    certificate: bytes = field(default=b"", compare=False, repr=False)
    """The server's, DER."""


def exchange(host: str, port: int, context: ssl.SSLContext, request: Request, timeout_seconds: float) -> Answer:
    """Send `request` on a connection of its own and return the answer.

    Raises: AnswerTooLarge, AnswerCutOff, ssl.SSLError, http.client.HTTPException, OSError (TimeoutError after
    `timeout_seconds`).
    """
    connection, timed = open_connection(host, port, context, Deadline(timeout_seconds))
    with timed.stream as stream:
        certificate = stream.getpeercert(True) or b""
        body = request.body(stream)
        connection.request(request.method, request.path, body=body, headers=dict(request.headers))
        with connection.getresponse() as response:
            return replace(_read(response), certificate=certificate)


def open_connection(
    host: str, port: int, context: ssl.SSLContext, deadline: "Deadline"
) -> "tuple[http.client.HTTPSConnection, TimedSocket]":
    """A connection after its handshake, and the socket beneath, which the caller closes. Raises: OSError."""
    with connect(host, port, deadline) as raw:
        raw.settimeout(deadline.left())
        timed = TimedSocket(context.wrap_socket(raw, server_hostname=host), deadline)  # `raw` is empty from now on
    connection = http.client.HTTPSConnection(host, port, context=context)  # never connects: it has its socket
    connection.sock = timed
    return connection, timed


def channel_binding(stream: ssl.SSLSocket) -> str | None:
    """RFC 7030, 3.5: base64 of the connection's tls-unique; None if TLS has none to give."""
    binding = stream.get_channel_binding("tls-unique")
    return base64.b64encode(binding).decode() if binding else None


class Deadline:
    """`seconds` from now on."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left. Raises: TimeoutError if there are none."""
        seconds = self._at - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("timed out")
        return seconds


def _addresses(host: str, port: int, deadline: Deadline) -> list[Any]:
    """`getaddrinfo`, which takes no timeout: in a thread that is left to itself when the time is over."""
    found: SimpleQueue[list[Any] | Exception] = SimpleQueue()

    def look_up() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # told to the caller
            found.put(error)

    threading.Thread(target=look_up, name="name-lookup", daemon=True).start()
    try:
        result = found.get(timeout=deadline.left())
    except Empty:
        raise TimeoutError("timed out") from None
    if isinstance(result, Exception):
        raise result
    return result


def connect(host: str, port: int, deadline: Deadline) -> socket.socket:
    """A TCP connection to the first address of `host` that accepts one; each gets its share of the time left."""
    addresses = _addresses(host, port, deadline)
    failure: OSError = OSError("the name has no address")
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(deadline.left() / (len(addresses) - index))
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
    raise failure


class TimedSocket:
    """What http.client needs of a socket, each operation with the time that is left until `deadline`."""

    def __init__(self, stream: ssl.SSLSocket, deadline: Deadline) -> None:
        self.stream = stream
        self.deadline = deadline

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self.stream.settimeout(self.deadline.left())
            view = view[self.stream.send(view) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self.stream, self.deadline))

    def close(self) -> None:
        """The stream is closed by who has opened it: answers are read from it after http.client is done with this."""


class _TimedReader(io.RawIOBase):
    def __init__(self, stream: ssl.SSLSocket, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        self._stream.settimeout(self._deadline.left())
        return self._stream.recv_into(buffer)


def _read(response: http.client.HTTPResponse) -> Answer:
    from fleet.wire.est import BODY_SIZE_MAX  # with what reads certificates, which the API's client does without

    parts: list[bytes] = []
    size = 0
    while part := response.read1(_READ_SIZE):
        parts.append(part)
        size += len(part)
        if size > BODY_SIZE_MAX:
            raise AnswerTooLarge
    if response.length:  # of a Content-Length, this much never came
        raise AnswerCutOff
    return Answer(
        response.status,
        response.headers.get("Content-Type", ""),
        response.headers.get("Retry-After", ""),
        b"".join(parts),
        response.headers.get("Date", ""),
    )
