"""Whether the broker answers: brokers that are slow, hang, die, talk nonsense or come back, scripted and real."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from fleet.servers.gateway.broker import restart as broker_restart
from fleet.servers.gateway.broker.embedded import Embedded
from fleet.servers.gateway.broker.mosquitto import Mosquitto, mosquitto_program
from fleet.servers.gateway.broker.probed_upstream import UNANSWERED_MAX, BrokerSilent, ProbedUpstream
from fleet.servers.gateway.broker.process import BrokerProcess
from fleet.servers.gateway.broker.restart import restart_when_hung
from fleet.servers.gateway.broker.upstream import SocketUpstream
from fleet.wire.mqtt.codes import V5, V311, PacketType
from fleet.wire.mqtt.connect import Connect, encode_connect
from fleet.wire.mqtt.reader import PacketReader
from tests.servers.gateway_fixtures import MODEL, FakeBroker, open_gateway, populate, refused
from tests.waiting import PATIENCE_SECONDS, until

PROGRAM = mosquitto_program()
needs_mosquitto = pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")
OK, PINGRESP = b"\x20\x02\x00\x00", b"\xd0\x00"
FAST = 0.05
PROCESS_FAST = 0.25  # for a process that may have to wait for a processor


class Scripted(asyncio.Protocol):
    """A broker that answers with what the script says at the time; b"" is silence."""

    def __init__(self, script: "Script") -> None:
        self._script, self._reader = script, PacketReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for packet in self._reader.feed(data):
            self._script.received.append(packet.type)
            connack = packet.type is PacketType.CONNECT
            answer = self._script.connack if connack else self._script.pingresp
            self._transport.write(answer)
            if connack and self._script.closes:
                self._transport.close()


class Script:
    def __init__(self, connack: bytes = OK, pingresp: bytes = PINGRESP, *, closes: bool = False) -> None:
        self.connack, self.pingresp, self.closes = connack, pingresp, closes
        self.received: list[PacketType] = []


@asynccontextmanager
async def probed(
    script: Script, path: Path, on_silent: Callable[[], None] = lambda: None
) -> AsyncIterator[ProbedUpstream]:
    server = await asyncio.get_running_loop().create_unix_server(lambda: Scripted(script), path / "b.sock")
    live = ProbedUpstream(SocketUpstream(path / "b.sock"), probe_seconds=FAST)
    running = asyncio.create_task(live.run(on_silent))
    try:
        yield live
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.close()


@pytest.mark.parametrize(
    "script", [Script(), Script(b"\x20\x02\x00\x05", closes=True)], ids=["accepts", "refuses the probe"]
)
async def test_any_answer_is_a_sign_of_life(script: Script, tmp_path: Path) -> None:
    async with probed(script, tmp_path) as live:
        await until(lambda: len(script.received) > 3 * UNANSWERED_MAX)
        assert live.answers()
        await live.connect(asyncio.Protocol)


@pytest.mark.parametrize(
    "script",
    [
        Script(b""),
        Script(pingresp=b""),
        Script(b"\xff" * 9),
        Script(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        Script(PINGRESP),
        Script(b"", closes=True),
    ],
    ids=["no CONNACK", "no PINGRESP", "nonsense", "HTTP", "another packet", "closes"],
)
async def test_a_broker_that_accepts_and_does_not_answer_is_refused_at_once(
    script: Script, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    silent = asyncio.Event()
    async with probed(script, tmp_path, silent.set) as live:
        await asyncio.wait_for(silent.wait(), PATIENCE_SECONDS)
        assert not live.answers()
        with pytest.raises(BrokerSilent):
            await live.connect(asyncio.Protocol)
        script.connack, script.pingresp, script.closes = OK, PINGRESP, False
        await until(live.answers)
        await live.connect(asyncio.Protocol)
    events = [record.getMessage().split()[0] for record in caplog.records if record.name == "fleet.broker"]
    assert events == ["event=broker.silent", "event=broker.answers-again"]  # once each


async def test_a_broker_that_is_not_there_is_tried_by_each_session_and_not_logged_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live = ProbedUpstream(SocketUpstream(tmp_path / "nobody.sock"), probe_seconds=FAST)
    running = asyncio.create_task(live.run())
    await until(lambda: not live.answers())
    assert not live.is_silent()
    with pytest.raises(FileNotFoundError):
        await live.connect(asyncio.Protocol)
    running.cancel()
    assert "broker.silent" not in caplog.text


@pytest.mark.parametrize(("version", "code"), [(V311, 3), (V5, 0x88)])
async def test_who_waits_for_a_silent_broker_is_refused_and_so_is_who_comes(
    version: int, code: int, tmp_path: Path
) -> None:
    broker = FakeBroker()
    live = ProbedUpstream(broker, probe_seconds=FAST)
    async with open_gateway(tmp_path, live) as built:
        one, two = await populate(built.registry, "cam-1", "cam-2")
        waiting = await built.dial(one)
        waiting.send(encode_connect(Connect(version, "cam-1")))
        await asyncio.wait_for(broker.sessions.get(), PATIENCE_SECONDS)
        running = asyncio.create_task(live.run(built.gateway.on_broker_silent))  # this broker says nothing
        assert await refused(waiting, version) == code
        _, connack = await built.connect(two, version)
        assert connack.code == code
        assert built.gateway.stats["mqtt.connect.broker-silent"] == 2
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@needs_mosquitto
async def test_our_broker_is_restarted_when_it_hangs_and_not_while_it_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert PROGRAM is not None
    broker = await Mosquitto.start(PROGRAM, tmp_path / "run", [MODEL])
    watch = asyncio.create_task(restart_when_hung(broker, broker.process, check_seconds=PROCESS_FAST))
    live = ProbedUpstream(broker, probe_seconds=PROCESS_FAST)
    running = asyncio.create_task(live.run())
    try:
        await asyncio.sleep(2 * UNANSWERED_MAX * PROCESS_FAST)
        assert live.answers()
        assert broker.process.restarts == 0
        broker.process.signal(signal.SIGSTOP)
        await until(live.is_silent)
        await until(lambda: broker.process.restarts)
        await until(live.answers)
        events = [each.getMessage().split(" broker=unix:")[0] for each in caplog.records if each.name == "fleet.broker"]
        events = [event for event in events if event != "event=broker.root"]
        asked = ["event=broker.silent", "event=broker.answers-again"]  # once each, by the one that the gateway asks
        assert [event for event in events if event in asked] == asked
        assert [event for event in events if event not in asked] == [
            "event=broker.killed", "event=broker.ended", "event=broker.restarted"
        ]  # fmt: skip
    finally:
        watch.cancel()
        running.cancel()
        await asyncio.gather(watch, running, return_exceptions=True)
        await broker.close()


class Working:
    """A broker's process, as far as its restarter knows it."""

    is_ready = True

    def __init__(self, work: Callable[[int], str | None]) -> None:
        self._work, self.checks = work, 0
        self.killed: list[int] = []

    def work_done(self) -> str | None:
        self.checks += 1
        return self._work(self.checks)

    def signal(self, number: signal.Signals) -> None:
        assert number == signal.SIGKILL
        self.killed.append(self.checks)


async def kills_after(work: Callable[[int], str | None], path: Path, checks: int) -> list[int]:
    """The checks at which our own silent broker is killed, over so many checks."""
    script = Script(b"")
    server = await asyncio.get_running_loop().create_unix_server(lambda: Scripted(script), path / "broker.sock")
    broker, process = Embedded(path), Working(work)
    watch = asyncio.create_task(restart_when_hung(broker, cast("BrokerProcess", process), check_seconds=0.001))

    def checked() -> bool:
        process.is_ready = True  # started again
        return process.checks >= checks

    await until(checked)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    server.close()
    return process.killed


def folder(above: Path, name: str) -> Path:
    made = above / name
    made.mkdir()
    return made


async def test_a_broker_that_works_or_waits_for_its_disk_gets_longer(tmp_path: Path) -> None:
    longer = broker_restart.SILENT_CHECKS
    assert (await kills_after(str, folder(tmp_path, "a"), longer))[:1] == [longer]
    assert (await kills_after(lambda check: None, folder(tmp_path, "b"), longer))[:1] == [longer]


async def test_each_further_restart_in_a_row_takes_twice_the_patience(tmp_path: Path) -> None:
    idle = broker_restart.IDLE_CHECKS
    first, second, third = (await kills_after(lambda check: "0 0", tmp_path, 8 * idle + 2))[:3]
    assert idle <= first <= idle + 1  # the first look has nothing to compare with
    assert second - first == 2 * idle
    assert third - second == 4 * idle
