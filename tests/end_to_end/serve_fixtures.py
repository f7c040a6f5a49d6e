"""What tests ask of a running `fleet serve`."""

import socket
import ssl
import urllib.error
import urllib.request

import pytest

from tests.serving import Served
from tests.waiting import PATIENCE_SECONDS


def healthz(served: Served) -> tuple[int, bytes]:
    trust = ssl.create_default_context(cafile=served.ca_file)
    with urllib.request.urlopen(
        f"{served.endpoints['http']}/healthz", context=trust, timeout=PATIENCE_SECONDS
    ) as answer:
        return answer.status, answer.read()


def server_serial(served: Served, listener: str = "http") -> int:
    host, port = served.address(listener)
    context = ssl.create_default_context(cafile=served.ca_file)
    with (
        socket.create_connection((host, port), PATIENCE_SECONDS) as raw,
        context.wrap_socket(raw, server_hostname=host) as tls,
    ):
        certificate = tls.getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)


def stopped_before_clients_that_never_read(served: Served) -> int:
    """The exit code."""
    trust = ssl.create_default_context(cafile=served.ca_file)
    held = []
    for listener, path in (("est", "/.well-known/est/cacerts"), ("http", "/healthz")):
        host, port = served.address(listener)
        client = trust.wrap_socket(socket.create_connection((host, port), PATIENCE_SECONDS), server_hostname=host)
        client.settimeout(0.2)  # the system's buffers are full when it strikes
        held.append(client)
        with pytest.raises(TimeoutError):
            while True:
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 200)
    code = served.stop()  # 5 seconds, and ten for a busy machine; then it is killed
    for client in held:
        client.close()
    return code
