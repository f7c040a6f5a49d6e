"""An external broker that goes away and comes back."""

import asyncio
import logging
from datetime import UTC, datetime

import pytest

from fleet.servers.gateway.broker.header_first import Factory
from fleet.servers.gateway.broker.probed_upstream import ProbedUpstream
from fleet.servers.gateway.broker.upstream import AddressUpstream
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V311
from fleet.wire.mqtt.connect import Connack, encode_connack
from tests.free_ports import free_port
from tests.waiting import PATIENCE_SECONDS


class Clock:
    now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


async def listening(port: int) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            writer.write(acks.PINGRESP if data == acks.PINGREQ else encode_connack(Connack(False, 0), V311))
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", port)


class Tried(AddressUpstream):
    """Tells of each attempt to connect to it."""

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port)
        self.attempts: asyncio.Queue[bool] = asyncio.Queue()

    async def connect(self, factory: Factory, header: bytes = b"") -> None:
        try:
            await super().connect(factory)
        except OSError:
            self.attempts.put_nowait(False)
            raise
        self.attempts.put_nowait(True)

    async def until(self, succeeded: bool) -> None:
        """Return after the next attempt with that outcome."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.attempts.get() is not succeeded:
                pass


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().split(" broker=")[0] for record in caplog.records if record.name == "fleet.broker"]


async def test_it_is_told_once_when_it_is_away_and_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    port, clock = free_port(), Clock()
    broker = Tried(port)
    upstream = ProbedUpstream(broker, clock=clock, probe_seconds=0.02)
    assert upstream.status()["reachable"] is None
    watch = asyncio.create_task(upstream.run())
    try:
        for _ in range(5):  # tried again and again
            await broker.until(False)
        assert upstream.status()["reachable"] is False
        away = "event=upstream outcome=unreachable"
        assert lines(caplog) == [away]
        assert f"mqtt://127.0.0.1:{port}" in caplog.text
        clock.now = datetime(2030, 1, 1, 1, tzinfo=UTC)
        server = await listening(port)
        await broker.until(True)
        assert upstream.status()["reachable"] is True
        assert upstream.status()["since"] == "2030-01-01T01:00:00Z"
        back = "event=upstream outcome=reachable-again"
        assert lines(caplog) == [away, back]
        server.close()  # to newcomers alone
        with pytest.raises(TimeoutError):  # nobody asks for it
            await asyncio.wait_for(broker.attempts.get(), 0.1)
        assert upstream.status()["reachable"] is True
        with pytest.raises(OSError, match="Connect"):
            await upstream.connect(asyncio.Protocol)  # as a session does
        assert lines(caplog) == [away, back, away]
        server = await listening(port)
        await broker.until(True)
        assert upstream.status()["reachable"] is True
        server.close()
        assert lines(caplog) == [away, back, away, back]
    finally:
        watch.cancel()


async def test_one_that_is_there_is_not_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    server = await listening(0)
    port = server.sockets[0].getsockname()[1]
    broker = Tried(port)
    upstream = ProbedUpstream(broker, clock=Clock())
    watch = asyncio.create_task(upstream.run())
    await broker.until(True)
    assert upstream.status()["reachable"] is True
    watch.cancel()
    server.close()
    assert lines(caplog) == []
