"""After a late turn of the event loop the registry's events come before what devices have sent meanwhile."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.domain.device import DeviceState
from fleet.domain.errors import Unavailable
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.events import late_turns
from fleet.servers.gateway.events.late_turns import LATE_SECONDS, TICK_SECONDS, LateTurns
from fleet.servers.gateway.session.phases import Phase
from fleet.services import revocation
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.wire.mqtt.codes import V5, PacketType
from fleet.wire.mqtt.connect import Connect, encode_connect
from tests.servers.gateway_fixtures import last_words, now, open_gateway, populate, up
from tests.servers.test_gateway_intake import REFUSED, answered
from tests.servers.test_gateway_session_machine import MESSAGE, Bench
from tests.waiting import PATIENCE_SECONDS, until


class Feed:
    """What a LateTurns asks: each look ends when the test says so."""

    def __init__(self) -> None:
        self.looks: list[asyncio.Future[None]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.late = LateTurns(self.caught_up, self.spawn)

    async def caught_up(self) -> None:
        self.looks.append(asyncio.get_running_loop().create_future())
        await self.looks[-1]

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    async def asked(self, times: int) -> None:
        await until(lambda: len(self.looks) == times)

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() <= self.late.fresh_until


@pytest.fixture
async def feed() -> AsyncIterator[Feed]:
    made = Feed()
    made.late.start()
    yield made
    made.late.stop()
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


def stall() -> None:

    time.sleep(TICK_SECONDS + LATE_SECONDS + 0.01)  # as a process that is stopped


async def test_a_late_turn_is_noticed_by_who_looks_at_the_clock_and_by_the_timer(feed: Feed) -> None:
    assert feed.is_fresh
    stall()
    assert not feed.is_fresh
    await feed.asked(1)  # nobody has waited: the timer has seen it
    assert not feed.is_fresh
    feed.looks[0].set_result(None)
    await until(lambda: feed.is_fresh)


async def test_who_begins_to_wait_during_a_look_waits_for_the_next(feed: Feed) -> None:
    done: list[str] = []
    feed.late.after(lambda: done.append("first"))
    await feed.asked(1)
    feed.late.after(lambda: done.append("second"))
    feed.looks[0].set_result(None)
    await feed.asked(2)
    assert done == ["first"]
    assert not feed.is_fresh
    feed.looks[1].set_result(None)
    await until(lambda: len(done) == 2)
    assert feed.is_fresh


async def test_a_registry_that_is_away_stops_nobody(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    feed.late.after(lambda: done.append("after an error"))
    await feed.asked(1)
    feed.looks[0].set_exception(Unavailable("disk", "The disk is gone."))
    await until(lambda: done == ["after an error"])
    monkeypatch.setattr(late_turns, "WAIT_SECONDS_MAX", 0.0)
    feed.late.after(lambda: done.append("after a silence"))
    await until(lambda: len(done) == 2)
    assert feed.is_fresh


async def test_a_burst_that_is_under_way_waits_too() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    feed = Feed()
    bench.context.late_turns._caught_up = feed.caught_up
    bench.session.data_received(REFUSED * 300 + MESSAGE)
    assert answered(bench) == 256
    bench.context.late_turns.fresh_until = 0.0
    await feed.asked(1)
    assert answered(bench) == 0
    feed.looks[0].set_result(None)
    await until(lambda: bench.device.reading)
    assert answered(bench) == 300 - 256
    assert bench.broker.written == MESSAGE
    await bench.finish()


async def test_what_waits_for_more_than_events_is_not_taken_by_an_old_look() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    feed = Feed()
    late = bench.context.late_turns
    late._caught_up = feed.caught_up
    late.fresh_until = 0.0
    bench.session.data_received(MESSAGE)
    bench.session.broker_blocked()
    await feed.asked(1)
    feed.looks[0].set_result(None)
    await until(lambda: late.fresh_until > 0)
    late.fresh_until = 0.0
    bench.session.broker_drained()
    await feed.asked(2)
    assert not bench.broker.written
    feed.looks[1].set_result(None)
    await until(lambda: bench.device.reading)
    assert bench.broker.written == MESSAGE
    await bench.finish()


async def suspend(path: Path, name: str) -> None:
    """As another process does: by a registry of its own."""
    registry = await SqliteRegistry.open(path / "registry.db")
    await revocation.suspend(registry, name, act=Act("operator", now()))
    await registry.close()


async def raw(port: int, name: str) -> socket.socket:
    """A session of a client that needs no event loop."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)
    await loop.sock_connect(client, ("127.0.0.1", port))
    await loop.sock_sendall(client, encode_connect(Connect(V5, name)))
    return client


async def test_what_was_sent_after_a_suspension_is_not_relayed_after_a_stall(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        one, other = await populate(h.registry, "cam-1", "cam-2")
        wire, side = await h.live(other, V5)
        client = await raw(await h.door(one), "cam-1")
        revoked_side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
        assert (await revoked_side.packet()).type is PacketType.CONNECT
        revoked_side.send(b"\x20\x03\x00\x00\x00")
        assert await asyncio.get_running_loop().sock_recv(client, 1_024)

        # The loop stands still: meanwhile another process suspends the device, which sends after that.
        elsewhere = threading.Thread(target=asyncio.run, args=(suspend(tmp_path, "cam-1"),))
        elsewhere.start()
        elsewhere.join()
        client.setblocking(True)
        client.sendall(up("cam-1", b"after", V5))
        stall()

        wire.send(up("cam-2", version=V5))
        assert (await side.packet()).type is PacketType.PUBLISH  # of another device it is taken
        (farewell,) = await revoked_side.until_closed()
        assert farewell.type is PacketType.DISCONNECT
        client.settimeout(PATIENCE_SECONDS)
        assert client.recv(1_024) == last_words(close_reasons.device_ended(DeviceState.SUSPENDED))
        client.close()
