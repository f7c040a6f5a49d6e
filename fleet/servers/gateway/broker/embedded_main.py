"""Main program of the embedded broker: `python -m fleet.servers.gateway.broker.embedded_main SOCKET`, until SIGTERM.

amqtt listens on TCP only, so we listen on the socket, in a private directory, and pass each connection to it as from
an external listener.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker

LISTENER = "default"
BACKLOG = 1024
CONFIG = {
    "listeners": {LISTENER: {"type": "external"}},
    "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
}


class UnixWriter(StreamWriterAdapter):  # type: ignore[misc]  # amqtt is not fully typed
    """amqtt requires a peer address; a Unix socket has none."""

    def get_peer_info(self) -> tuple[str, int]:
        return "unix", 0


class SingleConnectionBroker(Broker):  # type: ignore[misc]
    """Closes the older connection of a client id when the newer one has Clean Session, as [MQTT-3.1.4-2] requires:
    amqtt deletes the session in that case, and leaves the older connection open.
    """

    async def _delete_session(self, client_id: str) -> None:
        session, handler = self._sessions.get(client_id, (None, None))
        if session is not None and session.transitions.is_connected():
            await handler.handle_connection_closed()
        await super()._delete_session(client_id)


async def serve(path: Path) -> None:
    """Serve MQTT 3.1.1 on the Unix socket `path` until SIGTERM or SIGINT."""
    broker = SingleConnectionBroker(CONFIG)
    await broker.start()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await broker.external_connected(StreamReaderAdapter(reader), UnixWriter(writer), LISTENER)

    os.chdir(path.parent)  # a relative name fits sockaddr_un, however long the path is
    server = await asyncio.start_unix_server(connected, path.name, backlog=BACKLOG)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
