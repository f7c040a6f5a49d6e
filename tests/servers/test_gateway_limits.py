"""Every limit of `[mqtt]` at its edge, and one past it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from fleet.config.mqtt_bounds import BROKER_MEMORY_MAX, FILTERS_PER_DEVICE_MAX, PACKET_SIZE_MAX
from fleet.config.settings import READERS, Settings
from fleet.config.settings_file import SettingsError, parse_settings
from fleet.config.template import render
from fleet.domain.changes import Change, Event, EventKind
from fleet.domain.model_rules import ModelRules
from fleet.domain.mqtt_rules import PACKET_SIZE_MIN, MqttRules, lowered
from fleet.domain.writes import SetModel
from fleet.runtime.mqtt_limits import mqtt_limits, of_worker
from fleet.servers.gateway import Limits, close_reasons
from fleet.servers.gateway.broker.mosquitto import BACKEND, CONFIG_TEXT, Mosquitto, config_text, mosquitto_program
from fleet.servers.gateway.close_reasons import CloseSession
from fleet.servers.gateway.limits.in_flight import MESSAGE_BYTES, SHARE_BYTES, InFlight, InFlightTotal
from fleet.servers.gateway.limits.kept_filters import FilterSet
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import Connack, Connect, Will, decode_connack, encode_connack, encode_connect
from fleet.wire.mqtt.properties import Property, value_of
from fleet.wire.mqtt.subscribe import Unsubscribe, decode_suback
from tests.mqtt_packets import encode_unsubscribe
from tests.servers.gateway_fixtures import MODEL, GatewayHarness, open_gateway, operator, populate, refused
from tests.servers.gateway_relay_harness import VERSIONS, RelayHarness
from tests.servers.paho_client import Paho
from tests.waiting import PATIENCE_SECONDS

BOUNDS = {
    "connect_size_max": (1_024, 262_144),
    "packet_size_max": (524_288, 67_108_864),
    "filters_per_packet_max": (1, 10_000),
    "filters_per_device_max": (1, 100_000),
    "filter_bytes_per_device_max": (64, 16_777_216),
    "filter_levels_per_device_max": (1, 100_000),
    "in_flight_bytes_per_device_max": (1_024, 67_108_864),
    "in_flight_bytes_max": (1_024, 134_217_728),
    "queued_messages_per_device_max": (1, 100_000),
    "queued_bytes_per_device_max": (1_024, 67_108_864),
    "unacknowledged_bytes_per_device_max": (1_024, 67_108_864),
    "retained_messages_per_device_max": (1, 1_000_000),
    "retained_bytes_per_device_max": (1_024, 134_217_728),
    "unread_bytes_per_device_max": (65_536, 67_108_864),
    "unread_bytes_max": (1_048_576, 1_073_741_824),
}


# fleet.toml


def test_settings_and_limits_have_the_same_defaults() -> None:
    assert mqtt_limits(Settings()) == Limits()
    assert BOUNDS.keys() == READERS["mqtt"].keys()


@pytest.mark.parametrize("key", BOUNDS)
def test_bounds_of_each_setting(key: str) -> None:
    least, most = BOUNDS[key]
    for value in (least, most):
        assert getattr(mqtt_limits(parse_settings(f"[mqtt]\n{key} = {value}\n", Path("x"))), key) == value
    for wrong in (least - 1, most + 1, "true", "1.5", '"1"'):
        with pytest.raises(SettingsError, match=rf"x, line 3: mqtt\.{key} must be a whole number") as caught:
            parse_settings(f"[mqtt]\n\n{key} = {wrong}\n", Path("x"))
        assert str(least) in caught.value.problem
        assert str(most) in caught.value.problem


def test_our_broker_gets_its_part() -> None:
    lines = config_text(
        Limits(
            packet_size_max=600_000,
            queued_messages_per_device_max=11,
            queued_bytes_per_device_max=2_222,
            unacknowledged_bytes_per_device_max=3_333,
        )
    ).splitlines()
    assert {"max_packet_size 600000", "max_queued_messages 11", "max_queued_bytes 2222"} < set(lines)
    assert "max_inflight_bytes 3333" in lines


# CONNECT


def connect_of(size: int, version: int) -> bytes:
    """A CONNECT of this remaining length, with a will of 60,000 bytes."""
    will = Will("devices/cam-1/up/gone", bytes(60_000), 1)

    def made(password: int) -> bytes:
        return encode_connect(Connect(version, "cam-1", will=will, username="u", password=bytes(password)))

    packet = made(size - (len(made(0)) - 4))
    assert len(packet) == size + 4
    return packet


@VERSIONS
async def test_a_connect_at_the_limit_and_one_past_it(tmp_path: Path, version: int) -> None:
    async with open_gateway(tmp_path, limits=Limits(connect_size_max=70_000)) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(connect_of(70_000, version))
        side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
        assert (await side.packet()).type is PacketType.CONNECT
        side.send(encode_connack(Connack(False, 0), version))
        assert decode_connack((await wire.packet()).body, version).code == 0
        wire = await h.dial(cam)
        wire.send(connect_of(70_001, version))
        if version == V5:
            assert await refused(wire, V5) == Reason.PACKET_TOO_LARGE
        else:
            assert await wire.until_closed() == []
        assert h.gateway.stats["mqtt.connect.too-large"] == 1


# Packets after CONNECT


@VERSIONS
@pytest.mark.parametrize("size_max", [600_000, 2_000])
def test_a_publish_at_the_limit_and_one_past_it(version: int, size_max: int) -> None:
    h = RelayHarness(version, limits=Limits(packet_size_max=size_max))
    head = len(h.publish("up/t", 1, payload=bytes(200))) - 3 - 200
    packet = h.publish("up/t", 1, payload=bytes(size_max - head))
    h.relay.from_device(packet)
    assert h.to_broker == packet
    assert h.ends(h.publish("up/t", 1, payload=bytes(size_max - head + 1))) is close_reasons.TOO_LARGE


def test_no_packet_is_larger_than_a_publish_may_be() -> None:
    h = RelayHarness(V5, limits=Limits(packet_size_max=2_000))
    h.relay.from_device(h.subscribe("down/" + "x" * (2_000 - 2 - 1 - 2 - 5 - 1)))
    assert len(h.to_broker) == 2_000 + 3
    assert h.ends(h.subscribe("down/" + "x" * (2_001 - 2 - 1 - 2 - 5 - 1))) is close_reasons.TOO_LARGE


def test_the_limit_is_announced() -> None:
    h = RelayHarness(V5, greeted=False, limits=Limits(packet_size_max=600_000))
    h.relay.from_broker(encode_connack(Connack(False, 0), V5))
    connack = decode_connack(bytes(h.to_device[2:]), V5)
    assert value_of(connack.properties, Property.MAXIMUM_PACKET_SIZE) == 600_000


# Filters


@VERSIONS
def test_filters_in_a_packet_at_the_limit_and_one_past_it(version: int) -> None:
    limits = Limits(filters_per_packet_max=3)
    h = RelayHarness(version, limits=limits)
    packets = h.subscribe("down/1", "down/2", "down/3") + encode_unsubscribe(Unsubscribe(9, ("a", "b", "c")), version)
    h.relay.from_device(packets)
    assert h.to_broker == packets
    beyond = (
        h.subscribe("down/1", "down/2", "down/3", "down/3"),
        encode_unsubscribe(Unsubscribe(9, ("a", "b", "c", "d")), version),
    )
    for packet in beyond:
        with pytest.raises(CloseSession) as caught:
            RelayHarness(version, limits=limits).relay.from_device(packet)
        assert caught.value.reason is close_reasons.TOO_MANY_FILTERS


@pytest.mark.parametrize(
    ("limits", "within", "beyond"),
    [
        (Limits(filters_per_device_max=3), ["a", "b", "c"], "d"),
        (Limits(filter_bytes_per_device_max=70), ["a" * 30, "b" * 40], "c"),
        (Limits(filter_levels_per_device_max=5), ["a/b/c", "d/#"], "e"),
    ],
)
def test_filters_of_a_device_at_the_limit_and_one_past_it(limits: Limits, within: list[str], beyond: str) -> None:
    kept = FilterSet(limits)
    assert kept.add(within) == frozenset()
    assert kept.add(within[:1]) == frozenset()  # again
    assert kept.add([beyond]) == {beyond}
    kept.leave(1, within[:1])
    assert kept.add([beyond]) == frozenset()


# QoS 2


def test_in_flight_at_the_limit_and_one_past_it() -> None:
    limits = Limits(in_flight_bytes_per_device_max=200_000, in_flight_bytes_max=300_000)
    held = InFlight(InFlightTotal(limits))
    assert held.add(1, 100_000 - MESSAGE_BYTES)
    assert not held.add(2, 100_001 - MESSAGE_BYTES)
    assert held.add(2, 100_000 - MESSAGE_BYTES)
    total = InFlightTotal(limits)
    assert InFlight(total).add(1, 200_000 - MESSAGE_BYTES)
    assert not InFlight(total).add(1, 100_001 - MESSAGE_BYTES)
    assert InFlight(total).add(1, 100_000 - MESSAGE_BYTES)
    assert InFlight(total).add(1, SHARE_BYTES - MESSAGE_BYTES)
    assert not InFlight(total).add(1, SHARE_BYTES - MESSAGE_BYTES + 1)


# By model


@VERSIONS
def test_a_models_packet_size_at_the_limit_and_one_past_it(version: int) -> None:
    h = RelayHarness(version, greeted=False)
    h.relay.set_rules(MqttRules(packet_size_max=2_000))
    h.relay.from_broker(encode_connack(Connack(False, 0), version))
    if version == V5:
        connack = decode_connack(bytes(h.to_device[2:]), V5)
        assert value_of(connack.properties, Property.MAXIMUM_PACKET_SIZE) == 2_000
    # It was announced: a change counts for the next connection.
    h.relay.set_rules(MqttRules(packet_size_max=1_024))
    head = len(h.publish("up/t", 1, payload=bytes(200))) - 3 - 200
    packet = h.publish("up/t", 1, payload=bytes(2_000 - head))
    h.relay.from_device(packet)
    assert h.to_broker == packet
    # Messages for the device are of any size that the process allows.
    message = h.publish("down/t", payload=bytes(100_000))
    h.relay.from_broker(message)
    assert h.to_device.endswith(message)
    assert h.ends(h.publish("up/t", 1, payload=bytes(2_001 - head))) is close_reasons.TOO_LARGE


@VERSIONS
def test_a_models_subscriptions_at_the_limit_and_one_past_it(version: int) -> None:
    h = RelayHarness(version)
    failure = 0x97 if version == V5 else 0x80
    h.relay.set_rules(MqttRules(subscriptions_max=2))
    h.relay.from_device(h.subscribe("down/1", "down/2", "down/3"))
    assert h.to_broker == h.subscribe("down/1", "down/2")
    h.relay.from_broker(h.suback(1, 1))
    assert decode_suback(bytes(h.to_device[2:]), version).codes == (1, 1, failure)
    # A change counts at once; what is held already stays.
    h.relay.set_rules(MqttRules(subscriptions_max=3))
    h.subscribed("down/3")
    h.relay.set_rules(MqttRules(subscriptions_max=1))
    h.subscribed("down/1", "down/2", "down/3")
    h.relay.from_device(h.subscribe("down/4"))
    assert decode_suback(bytes(h.to_device[2:]), version).codes == (failure,)


def test_a_model_may_lower_a_limit_and_not_raise_it() -> None:
    assert [lowered(10, by_model) for by_model in (0, 1, 9, 10, 11)] == [10, 1, 9, 10, 10]
    least, most = BOUNDS["packet_size_max"]
    assert (least, most + 1) > (PACKET_SIZE_MIN, PACKET_SIZE_MAX)
    assert BOUNDS["filters_per_device_max"][1] == FILTERS_PER_DEVICE_MAX


def test_fleet_toml_says_the_memory_that_our_broker_has() -> None:
    assert f"It has {BROKER_MEMORY_MAX} for all clients." in render(Settings())
    assert f"\nmemory_limit {BROKER_MEMORY_MAX}\n" in CONFIG_TEXT


async def test_limits_of_a_model_reach_its_sessions(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        await h.set_model(rules=ModelRules(mqtt=MqttRules(subscriptions_max=1, packet_size_max=1_024)))
        await h.count("mqtt.model.applied")
        relay = RelayHarness(V5)
        wire, side = await h.live(cam, V5)
        asked = relay.subscribe("devices/cam-1/down/1", "devices/cam-1/down/2")
        wire.send(asked)
        assert (await side.packet()).encode() == relay.subscribe("devices/cam-1/down/1")
        side.send(relay.suback(1))
        assert decode_suback((await wire.packet()).body, V5).codes == (1, 0x97)
        model = await h.registry.model(MODEL.name)
        assert model is not None
        changed = structs.replace(model, rules=ModelRules(mqtt=MqttRules(subscriptions_max=2, packet_size_max=1_024)))
        event = Event(EventKind.MODEL_CHANGED, MODEL.name)
        await h.registry.commit(Change(operator("model.set"), (SetModel(changed),), (event,)))
        await h.count("mqtt.model.applied", 2)
        wire.send(asked)
        assert (await side.packet()).encode() == asked
        wire.send(relay.publish("devices/cam-1/up/t", payload=bytes(1_100)))
        (*_, last) = await wire.until_closed()
        assert (last.type, last.body[0]) == (PacketType.DISCONNECT, Reason.PACKET_TOO_LARGE)


# A real broker with limits that are not the default


PROGRAM = mosquitto_program()
needs_mosquitto = pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")


@asynccontextmanager
async def before_mosquitto(path: Path, limits: Limits) -> AsyncIterator[tuple[GatewayHarness, Mosquitto]]:
    assert PROGRAM is not None
    broker = await Mosquitto.start(PROGRAM, path / "run", [MODEL], limits)
    try:
        async with open_gateway(path, broker, limits=limits) as h:
            yield h, broker
    finally:
        await broker.close()


async def backend_of(broker: Mosquitto, *filters: str) -> Paho:
    client = Paho("backend", V311, transport="unix")
    client.client.username_pw_set(BACKEND)
    assert await client.connect_unix(broker.socket) == 0
    await client.subscribe(*filters, qos=1)
    return client


@needs_mosquitto
@VERSIONS
async def test_a_will_of_65_535_bytes_is_published(tmp_path: Path, version: int) -> None:
    async with before_mosquitto(tmp_path, Limits()) as (h, broker):
        (cam,) = await populate(h.registry, "cam-1")
        backend = await backend_of(broker, "devices/+/up/#")
        wire, connack = await h.connect(cam, version, will=Will("devices/cam-1/up/gone", b"w" * 65_535, 1))
        assert connack.code == 0
        wire.transport.abort()
        assert await backend.message() == ("devices/cam-1/up/gone", b"w" * 65_535)
        await backend.close()


@needs_mosquitto
@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (Limits(queued_messages_per_device_max=5), 5),
        (Limits(queued_bytes_per_device_max=3_001), 4),  # it is full when there are as many bytes, or more
        (Limits(queued_bytes_per_device_max=3_000), 3),
    ],
)
async def test_messages_that_are_kept_for_an_offline_device(tmp_path: Path, limits: Limits, kept: int) -> None:
    async with before_mosquitto(tmp_path, limits) as (h, broker):
        (cam,) = await populate(h.registry, "cam-1")
        device = Paho("cam-1", V311, clean=False)
        assert await device.connect("127.0.0.1", await h.door(cam)) == 0
        assert await device.subscribe("devices/cam-1/down/#", qos=1) == [1]
        await device.close()
        await h.count("mqtt.session.client-disconnected")
        backend = await backend_of(broker, "devices/cam-1/down/end")
        for number in range(8):
            await backend.publish("devices/cam-1/down/t", b"%1000d" % number, 1)
        again = Paho("cam-1", V311, clean=False)
        assert await again.connect("127.0.0.1", await h.door(cam)) == 0
        found = [(await again.message())[1] for _ in range(kept)]
        await backend.publish("devices/cam-1/down/end", b"end", 1)
        assert await again.message() == ("devices/cam-1/down/end", b"end")
        assert list(map(int, found)) == list(range(kept))
        await again.close()
        await backend.close()


def test_the_workers_of_a_home_share_what_all_devices_may_have_in_flight() -> None:
    limits = Limits()
    assert of_worker(limits, 1) == limits
    in_flight, unread = limits.in_flight_bytes_max, limits.unread_bytes_max
    assert of_worker(limits, 2) == replace(limits, in_flight_bytes_max=in_flight // 2, unread_bytes_max=unread // 2)
    assert of_worker(limits, 64).in_flight_bytes_max > limits.packet_size_max  # or none could pass such a message
    assert of_worker(limits, 64).unread_bytes_max > limits.packet_size_max
