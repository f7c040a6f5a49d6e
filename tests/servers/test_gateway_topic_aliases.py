"""Topic aliases of both sides, and Response Topics, wherever the stream is cut."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.domain.mqtt_rules import MqttRules
from fleet.domain.topic_policy import TopicPolicy
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.limits.in_flight import MESSAGE_BYTES
from fleet.servers.gateway.limits.limits import ALIASED_TOPIC_SIZE_MAX
from fleet.servers.gateway.relay.publish_head import ALIASES_MAX
from fleet.servers.gateway.relay.reason_strings import RESPONSE_REFUSED, RETAIN_REFUSED, TOPIC_REFUSED
from fleet.wire.errors import Malformed
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, PacketType, Reason
from fleet.wire.mqtt.connect import Connack, encode_connack
from fleet.wire.mqtt.fields import encode_packet
from fleet.wire.mqtt.properties import Properties, Property
from fleet.wire.mqtt.publish import Publish, decode_publish, encode_publish
from fleet.wire.mqtt.reader import PacketReader
from tests.servers.gateway_relay_harness import POLICY, SIZE_MAX, RelayHarness, chunks

CONTENT = ((Property.CONTENT_TYPE, "##"), (Property.USER_PROPERTY, ("#", "\x08")), (Property.CORRELATION_DATA, b"\x23"))
NO_RETAIN = TopicPolicy(POLICY.publish, POLICY.subscribe, retain=False)


def aliased(alias: int, topic: str = "", qos: int = 0, properties: Properties = (), payload: bytes = b"x") -> Publish:
    return Publish(topic, payload, qos, 5 if qos else 0, properties=((Property.TOPIC_ALIAS, alias), *properties))


def asking(response: str, topic: str = "up/a", qos: int = 0) -> Publish:
    return Publish(topic, b"x", qos, 5 if qos else 0, properties=((Property.RESPONSE_TOPIC, response),))


def in_full(publish: Publish, topic: str) -> Publish:
    rest = tuple(each for each in publish.properties if each[0] != Property.TOPIC_ALIAS)
    return replace(publish, topic=topic, properties=rest)


def stream_of(*messages: Publish) -> bytes:
    return b"".join(encode_publish(each, V5) for each in messages)


def messages_of(stream: bytes | bytearray) -> list[Publish]:
    packets = PacketReader().feed(bytes(stream))
    return [decode_publish(each.first, each.body, V5) for each in packets if each.type is PacketType.PUBLISH]


def refusal(text: str, first: int = acks.PUBACK) -> bytes:
    return acks.acknowledge(first, 5, V5, Reason.NOT_AUTHORIZED, text)


# From the device


def test_the_broker_gets_topics_in_full_cut_at_every_byte() -> None:
    plain = Publish("up/b", b"plain")
    used = [
        (aliased(1, "up/a"), "up/a"),
        (aliased(1), "up/a"),
        (plain, "up/b"),
        (aliased(16, "up/last", 1, CONTENT), "up/last"),
        (aliased(16, "", 2, CONTENT), "up/last"),
        (aliased(1, "up/c", 1), "up/c"),  # set anew
        (aliased(1, "", 0, ((Property.RESPONSE_TOPIC, "down/r"), *CONTENT)), "up/c"),
        (aliased(16), "up/last"),
    ]
    stream = stream_of(*(message for message, _ in used))
    expected = stream_of(*(in_full(message, topic) for message, topic in used))
    for cut in range(len(stream) + 1):
        harness = RelayHarness(V5)
        for part in (stream[:cut], stream[cut:]):
            harness.relay.from_device(part)
        assert harness.to_broker == expected
        assert not harness.to_device
        assert not harness.notes


@pytest.mark.parametrize("size", [1, 1000, 65_536, 65_537, 1 << 20])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_long_publish_with_an_alias(size: int, qos: int) -> None:
    long = aliased(3, "", qos, CONTENT, bytes(70_000))
    harness = RelayHarness(V5)
    for chunk in chunks(stream_of(aliased(3, "up/a"), long, Publish("up/b", b"after")), size):
        harness.relay.from_device(chunk)
    expected = (in_full(aliased(3), "up/a"), in_full(long, "up/a"), Publish("up/b", b"after"))
    assert harness.to_broker == stream_of(*expected)


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_a_long_refused_publish_with_an_alias_stays_behind(size: int) -> None:
    harness = RelayHarness(V5)
    stream = stream_of(aliased(3, "other"), aliased(3, "", 1, CONTENT, bytes(70_000)), Publish("up/b", b"after"))
    for chunk in chunks(stream, size):
        harness.relay.from_device(chunk)
    assert harness.to_broker == stream_of(Publish("up/b", b"after"))
    assert harness.to_device == refusal(TOPIC_REFUSED)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_an_alias_that_nobody_has_set_ends_the_session(qos: int) -> None:
    harness = RelayHarness(V5)
    harness.relay.from_device(stream_of(aliased(1, "up/a")))
    good = bytes(harness.to_broker)
    assert harness.ends(stream_of(aliased(2, "", qos))) is close_reasons.PROTOCOL_ERROR
    assert harness.to_broker == good
    # Another connection knows none of this one.
    assert RelayHarness(V5).ends(stream_of(aliased(1))) is close_reasons.PROTOCOL_ERROR


def test_the_alias_of_a_refused_message_is_set_all_the_same() -> None:
    harness = RelayHarness(V5)
    harness.relay.from_device(stream_of(aliased(1, "other", 1), aliased(1), aliased(1, "", 1), Publish("up/a", b"")))
    assert harness.to_broker == stream_of(Publish("up/a", b""))
    assert harness.to_device == refusal(TOPIC_REFUSED) * 2
    assert harness.notes == [("mqtt.publish", "refused", "other")] * 3


def test_a_message_withheld_for_its_retain_flag_takes_no_alias_from_the_broker() -> None:
    harness = RelayHarness(V5, NO_RETAIN)
    harness.relay.from_device(stream_of(replace(aliased(1, "up/a", 1), retain=True), aliased(1)))
    assert harness.to_device == refusal(RETAIN_REFUSED)
    assert harness.to_broker == stream_of(in_full(aliased(1), "up/a"))


def test_an_alias_is_judged_by_the_policy_of_its_use() -> None:
    harness = RelayHarness(V5)
    harness.relay.from_device(stream_of(aliased(1, "up/a"), aliased(2, "other")))
    harness.to_broker.clear()
    harness.relay.set_policy(TopicPolicy(("other",), ()))
    harness.relay.from_device(stream_of(aliased(1), aliased(2)))
    assert harness.to_broker == stream_of(in_full(aliased(2), "other"))
    assert harness.notes[-1] == ("mqtt.publish", "refused", "up/a")


@pytest.mark.parametrize("topic", ["up/#", "up/+", "up/\0"])
def test_an_alias_for_what_is_no_topic(topic: str) -> None:
    with pytest.raises(Malformed):
        RelayHarness(V5).relay.from_device(stream_of(aliased(1, topic)))


def test_memory_of_a_register_is_bounded() -> None:
    assert (ALIASES_MAX, ALIASED_TOPIC_SIZE_MAX) == (16, 256)
    harness = RelayHarness(V5)
    longest = "up/" + "x" * (ALIASED_TOPIC_SIZE_MAX - 3)
    harness.relay.from_device(stream_of(*(aliased(n, longest) for n in range(1, ALIASES_MAX + 1))))
    assert len(messages_of(harness.to_broker)) == ALIASES_MAX
    harness.relay.from_device(stream_of(Publish(longest + "y", b"x")))  # without an alias, any length is fine
    reason = harness.ends(stream_of(aliased(1, longest + "y")))
    assert reason is close_reasons.ALIASED_TOPIC_TOO_LONG
    assert str(ALIASED_TOPIC_SIZE_MAX) in reason.text


def test_a_topic_in_place_of_an_alias_counts() -> None:
    topic = "up/" + "x" * 200
    for payload, fits in ((SIZE_MAX - 300, True), (SIZE_MAX - 20, False)):
        harness = RelayHarness(V5)
        harness.relay.from_device(stream_of(aliased(1, topic)))
        grown = harness.relay.to_broker.growth
        assert grown == 0
        short = aliased(1, "", 2, payload=bytes(payload))
        if not fits:
            assert harness.ends(stream_of(short)) is close_reasons.TOO_LARGE
            continue
        harness.relay.from_device(stream_of(short))
        long = stream_of(in_full(short, topic))
        assert harness.to_broker.endswith(long)
        assert harness.relay.to_broker.growth == len(long) - len(stream_of(short)) == len(topic) - 3
        assert harness.relay.in_flight._bytes == len(long) + MESSAGE_BYTES


def test_a_topic_in_place_of_an_alias_keeps_to_the_brokers_packet_size() -> None:
    topic = "up/" + "x" * 100
    for size_max, fits in ((len(topic) + 15, True), (len(topic) + 14, False)):
        harness = RelayHarness(V5, greeted=False)
        harness.relay.from_broker(encode_connack(Connack(False, 0, ((Property.MAXIMUM_PACKET_SIZE, size_max),)), V5))
        harness.relay.from_device(stream_of(aliased(1, topic, payload=b"")))
        short = stream_of(aliased(1, payload=bytes(10)))
        if fits:
            harness.relay.from_device(short)
            assert len(harness.to_broker) == len(topic) + 5 + size_max
        else:
            assert harness.ends(short) is close_reasons.TOO_LARGE


ALIASED = st.builds(
    aliased,
    st.integers(1, 3),
    st.sampled_from(["", "", "up/a", "up/b/c", "other"]),
    st.integers(0, 2),
    st.sampled_from([(), CONTENT, ((Property.RESPONSE_TOPIC, "down/r"),)]),
    st.sampled_from([b"", b"x", bytes(200)]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ALIASED, max_size=12), st.lists(st.integers(0, 3000), max_size=6))
def test_any_sequence_of_aliases_is_resolved(messages: list[Publish], cuts: list[int]) -> None:
    register: dict[int, str] = {}
    expected, known = [], []
    for message in messages:
        alias = message.alias
        assert alias is not None
        if not message.topic and alias not in register:
            continue
        topic = register[alias] = message.topic or register[alias]
        known.append(message)
        if topic != "other":
            expected.append(in_full(message, topic))
    stream, harness = stream_of(*known), RelayHarness(V5)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for at, stop in pairwise(places):
        harness.relay.from_device(stream[at:stop])
    assert harness.to_broker == stream_of(*expected)


# To the device


def taking(aliases_max: int, size_max: int | None = None) -> RelayHarness:
    limits: Properties = ((Property.TOPIC_ALIAS_MAXIMUM, aliases_max),)
    if size_max is not None:
        limits = (*limits, (Property.MAXIMUM_PACKET_SIZE, size_max))
    return RelayHarness(V5, properties=limits)


def resolved(stream: bytes | bytearray, aliases_max: int) -> list[Publish]:
    """What the device makes of it."""
    register: dict[int, str] = {}
    found = []
    for message in messages_of(stream):
        if message.alias is not None:
            assert 0 < message.alias <= aliases_max
            if message.topic:
                register[message.alias] = message.topic
            message = in_full(message, register[message.alias])
        found.append(message)
    return found


def test_topics_that_repeat_get_an_alias_cut_at_every_byte() -> None:
    topic, other = "down/commands/lamp", "news/today"
    messages = [
        Publish(topic, b"1"),
        Publish(topic, b"2", 1, 7, properties=CONTENT),  # the alias is set
        Publish("refused/refused", b"3"),
        Publish(topic, b"4", 2, 8, retain=True, properties=CONTENT),
        Publish(other, b"5"),
        Publish("down/once", b"6"),
        Publish(other, b"7"),
        Publish(topic, bytes(200)),
        Publish(other, bytes(70_000)),
        Publish(other, b"8"),
    ]
    stream = stream_of(*messages)
    expected = [each for each in messages if each.topic != "refused/refused"]
    for cut in (*range(300), *range(len(stream) - 100, len(stream) + 1), 65_536, 66_000):
        harness = taking(5)
        harness.relay.from_broker(stream[:cut])
        harness.relay.from_broker(stream[cut:])
        assert resolved(harness.to_device, 5) == expected
        written = messages_of(harness.to_device)
        assert [each.alias for each in written[:-2]] == [None, 1, 1, None, None, 2, 1]
        assert [each.topic for each in written[:-2]] == [topic, topic, "", other, "down/once", other, ""]
        assert (written[-1].alias, written[-1].topic) == (2, "")
        assert not harness.to_broker


@pytest.mark.parametrize("aliases_max", [1, 2, 16, 65_535])
def test_no_more_aliases_than_the_device_takes(aliases_max: int) -> None:
    harness = taking(aliases_max)
    messages = [Publish(f"down/topic/{n}", b"x") for n in range(20)] * 3
    harness.relay.from_broker(stream_of(*messages))
    ours = min(aliases_max, ALIASES_MAX)
    assert resolved(harness.to_device, aliases_max) == messages
    assert {each.alias for each in messages_of(harness.to_device)} == {None, *range(1, ours + 1)}


@pytest.mark.parametrize("harness", [RelayHarness(V5), taking(0)])
def test_a_device_that_takes_no_aliases_gets_none(harness: RelayHarness) -> None:
    stream = stream_of(*[Publish("down/commands/lamp", b"x")] * 4)
    harness.relay.from_broker(stream)
    assert harness.to_device == stream


def test_an_alias_makes_no_packet_longer_than_the_device_takes() -> None:
    message = Publish("down/commands/lamp", b"x")
    stream = stream_of(message)
    for size_max, aliases in ((len(stream), [None] * 3), (len(stream) + 3, [None, 1, 1])):
        harness = taking(5, size_max)
        harness.relay.from_broker(stream * 3)
        assert resolved(harness.to_device, 5) == [message] * 3
        assert [each.alias for each in messages_of(harness.to_device)] == aliases
        assert all(len(stream_of(each)) <= size_max for each in messages_of(harness.to_device))


def test_aliases_cost_no_octets() -> None:
    for topic in ("down/a", "down/ab", "down/abc", "news/" + "x" * 251, "news/" + "x" * 252):
        stream = stream_of(*[Publish(topic, b"x")] * 10)
        harness = taking(16)
        harness.relay.from_broker(stream)
        assert len(harness.to_device) <= len(stream)
        assert (len(harness.to_device) < len(stream)) == (8 <= len(topic) <= ALIASED_TOPIC_SIZE_MAX)


def test_a_topic_that_the_model_takes_away_is_refused_whatever_its_alias() -> None:
    harness = taking(5)
    stream = stream_of(*[Publish("down/commands/lamp", b"x")] * 3)
    harness.relay.from_broker(stream)
    harness.to_device.clear()
    harness.relay.set_policy(TopicPolicy((), ("news/+",)))
    harness.relay.from_broker(stream)
    assert not harness.to_device
    harness.relay.set_policy(POLICY)
    harness.relay.from_broker(stream)
    assert [each.alias for each in messages_of(harness.to_device)] == [None, 1, 1]
    assert harness.to_device.count(b"down/commands/lamp") == 1


# Response Topics


@pytest.mark.parametrize("response", ["down/r", "down/a/b", "news/x", "down"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_response_where_the_device_may_subscribe(response: str, qos: int) -> None:
    harness = RelayHarness(V5)
    stream = stream_of(asking(response, qos=qos)) * 2
    for chunk in chunks(stream, 3):
        harness.relay.from_device(chunk)
    assert harness.to_broker == stream
    assert not harness.to_device


@pytest.mark.parametrize("response", ["up/a", "devices/b/down", "$SYS/x", "$share/g/down/a", "news/a/b"])
@pytest.mark.parametrize(("qos", "first"), [(0, 0), (1, acks.PUBACK), (2, acks.PUBREC)])
def test_a_response_elsewhere_is_refused_cut_at_every_byte(response: str, qos: int, first: int) -> None:
    good = Publish("up/a", b"good")
    stream = stream_of(good, asking(response, qos=qos), good)
    for cut in range(len(stream) + 1):
        harness = RelayHarness(V5)
        harness.relay.from_device(stream[:cut])
        harness.relay.from_device(stream[cut:])
        assert harness.to_broker == stream_of(good, good)
        assert harness.to_device == (refusal(RESPONSE_REFUSED, first) if qos else b"")
        assert harness.notes == [("mqtt.publish", "response-refused", response)]
        assert not harness.relay.in_flight


def test_the_model_may_let_responses_go_anywhere() -> None:
    harness = RelayHarness(V5)
    harness.relay.rules = MqttRules(check_response_topic=False)
    stream = stream_of(asking("devices/b/down", qos=1))
    harness.relay.from_device(stream)
    assert harness.to_broker == stream
    assert harness.ends(stream_of(asking("devices/+/down"))) is close_reasons.PROTOCOL_ERROR


@pytest.mark.parametrize("response", ["down/#", "down/+", "#", ""])
def test_a_response_topic_that_is_no_topic_name_ends_the_session(response: str) -> None:
    harness = RelayHarness(V5)
    assert harness.ends(stream_of(asking(response))) is close_reasons.PROTOCOL_ERROR
    assert not harness.to_broker


@pytest.mark.parametrize(
    "properties", [b"\x07\x88\x00\x00\x03x/y", b"\x04\xa3\x00\x00\x01", b"\x0c\x08\0\3x/y\x08\0\3x/y"]
)
def test_neither_is_overlooked_in_another_encoding_or_twice(properties: bytes) -> None:
    harness = RelayHarness(V5)
    with pytest.raises(Malformed):
        harness.relay.from_device(encode_packet(0x30, b"\0\4up/a" + properties))
    assert not harness.to_broker


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_a_long_publish_with_a_response_elsewhere(size: int) -> None:
    harness = RelayHarness(V5)
    for chunk in chunks(stream_of(replace(asking("up/a", qos=1), payload=bytes(100_000)), Publish("up/a", b"")), size):
        harness.relay.from_device(chunk)
    assert harness.to_broker == stream_of(Publish("up/a", b""))
    assert harness.to_device == refusal(RESPONSE_REFUSED)


def test_a_response_topic_to_the_device_is_the_asking_sides() -> None:
    harness = RelayHarness(V5)
    stream = stream_of(asking("backend/answers", "down/a"))
    harness.relay.from_broker(stream)
    assert harness.to_device == stream
