"""The fleet's TLS listener without any service behind it, as a peer."""

import contextlib
import sys
from collections.abc import Iterator

from OpenSSL import SSL

from hw_bench.peers.contract import Environment, Peer, Running
from hw_bench.processes import running, wait_until


def version() -> str:
    """The TLS engine: "OpenSSL 4.0.3 29 Sep 2026"."""
    return SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode()


def never_missing() -> str | None:
    return None


@contextlib.contextmanager
def start_listener(environment: Environment) -> Iterator[Running]:
    """Start the TLS listener in a separate process. Raises: BenchError."""
    room = environment.new_folder("fleet-tls")
    certificates = environment.certificates
    ready, log = room / "port", room / "output.log"
    argv = [sys.executable, "-m", "hw_bench.peers.listener_process"]
    argv += map(str, (certificates.anchors, certificates.server.certificate, certificates.server.key, ready))
    with running(argv, cores=environment.server_cores, log=log) as process:
        wait_until(ready.exists, "the TLS listener", process, log)
        yield Running("fleet-tls", version(), ("127.0.0.1", int(ready.read_text())), (process.pid,))


LISTENER = Peer("fleet-tls", "the fleet's TLS listener with nothing behind it", never_missing, start_listener)
