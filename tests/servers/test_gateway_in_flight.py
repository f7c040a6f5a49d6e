"""Messages of QoS 2 that are never released: what a broker holds for a device is bounded, over connections too."""

import asyncio
from math import inf
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.limits.in_flight import (
    LATE_SECONDS,
    MESSAGE_BYTES,
    SHARE_BYTES,
    InFlight,
    InFlightTotal,
)
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS, Limits
from fleet.servers.gateway.relay.reason_strings import TOO_MUCH_IN_FLIGHT
from fleet.services import revocation
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import Connack, Connect, decode_connack, encode_connack, encode_connect
from fleet.wire.mqtt.properties import Property
from tests.servers.gateway_fixtures import BrokerSide, GatewayHarness, Wire, now, open_gateway, populate
from tests.servers.gateway_relay_harness import VERSIONS, RelayHarness
from tests.waiting import PATIENCE_SECONDS

PAYLOAD = bytes(30_000)
LONG = bytes(250_000)


def test_a_single_message_may_be_of_any_size() -> None:
    total = InFlightTotal()
    held = InFlight(total)
    assert held.add(1, 16_000_000)
    assert held.add(1, 16_000_000)  # sent again
    assert not held.add(2, 1)
    held.release(1)
    assert held.add(2, 1)
    held.release(99)
    held.release(2)
    assert not held
    assert total.bytes == 0


def test_up_to_the_limit_of_a_device_and_one_past_it() -> None:
    held = InFlight(InFlightTotal())
    size = DEFAULT_LIMITS.in_flight_bytes_per_device_max // 4 - MESSAGE_BYTES
    assert [held.add(number, size) for number in range(1, 6)] == [True, True, True, True, False]


def test_the_sum_over_devices() -> None:
    total = InFlightTotal()
    filled = 0
    while InFlight(total).add(1, 4_000_000):
        filled += 1
    assert filled == DEFAULT_LIMITS.in_flight_bytes_max // (4_000_000 + MESSAGE_BYTES)
    assert total.bytes <= DEFAULT_LIMITS.in_flight_bytes_max
    small = InFlight(total)
    assert all(small.add(number, 1_000) for number in range(1, SHARE_BYTES // (1_000 + MESSAGE_BYTES) + 1))
    assert not small.add(1_000, 4_000_000)


def hoard(
    total: InFlightTotal, *, connect: float, connack: float | None = None, goodbye: float | None = None
) -> InFlight:
    """What a device has left behind: one message."""
    held = InFlight(total)
    held.connecting(connect)
    held.connected(False, connack)
    assert held.add(1, 100)
    held.disconnected(goodbye)
    return held


@pytest.mark.parametrize(
    ("connect", "connack", "goodbye", "ends"),
    [
        (0, None, None, 0),
        (0, None, 60, 0),  # [MQTT-3.14.2-2]: a protocol error
        (60, None, None, 60),
        (60, 0, None, 0),
        (0, 30, None, 30),
        (60, None, 0, 60),  # the broker need not have got the DISCONNECT
        (60, None, 90, 90),
        (60, None, inf, inf),
        (inf, None, None, inf),
    ],
)
def test_it_counts_for_as_long_as_the_session_may_last(
    connect: float, connack: float | None, goodbye: float | None, ends: float
) -> None:
    time = 1_000.0
    total = InFlightTotal(clock=lambda: time)
    held = hoard(total, connect=connect, connack=connack, goodbye=goodbye)
    assert bool(held) is bool(ends)
    if ends:
        time += min(ends, 1e9) + LATE_SECONDS - 1
        total.expire()
        assert held
        time += 2
        total.expire()
        assert bool(held) is (ends == inf)
    assert bool(total.bytes) is bool(held)


def test_what_has_expired_is_no_longer_counted_against_others() -> None:
    time = 0.0
    total = InFlightTotal(Limits(in_flight_bytes_max=400_000), clock=lambda: time)
    for seconds in (1, 10):
        held = InFlight(total)
        held.connecting(seconds)
        held.connected(False, None)
        assert held.add(1, 150_000)
        held.disconnected()
    assert not InFlight(total).add(1, 100_000)
    time = 1 + LATE_SECONDS
    assert InFlight(total).add(1, 100_000)
    assert not InFlight(total).add(1, 200_000)
    time = 10 + LATE_SECONDS
    assert InFlight(total).add(1, 200_000)


def test_a_device_that_is_back_in_time_goes_on_counting() -> None:
    time = 0.0
    total = InFlightTotal(clock=lambda: time)
    held = hoard(total, connect=60)
    time = 30.0
    held.connecting(60)
    time = 1_000.0
    total.expire()
    held.connected(True, None)
    assert held
    held.disconnected()
    total.expire()
    assert held


def test_a_connect_without_an_answer_may_have_prolonged_the_session() -> None:
    time = 0.0
    total = InFlightTotal(clock=lambda: time)
    held = hoard(total, connect=60)
    held.connecting(600)
    held.disconnected()
    time = 599.0
    total.expire()
    assert held
    held = hoard(total, connect=0)
    held.connecting(600)
    held.disconnected()
    assert not held


def test_a_connect_that_the_broker_does_not_accept_changes_nothing() -> None:
    """It drops some without an answer, and keeps the session that it has."""
    time = 0.0
    total = InFlightTotal(clock=lambda: time)
    held = hoard(total, connect=60)
    held.connecting(0)
    held.disconnected()
    assert held
    time = 60 + LATE_SECONDS
    total.expire()
    assert not held


@pytest.mark.parametrize(
    ("connect", "outlives"),
    [
        (Connect(V311, "cam-1"), False),
        (Connect(V311, "cam-1", clean=False), True),
        (Connect(V5, "cam-1", clean=False), False),
        (Connect(V5, "cam-1", properties=((Property.SESSION_EXPIRY_INTERVAL, 60),)), True),
        (Connect(V5, "cam-1", properties=((Property.SESSION_EXPIRY_INTERVAL, 0),)), False),
    ],
)
def test_which_sessions_outlive_their_connection(connect: Connect, outlives: bool) -> None:
    assert connect.outlives_connection is outlives


@pytest.mark.parametrize("payload", [PAYLOAD, LONG])
def test_over_the_limit_it_is_refused_and_the_session_goes_on(payload: bytes) -> None:
    h = RelayHarness(V5, limits=Limits(in_flight_bytes_per_device_max=len(payload) + 1_000))
    first = h.publish("up/t", 2, 1, payload)
    assert h.relay.from_device(first) is None
    assert h.relay.from_device(h.publish("up/t", 2, 2, payload)) is None
    assert h.to_broker == first
    assert h.to_device == acks.acknowledge(acks.PUBREC, 2, V5, Reason.QUOTA_EXCEEDED, TOO_MUCH_IN_FLIGHT)
    assert h.notes == [("mqtt.publish", "quota", "up/t")]
    other = h.publish("up/t", 1, 3, payload)
    released = acks.acknowledge(acks.PUBREL, 1, V5)
    assert h.relay.from_device(other + released) is None
    h.relay.from_broker(acks.acknowledge(acks.PUBCOMP, 1, V5))
    again = h.publish("up/t", 2, 2, payload)
    assert h.relay.from_device(again) is None
    assert h.to_broker == first + other + released + again


@VERSIONS
def test_it_counts_until_the_broker_confirms_its_release(version: int) -> None:
    h = RelayHarness(version)
    pubrec, pubrel, pubcomp = (
        acks.acknowledge(first, 1, version) for first in (acks.PUBREC, acks.PUBREL, acks.PUBCOMP)
    )
    h.relay.from_device(h.publish("up/t", 2, 1))
    h.relay.from_broker(pubrec)
    h.relay.from_device(pubrel)
    assert h.relay.in_flight
    h.relay.from_broker(pubcomp)
    assert not h.relay.in_flight
    assert h.to_device == pubrec + pubcomp


def test_a_pubcomp_uncounts_only_what_was_released_before() -> None:
    """mosquitto answers any PUBREL by PUBCOMP."""
    h = RelayHarness(V5)
    pubrel, pubcomp = acks.acknowledge(acks.PUBREL, 1, V5), acks.acknowledge(acks.PUBCOMP, 1, V5)
    h.relay.from_device(pubrel + pubrel + h.publish("up/t", 2, 1))
    assert h.to_broker == pubrel
    assert h.to_device == acks.acknowledge(acks.PUBREC, 1, V5, Reason.QUOTA_EXCEEDED, TOO_MUCH_IN_FLIGHT)
    h.relay.from_broker(pubcomp)
    h.relay.from_device(h.publish("up/t", 2, 1))
    h.relay.from_broker(pubcomp)
    assert h.relay.in_flight
    h.relay.from_device(pubrel)
    h.relay.from_broker(pubcomp)
    assert not h.relay.in_flight


def test_a_message_that_the_broker_refuses_is_not_held() -> None:
    h = RelayHarness(V5)
    h.relay.from_device(h.publish("up/t", 2, 1))
    accepted = acks.acknowledge(acks.PUBREC, 1, V5)
    h.relay.from_broker(accepted)
    assert h.relay.in_flight
    refusal = acks.acknowledge(acks.PUBREC, 1, V5, Reason.QUOTA_EXCEEDED)
    h.relay.from_broker(refusal)
    assert not h.relay.in_flight
    assert h.to_device == accepted + refusal


@VERSIONS
def test_what_the_model_refuses_is_not_held(version: int) -> None:
    h = RelayHarness(version)
    h.relay.from_device(h.publish("other", 2, 1))
    assert not h.relay.in_flight


@VERSIONS
def test_deliveries_are_not_counted(version: int) -> None:
    h = RelayHarness(version)
    for number in range(1, 200):
        h.relay.from_broker(h.publish("down/t", 2, number, LONG))
    assert not h.relay.in_flight


def test_311_has_no_refusal() -> None:
    h = RelayHarness(V311, limits=Limits(in_flight_bytes_per_device_max=40_000))
    h.relay.from_device(h.publish("up/t", 2, 1, PAYLOAD))
    assert h.ends(h.publish("up/t", 2, 2, PAYLOAD)) is close_reasons.QUOTA


async def _live(h: GatewayHarness, wire: Wire, connect: Connect, *, present: bool) -> BrokerSide:
    wire.send(encode_connect(connect))
    side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
    assert (await side.packet()).type is PacketType.CONNECT
    side.send(encode_connack(Connack(present, 0), connect.version))
    assert decode_connack((await wire.packet()).body, connect.version).code == 0
    return side


async def test_it_counts_for_as_long_as_the_broker_keeps_the_session(tmp_path: Path) -> None:
    persistent = Connect(V5, "cam-1", clean=False, properties=((Property.SESSION_EXPIRY_INTERVAL, 600),))
    async with open_gateway(tmp_path, limits=Limits(in_flight_bytes_per_device_max=40_000)) as h:
        (cam,) = await populate(h.registry, "cam-1")
        relay = RelayHarness(V5)
        for packet_id, present, reason in ((1, False, 0), (2, True, Reason.QUOTA_EXCEEDED), (3, False, 0)):
            wire = await h.dial(cam)
            side = await _live(h, wire, persistent, present=present)
            message = relay.publish("devices/cam-1/up/t", 2, packet_id, PAYLOAD)
            wire.send(message)
            if reason:
                assert (await wire.packet()).body[:3] == packet_id.to_bytes(2, "big") + bytes((reason,))
            else:
                assert (await side.packet()).type is PacketType.PUBLISH
            wire.transport.abort()
            await side.until_closed()


async def test_it_counts_when_the_broker_has_dropped_a_connect(tmp_path: Path) -> None:
    persistent = Connect(V5, "cam-1", clean=False, properties=((Property.SESSION_EXPIRY_INTERVAL, 600),))
    async with open_gateway(tmp_path, limits=Limits(in_flight_bytes_per_device_max=40_000)) as h:
        (cam,) = await populate(h.registry, "cam-1")
        relay = RelayHarness(V5)
        wire = await h.dial(cam)
        side = await _live(h, wire, persistent, present=False)
        wire.send(relay.publish("devices/cam-1/up/t", 2, 1, PAYLOAD))
        assert (await side.packet()).type is PacketType.PUBLISH
        wire.transport.abort()
        await side.until_closed()
        dropped = await h.dial(cam)
        dropped.send(encode_connect(Connect(V5, "cam-1")))
        side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
        side.transport.abort()
        await dropped.until_closed()
        wire = await h.dial(cam)
        await _live(h, wire, persistent, present=True)
        wire.send(relay.publish("devices/cam-1/up/t", 2, 2, PAYLOAD))
        assert (await wire.packet()).body[:3] == b"\0\2" + bytes((Reason.QUOTA_EXCEEDED,))


async def test_a_revoked_device_no_longer_counts_for_the_others(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, limits=Limits(in_flight_bytes_max=100_000)) as h:
        cam, other = await populate(h.registry, "cam-1", "cam-2")
        relay = RelayHarness(V5)
        hoard = b"".join(relay.publish("devices/cam-1/up/t", 2, number, PAYLOAD) for number in (1, 2, 3))
        wire = await h.dial(cam)
        side = await _live(
            h, wire, Connect(V5, "cam-1", properties=((Property.SESSION_EXPIRY_INTERVAL, 600),)), present=False
        )
        wire.send(hoard)
        for _ in range(3):
            assert (await side.packet()).type is PacketType.PUBLISH
        bystander = await h.dial(other)
        bystander_side = await _live(h, bystander, Connect(V5, "cam-2"), present=False)
        large = relay.publish("devices/cam-2/up/t", 2, 1, bytes(65_100))
        bystander.send(large)
        assert (await bystander.packet()).body[:3] == b"\x00\x01" + bytes((Reason.QUOTA_EXCEEDED,))
        await revocation.revoke(h.registry, "cam-1", act=Act("operator", now()))
        await wire.until_closed()
        bystander.send(large)
        assert (await bystander_side.packet()).type is PacketType.PUBLISH
