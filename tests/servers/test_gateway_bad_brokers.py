"""Brokers that answer nonsense, hang, die, are full, or whose disk is: what devices are told, and that it passes."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from fleet.config.mqtt_bounds import BROKER_MEMORY_MAX
from fleet.servers.gateway import Limits
from fleet.servers.gateway.broker import mosquitto
from fleet.servers.gateway.broker import process as broker_process
from fleet.servers.gateway.broker.mosquitto import BACKEND, DATABASE, Mosquitto, mosquitto_program
from fleet.servers.gateway.broker.probed_upstream import ProbedUpstream
from fleet.servers.gateway.broker.restart import restart_when_hung
from fleet.servers.gateway.broker.start import not_saved
from fleet.servers.gateway.broker.upstream import SocketUpstream
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType
from fleet.wire.mqtt.connect import Connect, decode_connack, encode_connect
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.reader import PacketReader
from fleet.wire.mqtt.subscribe import Subscribe, Subscription, encode_subscribe
from tests.servers.gateway_fixtures import MODEL, Wire, open_gateway, populate, refused
from tests.waiting import PATIENCE_SECONDS, until

PROGRAM = mosquitto_program()
needs_mosquitto = pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")
FAST = 0.05
CONNACK = {V311: b"\x20\x02\x00\x00", V5: b"\x20\x03\x00\x00\x00"}


class ScriptedBroker:
    """Answers CONNECT with `answer`, None for a correct one, and closes or not; any other packet with PINGRESP."""

    def __init__(self) -> None:
        self.answer: bytes | None = None
        self.closes = False
        self.on_gateways_silence: Callable[[], None] = lambda: None

    def on_silent(self) -> None:
        self.on_gateways_silence()

    def protocol(self) -> "ScriptedSession":
        return ScriptedSession(self)


class ScriptedSession(asyncio.Protocol):
    def __init__(self, broker: ScriptedBroker) -> None:
        self._broker, self._reader = broker, PacketReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for packet in self._reader.feed(data):
            if packet.type is not PacketType.CONNECT:
                self._transport.write(b"\xd0\x00")
                continue
            version = packet.body[6]  # behind "MQTT"
            answer = self._broker.answer
            self._transport.write(CONNACK[version] if answer is None else answer)
            if self._broker.closes:
                self._transport.close()


@asynccontextmanager
async def scripted(path: Path) -> AsyncIterator[tuple[ScriptedBroker, ProbedUpstream]]:
    broker = ScriptedBroker()
    server = await asyncio.get_running_loop().create_unix_server(broker.protocol, path / "b.sock")
    live = ProbedUpstream(SocketUpstream(path / "b.sock"), probe_seconds=FAST)
    running = asyncio.create_task(live.run(broker.on_silent))
    try:
        yield broker, live
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.close()


@pytest.mark.parametrize(("version", "unavailable"), [(V311, 3), (V5, 0x88)])
@pytest.mark.parametrize(
    ("answer", "closes"),
    [
        (b"\xff" * 40, False),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", True),
        (b"\xd0\x00", False),
        (b"\x30\x0a\x00\x06news/xhi", False),
        (b"\x20", True),
        (b"\x20\x02", False),
        (b"\x20\x02\x00", True),
        (b"\x20\x02\x09\x00", False),
        (b"\x20\xff\xff\xff\x7f\x00\x00", False),
        (b"\x20\xff\xff\xff\xff\x7f", False),
        (b"\x30\xff\xff\xff\x7f\x00\x01a", False),
        (b"", True),
        (b"", False),
    ],
    ids=[
        "garbage", "HTTP", "another packet", "a message first", "cut in its head", "cut and silent", "cut and closed",
        "reserved flags", "a giant CONNACK", "an impossible length", "a giant message", "closes", "says nothing",
    ],
)  # fmt: skip
async def test_newcomers_are_refused_while_a_broker_talks_nonsense_and_admitted_when_it_stops(
    tmp_path: Path, version: int, unavailable: int, answer: bytes, closes: bool
) -> None:
    limits = Limits(open_seconds_max=1.0)
    async with scripted(tmp_path) as (broker, live), open_gateway(tmp_path, live, limits=limits) as built:
        broker.on_gateways_silence = built.gateway.on_broker_silent
        (held,) = await populate(built.registry, "cam-1")
        await until(live.answers)
        broker.answer, broker.closes = answer, closes
        wire = await built.dial(held)
        wire.send(encode_connect(Connect(version, "cam-1")))
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await refused(wire, version) == unavailable
        broker.answer, broker.closes = None, False
        await until(live.answers)
        _, connack = await built.connect(held, version)
        assert connack.code == 0


@pytest.mark.parametrize("version", [V311, V5])
async def test_a_broker_that_closes_after_connack_ends_the_session_and_no_other(tmp_path: Path, version: int) -> None:
    async with scripted(tmp_path) as (broker, live), open_gateway(tmp_path, live) as built:
        one, two = await populate(built.registry, "cam-1", "cam-2")
        stays, _ = await built.connect(one, version)
        broker.closes = True
        wire, connack = await built.connect(two, version)
        assert connack.code == 0
        left = await asyncio.wait_for(wire.until_closed(), PATIENCE_SECONDS)
        assert [packet.type for packet in left] == ([PacketType.DISCONNECT] if version == V5 else [])
        await built.count("mqtt.session.broker-lost")
        stays.send(b"\xc0\x00")
        assert (await stays.packet()).type is PacketType.PINGRESP


async def test_a_broker_that_is_slow_is_waited_for(tmp_path: Path) -> None:
    """Its CONNACK comes in pieces, each later than the one before."""
    async with scripted(tmp_path) as (broker, live), open_gateway(tmp_path, live) as built:
        broker.answer = b""
        (held,) = await populate(built.registry, "cam-1")
        sessions: list[ScriptedSession] = []
        make = broker.protocol

        def kept() -> ScriptedSession:
            sessions.append(make())
            return sessions[-1]

        server = await asyncio.get_running_loop().create_unix_server(kept, tmp_path / "slow.sock")
        live._upstream = SocketUpstream(tmp_path / "slow.sock")
        wire = await built.dial(held)
        wire.send(encode_connect(Connect(V311, "cam-1")))
        await until(lambda: sessions and hasattr(sessions[-1], "_transport"))
        for byte in CONNACK[V311]:
            sessions[-1]._transport.write(bytes((byte,)))
            await asyncio.sleep(FAST)
        assert decode_connack((await wire.packet()).body, V311).code == 0
        server.close()


# Our own mosquitto at its limit

SMALL = 8_000_000  # of memory


@pytest.fixture
async def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mosquitto]:
    """A broker with little memory, that keeps the session of a well client, and a message for it."""
    assert PROGRAM is not None
    text = mosquitto.CONFIG_TEXT.replace(f"memory_limit {BROKER_MEMORY_MAX}", f"memory_limit {SMALL}")
    assert text != mosquitto.CONFIG_TEXT
    monkeypatch.setattr(mosquitto, "CONFIG_TEXT", text)
    broker = await Mosquitto.start(PROGRAM, tmp_path / "run", [MODEL])
    try:
        await keep_session(broker)
        yield broker
    finally:
        await broker.close()


async def direct(broker: Mosquitto, name: str, *, clean: bool = False) -> tuple[Wire, int]:
    """A client of the broker itself: (connection, Session Present)."""
    _, wire = await asyncio.get_running_loop().create_unix_connection(Wire, os.fspath(broker.socket))
    wire.send(encode_connect(Connect(V311, name, clean=clean, username=BACKEND)))
    connack = decode_connack((await wire.packet()).body, V311)
    assert connack.code == 0
    return wire, connack.session_present


async def keep_session(broker: Mosquitto) -> None:
    wire, _ = await direct(broker, "well")
    wire.send(encode_subscribe(Subscribe(1, (Subscription("devices/well/down", 1),)), V311))
    assert (await wire.packet()).type is PacketType.SUBACK
    wire.send(acks.disconnect(V311))
    await wire.until_closed()
    other, _ = await direct(broker, "other", clean=True)
    other.send(encode_publish(Publish("devices/well/down", b"kept", 1, 1), V311))
    assert (await other.packet()).type is PacketType.PUBACK
    other.transport.abort()
    await until(lambda: saved(broker, b"kept"))


def saved(broker: Mosquitto, text: bytes) -> bool:
    database = broker.socket.parent / DATABASE
    return database.exists() and text in database.read_bytes()


async def session_is_back(broker: Mosquitto) -> None:
    wire, present = await direct(broker, "well")
    assert present
    packet = await wire.packet()
    assert (packet.type, packet.body[-4:]) == (PacketType.PUBLISH, b"kept")
    wire.transport.abort()


@needs_mosquitto
async def test_a_broker_that_subscriptions_have_filled_exits_and_comes_back_with_its_sessions(small: Mosquitto) -> None:
    """mosquitto 2.0 exits when a subscription finds no memory. Past the gateway, whose limits prevent it."""
    deep = "/".join("x" * 183)
    for number in range(200):
        wire, _ = await direct(small, f"evil-{number}", clean=True)
        asked = tuple(Subscription(f"d/{number}/{place}/{deep}", 1) for place in range(20))
        wire.send(encode_subscribe(Subscribe(1, asked), V311))
        if await asyncio.wait_for(wire.packets.get(), PATIENCE_SECONDS) is None:
            break
    else:
        pytest.fail("its memory is not bounded")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await until(lambda: small.process.restarts)
    await session_is_back(small)


@needs_mosquitto
async def test_a_broker_that_messages_have_filled_stays_and_loads_what_it_has_saved(small: Mosquitto) -> None:
    # Where it finds no memory decides whether it closes the connection, or acknowledges a message and drops it.
    for number in range(200):  # 20 MB
        wire, _ = await direct(small, f"evil-{number}", clean=True)
        for place in range(100):
            wire.send(encode_publish(Publish(f"r/{number}/{place}", bytes(1_000), 1, 1, retain=True), V311))
        answers = [await asyncio.wait_for(wire.packets.get(), PATIENCE_SECONDS)]
        while answers[-1] is not None and len(answers) < 100:
            answers.append(await asyncio.wait_for(wire.packets.get(), PATIENCE_SECONDS))
        wire.transport.abort()
        if answers[-1] is None:
            break
    assert not small.process.restarts
    small.process.signal(signal.SIGUSR1)
    await until(lambda: (small.socket.parent / DATABASE).stat().st_size > SMALL // 2)
    small.process.signal(signal.SIGKILL)
    await until(lambda: small.process.restarts)
    assert not list(small.socket.parent.glob("*unreadable*"))
    await session_is_back(small)


# Loading, and a full disk


@needs_mosquitto
async def test_a_large_database_is_loaded_and_not_taken_for_a_hang(tmp_path: Path) -> None:
    assert PROGRAM is not None
    broker = await Mosquitto.start(PROGRAM, tmp_path / "run", [MODEL])
    watch = asyncio.create_task(restart_when_hung(broker, broker.process, check_seconds=FAST))
    try:
        await keep_session(broker)
        wire, _ = await direct(broker, "large", clean=True)
        for number in range(30):
            wire.send(encode_publish(Publish(f"r/{number}", bytes(4_000_000), 1, 1, retain=True), V311))
            assert (await wire.packet()).type is PacketType.PUBACK
        await until(lambda: (broker.socket.parent / DATABASE).stat().st_size > 120_000_000)
        before = broker.process.restarts
        broker.process.signal(signal.SIGKILL)
        await until(lambda: broker.process.restarts == before + 1)
        await session_is_back(broker)
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await broker.close()


LOADING = """#!/usr/bin/env python3
import socket, time
while time.process_time() < {seconds}:
    pass
listening = socket.socket(socket.AF_UNIX)
listening.bind("broker.sock")
listening.listen()
listening.accept()
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="whether a process works is known from /proc")
async def test_a_broker_that_loads_for_long_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_process, "READY_SECONDS_MAX", 0.3)
    script = tmp_path / "loading"
    script.write_text(LOADING.format(seconds=1.5))
    script.chmod(0o755)
    broker = await Mosquitto.start(str(script), tmp_path / "run", ())
    assert broker.process.is_ready
    await broker.close()
    monkeypatch.setattr(broker_process, "LOAD_SECONDS_MAX", 0.5)
    with pytest.raises(TimeoutError):
        await Mosquitto.start(str(script), tmp_path / "run", ())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> None:
    descriptor = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError:
        os.close(descriptor)


@needs_mosquitto
async def test_a_full_disk_is_said_and_costs_nothing_that_was_saved(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert PROGRAM is not None
    caplog.set_level(logging.WARNING)
    async with AsyncExitStack() as stack:
        broker = await Mosquitto.start(PROGRAM, small_disk / "run", [MODEL])
        stack.push_async_callback(broker.close)
        await keep_session(broker)
        fill(small_disk)
        wire, _ = await direct(broker, "other", clean=True)
        for number in range(100):
            wire.send(encode_publish(Publish(f"r/{number}", bytes(3_000), 1, 1, retain=True), V311))
            assert (await wire.packet()).type is PacketType.PUBACK
        await until(lambda: "event=broker.not-saved" in caplog.text)
        assert "No space left on device" in caplog.text
        assert broker.not_saved == not_saved(broker) != ""
        broker.process.signal(signal.SIGKILL)
        await until(lambda: broker.process.restarts)
        await session_is_back(broker)
        (small_disk / "filler").unlink()
        await until(lambda: "event=broker.saved-again" in caplog.text)
        assert caplog.text.count("event=broker.not-saved") == 1
        assert broker.not_saved == ""
