"""A live session without sockets: subscriptions, the broker's side, packets of our own, policies that change."""

import pytest

from fleet.domain.topic_policy import TopicPolicy
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS
from fleet.servers.gateway.relay.packet_filter import INJECTED_MAX
from fleet.servers.gateway.relay.reason_strings import FILTERS, RETAIN_REFUSED, TOPIC_REFUSED
from fleet.servers.gateway.relay.subscriptions import AWAITED_BYTES_MAX, ENTRY_BYTES
from fleet.wire.errors import Malformed, WireError
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, Reason
from fleet.wire.mqtt.connect import Connack, decode_connack, encode_connack
from fleet.wire.mqtt.fields import encode_packet
from fleet.wire.mqtt.properties import Properties, Property, reason_string
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.reader import PacketReader
from fleet.wire.mqtt.subscribe import (
    Suback,
    Subscribe,
    Subscription,
    Unsubscribe,
    encode_suback,
    encode_subscribe,
)
from tests.mqtt_packets import encode_unsubscribe
from tests.servers.gateway_relay_harness import NARROW, SIZE_MAX, VERSIONS, RelayHarness, chunks

# SUBSCRIBE


@pytest.mark.parametrize(("version", "code"), [(V311, 0x80), (V5, 0x87)])
@pytest.mark.parametrize("topic_filter", ["#", "+/x", "$SYS/#", "$share/g/other", "down", "devices/b/#"])
def test_a_refused_filter_never_reaches_the_broker(version: int, code: int, topic_filter: str) -> None:
    harness = RelayHarness(version, TopicPolicy((), ("down/+",)))
    harness.relay.from_device(harness.subscribe(topic_filter, packet_id=7))
    assert not harness.to_broker
    assert harness.to_device == harness.explained(code, packet_id=7)
    assert harness.notes == [("mqtt.subscribe", "refused", topic_filter)]


@pytest.mark.parametrize(("version", "code", "bad"), [(V311, 0x80, 0x80), (V5, 0x87, 0x8F)])
def test_a_mixed_subscribe_gets_one_whole_suback(version: int, code: int, bad: int) -> None:
    harness = RelayHarness(version)
    harness.relay.from_device(harness.subscribe("#", "down/a", "a#", "$share/g/news/+", "other"))
    assert harness.to_broker == harness.subscribe("down/a", "$share/g/news/+")
    assert not harness.to_device
    harness.relay.from_broker(harness.suback(9, packet_id=2) + harness.suback(1, 2))
    assert harness.to_device == harness.suback(9, packet_id=2) + harness.explained(
        code, 1, bad, 2, code, text=f"{FILTERS[0x87]} {FILTERS[0x8F]}"
    )
    harness.relay.from_broker(harness.suback(0))  # answered once
    assert harness.to_device.endswith(harness.suback(0))


def test_subscription_properties_are_kept() -> None:
    harness = RelayHarness(V5)
    properties = ((Property.SUBSCRIPTION_IDENTIFIER, 300),)
    asked = Subscribe(1, (Subscription("#", 0x2D), Subscription("down/a", 0x2D)), properties)
    harness.relay.from_device(encode_subscribe(asked, V5))
    assert harness.to_broker == encode_subscribe(Subscribe(1, (Subscription("down/a", 0x2D),), properties), V5)


def test_a_suback_that_is_too_short_is_filled_with_failures() -> None:
    harness = RelayHarness(V5)
    harness.relay.from_device(harness.subscribe("#", "down/a", "down/b"))
    harness.relay.from_broker(harness.suback(1))
    assert harness.to_device == harness.explained(0x87, 1, 0x80)


def test_pending_subscribes_are_bounded() -> None:
    harness = RelayHarness(V5)
    room = AWAITED_BYTES_MAX // (ENTRY_BYTES + 2)
    for packet_id in range(1, room + 1):
        harness.relay.from_device(harness.subscribe("#", "down/a", packet_id=packet_id))
    harness.relay.from_device(harness.subscribe("#", "down/a", packet_id=1))
    assert harness.ends(harness.subscribe("#", "down/a", packet_id=room + 1)) is close_reasons.QUOTA


def test_filters_held_are_bounded() -> None:
    harness = RelayHarness(V5)
    for n in range(10):
        harness.subscribed(*(f"down/{n}/{m}" for m in range(100)))
    harness.relay.from_device(harness.subscribe("down/a"))
    assert harness.to_device == harness.explained(0x97, text=FILTERS[0x97])
    harness.relay.from_device(encode_unsubscribe(Unsubscribe(2, ("down/0/0",)), V5))
    harness.to_device.clear()
    harness.relay.from_device(harness.subscribe("down/a") + harness.subscribe("down/a"))
    assert not harness.to_device
    for n in range(3):
        harness = RelayHarness(V5)
        harness.subscribed("down/" + "x" * 60_000)
        harness.relay.from_device(harness.subscribe("down/" + "y" * 60_000, packet_id=n + 1))
        assert harness.to_device == harness.explained(0x97, packet_id=n + 1, text=FILTERS[0x97])


def test_64_kib_of_filters_are_held() -> None:
    limits = DEFAULT_LIMITS
    assert (limits.filters_per_device_max, limits.filter_bytes_per_device_max) == (1_000, 65_536)
    long, rest = "down/" + "x" * 64_995, "down/" + "y" * 531  # 65,000 and 536 bytes
    harness = RelayHarness(V5)
    for topic_filter in (long, rest, rest):
        harness.subscribed(topic_filter)
    harness.relay.from_device(harness.subscribe("down/a"))
    assert harness.to_device == harness.explained(0x97, text=FILTERS[0x97])
    harness.relay.from_device(encode_unsubscribe(Unsubscribe(2, (rest, "down/unknown")), V5))
    harness.to_device.clear()
    harness.subscribed("down/" + "z" * 531)
    harness.relay.from_device(harness.subscribe("down/a"))
    assert harness.to_device == harness.explained(0x97, text=FILTERS[0x97])
    harness = RelayHarness(V5)
    harness.relay.from_device(harness.subscribe(long) + harness.subscribe(rest + "y"))
    assert harness.to_broker == harness.subscribe(long)


@VERSIONS
def test_a_malformed_subscribe(version: int) -> None:
    for body in (b"\x00\x01", b"\x00\x00\x00", b"\x00\x01\x00\x01\xff\x00"):
        with pytest.raises(WireError):
            RelayHarness(version).relay.from_device(encode_packet(0x82, body))


# The broker's side


def test_connack_has_our_own_aliases_and_learns_our_cap() -> None:
    harness = RelayHarness(V5, greeted=False)
    properties = (
        (Property.TOPIC_ALIAS_MAXIMUM, 10),
        (Property.RECEIVE_MAXIMUM, 20),
        (Property.MAXIMUM_PACKET_SIZE, 2**31),
    )
    harness.relay.from_broker(encode_connack(Connack(True, 0, properties), V5))
    (packet,) = PacketReader().feed(bytes(harness.to_device))
    ours = ((Property.MAXIMUM_PACKET_SIZE, SIZE_MAX), (Property.TOPIC_ALIAS_MAXIMUM, 16))
    expected = ((Property.RECEIVE_MAXIMUM, 20), *ours)
    assert decode_connack(packet.body, V5) == Connack(True, 0, expected)
    assert harness.ends(encode_connack(Connack(False, 0), V5), from_broker=True) is close_reasons.PROTOCOL_ERROR


@pytest.mark.parametrize(("version", "code"), [(V311, 5), (V5, 0x87)])
def test_the_broker_may_refuse(version: int, code: int) -> None:
    harness = RelayHarness(version, greeted=False)
    refused = encode_connack(Connack(False, code), version)
    harness.relay.from_broker(refused)
    assert harness.to_device == refused
    assert harness.relay.closing is close_reasons.BROKER_REFUSED


@VERSIONS
@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_messages_come_down(version: int, size: int) -> None:
    harness = RelayHarness(version)
    stream = (
        harness.publish("down/a", 2)
        + acks.PINGRESP
        + acks.acknowledge(acks.PUBACK, 1, version)
        + encode_packet(0xB0, b"\x00\x01")
        + harness.publish("news/x", payload=bytes(30_000))
        + harness.suback(1)
    )
    for chunk in chunks(stream, size):
        harness.relay.from_broker(chunk)
    assert harness.to_device == stream
    assert not harness.to_broker


@pytest.mark.parametrize(
    ("version", "answers"),
    [(V311, b"\x40\x02\x00\x06\x50\x02\x00\x07"), (V5, b"\x40\x03\x00\x06\x87\x50\x03\x00\x07\x87")],
)
def test_what_the_device_may_not_receive_stays_behind_and_is_acknowledged(version: int, answers: bytes) -> None:
    harness = RelayHarness(version)
    harness.relay.from_broker(
        harness.publish("old/a") + harness.publish("old/a", 1, 6) + harness.publish("old/a", 2, 7)
    )
    assert not harness.to_device
    assert harness.to_broker == answers
    assert harness.relay.answers == 2


def test_a_disconnect_of_the_broker_is_its_last_word() -> None:
    harness = RelayHarness(V5)
    harness.relay.from_broker(acks.disconnect(V5, Reason.SESSION_TAKEN_OVER) + harness.publish("down/a"))
    assert harness.to_device == b"\xe0\x01\x8e"
    assert harness.relay.closing is close_reasons.TAKEN_OVER
    harness.relay.disconnect(close_reasons.TAKEN_OVER)
    assert harness.to_device == b"\xe0\x01\x8e"
    for reason, closing in ((0x8D, close_reasons.KEEP_ALIVE_EXPIRED), (0x97, close_reasons.BROKER_CLOSED)):
        harness = RelayHarness(V5)
        harness.relay.from_broker(bytes((0xE0, 1, reason)))
        assert harness.relay.closing is closing


@pytest.mark.parametrize("first", [0x10, 0x82, 0xA2, 0xC0, 0xF0, 0x00])
def test_what_a_broker_must_not_send(first: int) -> None:
    assert RelayHarness(V5).ends(bytes((first, 0)), from_broker=True) is close_reasons.PROTOCOL_ERROR


RETAINED = Publish("news/x", b"x", 1, 6, retain=True)


@VERSIONS
def test_a_retained_message_from_the_broker_needs_no_permission(version: int) -> None:
    harness = RelayHarness(version, TopicPolicy((), ("news/+",), retain=False))
    harness.relay.from_broker(encode_publish(RETAINED, version))
    assert harness.to_device == encode_publish(RETAINED, version)
    assert not harness.notes


@VERSIONS
@pytest.mark.parametrize("retain", [True, False])
def test_a_retained_message_from_the_device_needs_permission(version: int, retain: bool) -> None:
    harness = RelayHarness(version, TopicPolicy(("up/#",), (), retain=retain))
    data = encode_publish(Publish("up/a", b"x", 1, 6, retain=True), version)
    harness.relay.from_device(data)
    assert bytes(harness.to_broker) == (data if retain else b"")
    answer = acks.acknowledge(acks.PUBACK, 6, version, Reason.NOT_AUTHORIZED, RETAIN_REFUSED)
    assert bytes(harness.to_device) == (b"" if retain else answer)
    assert harness.notes == ([] if retain else [("mqtt.publish", "refused", "up/a")])
    assert harness.reasons == ([] if retain else ["retain"])
    harness.relay.from_device(encode_publish(Publish("other", b"x", 1, 7, retain=True), version))
    assert harness.notes[-1] == ("mqtt.publish", "refused", "other")
    assert harness.reasons == ([] if retain else ["retain"])


def test_connack_says_that_retain_is_not_available() -> None:
    properties = ((Property.RETAIN_AVAILABLE, 1), (Property.RECEIVE_MAXIMUM, 20))
    for retain in (True, False):
        harness = RelayHarness(V5, TopicPolicy((), (), retain=retain), greeted=False)
        harness.relay.from_broker(encode_connack(Connack(False, 0, properties), V5))
        (packet,) = PacketReader().feed(bytes(harness.to_device))
        found = decode_connack(packet.body, V5).properties
        ours = ((Property.MAXIMUM_PACKET_SIZE, SIZE_MAX), (Property.TOPIC_ALIAS_MAXIMUM, 16))
        if retain:
            assert found == (*properties, *ours)
        else:
            assert found == ((Property.RECEIVE_MAXIMUM, 20), *ours, (Property.RETAIN_AVAILABLE, 0))


def test_a_smaller_maximum_of_the_broker_is_kept() -> None:
    harness = RelayHarness(V5, greeted=False)
    harness.relay.from_broker(encode_connack(Connack(False, 0, ((Property.MAXIMUM_PACKET_SIZE, 100),)), V5))
    (packet,) = PacketReader().feed(bytes(harness.to_device))
    announced = ((Property.MAXIMUM_PACKET_SIZE, 100), (Property.TOPIC_ALIAS_MAXIMUM, 16))
    assert decode_connack(packet.body, V5).properties == announced


def test_refused_deliveries_are_noted() -> None:
    harness = RelayHarness(V5)
    harness.relay.from_broker(harness.publish("old/a"))
    assert harness.notes == [("mqtt.deliver", "refused", "old/a")]
    assert harness.relay.answers == 0


def test_only_refusals_are_answered() -> None:
    harness = RelayHarness(V5, NARROW, greeted=False)
    relay, written = harness.relay, harness.to_device
    assert (relay.connack, relay.closing, relay.answers) == (None, None, 0)
    relay.from_device(encode_publish(Publish("up/a", b"x", 1, 6), V5))
    assert relay.answers == 0
    relay.from_device(encode_publish(Publish("up/b", b"x", 1, 6), V5))
    assert relay.answers == 1
    assert written.endswith(acks.acknowledge(acks.PUBACK, 6, V5, Reason.NOT_AUTHORIZED, TOPIC_REFUSED))


def test_answers_are_counted() -> None:
    harness = RelayHarness(V5)
    for count, data in enumerate(
        (harness.publish("other", 1), harness.publish("other", 2), harness.subscribe("#"), harness.subscribe("#")), 1
    ):
        harness.relay.from_device(data + harness.publish("up/a", 1))
        assert harness.relay.answers == count
    harness.relay.from_device(harness.publish("other") + harness.subscribe("#", "down/a"))
    assert harness.relay.answers == 4  # the broker answers


@VERSIONS
def test_the_last_packet_of_each_side_closes(version: int) -> None:
    harness = RelayHarness(version)
    assert harness.relay.from_device(harness.publish("up/a")) is None
    assert harness.relay.from_broker(harness.publish("down/a")) is None
    assert harness.relay.from_device(acks.disconnect(version)) is close_reasons.CLIENT_DISCONNECTED
    harness = RelayHarness(version)
    assert harness.relay.from_broker(acks.disconnect(version)) is close_reasons.BROKER_CLOSED


# Packets of our own


def test_an_answer_never_lands_within_another_packet() -> None:
    harness = RelayHarness(V5)
    message = harness.publish("down/a", payload=bytes(100_000))
    harness.relay.from_broker(message[:70_000])
    harness.relay.from_device(harness.publish("other", 1, 3))
    harness.relay.from_device(harness.subscribe("#", packet_id=4))
    assert harness.to_device == message[:70_000]
    harness.relay.from_broker(message[70_000:] + acks.PINGRESP)
    refused = acks.acknowledge(acks.PUBACK, 3, V5, Reason.NOT_AUTHORIZED, TOPIC_REFUSED)
    assert harness.to_device == message + refused + harness.explained(0x87, packet_id=4) + acks.PINGRESP


@pytest.mark.parametrize(
    ("properties", "explains"),
    [
        ((), True),
        (((Property.REQUEST_PROBLEM_INFORMATION, 1), (Property.MAXIMUM_PACKET_SIZE, 200)), True),
        (((Property.REQUEST_PROBLEM_INFORMATION, 0),), False),
        (((Property.MAXIMUM_PACKET_SIZE, 20),), False),
    ],
)
def test_why_is_said_where_the_device_takes_it(properties: Properties, explains: bool) -> None:
    harness = RelayHarness(V5, properties=properties)
    harness.relay.from_device(harness.publish("other", 1))
    text = TOPIC_REFUSED if explains else ""
    assert harness.to_device == acks.acknowledge(acks.PUBACK, 5, V5, Reason.NOT_AUTHORIZED, text)


@pytest.mark.parametrize("is_mixed", [False, True])
@pytest.mark.parametrize(
    ("properties", "short_by"),
    [
        ((), None),
        (((Property.REQUEST_PROBLEM_INFORMATION, 1),), None),
        (((Property.REQUEST_PROBLEM_INFORMATION, 0),), 1),
        ((), 0),
        ((), 1),
    ],
)
def test_a_suback_says_why_where_the_device_takes_it(
    properties: Properties, short_by: int | None, is_mixed: bool
) -> None:
    harness = RelayHarness(V5)
    filters, codes = (("#", "down/a"), (0x87, 1)) if is_mixed else (("#",), (0x87,))
    whole, bare = harness.explained(*codes), harness.suback(*codes)
    if short_by is not None and not properties:
        properties = ((Property.MAXIMUM_PACKET_SIZE, len(whole) - short_by),)
    harness = RelayHarness(V5, properties=properties)
    for byte in harness.subscribe(*filters):
        assert not harness.to_device
        harness.relay.from_device(bytes((byte,)))
    if is_mixed:
        for byte in harness.suback(1):
            assert not harness.to_device
            harness.relay.from_broker(bytes((byte,)))
    assert harness.to_device == (bare if short_by else whole)


def test_a_reason_string_of_the_broker_is_kept_and_not_doubled() -> None:
    harness = RelayHarness(V5)
    harness.relay.from_device(harness.subscribe("#", "down/a"))
    said = ((Property.USER_PROPERTY, ("a", "b")), *reason_string("Enough."))
    harness.relay.from_broker(encode_suback(Suback(1, (0x80,), said), V5))
    assert harness.to_device == encode_suback(Suback(1, (0x87, 0x80), said), V5)


def test_answers_that_wait_are_bounded() -> None:
    harness = RelayHarness(V5)
    harness.relay.from_broker(harness.publish("down/a", payload=bytes(100_000))[:70_000])
    assert harness.ends(harness.publish("other", 1) * (INJECTED_MAX + 1)) is close_reasons.QUOTA


@pytest.mark.parametrize(
    ("ending", "broker", "device"),
    [
        (
            close_reasons.device_ended("revoked"),
            b"\xe0\x00",
            b"\xe0\x21\x98\x1f\x1f\x00\x1cThe device has been revoked.",
        ),
        (close_reasons.CERTIFICATE_EXPIRED, b"", b"\xe0\x21\xa0\x1f\x1f\x00\x1cThe certificate has expired."),
        (close_reasons.CLIENT_GONE, b"", b""),
    ],
)
def test_taking_leave_of_both(ending: CloseReason, broker: bytes, device: bytes) -> None:
    harness = RelayHarness(V5)
    harness.relay.disconnect(ending)
    assert (bytes(harness.to_broker), bytes(harness.to_device)) == (broker, device)
    harness.relay.from_device(harness.publish("up/a"))
    harness.relay.from_broker(harness.publish("down/a"))
    assert (bytes(harness.to_broker), bytes(harness.to_device)) == (broker, device)
    old = RelayHarness(V311)
    old.relay.disconnect(ending)
    assert (bytes(old.to_broker), bytes(old.to_device)) == (broker, b"")


def test_before_connack_only_the_broker_gets_a_disconnect() -> None:
    harness = RelayHarness(V5, greeted=False)
    harness.relay.disconnect(close_reasons.DEVICE_ENDED)
    assert (bytes(harness.to_broker), bytes(harness.to_device)) == (b"\xe0\x00", b"")


def test_one_disconnect_to_each_side() -> None:
    harness = RelayHarness(V5)
    harness.relay.from_device(acks.disconnect(V5))
    harness.relay.disconnect(close_reasons.DEVICE_ENDED)
    assert (bytes(harness.to_broker), bytes(harness.to_device)) == (b"\xe0\x00", b"")
    harness = RelayHarness(V5)
    harness.relay.from_broker(acks.disconnect(V5, Reason.SERVER_BUSY))
    harness.relay.disconnect(close_reasons.SHUTTING_DOWN)
    assert (bytes(harness.to_broker), bytes(harness.to_device)) == (b"", b"\xe0\x01\x89")


def test_no_leave_is_taken_within_a_packet() -> None:
    harness = RelayHarness(V5)
    harness.relay.from_device(harness.publish("up/a", payload=bytes(100_000))[:70_000])
    harness.relay.from_broker(harness.publish("down/a", payload=bytes(100_000))[:70_000])
    harness.relay.disconnect(close_reasons.DEVICE_ENDED)
    assert len(harness.to_broker) == len(harness.to_device) == 70_000


# A policy that changes


def test_a_new_policy_is_asked_about_known_topics_too() -> None:
    harness = RelayHarness(V5)
    harness.relay.from_device(harness.publish("up/b") + harness.subscribe("down/a"))
    harness.relay.from_broker(harness.publish("down/b") + harness.suback(1))
    assert harness.relay.set_policy(NARROW)
    harness.to_broker.clear()
    harness.to_device.clear()
    harness.relay.from_device(harness.publish("up/b") + harness.publish("up/a"))
    harness.relay.from_broker(harness.publish("down/b") + harness.publish("down/a"))
    assert harness.to_broker == harness.publish("up/a")
    assert harness.to_device == harness.publish("down/a")
    harness.relay.from_device(harness.subscribe("down/b"))
    assert harness.to_device.endswith(harness.explained(0x87))


def test_a_filter_that_is_no_longer_allowed_is_found() -> None:
    harness = RelayHarness(V5)
    harness.relay.from_device(harness.subscribe("down/#"))
    assert not harness.relay.set_policy(NARROW)
    harness.relay.from_device(encode_unsubscribe(Unsubscribe(2, ("down/#",)), V5))
    assert harness.relay.set_policy(NARROW)


@pytest.mark.parametrize(
    ("version", "packet"),
    [(V5, b"\xe0\x03\x00\x05\x11"), (V5, b"\xe0\x02\x00\x80"), (V311, b"\xe0\x01\x00")],
    ids=["properties", "length", "3.1.1"],
)
def test_a_malformed_disconnect_does_not_reach_the_broker(version: int, packet: bytes) -> None:
    harness = RelayHarness(version)
    del harness.to_broker[:]
    with pytest.raises(Malformed):
        harness.relay.from_device(packet)
    assert harness.to_broker == b""
    assert harness.relay.farewell is None
