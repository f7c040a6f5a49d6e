"""The fleet's TLS listener with no service behind it: the cost of a handshake alone.

    python -m hw_bench.peers.listener_process ANCHORS CERTIFICATE KEY READY_FILE

Listens on a free port of 127.0.0.1, writes the port to READY_FILE, serves until SIGTERM. Each connection is accepted,
never written to, and closed when the client closes it.
"""

import asyncio
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from cryptography import x509

from fleet.ca.keys import load_key
from fleet.tls.contexts import ClientTrust, ContextSource, ServerIdentity, TlsContext, server_context
from fleet.tls.limits import ListenerLimits
from fleet.tls.listener import listen


def load_context(anchors: Path, certificate: Path, key: Path) -> TlsContext:
    """As `fleet serve` makes it for its gateway."""
    return server_context(
        ServerIdentity(tuple(x509.load_pem_x509_certificates(certificate.read_bytes())), load_key(key)),
        ClientTrust(x509.load_pem_x509_certificates(anchors.read_bytes())),
        require_client=True,
        clock=lambda: datetime.now(UTC),
    )


async def serve(context: TlsContext, ready: Path) -> None:
    """Serve until SIGTERM; `ready` holds the port when the listener is up."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    listener = await listen(
        # A plain Protocol ignores what it is sent, and closes at the other end's close.
        lambda peer: asyncio.Protocol(),
        ("127.0.0.1", 0),
        contexts=ContextSource(context),
        limits=ListenerLimits(),
    )
    partial = ready.with_suffix(".partial")
    partial.write_text(str(listener.port))
    partial.rename(ready)
    await stopped.wait()
    listener.close()
    listener.abort_connections()


def main(argv: list[str]) -> None:
    anchors, certificate, key, ready = map(Path, argv)
    uvloop.run(serve(load_context(anchors, certificate, key), ready))


if __name__ == "__main__":
    main(sys.argv[1:])
