"""The fleet's own servers: the TLS listener alone, and the whole of `fleet serve`."""

import contextlib
import sys
from collections.abc import Iterator

from OpenSSL import SSL

from hw_bench.peers.contract import Ground, Peer, Running
from hw_bench.processes import running, wait_until


def version() -> str:
    """The TLS engine: "OpenSSL 4.0.3 29 Sep 2026"."""
    return SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode()


def never_missing() -> str | None:
    return None


@contextlib.contextmanager
def start_listener(ground: Ground) -> Iterator[Running]:
    """The TLS listener in a process of its own. Raises: BenchError."""
    room = ground.room("fleet-tls")
    certificates = ground.certificates
    ready, log = room / "port", room / "output.log"
    argv = [sys.executable, "-m", "hw_bench.peers.listener_process"]
    argv += map(str, (certificates.anchors, certificates.server.certificate, certificates.server.key, ready))
    with running(argv, cores=ground.server_cores, log=log) as process:
        wait_until(ready.exists, "the TLS listener", process, log)
        yield Running("fleet-tls", version(), ("127.0.0.1", int(ready.read_text())), (process.pid,))


LISTENER = Peer("fleet-tls", "the fleet's TLS listener with nothing behind it", never_missing, start_listener)
