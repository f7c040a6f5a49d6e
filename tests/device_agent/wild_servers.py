"""TLS servers that answer whatever a test tells them to: the ways in which a peer can be wrong."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

from tests.device_agent.fleet_parts import DEADLINE_SECONDS, Authority

Behavior = Callable[[ssl.SSLSocket], None]
"""What the server does with one connection; it is closed afterwards."""


@contextlib.contextmanager
def tls_server(
    authority: Authority,
    behavior: Behavior,
    *,
    client_ca: Authority | None = None,
    address: str = "127.0.0.1",
    newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
) -> Iterator[int]:
    """Serve connections one after another, each by `behavior`; yields the port. With `client_ca`, a client
    certificate of that CA is required."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    context.load_cert_chain(authority.server_file, authority.server_key_file)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca.ca_file)
    listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    over = threading.Event()
    served: list[ssl.SSLSocket] = []

    def serve() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:  # it is over
                return
            connection.settimeout(DEADLINE_SECONDS)
            with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as stream:
                served.append(stream)
                behavior(stream)
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        for stream in served[-1:]:  # whoever still talks to a client that has not left
            with contextlib.suppress(OSError):
                socket.socket.shutdown(stream, socket.SHUT_RDWR)
        thread.join(DEADLINE_SECONDS)
        listener.close()


@contextlib.contextmanager
def alerting_server() -> Iterator[int]:
    """Answers each ClientHello with the alert certificate_revoked, as anybody on the way can; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # it is over
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(DEADLINE_SECONDS)
                connection.recv(65536)
                connection.sendall(b"\x15\x03\x03\x00\x02\x02\x2c")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE_SECONDS)
        listener.close()


def answers(*raw: bytes) -> Behavior:
    """Read an HTTP request and send the next of `raw`; the last one again and again."""
    left = list(raw)

    def behave(stream: ssl.SSLSocket) -> None:
        read_request(stream)
        stream.sendall(left.pop(0) if len(left) > 1 else left[0])

    return behave


def read_request(stream: ssl.SSLSocket) -> bytes:
    """Head and body of one HTTP request; what there is of it when the client hangs up."""
    data = b""
    wanted = 1
    while len(data) < wanted and (part := stream.recv(65536)):
        data += part
        head, blank, _ = data.partition(b"\r\n\r\n")
        wanted = len(data) + 1
        if blank:
            lengths = [
                line.partition(b":")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"content-len")
            ]
            wanted = len(head) + 4 + sum(map(int, lengths))
    return data


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    """An HTTP/1.1 answer with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def read_packet(stream: ssl.SSLSocket) -> bytes:
    """One whole MQTT packet with a remaining length below 16384.

    Raises: ConnectionError: the client has left, which ends a `Behavior`.
    """
    head = _exactly(stream, 2)
    length = head[1] & 0x7F
    if head[1] & 0x80:
        length |= _exactly(stream, 1)[0] << 7
    return head[:1] + _exactly(stream, length)


def _exactly(stream: ssl.SSLSocket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = stream.recv(count - len(data))
        if not part:
            raise ConnectionError("the client has left")
        data += part
    return data
