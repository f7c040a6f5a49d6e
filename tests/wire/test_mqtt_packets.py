"""MQTT packets: what is encoded is decoded again, and what breaks the specification is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.wire.errors import Malformed, TooLarge, Unsupported, WireError
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason, flags_are_legal
from fleet.wire.mqtt.connect import (
    Connack,
    Connect,
    Will,
    decode_connack,
    decode_connect,
    encode_connack,
    encode_connect,
    refusal,
    version_of_refused,
)
from fleet.wire.mqtt.fields import Fields, encode_varint, utf8
from fleet.wire.mqtt.properties import Property, decode_properties, encode_properties, value_of, without
from fleet.wire.mqtt.publish import Publish, decode_publish, encode_publish
from fleet.wire.mqtt.reader import Packet, PacketReader
from fleet.wire.mqtt.subscribe import (
    Suback,
    Subscribe,
    Subscription,
    Unsubscribe,
    decode_suback,
    decode_subscribe,
    decode_unsubscribe,
    encode_suback,
    encode_subscribe,
    encode_unsubscribe,
)

NAMES = st.text(st.characters(exclude_characters="\0+#", codec="utf-8"), min_size=1, max_size=20)
VERSIONS = st.sampled_from((V311, V5))


def whole(data: bytes) -> Packet:
    """The one packet that `data` is."""
    (packet,) = PacketReader().feed(data)
    assert packet.encode() == data
    return packet


def test_connect_of_311_is_what_the_specification_shows() -> None:
    # MQTT 3.1.1, 3.1.2.10 and 3.1.3: level 4, flags, keep alive, then client id, will, user name, password
    data = b"\x10\x27\x00\x04MQTT\x04\xce\x00\x0a\x00\x03cam\x00\x04w/ll\x00\x02by\x00\x04user\x00\x06secret"
    connect = decode_connect(whole(data).body)
    assert connect == Connect(V311, "cam", True, 10, Will("w/ll", b"by", 1), "user", b"secret")
    assert encode_connect(connect) == data


PROPERTY_LISTS = st.lists(
    st.one_of(
        st.tuples(st.just(Property.SESSION_EXPIRY_INTERVAL), st.integers(0, 2**32 - 1)),
        st.tuples(st.just(Property.RECEIVE_MAXIMUM), st.integers(1, 2**16 - 1)),
        st.tuples(st.just(Property.REQUEST_PROBLEM_INFORMATION), st.integers(0, 1)),
        st.tuples(st.just(Property.USER_PROPERTY), st.tuples(NAMES, NAMES)),
    ),
    max_size=4,
    unique_by=lambda p: p[0],
).map(tuple)


@settings(deadline=None)
@given(
    VERSIONS, NAMES, st.booleans(), st.integers(0, 65535), st.binary(max_size=300), st.integers(0, 2), PROPERTY_LISTS
)
def test_connect_comes_back(
    version: int, name: str, flag: bool, alive: int, payload: bytes, qos: int, properties: tuple[tuple[int, int], ...]
) -> None:
    will = Will(name, payload, qos, flag, ((Property.WILL_DELAY_INTERVAL, 7),) if version == V5 else ())
    given_properties = properties if version == V5 else ()
    connect = Connect(version, name, flag, alive, will if flag else None, name, payload, given_properties)
    assert decode_connect(whole(encode_connect(connect)).body) == connect


@settings(deadline=None)
@given(VERSIONS, NAMES, st.binary(max_size=300), st.integers(0, 2), st.booleans())
def test_publish_comes_back(version: int, topic: str, payload: bytes, qos: int, flag: bool) -> None:
    properties = ((Property.CONTENT_TYPE, "text"), (Property.USER_PROPERTY, ("a", "b"))) if version == V5 else ()
    publish = Publish(topic, payload, qos, 9 if qos else 0, flag, flag, properties)
    packet = whole(encode_publish(publish, version))
    assert decode_publish(packet.first, packet.body, version) == publish


@settings(deadline=None)
@given(VERSIONS, st.lists(NAMES, min_size=1, max_size=5), st.integers(0, 2))
def test_subscribe_and_the_rest_come_back(version: int, filters: list[str], qos: int) -> None:
    properties = ((Property.SUBSCRIPTION_IDENTIFIER, 200),) if version == V5 else ()
    asked = Subscribe(3, tuple(Subscription(f, qos) for f in filters), properties)
    assert decode_subscribe(whole(encode_subscribe(asked, version)).body, version) == asked
    left = Unsubscribe(4, tuple(filters))
    assert decode_unsubscribe(whole(encode_unsubscribe(left, version)).body, version) == left
    answer = Suback(3, tuple(qos for _ in filters))
    assert decode_suback(whole(encode_suback(answer, version)).body, version) == answer


def test_connack_comes_back() -> None:
    for version, properties in (
        (V311, ()),
        (V5, ((Property.ASSIGNED_CLIENT_IDENTIFIER, "x"), (Property.RECEIVE_MAXIMUM, 5))),
    ):
        connack = Connack(True, 0, properties)
        assert decode_connack(whole(encode_connack(connack, version)).body, version) == connack


def test_a_refusal_speaks_each_version() -> None:
    assert refusal(Reason.NOT_AUTHORIZED, V311) == b"\x20\x02\x00\x05"
    assert refusal(Reason.BANNED, V311) == b"\x20\x02\x00\x05"
    assert refusal(Reason.CLIENT_IDENTIFIER_NOT_VALID, V311) == b"\x20\x02\x00\x02"
    assert refusal(Reason.SERVER_UNAVAILABLE, V311) == b"\x20\x02\x00\x03"
    assert refusal(Reason.BANNED, V5) == b"\x20\x03\x00\x8a\x00"


def test_acknowledgements_and_disconnect() -> None:
    assert acks.acknowledge(acks.PUBACK, 258, V311, Reason.NOT_AUTHORIZED) == b"\x40\x02\x01\x02"
    assert acks.acknowledge(acks.PUBACK, 258, V5, Reason.NOT_AUTHORIZED) == b"\x40\x03\x01\x02\x87"
    assert acks.acknowledge(acks.PUBREL, 1, V5) == b"\x62\x02\x00\x01"
    assert acks.disconnect(V311, Reason.NOT_AUTHORIZED) == b"\xe0\x00"
    assert acks.disconnect(V5) == b"\xe0\x00"
    assert acks.disconnect(V5, Reason.ADMINISTRATIVE_ACTION) == b"\xe0\x01\x98"
    assert acks.decode_packet_id(b"\x01\x02\x87") == 258
    assert acks.decode_reason(b"\x01\x02\x87", 2) == 0x87
    assert acks.decode_reason(b"\x01\x02", 2) == 0
    with pytest.raises(Malformed):
        acks.decode_packet_id(b"\x01")


GOOD = bytes(whole(encode_connect(Connect(V311, "cam", will=Will("w", b"x")))).body)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"\x00\x06MQIsdp\x03\x02\x00\x0a\x00\x01a", Unsupported),
        (b"\x00\x04MQTT\x03\x02\x00\x0a\x00\x01a", Unsupported),
        (b"\x00\x04MQTT\x06\x02\x00\x0a\x00\x01a", Unsupported),
        (b"\x00\x04mqtt\x04\x02\x00\x0a\x00\x01a", Unsupported),
        (b"\x00\x04MQTT\x04\x03\x00\x0a\x00\x01a", Malformed),  # reserved flag
        (b"\x00\x04MQTT\x04\x42\x00\x0a\x00\x01a\x00\x01p", Malformed),  # password without user name
        (b"\x00\x04MQTT\x04\x0a\x00\x0a\x00\x01a", Malformed),  # will QoS without will
        (b"\x00\x04MQTT\x04\x22\x00\x0a\x00\x01a", Malformed),  # will retain without will
        (b"\x00\x04MQTT\x04\x1e\x00\x0a\x00\x01a\x00\x01w\x00\x00", Malformed),  # will QoS 3
        (b"\x00\x04MQTT\x04\x06\x00\x0a\x00\x01a\x00\x00\x00\x00", Malformed),  # empty will topic
        (b"\x00\x04MQTT\x04\x06\x00\x0a\x00\x01a\x00\x01#\x00\x00", Malformed),  # wildcard in the will topic
        (b"\x00\x04MQTT\x04\x02\x00\x0a\x00\x02\xc3\x28", Malformed),  # not UTF-8
        (b"\x00\x04MQTT\x04\x02\x00\x0a\x00\x03\xed\xa0\x80", Malformed),  # a surrogate
        (b"\x00\x04MQTT\x04\x02\x00\x0a\x00\x02a\x00", Malformed),  # the null character
        (b"\x00\x04MQTT\x04\x02\x00\x0a\x00\x01ab", Malformed),  # more than CONNECT
        (b"\x00\x04MQTT\x05\x02\x00\x0a\x02\x23\x00\x00\x01a", Malformed),  # a property of PUBLISH
        (b"\x00\x04MQTT\x05\x02\x00\x0a\x06\x21\x00\x05\x21\x00\x05\x00\x01a", Malformed),  # twice
        (b"\x00\x04MQTT\x05\x02\x00\x0a\x01\x7f\x00\x01a", Malformed),  # unknown
        (b"\x00\x04MQTT\x05\x02\x00\x0a\x09\x21", Malformed),  # a list longer than the packet
    ],
)
def test_connects_that_are_refused(body: bytes, error: type[WireError]) -> None:
    with pytest.raises(error):
        decode_connect(body)


def test_every_truncation_of_a_connect_is_malformed() -> None:
    for version in (V311, V5):
        properties = ((Property.USER_PROPERTY, ("a", "b")),) if version == V5 else ()
        connect = Connect(version, "cam", will=Will("w", b"x"), username="u", password=b"p", properties=properties)
        body = whole(encode_connect(connect)).body
        for size in range(len(body)):
            with pytest.raises(WireError):
                decode_connect(body[:size])


def test_version_in_which_a_connect_is_refused() -> None:
    assert version_of_refused(b"\x00\x04MQTT\x05") == V5
    assert version_of_refused(b"\x00\x04MQTT\x09") == V5
    assert version_of_refused(b"\x00\x04MQTT\x04") == V311
    assert version_of_refused(b"\x00\x06MQIsdp\x03") == V311
    assert version_of_refused(b"") == V311


@pytest.mark.parametrize(
    ("first", "body", "version"),
    [
        (0x36, b"\x00\x01t", V311),  # both QoS bits
        (0x32, b"\x00\x01t\x00\x00", V311),  # packet identifier 0
        (0x32, b"\x00\x01t\x00", V311),
        (0x30, b"\x00\x00", V311),  # no topic
        (0x30, b"\x00\x01#", V311),
        (0x30, b"\x00\x02\xff\xfe", V311),
        (0x30, b"\x00\x05t", V311),
        (0x30, b"\x00", V311),
        (0x30, b"\x00\x01t", V5),  # no property length
        (0x30, b"\x00\x00\x00", V5),  # no topic and no alias
        (0x30, b"\x00\x00\x03\x23\x00\x00", V5),  # alias 0
        (0x30, b"\x00\x01t\x06\x23\x00\x01\x23\x00\x02", V5),  # alias twice
    ],
)
def test_publishes_that_are_refused(first: int, body: bytes, version: int) -> None:
    with pytest.raises(Malformed):
        decode_publish(first, body, version)


def test_an_alias_stands_for_a_topic() -> None:
    publish = decode_publish(0x30, b"\x00\x00\x03\x23\x00\x05x", V5)
    assert (publish.topic, publish.alias, publish.payload) == ("", 5, b"x")
    assert Publish("t", b"").alias is None


@pytest.mark.parametrize(
    ("body", "version"),
    [
        (b"\x00\x01", V311),  # no filter
        (b"\x00\x00\x00\x01a\x00", V311),  # packet identifier 0
        (b"\x00\x01\x00\x01a", V311),  # no options
        (b"\x00\x01\x00\x01a\x03", V311),  # QoS 3
        (b"\x00\x01\x00\x01a\x04", V311),  # a reserved bit; No Local in 5.0
        (b"\x00\x01\x00\x00\x01a\x40", V5),
        (b"\x00\x01\x00\x00\x01a\x30", V5),  # retain handling 3
        (b"\x00\x01\x00\x02\xc0\xaf\x00", V311),
    ],
)
def test_subscribes_that_are_refused(body: bytes, version: int) -> None:
    with pytest.raises(Malformed):
        decode_subscribe(body, version)


def test_unsubscribe_names_something() -> None:
    with pytest.raises(Malformed):
        decode_unsubscribe(b"\x00\x01", V311)


def test_filters_in_one_packet_are_counted() -> None:
    many = Subscribe(1, tuple(Subscription("a") for _ in range(1001)))
    with pytest.raises(TooLarge):
        decode_subscribe(whole(encode_subscribe(many, V311)).body, V311)


def test_varints() -> None:
    for value in (0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455):
        assert Fields(encode_varint(value)).varint() == value
    for bad in (b"\x80\x00", b"\xff\xff\xff\xff\x01", b"\x80", b"\x80\x80\x80\x80"):
        with pytest.raises(Malformed):
            Fields(bad).varint()
    with pytest.raises(TooLarge):
        encode_varint(268_435_456)


def test_strings() -> None:
    assert utf8("grün/\U0001f4f7/\ufeff".encode()) == "grün/\U0001f4f7/\ufeff"
    for bad in (b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xff", b"a\x00b", b"\xe2\x82"):
        with pytest.raises(Malformed):
            utf8(bad)


def test_property_lists_are_bounded() -> None:
    many = encode_properties(tuple((Property.USER_PROPERTY, ("a", "b")) for _ in range(257)))
    with pytest.raises(Malformed):
        decode_properties(Fields(many))


def test_properties_are_found_and_left_out() -> None:
    properties = ((Property.RECEIVE_MAXIMUM, 3), (Property.TOPIC_ALIAS_MAXIMUM, 9))
    assert value_of(properties, Property.TOPIC_ALIAS_MAXIMUM) == 9
    assert without(properties, Property.TOPIC_ALIAS_MAXIMUM) == ((Property.RECEIVE_MAXIMUM, 3),)
    assert value_of(without(properties, Property.TOPIC_ALIAS_MAXIMUM), Property.TOPIC_ALIAS_MAXIMUM) is None


def test_flags_of_first_bytes() -> None:
    legal = {first for first in range(256) if flags_are_legal(first)}
    publishes = {0x30 | flags for flags in range(16) if flags & 6 != 6}
    others = {0x10, 0x20, 0x40, 0x50, 0x62, 0x70, 0x82, 0x90, 0xA2, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0}
    assert legal == publishes | others
    assert Packet(0x62, b"").type is PacketType.PUBREL
    assert Packet(0x62, b"").flags == 2
