"""Messages between the supervisor and a worker process: one JSON object a line, on a private socket pair.

    supervisor                                worker
        config ────────────────────────────────►
        ◄─────────────────── ready, or failed: code
        reload: settings ──────────────────────►        those in force, as in fleet.toml
        drain: seconds, restarts ──────────────►        end the sessions, spread over so long: all will be stopped; or,
                                                        if it restarts, a successor listens: accept nothing more, exit
        stop ──────────────────────────────────►        all are stopped, and then the broker; SIGTERM: this worker alone
        ◄──────────────────────────── models: number    load the current models into the broker
        models-set: number, problem ───────────►
        ◄─────────────────────────── who-holds: device    another worker? (a closed connection, a waiting will)
        asked: device, workers ────────────────►        to the one that asks: who gets the question
        who-holds: device, asker ──────────────►        to every other worker
        ◄─────────── holds, or holds-not: device, asker    whether it has a session of the device
        held: device ──────────────────────────►        to the one that asked
        not-held: device, worker ──────────────►        likewise
        ping: workers, counters, not_saved ────►        every second; what the supervisor says of all workers, what
                                                        each has counted, and why the broker can't save, if it can't
        ◄────────────────────── pong: counters          its own

When one side dies the other reads end of file: a worker never outlives its supervisor.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet.domain.errors import Unavailable

CHANNEL = 1  # to be raised with every message that changes: the program of a running supervisor may be replaced
LINE_SIZE_MAX = 1_048_576  # config carries fleet.toml, of at most a quarter of it

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Everything that a worker process needs to start."""

    worker: int
    home: str
    settings: str
    """As in fleet.toml, with the command line's options and the bound ports."""
    log_level: int
    broker_socket: str
    """Of the broker that we run; "" for an external one, named in `settings`."""
    broker_speaks_v5: bool
    local: Mapping[str, int] = field(default_factory=dict)
    """Descriptors of the bound sockets of listeners without TLS that are on, by name."""
    sockets: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Descriptors of its own bound sockets, by listener; it binds those of others itself."""
    channel: int = CHANNEL

    @classmethod
    def of(cls, message: Message) -> "WorkerConfig":
        """Raises: Unavailable (`other-version`): the supervisor sends other messages than we know."""
        if message.get("channel") != CHANNEL:
            raise Unavailable(
                "other-version", "The workers of this version cannot be supervised by the running server."
            )
        return cls(**{name: value for name, value in message.items() if name != "type"})


class Channel:
    """One end of the socket pair. Made by `Channel.on(socket)`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def on(cls, sock: socket.socket) -> "Channel":
        """Takes ownership of `sock`."""
        sock.setblocking(False)
        return cls(*await asyncio.open_connection(sock=sock, limit=LINE_SIZE_MAX))

    def send(self, message_type: str, **fields: object) -> None:
        """Never blocks: both sides read continuously. A message to a dead peer is lost."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps({"type": message_type, **fields}).encode() + b"\n")

    async def messages(self) -> AsyncIterator[Message]:
        """Every message, until the peer closes."""
        while message := await self.next():
            yield message

    async def next(self) -> Message | None:
        """The next message; None when the peer has closed."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):
            return None
        if not line.endswith(b"\n"):
            return None
        message: Message = json.loads(line)
        return message

    def close(self) -> None:
        self._writer.close()
