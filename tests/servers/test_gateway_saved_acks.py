"""Acknowledgements that wait for a save of the broker: which may go on, which not yet, which never."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from fleet.config.addresses import parse_broker
from fleet.domain.errors import Invalid
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.broker import start as brokers
from fleet.servers.gateway.broker.mosquitto import BACKEND, DATABASE, Mosquitto, mosquitto_program
from fleet.servers.gateway.broker.start import start_upstream
from fleet.servers.gateway.relay import saved_acks
from fleet.servers.gateway.relay.saved_acks import HELD_BYTES_MAX, HeldAcks, Saves, Stamp
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import Connect, encode_connect
from fleet.wire.mqtt.fields import encode_packet
from fleet.wire.mqtt.properties import Property
from fleet.wire.mqtt.publish import Publish, decode_publish, encode_publish
from tests.servers.gateway_fixtures import MODEL, open_gateway, populate
from tests.servers.gateway_relay_harness import VERSIONS, RelayHarness
from tests.servers.paho_client import Paho
from tests.waiting import PATIENCE_SECONDS, until

PROGRAM = mosquitto_program()
NEEDS_MOSQUITTO = pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")
A, B, C = (1, 1, 1), (2, 1, 1), (3, 1, 1)


class FakeSaves(Saves):
    """The file is what the test says."""

    now: Stamp = A

    def __init__(self) -> None:
        super().__init__(Path("none"), lambda work: work.close())

    def stamp(self) -> Stamp:
        return self.now


class Receiver:
    def __init__(self) -> None:
        self.between_packets = True
        self.packets: list[bytes] = []
        self.got = asyncio.Event()

    def inject(self, packet: bytes) -> None:
        self.packets.append(packet)
        self.got.set()


@pytest.fixture
def saves() -> FakeSaves:
    return FakeSaves()


def save(saves: FakeSaves, held: HeldAcks, stamp: Stamp) -> None:
    """As `Saves` does when it sees the file `stamp`."""
    saves.now = stamp
    held.mark(stamp)
    held.release()


def test_an_acknowledgement_goes_on_with_the_first_save_after_its_arrival(saves: FakeSaves) -> None:
    receiver = Receiver()
    held = HeldAcks(saves, os.getpid(), receiver)
    assert held.add(b"1")
    assert held.add(b"2")
    held.mark(A)
    held.release()
    assert not receiver.packets
    saves.now = B
    assert held.add(b"3")  # this file was there first: it need not have it
    save(saves, held, B)
    assert receiver.packets == [b"12"]
    save(saves, held, B)
    assert receiver.packets == [b"12"]
    save(saves, held, C)
    assert receiver.packets == [b"12", b"3"]
    assert not saves._waiting


def test_what_arrives_while_a_save_is_written_to_disk_waits_for_the_next(saves: FakeSaves) -> None:
    receiver = Receiver()
    held = HeldAcks(saves, os.getpid(), receiver)
    held.add(b"1")
    saves.now = B
    held.mark(B)
    saves.now = C
    held.add(b"2")
    held.release()
    assert receiver.packets == [b"1"]


def test_the_save_of_another_process_proves_nothing(saves: FakeSaves) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    receiver = Receiver()
    held = HeldAcks(saves, ended.pid, receiver)
    held.add(b"1")
    save(saves, held, B)
    assert not receiver.packets


def test_an_acknowledgement_does_not_interrupt_a_packet(saves: FakeSaves) -> None:
    receiver = Receiver()
    receiver.between_packets = False
    held = HeldAcks(saves, os.getpid(), receiver)
    held.add(b"1")
    save(saves, held, B)
    assert not receiver.packets
    receiver.between_packets = True
    save(saves, held, C)
    assert receiver.packets == [b"1"]


def test_what_is_held_is_bounded(saves: FakeSaves) -> None:
    receiver = Receiver()
    held = HeldAcks(saves, os.getpid(), receiver)
    assert held.add(bytes(HELD_BYTES_MAX))
    assert not held.add(b"1")
    save(saves, held, B)
    assert held.add(b"1")
    assert HELD_BYTES_MAX >= 65_535 * 8


def test_nothing_goes_to_a_session_that_has_closed(saves: FakeSaves) -> None:
    receiver = Receiver()
    held = HeldAcks(saves, os.getpid(), receiver)
    held.add(b"1")
    held.mark(B)
    held.add(b"2")
    held.close()
    assert not held.add(b"3")
    save(saves, held, C)
    assert not receiver.packets
    assert not saves._waiting


async def test_the_file_is_watched_while_something_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = list[Path]()
    monkeypatch.setattr(saved_acks, "_sync_directory", synced.append)
    tasks = list[asyncio.Task[object]]()

    def spawn(work: Coroutine[object, object, None]) -> None:
        tasks.append(asyncio.get_running_loop().create_task(work))

    database, fresh = tmp_path / DATABASE, tmp_path / "fresh"
    saves, receiver = Saves(database, spawn), Receiver()
    assert saves.stamp() is None
    held = HeldAcks(saves, os.getpid(), receiver)
    for number in (1, 2):  # first there is no file, then another
        held.add(b"%d" % number)
        held.add(b"%d" % number)
        fresh.write_bytes(b"saved")
        fresh.replace(database)
        await asyncio.wait_for(receiver.got.wait(), PATIENCE_SECONDS)
        receiver.got.clear()
        await asyncio.wait_for(tasks[-1], PATIENCE_SECONDS)
        assert receiver.packets[-1] == b"%d" % number * 2
        assert synced == [tmp_path] * number
        assert len(tasks) == number


def test_a_directory_is_synced(tmp_path: Path) -> None:
    saved_acks._sync_directory(tmp_path)
    with pytest.raises(OSError, match="not-there"):
        saved_acks._sync_directory(tmp_path / "not-there")


def holding(saves: FakeSaves, made: list[HeldAcks], receiver: Receiver) -> HeldAcks:
    made.append(HeldAcks(saves, os.getpid(), receiver))
    return made[0]


@VERSIONS
def test_only_acknowledgements_are_held_cut_at_every_byte(version: int, saves: FakeSaves) -> None:
    acknowledged = (
        acks.acknowledge(acks.PUBACK, 1, version),
        acks.acknowledge(acks.PUBREC, 2, version, Reason.UNSPECIFIED),
        acks.acknowledge(acks.PUBREC, 3, version),
        acks.acknowledge(acks.PUBCOMP, 4, version),
    )
    others = (
        RelayHarness(version).publish("down/a", 2),
        acks.PINGRESP,
        acks.acknowledge(acks.PUBREL, 5, version),
        encode_packet(PacketType.UNSUBACK << 4, b"\0\7" + (b"\0\0" if version == V5 else b"")),
    )
    stream = b"".join(a + b for a, b in zip(acknowledged, others, strict=True))
    for cut in range(len(stream) + 1):
        made: list[HeldAcks] = []
        properties = ((Property.TOPIC_ALIAS_MAXIMUM, 5),)
        harness = RelayHarness(version, properties=properties, hold_acks=partial(holding, saves, made))
        (held,) = made
        harness.relay.from_broker(stream[:cut])
        harness.relay.from_broker(stream[cut:])
        assert harness.to_device == b"".join(others)
        harness.to_device.clear()
        save(saves, held, B)
        assert harness.to_device == b"".join(acknowledged)
        saves.now = A
        harness.relay.from_broker(acknowledged[0])
        harness.relay.disconnect(close_reasons.CLIENT_GONE)
        harness.to_device.clear()
        save(saves, held, C)
        assert not harness.to_device
        saves.now = A


def test_too_many_acknowledgements_end_the_session(saves: FakeSaves) -> None:
    harness = RelayHarness(V311, hold_acks=partial(holding, saves, []))
    one = acks.acknowledge(acks.PUBACK, 1, V311)
    assert harness.relay.from_broker(one * (HELD_BYTES_MAX // len(one))) is None
    assert harness.relay.from_broker(one) is close_reasons.QUOTA


@pytest.mark.parametrize("broker", ["embedded", "mqtt://127.0.0.1:1883", "unix:/run/other.sock", "mosquitto"])
async def test_durable_needs_our_own_mosquitto(tmp_path: Path, broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "mosquitto_program", lambda: None)
    with pytest.raises(Invalid) as caught:
        await start_upstream(parse_broker(broker), tmp_path, (), durable=True)
    assert caught.value.code == "not-durable"


@NEEDS_MOSQUITTO
@VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, version: int, qos: int) -> None:
    assert PROGRAM is not None
    async with AsyncExitStack() as stack:
        broker = await Mosquitto.start(PROGRAM, tmp_path / "run", [MODEL], save_seconds=0.05)
        stack.push_async_callback(broker.close)
        built = await stack.enter_async_context(open_gateway(tmp_path, broker, database=tmp_path / "run" / DATABASE))
        (cam,) = await populate(built.registry, "cam-1")
        for number in range(3):
            offline = await application(broker)
            await offline.subscribe("devices/cam-1/up/#", qos=2)
            offline.vanish()
            await offline.close()
            wire = await built.dial(cam)
            wire.send(encode_connect(Connect(version, cam.holder)))
            assert (await wire.packet()).type is PacketType.CONNACK
            sent = Publish("devices/cam-1/up/t", b"%d" % number, qos, 1)
            wire.send(encode_publish(sent, version))
            if qos == 2:
                assert (await wire.packet()).type is PacketType.PUBREC
                wire.send(acks.acknowledge(acks.PUBREL, 1, version))
            assert (await wire.packet()).type in (PacketType.PUBACK, PacketType.PUBCOMP)
            broker.process.signal(signal.SIGKILL)
            await wire.until_closed()
            await until(partial(restarted, broker, number))
            back = await application(broker)
            assert await back.message() == ("devices/cam-1/up/t", b"%d" % number)
            await back.close()


def restarted(broker: Mosquitto, times: int) -> bool:
    return broker.process.restarts > times


async def application(broker: Mosquitto) -> Paho:
    client = Paho("application", V311, clean=False, transport="unix")
    client.client.username_pw_set(BACKEND)
    assert await client.connect_unix(broker.socket) == 0
    return client


def test_a_message_of_the_broker_is_no_acknowledgement(saves: FakeSaves) -> None:
    harness = RelayHarness(V5, hold_acks=partial(holding, saves, []))
    harness.relay.from_broker(encode_publish(Publish("down/a", b"x", 1, 7), V5))
    (packet,) = [harness.to_device]
    assert decode_publish(packet[0], bytes(packet[2:]), V5).payload == b"x"
