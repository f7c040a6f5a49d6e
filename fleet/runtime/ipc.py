"""What a supervisor and a worker process say to each other: one JSON object a line, on a socket that only they hold.

    supervisor                                worker
        orders ────────────────────────────────►
        ◄──────────────────── ready, or failed: why
        reload ────────────────────────────────►
        ◄──────────────────────────── models: number    teach the broker the models as they are now
        models-set: number, problem ───────────►

When one side has died the other reads the end of it: a worker never outlives its supervisor.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

LINE_SIZE_MAX = 1_048_576  # orders carry fleet.toml, of at most a quarter of it

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Orders:
    """All that a worker must know."""

    worker: int
    home: str
    settings: str
    """As fleet.toml says it, with the command line's choices and real ports."""
    log_level: int
    broker_socket: str
    """Of our own broker; "" when it is somebody else's, whom `settings` name."""
    broker_speaks_v5: bool

    def as_message(self) -> Message:
        return {"say": "orders", **asdict(self)}

    @classmethod
    def of(cls, message: Message) -> "Orders":
        return cls(**{name: value for name, value in message.items() if name != "say"})


class Channel:
    """One end. Made by `Channel.on(socket)`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def on(cls, sock: socket.socket) -> "Channel":
        """`sock` is ours from now on."""
        sock.setblocking(False)
        return cls(*await asyncio.open_connection(sock=sock, limit=LINE_SIZE_MAX))

    def say(self, say: str, **more: object) -> None:
        """Never waits: both sides read all the time. Said to one who has died, it is lost."""
        self.send({"say": say, **more})

    def send(self, message: Message) -> None:
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def hear(self) -> AsyncIterator[Message]:
        """Every message, until the other side is gone."""
        while message := await self.next():
            yield message

    async def next(self) -> Message | None:
        """The next message; None when the other side is gone."""
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
