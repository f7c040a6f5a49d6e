"""A live session without sockets: subscriptions, the broker's side, packets of our own, policies that change."""

import pytest

from fleet.domain.topic_policy import TopicPolicy
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason
from fleet.servers.gateway.packet_filter import INJECTED_MAX
from fleet.wire.errors import WireError
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, Reason
from fleet.wire.mqtt.connect import Connack, decode_connack, encode_connack
from fleet.wire.mqtt.fields import encode_packet
from fleet.wire.mqtt.properties import Property
from fleet.wire.mqtt.reader import PacketReader
from fleet.wire.mqtt.subscribe import (
    Subscribe,
    Subscription,
    Unsubscribe,
    encode_subscribe,
    encode_unsubscribe,
)
from tests.servers.gateway_stage import NARROW, SIZE_MAX, VERSIONS, Stage, chunks

# SUBSCRIBE


@pytest.mark.parametrize(("version", "code"), [(V311, 0x80), (V5, 0x87)])
@pytest.mark.parametrize("topic_filter", ["#", "+/x", "$SYS/#", "$share/g/other", "down", "devices/b/#"])
def test_a_refused_filter_never_reaches_the_broker(version: int, code: int, topic_filter: str) -> None:
    stage = Stage(version, TopicPolicy((), ("down/+",)))
    stage.relay.from_device(stage.subscribe(topic_filter, packet_id=7))
    assert not stage.to_broker
    assert stage.to_device == stage.suback(code, packet_id=7)
    assert stage.notes == [("mqtt.subscribe", "refused", topic_filter)]


@pytest.mark.parametrize(("version", "code", "bad"), [(V311, 0x80, 0x80), (V5, 0x87, 0x8F)])
def test_a_mixed_subscribe_gets_one_whole_suback(version: int, code: int, bad: int) -> None:
    stage = Stage(version)
    stage.relay.from_device(stage.subscribe("#", "down/a", "a#", "$share/g/news/+", "other"))
    assert stage.to_broker == stage.subscribe("down/a", "$share/g/news/+")
    assert not stage.to_device
    stage.relay.from_broker(stage.suback(9, packet_id=2) + stage.suback(1, 2))
    assert stage.to_device == stage.suback(9, packet_id=2) + stage.suback(code, 1, bad, 2, code)
    stage.relay.from_broker(stage.suback(0))  # answered once
    assert stage.to_device.endswith(stage.suback(0))


def test_subscription_properties_are_kept() -> None:
    stage = Stage(V5)
    properties = ((Property.SUBSCRIPTION_IDENTIFIER, 300),)
    asked = Subscribe(1, (Subscription("#", 0x2D), Subscription("down/a", 0x2D)), properties)
    stage.relay.from_device(encode_subscribe(asked, V5))
    assert stage.to_broker == encode_subscribe(Subscribe(1, (Subscription("down/a", 0x2D),), properties), V5)


def test_a_suback_that_is_too_short_is_filled_with_failures() -> None:
    stage = Stage(V5)
    stage.relay.from_device(stage.subscribe("#", "down/a", "down/b"))
    stage.relay.from_broker(stage.suback(1))
    assert stage.to_device == stage.suback(0x87, 1, 0x80)


def test_pending_subscribes_are_bounded() -> None:
    stage = Stage(V5)
    for packet_id in range(1, 65):
        stage.relay.from_device(stage.subscribe("#", "down/a", packet_id=packet_id))
    stage.relay.from_device(stage.subscribe("#", "down/a", packet_id=1))
    assert stage.ends(stage.subscribe("#", "down/a", packet_id=99)) is close_reasons.QUOTA


def test_filters_held_are_bounded() -> None:
    stage = Stage(V5)
    for n in range(10):
        stage.relay.from_device(stage.subscribe(*(f"down/{n}/{m}" for m in range(100))))
    stage.relay.from_device(stage.subscribe("down/a"))
    assert stage.to_device == stage.suback(0x97)
    stage.relay.from_device(encode_unsubscribe(Unsubscribe(2, ("down/0/0",)), V5))
    stage.to_device.clear()
    stage.relay.from_device(stage.subscribe("down/a") + stage.subscribe("down/a"))
    assert not stage.to_device
    for n in range(3):
        stage = Stage(V5)
        stage.relay.from_device(stage.subscribe("down/" + "x" * 60_000))
        stage.relay.from_device(stage.subscribe("down/" + "y" * 60_000, packet_id=n + 1))
        assert stage.to_device == stage.suback(0x97, packet_id=n + 1)


@VERSIONS
def test_a_malformed_subscribe(version: int) -> None:
    for body in (b"\x00\x01", b"\x00\x00\x00", b"\x00\x01\x00\x01\xff\x00"):
        with pytest.raises(WireError):
            Stage(version).relay.from_device(encode_packet(0x82, body))


# The broker's side


def test_connack_loses_its_aliases_and_learns_our_cap() -> None:
    stage = Stage(V5, greeted=False)
    properties = (
        (Property.TOPIC_ALIAS_MAXIMUM, 10),
        (Property.RECEIVE_MAXIMUM, 20),
        (Property.MAXIMUM_PACKET_SIZE, 2**31),
    )
    stage.relay.from_broker(encode_connack(Connack(True, 0, properties), V5))
    (packet,) = PacketReader().feed(bytes(stage.to_device))
    expected = ((Property.RECEIVE_MAXIMUM, 20), (Property.MAXIMUM_PACKET_SIZE, SIZE_MAX))
    assert decode_connack(packet.body, V5) == Connack(True, 0, expected)
    assert stage.ends(encode_connack(Connack(False, 0), V5), from_broker=True) is close_reasons.PROTOCOL_ERROR


@pytest.mark.parametrize(("version", "code"), [(V311, 5), (V5, 0x87)])
def test_the_broker_may_refuse(version: int, code: int) -> None:
    stage = Stage(version, greeted=False)
    refused = encode_connack(Connack(False, code), version)
    stage.relay.from_broker(refused)
    assert stage.to_device == refused
    assert stage.relay.closing is close_reasons.BROKER_REFUSED


@VERSIONS
@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_messages_come_down(version: int, size: int) -> None:
    stage = Stage(version)
    stream = (
        stage.publish("down/a", 2)
        + acks.PINGRESP
        + acks.acknowledge(acks.PUBACK, 1, version)
        + encode_packet(0xB0, b"\x00\x01")
        + stage.publish("news/x", payload=bytes(30_000))
        + stage.suback(1)
    )
    for chunk in chunks(stream, size):
        stage.relay.from_broker(chunk)
    assert stage.to_device == stream
    assert not stage.to_broker


@pytest.mark.parametrize(
    ("version", "answers"),
    [(V311, b"\x40\x02\x00\x06\x50\x02\x00\x07"), (V5, b"\x40\x03\x00\x06\x87\x50\x03\x00\x07\x87")],
)
def test_what_the_device_may_not_receive_stays_behind_and_is_acknowledged(version: int, answers: bytes) -> None:
    stage = Stage(version)
    stage.relay.from_broker(stage.publish("old/a") + stage.publish("old/a", 1, 6) + stage.publish("old/a", 2, 7))
    assert not stage.to_device
    assert stage.to_broker == answers
    assert stage.relay.answers == 2


def test_a_disconnect_of_the_broker_is_its_last_word() -> None:
    stage = Stage(V5)
    stage.relay.from_broker(acks.disconnect(V5, Reason.SESSION_TAKEN_OVER) + stage.publish("down/a"))
    assert stage.to_device == b"\xe0\x01\x8e"
    assert stage.relay.closing is close_reasons.BROKER_CLOSED
    stage.relay.disconnect(close_reasons.BROKER_CLOSED)
    assert stage.to_device == b"\xe0\x01\x8e"


@pytest.mark.parametrize("first", [0x10, 0x82, 0xA2, 0xC0, 0xF0, 0x00])
def test_what_a_broker_must_not_send(first: int) -> None:
    assert Stage(V5).ends(bytes((first, 0)), from_broker=True) is close_reasons.PROTOCOL_ERROR


# Packets of our own


def test_an_answer_never_lands_within_another_packet() -> None:
    stage = Stage(V5)
    message = stage.publish("down/a", payload=bytes(100_000))
    stage.relay.from_broker(message[:70_000])
    stage.relay.from_device(stage.publish("other", 1, 3))
    stage.relay.from_device(stage.subscribe("#", packet_id=4))
    assert stage.to_device == message[:70_000]
    stage.relay.from_broker(message[70_000:] + acks.PINGRESP)
    assert stage.to_device == message + b"\x40\x03\x00\x03\x87" + stage.suback(0x87, packet_id=4) + acks.PINGRESP


def test_answers_that_wait_are_bounded() -> None:
    stage = Stage(V5)
    stage.relay.from_broker(stage.publish("down/a", payload=bytes(100_000))[:70_000])
    assert stage.ends(stage.publish("other", 1) * (INJECTED_MAX + 1)) is close_reasons.QUOTA


@pytest.mark.parametrize(
    ("ending", "broker", "device"),
    [
        (close_reasons.DEVICE_ENDED, b"\xe0\x00", b"\xe0\x01\x98"),
        (close_reasons.CERTIFICATE_EXPIRED, b"", b"\xe0\x01\xa0"),
        (close_reasons.CLIENT_GONE, b"", b""),
    ],
)
def test_taking_leave_of_both(ending: CloseReason, broker: bytes, device: bytes) -> None:
    stage = Stage(V5)
    stage.relay.disconnect(ending)
    assert (bytes(stage.to_broker), bytes(stage.to_device)) == (broker, device)
    stage.relay.from_device(stage.publish("up/a"))
    stage.relay.from_broker(stage.publish("down/a"))
    assert (bytes(stage.to_broker), bytes(stage.to_device)) == (broker, device)
    old = Stage(V311)
    old.relay.disconnect(ending)
    assert (bytes(old.to_broker), bytes(old.to_device)) == (broker, b"")


def test_no_leave_is_taken_within_a_packet() -> None:
    stage = Stage(V5)
    stage.relay.from_device(stage.publish("up/a", payload=bytes(100_000))[:70_000])
    stage.relay.from_broker(stage.publish("down/a", payload=bytes(100_000))[:70_000])
    stage.relay.disconnect(close_reasons.DEVICE_ENDED)
    assert len(stage.to_broker) == len(stage.to_device) == 70_000


# A policy that changes


def test_a_new_policy_is_asked_about_known_topics_too() -> None:
    stage = Stage(V5)
    stage.relay.from_device(stage.publish("up/b") + stage.subscribe("down/a"))
    stage.relay.from_broker(stage.publish("down/b"))
    assert stage.relay.set_policy(NARROW)
    stage.to_broker.clear()
    stage.to_device.clear()
    stage.relay.from_device(stage.publish("up/b") + stage.publish("up/a"))
    stage.relay.from_broker(stage.publish("down/b") + stage.publish("down/a"))
    assert stage.to_broker == stage.publish("up/a")
    assert stage.to_device == stage.publish("down/a")
    stage.relay.from_device(stage.subscribe("down/b"))
    assert stage.to_device.endswith(stage.suback(0x87))


def test_a_filter_that_is_no_longer_allowed_is_found() -> None:
    stage = Stage(V5)
    stage.relay.from_device(stage.subscribe("down/#"))
    assert not stage.relay.set_policy(NARROW)
    stage.relay.from_device(encode_unsubscribe(Unsubscribe(2, ("down/#",)), V5))
    assert stage.relay.set_policy(NARROW)
