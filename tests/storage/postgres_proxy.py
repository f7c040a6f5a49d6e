"""A line between a registry and its database that can be cut at a chosen moment."""

import asyncio
from contextlib import suppress
from urllib.parse import quote

from fleet.config.database_url import DatabaseUrl, parse_database_url
from tests.postgres_server import PASSWORD, USER, PostgresServer

COMMIT = (b"\x0bCOMMIT\x00", b"\x0cCOMMIT;\x00")  # ends of a Query message that holds it alone


class Proxy:
    """Forwards TCP connections to a server. `cut_at_commit` cuts the line at the next COMMITs."""

    def __init__(self, server: PostgresServer, database: str) -> None:
        self._server = server
        self._database = database
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._commits_lost: list[bool] = []
        self.refusing = False
        self.cut = 0
        """How often a line was cut at a COMMIT."""

    async def __aenter__(self) -> "Proxy":
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        self.cut_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> DatabaseUrl:
        port = self._listening.sockets[0].getsockname()[1]
        who = f"{USER}:{quote(PASSWORD, safe='')}"
        return parse_database_url(f"postgresql://{who}@127.0.0.1:{port}/{self._database}?sslmode=disable")

    def cut_at_commit(self, *arrives: bool) -> None:
        """Cut the line at the next COMMITs, one for each value: whether the server still gets to see it."""
        self._commits_lost += arrives

    def cut_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        self._writers |= {writer, inner_writer}
        back = asyncio.create_task(self._copy(inner_reader, writer))
        try:
            await self._copy_out(reader, inner_writer, back)
        finally:
            for each in (writer, inner_writer):
                each.close()
            back.cancel()
            with suppress(asyncio.CancelledError):
                await back

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()  # whoever says goodbye waits for the other's

    async def _copy_out(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: "asyncio.Task[None]"
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if data.endswith(COMMIT) and self._commits_lost:
                    self.cut += 1
                    back.cancel()  # no answer comes through any more
                    if self._commits_lost.pop(0):
                        writer.write(data)
                        await writer.drain()
                    return
                writer.write(data)
                await writer.drain()
