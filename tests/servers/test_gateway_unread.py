"""Devices that do not read: the broker is read all the same, and what waits for each of them is bounded."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.config.mqtt_bounds import BROKER_MEMORY_MAX
from fleet.servers.gateway.broker import mosquitto
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS, Limits
from fleet.servers.gateway.limits.unread import ASKED_MAX, SHARE_BYTES, Unread, UnreadTotal
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType
from fleet.wire.mqtt.properties import Property
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.subscribe import Subscribe, Subscription, encode_subscribe
from tests.servers.gateway_fixtures import open_gateway, populate
from tests.servers.gateway_relay_harness import VERSIONS, RelayHarness
from tests.servers.mosquitto_gateway import needs_mosquitto, open_mosquitto_gateway
from tests.waiting import PATIENCE_SECONDS, until

MAX = DEFAULT_LIMITS.unread_bytes_per_device_max
SUM = DEFAULT_LIMITS.unread_bytes_max


class Waiting:
    """What waits for one device, in bytes that a test sets, and how often its session was closed."""

    def __init__(self, total: UnreadTotal, size: int = 0) -> None:
        self.size = size
        self.closed = 0
        self.unread = Unread(total, lambda: self.size, 0, self._close)

    def _close(self) -> None:
        self.closed += 1
        self.unread.end()

    def take(self, size: int) -> None:
        self.unread.take(lambda data: setattr(self, "size", self.size + size), b"")


def counting() -> tuple[UnreadTotal, list[int]]:
    counted: list[int] = []
    return UnreadTotal(lambda: counted.append(1)), counted


def test_qos_0_up_to_the_limit_of_a_client_and_one_past_it() -> None:
    total, counted = counting()
    waiting = Waiting(total, 100_000)
    assert waiting.unread.has_room(MAX - 100_000)
    assert not counted
    assert not waiting.unread.has_room(MAX - 99_999)
    assert (waiting.unread.dropped, len(counted)) == (1, 1)
    waiting.size = SHARE_BYTES  # nearly nothing: a single message may be of any size
    assert waiting.unread.has_room(16_000_000)


def test_where_all_have_too_much_each_keeps_a_share_and_the_largest_is_closed() -> None:
    total, _ = counting()
    waiting = [Waiting(total) for _ in range(SUM // MAX)]
    for each in waiting:
        each.take(MAX)
    assert total.bytes == SUM
    assert not any(each.closed for each in waiting)
    small = Waiting(total)
    share = SUM // len(total.holders)
    assert small.unread.has_room(share)
    assert not small.unread.has_room(share + 1)
    assert not any(each.unread.has_room(1) for each in waiting)
    waiting[3].take(1)
    assert [each.closed for each in waiting] == [int(each is waiting[3]) for each in waiting]
    assert total.bytes == SUM - MAX
    assert small.unread.has_room(share + 1)
    for each in waiting:
        each.unread.end()
        each.unread.end()
    assert total.bytes == 0
    assert total.holders == {small.unread}


def test_shares_alone_close_nobody() -> None:
    total = UnreadTotal(lambda: None, Limits(unread_bytes_max=4 * SHARE_BYTES))
    waiting = [Waiting(total) for _ in range(6)]
    for each in waiting:
        assert each.unread.has_room(SHARE_BYTES)
        each.take(SHARE_BYTES)
    assert not any(each.closed or each.unread.has_room(1) for each in waiting)


def test_more_of_qos_1_and_2_than_our_broker_sends_unacknowledged_closes_the_session() -> None:
    waiting = Waiting(UnreadTotal(lambda: None))
    most = MAX + DEFAULT_LIMITS.unacknowledged_bytes_per_device_max + DEFAULT_LIMITS.packet_size_max
    waiting.take(most)
    assert not waiting.closed
    waiting.take(1)
    assert waiting.closed


def test_a_device_that_asks_on_is_not_read_any_more() -> None:
    unread = Unread(UnreadTotal(lambda: None), lambda: 0, 7, lambda: None)
    assert not unread.is_asked(7 + ASKED_MAX)
    assert unread.is_asked(8 + ASKED_MAX)


def slow(h: RelayHarness, size: Callable[[], int], total: UnreadTotal | None = None) -> None:
    """From now on the device does not read."""
    h.relay.wait(Unread(total or UnreadTotal(lambda: None), size, 0, lambda: None))


@VERSIONS
@pytest.mark.parametrize("step", [1, 7, 2_000])
def test_the_newest_of_qos_0_are_dropped_and_the_others_keep_their_order(version: int, step: int) -> None:
    h = RelayHarness(version)
    slow(h, lambda: MAX - 3_000 + len(h.to_device))
    payload = bytes(800)
    sent = [h.publish(f"down/{n}", n % 3, n + 1, payload) for n in range(30)]
    stream = b"".join(sent)
    for at in range(0, len(stream), step):
        h.relay.from_broker(stream[at : at + step])
    got = bytes(h.to_device)
    kept = [packet for n, packet in enumerate(sent) if n % 3 or packet in got]
    assert got == b"".join(kept)
    assert 20 < len(kept) < 30
    assert [note[:2] for note in h.notes] == [("mqtt.deliver", "unread")]
    h.to_device.clear()
    h.relay.wait(None)  # it has read everything
    h.relay.from_broker(sent[0] * 10)
    assert h.to_device == sent[0] * 10


@VERSIONS
def test_long_ones_are_dropped_whole(version: int) -> None:
    h = RelayHarness(version)
    h.relay.from_broker(h.publish("down/a"))
    slow(h, lambda: MAX)
    h.to_device.clear()
    stream = h.publish("down/a", payload=bytes(200_000)) + h.publish("down/b", 1, payload=bytes(200_000))
    for at in range(0, len(stream), 50_000):
        h.relay.from_broker(stream[at : at + 50_000])
    assert h.to_device == h.publish("down/b", 1, payload=bytes(200_000))


def test_a_dropped_message_sets_no_topic_alias() -> None:
    h = RelayHarness(V5, properties=((Property.TOPIC_ALIAS_MAXIMUM, 4),))
    first = h.publish("down/a-topic-of-some-length")
    h.relay.from_broker(first)
    slow(h, lambda: MAX)
    h.relay.from_broker(first)
    h.relay.wait(None)
    h.to_device.clear()
    h.relay.from_broker(first + first)
    assert b"down/a-topic-of-some-length" in h.to_device
    assert len(h.to_device) < 2 * len(first)


async def test_the_broker_is_read_for_a_device_that_does_not_read(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, limits=Limits(unread_bytes_per_device_max=500_000)) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, side = await h.live(cam)
        wire.transport.pause_reading()
        message = encode_publish(Publish("devices/cam-1/down/x", bytes(60_000)), V311)
        acknowledged = [encode_publish(Publish("devices/cam-1/down/x", b"%60000d" % n, 1, n), V311) for n in (1, 2)]
        for _ in range(300):
            side.send(message)
        side.send(acknowledged[0])
        for _ in range(300):
            side.send(message)
        side.send(acknowledged[1])
        await until(lambda: not side.transport.get_write_buffer_size())
        assert h.gateway.stats["mqtt.deliver.unread"] > 100
        (session,) = h.gateway.context.open_sessions
        assert session._device.unread_size() < 1_000_000
        wire.transport.resume_reading()
        got = [await wire.packet()]
        while got[-1].encode() != acknowledged[1]:
            got.append(await wire.packet())
        assert [packet.encode() for packet in got if packet.first != 0x30] == acknowledged
        assert 8 < len(got) < 600 - 100
        assert h.gateway.context.unread.bytes == 0
        await h.gateway.close()  # which writes what is queued
        rows = [row.entry for row in await h.registry.audit() if row.entry.action == "mqtt.deliver"]
        assert [(row.subject, row.outcome, row.detail["topic"]) for row in rows] == [
            ("device cam-1", "unread", "devices/cam-1/down/x")
        ]


async def test_one_that_does_not_read_what_it_asks_for_is_not_read(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, side = await h.live(cam, V5)
        wire.transport.pause_reading()
        for _ in range(400):
            side.send(encode_publish(Publish("devices/cam-1/down/x", bytes(60_000)), V5))
        await h.count("mqtt.deliver.unread")
        (session,) = h.gateway.context.open_sessions
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not session._device.is_paused:
                wire.send(acks.PINGREQ * 100)
                await asyncio.sleep(0.01)
        wire.transport.resume_reading()
        await until(lambda: not session._device.is_paused)


@needs_mosquitto
async def test_clients_that_do_not_read_do_not_fill_our_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 24_000_000
    small = mosquitto.CONFIG_TEXT.replace(f"memory_limit {BROKER_MEMORY_MAX}", f"memory_limit {limit}")
    monkeypatch.setattr(mosquitto, "CONFIG_TEXT", small)
    limits = Limits(unread_bytes_per_device_max=1_000_000)
    async with open_mosquitto_gateway(tmp_path, limits=limits) as gateway:
        held = await populate(gateway.harness.registry, *(f"cam-{n}" for n in range(5)))
        wires = [(await gateway.harness.connect(cam, V5))[0] for cam in held[1:]]
        for wire, cam in zip(wires, held[1:], strict=True):
            wire.send(encode_subscribe(Subscribe(1, (Subscription(f"devices/{cam.holder}/down/#", 0),)), V5))
            assert (await wire.packet()).type is PacketType.SUBACK
            wire.transport.pause_reading()
        bystander = await gateway.device(held[0], V5)
        backend = await gateway.backend()
        for _ in range(30):
            for cam in held[1:]:
                await backend.publish(f"devices/{cam.holder}/down/t", bytes(500_000), 1)
            await bystander.publish("devices/cam-0/up/t", b"21", 1)
        assert bystander.disconnected.empty()
        assert not any(wire.transport.is_closing() for wire in wires)
        assert gateway.harness.gateway.stats["mqtt.deliver.unread"] > 40


def test_the_limits_are_those_of_the_settings() -> None:
    total = UnreadTotal(lambda: None)
    waiting = Waiting(total, 100_000)
    assert waiting.unread.has_room(1_000_000)
    total.limits = replace(DEFAULT_LIMITS, unread_bytes_per_device_max=500_000)  # a reload
    assert not waiting.unread.has_room(1_000_000)
