"""Full mTLS handshakes one after another, as fast as one process can: connect, handshake, close_notify, wait for close.

Completed means: completed at the server. In TLS 1.3 the client is done before the server has seen its certificate (RFC
8446, 4.4.4), so each connection goes on to an orderly close: the client sends close_notify and the server, which reads
its records in order, can only act on it after it has verified certificate and Finished. Its end of the connection
without an alert is the receipt; an alert is a refusal and is counted as one. It is the least that can be asked of any
TLS server, HTTP or MQTT, and the same for all.

The fastest client found in Python: pyOpenSSL on a blocking socket, where each handshake is one call into OpenSSL.
"""

import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from hw_bench.drivers.command_loop import Command, Handler, serve

CONNECTION_SECONDS_MAX = 10
# Closing with RST after the server has closed leaves no TIME_WAIT behind; 28,000 ports would last ten seconds.
NO_LINGER = struct.pack("ii", 1, 0)
_RECEIVE_TIMEOUT = struct.pack("ll", CONNECTION_SECONDS_MAX, 0)

TLS_VERSIONS = {"TLSv1.2": SSL.TLS1_2_VERSION, "TLSv1.3": SSL.TLS1_3_VERSION}


def client_context(certificate: str, key: str, tls: str) -> SSL.Context:
    """TLS client context: client certificate, key exchange on P-256, no resumption, no verification of the server.

    With `certificate` and `key` empty it sends no certificate. Verifying the server would cost the load's core time and
    tell nothing about the server.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(TLS_VERSIONS[tls])
    context.set_max_proto_version(TLS_VERSIONS[tls])
    if certificate:
        context.use_certificate_chain_file(certificate)
        context.use_privatekey_file(key)
    # One group for all: otherwise a server with a newer OpenSSL would do ML-KEM and an older one would not.
    context.set_tmp_ecdh(ec.SECP256R1())
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_verify(SSL.VERIFY_NONE)
    return context


def connect(address: tuple[str, int]) -> socket.socket:
    """A blocking TCP connection with a receive timeout, closed without TIME_WAIT."""
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    # By the kernel, not by settimeout(): that would make the socket non-blocking underneath OpenSSL.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RECEIVE_TIMEOUT)
    connection.connect(address)
    return connection


def handshake(context: SSL.Context, address: tuple[str, int]) -> bool:
    """One full handshake. False when the server refused it or broke off. Raises: OSError when the port is closed."""
    connection = connect(address)
    tls = SSL.Connection(context, connection)
    tls.set_connect_state()
    try:
        tls.do_handshake()
        tls.shutdown()
        return _ended_in_order(tls)
    except SSL.Error:
        return False
    finally:
        connection.close()


def _ended_in_order(tls: SSL.Connection) -> bool:
    try:
        tls.recv(1)
    except SSL.ZeroReturnError:
        return True  # the server's own close_notify
    except SSL.SysCallError as error:
        return error.args == (-1, "Unexpected EOF")  # closed without one, as nginx does; a reset has an errno
    return False  # it sent data first: none of the measured servers does


def refuses(context: SSL.Context, address: tuple[str, int]) -> bool:
    """Whether the server refuses a client with the certificate of `context`: by a TLS alert, or by HTTP status 400.

    nginx completes every handshake, and refuses at the first request.
    """
    return not handshake(context, address) or _answers_400(context, address)


def _answers_400(context: SSL.Context, address: tuple[str, int]) -> bool:
    connection = connect(address)
    tls = SSL.Connection(context, connection)
    tls.set_connect_state()
    try:
        tls.do_handshake()
        tls.send(b"GET / HTTP/1.0\r\n\r\n")
        tls.shutdown()  # a server that does not speak HTTP closes now
        return tls.recv(64).startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
    except SSL.Error:
        return False
    finally:
        connection.close()


def run(context: SSL.Context, address: tuple[str, int], seconds: float) -> dict[str, Any]:
    """Handshakes until `seconds` are over: {"operations", "failed"}."""
    operations = failed = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if handshake(context, address):
            operations += 1
        else:
            failed += 1
    return {"operations": operations, "failed": failed}


def prepare(config: Command) -> Mapping[str, Handler]:
    context = client_context(config["certificate"], config["key"], config["tls"])

    def act(command: Command) -> dict[str, Any]:
        return run(context, (command["host"], command["port"]), command["seconds"])

    return {"run": act}


if __name__ == "__main__":
    serve(prepare)
