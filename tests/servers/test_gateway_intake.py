"""What one device sends in a burst: spread over turns of the event loop, and charged by what it costs."""

import asyncio
from pathlib import Path

import pytest

from fleet.servers.gateway.limits.kept_filters import KeptFilters
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS
from fleet.servers.gateway.limits.rates import PACKETS_PER_TURN
from fleet.servers.gateway.relay.packet_filter import JUDGED_AT_ONCE
from fleet.servers.gateway.session.phases import Phase
from fleet.services.refusal_rows import write_due
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, PacketType, Reason
from fleet.wire.mqtt.fields import encode_packet, encode_string
from fleet.wire.mqtt.properties import Property, encode_properties
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.reader import PacketReader
from fleet.wire.mqtt.subscribe import Subscribe, Subscription, Unsubscribe, encode_subscribe
from tests.mqtt_packets import encode_unsubscribe
from tests.servers.gateway_fixtures import now, open_gateway, populate
from tests.servers.gateway_relay_harness import RelayHarness
from tests.servers.test_gateway_session_machine import MESSAGE, Bench
from tests.waiting import until

REFUSED = encode_publish(Publish("x", b"", 1, 1), V5)
USER = (Property.USER_PROPERTY, ("", ""))


def subscribe(filters: int, *, properties: int = 0) -> bytes:
    asked = Subscribe(1, (Subscription("x", 1),) * filters, (USER,) * properties)
    return encode_subscribe(asked, V5)


def answered(bench: Bench) -> int:
    """Packets that the device has got since the last call."""
    count = len(list(PacketReader().feed(bytes(bench.device.written))))
    bench.device.written.clear()
    return count


async def turns(bench: Bench) -> list[int]:
    """Answers in each turn of the event loop from now on, until the device is read again."""
    counts = []
    while not bench.device.reading:
        await asyncio.sleep(0)
        counts.append(answered(bench))
    return counts


async def test_refusals_of_one_read_are_spread_over_turns() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    bench.session.data_received(REFUSED * 1_000 + MESSAGE)
    assert answered(bench) == JUDGED_AT_ONCE
    assert not bench.device.reading
    assert not bench.broker.written
    assert await turns(bench) == [JUDGED_AT_ONCE] * 2 + [1_000 - 3 * JUDGED_AT_ONCE]
    assert bench.broker.written == MESSAGE
    assert bench.outcomes["mqtt.publish.refused"] == 1_000
    await bench.finish()


async def test_a_turn_ends_with_a_subscribe_of_many_filters() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    bench.session.data_received(subscribe(1_000) * 3 + acks.PINGREQ)
    assert answered(bench) == 1
    assert await turns(bench) == [1, 1, 0]
    assert bench.broker.written == acks.PINGREQ
    assert bench.outcomes["mqtt.subscribe.refused"] == 3_000
    await bench.finish()


async def test_what_is_read_meanwhile_comes_after_it() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    bench.session.data_received(REFUSED * 400 + MESSAGE)
    bench.session.data_received(acks.PINGREQ)  # as of a transport that had it already
    await turns(bench)
    assert bench.broker.written == MESSAGE + acks.PINGREQ
    await bench.finish()


async def test_packets_that_cost_little_end_the_turn_after_the_read() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    bench.session.data_received(MESSAGE * (PACKETS_PER_TURN + 1))
    assert bench.broker.written == MESSAGE * (PACKETS_PER_TURN + 1)
    assert await turns(bench) == [0]
    await bench.finish()


async def test_the_rest_waits_for_a_broker_that_does_not_read() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    bench.session.data_received(REFUSED * 300 + MESSAGE)
    bench.session.broker_blocked()
    for _ in range(5):
        await asyncio.sleep(0)
    assert answered(bench) == JUDGED_AT_ONCE
    bench.session.broker_drained()
    assert await turns(bench) == [300 - JUDGED_AT_ONCE]
    assert bench.broker.written == MESSAGE
    await bench.finish()


async def test_a_device_that_leaves_behind_its_burst_has_disconnected() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    bench.session.data_received(REFUSED * 300 + MESSAGE + acks.disconnect(V5))
    bench.device.closing = True
    bench.session.connection_lost(None)
    assert bench.session.phase is Phase.RELAYING
    await bench.until(Phase.CLOSED)
    assert bench.broker.written == MESSAGE + acks.disconnect(V5)
    assert bench.outcomes["mqtt.session.client-disconnected"] == 1
    await bench.finish()


async def test_a_device_that_is_lost_behind_its_burst() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    bench.session.data_received(REFUSED * 300 + MESSAGE)
    bench.device.closing = True
    bench.session.connection_lost(None)
    assert bench.session.phase is Phase.RELAYING
    await bench.until(Phase.CLOSED)
    assert bench.broker.written == MESSAGE
    assert bench.outcomes["mqtt.session.client-gone"] == 1
    await bench.finish()


async def test_a_session_that_closes_drops_the_rest() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    bench.session.data_received(REFUSED * 300 + MESSAGE)
    await bench.reach(Phase.CLOSED)
    for _ in range(3):
        await asyncio.sleep(0)
    assert MESSAGE not in bench.broker.written
    assert answered(bench) == 0
    await bench.finish()


def aliased(properties: int) -> bytes:
    head = encode_string("up/a") + encode_properties(((Property.TOPIC_ALIAS, 1), *[USER] * (properties - 1)))
    return encode_packet(PacketType.PUBLISH << 4, head)


def named(properties: int) -> bytes:
    """Of properties that might have an alias: they are read, and there is none."""
    head = encode_string("up/a") + encode_properties(((Property.USER_PROPERTY, ("#", "")), *[USER] * (properties - 1)))
    return encode_packet(PacketType.PUBLISH << 4, head)


def acknowledged(properties: int) -> bytes:
    body = b"\0\1" + bytes((Reason.SUCCESS,)) + encode_properties((USER,) * properties)
    return encode_packet(acks.PUBACK, body)


@pytest.mark.parametrize(
    ("packet", "cost"),
    [
        (subscribe(1), 1),
        (subscribe(1_000), 1_000),
        (subscribe(1, properties=256), 33),
        (encode_unsubscribe(Unsubscribe(1, ("x",)), V5), 1),
        (encode_unsubscribe(Unsubscribe(1, ("x",) * 1_000), V5), 1_000),
        (encode_publish(Publish("up/a", b"x" * 60_000), V5), 1),
        (aliased(3), 1),
        (aliased(256), 33),
        (named(3), 1),
        (named(256), 33),
        (acks.acknowledge(acks.PUBACK, 1, V5), 1),
        (acknowledged(2), 1),
        (acknowledged(256), 21),
    ],
)
def test_a_packet_counts_as_what_it_costs(packet: bytes, cost: int) -> None:
    harness = RelayHarness(V5)
    harness.relay.from_device(packet)
    assert harness.relay.to_broker.packets == cost


def test_a_change_of_kept_filters_counts_as_what_reading_and_writing_all_of_them_costs(tmp_path: Path) -> None:
    for outlives, cost in ((True, 31), (False, 1)):
        harness = RelayHarness(V5, limits=DEFAULT_LIMITS)
        filters = KeptFilters(directory=tmp_path).of_session("cam-1", outlives_connection=outlives)
        filters.add([f"down/{number}" for number in range(960)])
        harness.relay.subscriptions.filters = filters
        harness.relay.from_device(harness.subscribe("down/x"))
        assert harness.relay.to_broker.packets == cost
        harness.relay.from_device(encode_unsubscribe(Unsubscribe(1, ("down/x",)), V5))
        assert harness.relay.to_broker.packets == 2 * cost


def test_packets_before_a_malformed_one_count() -> None:
    harness = RelayHarness(V5)
    harness.ends(acks.PINGREQ * 10 + b"\xf0\0")
    assert harness.relay.to_broker.packets == 11 - 1


async def test_refusals_of_one_turn_are_audited_in_full_number(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (held,) = await populate(h.registry, "cam-1")
        wire, _ = await h.live(held, V5)
        topics = [f"refused/{number}" for number in range(1_000)]
        wire.send(b"".join(encode_publish(Publish(topic, b"", 1, 1), V5) for topic in topics))
        await until(lambda: h.gateway.stats.get("mqtt.publish.refused") == 1_000)
        await h.gateway.close()
        await write_due(h.registry, now(), at_once=True)
        first, last = [row.entry.detail for row in await h.registry.audit() if row.entry.action == "mqtt.publish"]
        assert first == {"topic": topics[0], "serial": held.serial}
        assert last == {"topic": topics[-1], "serial": held.serial, "left_out": "998"}
