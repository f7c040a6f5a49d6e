"""MQTT packets: what is encoded is decoded again, and what breaks the specification is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.wire.errors import Malformed, ProtocolError, TooLarge, Unsupported, WireError
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason, flags_are_legal
from fleet.wire.mqtt.connect import (
    Connack,
    Connect,
    Will,
    answer_version,
    decode_connack,
    decode_connect,
    encode_connack,
    encode_connect,
    refusal,
)
from fleet.wire.mqtt.fields import Fields, encode_binary, encode_packet, encode_varint, utf8
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
)
from tests.mqtt_packets import encode_unsubscribe

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
        (b"\x00\x04MQTT\x05\x02\x00\x0a\x06\x21\x00\x05\x21\x00\x05\x00\x01a", ProtocolError),  # twice
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
    assert answer_version(b"\x00\x04MQTT\x05") == V5
    assert answer_version(b"\x00\x04MQTT\x09") == V5
    assert answer_version(b"\x00\x04MQTT\x04") == V311
    assert answer_version(b"\x00\x06MQIsdp\x03") == V311
    assert answer_version(b"") == V311


@pytest.mark.parametrize(
    ("first", "body", "version"),
    [
        (0x36, b"\x00\x01t\x00\x01", V311),  # both QoS bits
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
    assert decode_publish(0x30, b"\x00\x01t\x03\x23\x00\x05x", V5).topic == "t"
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


def connect_with(properties: bytes, will: bytes | None = None) -> bytes:
    head = b"\x00\x04MQTT\x05" + bytes((0x02 if will is None else 0x06,)) + b"\x00\x0a"
    listed = bytes((len(properties),)) + properties + b"\x00\x01a"
    return head + listed + (b"" if will is None else bytes((len(will),)) + will + b"\x00\x01w\x00\x00")


@pytest.mark.parametrize(
    ("properties", "is_error"),
    [
        (b"\x21\0\0", True),  # Receive Maximum
        (b"\x21\0\1", False),
        (b"\x21\xff\xff", False),
        (b"\x27\0\0\0\0", True),  # Maximum Packet Size
        (b"\x27\0\0\0\1", False),
        (b"\x27\xff\xff\xff\xff", False),
        (b"\x19\0", False),  # Request Response Information
        (b"\x19\1", False),
        (b"\x19\2", True),
        (b"\x17\0", False),  # Request Problem Information
        (b"\x17\1", False),
        (b"\x17\xff", True),
        (b"\x22\0\0", False),  # Topic Alias Maximum
        (b"\x11\xff\xff\xff\xff", False),  # Session Expiry Interval
        (b"\x16\0\1x", True),  # Authentication Data alone
        (b"\x16\0\1x\x15\0\1m", False),
        (b"\x15\0\1m", False),
    ],
)
def test_protocol_errors_of_connect(properties: bytes, is_error: bool) -> None:
    """3.1.2.11: which values are protocol errors."""
    if is_error:
        with pytest.raises(ProtocolError) as caught:
            decode_connect(connect_with(properties))
        assert len(str(caught.value)) <= 120
    else:
        assert decode_connect(connect_with(properties)).client_id == "a"


@pytest.mark.parametrize(("value", "is_error"), [(0, False), (1, False), (2, True), (255, True)])
def test_the_payload_format_of_a_will(value: int, is_error: bool) -> None:
    if is_error:
        with pytest.raises(ProtocolError):
            decode_connect(connect_with(b"", bytes((1, value))))
    else:
        assert decode_connect(connect_with(b"", bytes((1, value)))).will is not None


# Tables of the specification, written out


PROPERTIES: dict[int, tuple[int | str | bytes | tuple[str, str], bytes]] = {  # MQTT 5.0, table 2-4
    0x01: (1, b"\x01"),
    0x02: (0x01020304, b"\1\2\3\4"),
    0x03: ("a", b"\0\1a"),
    0x08: ("a", b"\0\1a"),
    0x09: (b"\xff", b"\0\1\xff"),
    0x0B: (268_435_455, b"\xff\xff\xff\x7f"),
    0x11: (0x01020304, b"\1\2\3\4"),
    0x12: ("a", b"\0\1a"),
    0x13: (0x0102, b"\1\2"),
    0x15: ("a", b"\0\1a"),
    0x16: (b"\xff", b"\0\1\xff"),
    0x17: (1, b"\x01"),
    0x18: (0x01020304, b"\1\2\3\4"),
    0x19: (1, b"\x01"),
    0x1A: ("a", b"\0\1a"),
    0x1C: ("a", b"\0\1a"),
    0x1F: ("a", b"\0\1a"),
    0x21: (0x0102, b"\1\2"),
    0x22: (0x0102, b"\1\2"),
    0x23: (0x0102, b"\1\2"),
    0x24: (1, b"\x01"),
    0x25: (1, b"\x01"),
    0x26: (("a", "b"), b"\0\1a\0\1b"),
    0x27: (0x01020304, b"\1\2\3\4"),
    0x28: (1, b"\x01"),
    0x29: (1, b"\x01"),
    0x2A: (1, b"\x01"),
}
IN_CONNECT = {0x11, 0x21, 0x27, 0x22, 0x19, 0x17, 0x26, 0x15, 0x16}  # 3.1.2.11
IN_WILL = {0x18, 0x01, 0x02, 0x03, 0x08, 0x09, 0x26}  # 3.1.3.2


def property_list(identifier: int, times: int = 1) -> bytes:
    body = (bytes((identifier,)) + PROPERTIES[identifier][1]) * times
    return bytes((len(body),)) + body


def test_the_properties_are_those_of_the_specification() -> None:
    assert {int(identifier) for identifier in Property} == set(PROPERTIES)
    assert {Property(n).name for n in (0x11, 0x18, 0x21, 0x22, 0x23, 0x25, 0x27, 0x15)} == {
        "SESSION_EXPIRY_INTERVAL", "WILL_DELAY_INTERVAL", "RECEIVE_MAXIMUM", "TOPIC_ALIAS_MAXIMUM", "TOPIC_ALIAS",
        "RETAIN_AVAILABLE", "MAXIMUM_PACKET_SIZE", "AUTHENTICATION_METHOD",
    }  # fmt: skip


@pytest.mark.parametrize("identifier", range(0x80))
def test_each_property(identifier: int) -> None:
    if identifier not in PROPERTIES:
        with pytest.raises(Malformed):
            decode_properties(Fields(bytes((2, identifier, 0))))
        return
    value, _ = PROPERTIES[identifier]
    data = property_list(identifier)
    fields = Fields(data + b"rest")
    assert decode_properties(fields) == ((identifier, value),)
    assert fields.take(fields.left) == b"rest"
    assert encode_properties(((identifier, value),)) == data
    for size in range(1, len(data) - 1):  # a shorter list than its property
        with pytest.raises(Malformed):
            decode_properties(Fields(bytes((size,)) + data[1:]))
    twice = Fields(property_list(identifier, 2))
    if identifier in (0x0B, 0x26):  # 3.3.2.3.8 and 2.2.2.2
        assert decode_properties(twice) == ((identifier, value),) * 2
    else:
        with pytest.raises(ProtocolError):
            decode_properties(twice)


@pytest.mark.parametrize("identifier", sorted(PROPERTIES))
def test_the_properties_of_connect_and_of_a_will(identifier: int) -> None:
    value, _ = PROPERTIES[identifier]
    listed = property_list(identifier)
    connect = b"\0\4MQTT\5\x02\0\x3c" + listed + b"\0\1a"
    if identifier == Property.AUTHENTICATION_DATA:  # 3.1.2.11.10: with a method only
        with pytest.raises(ProtocolError):
            decode_connect(connect)
    elif identifier in IN_CONNECT:
        assert decode_connect(connect).properties == ((identifier, value),)
    else:
        with pytest.raises(Malformed):
            decode_connect(connect)
    willed = b"\0\4MQTT\5\x06\0\x3c\0\0\1a" + listed + b"\0\1w\0\1p"
    if identifier in IN_WILL:
        assert decode_connect(willed).will == Will("w", b"p", properties=((identifier, value),))
    else:
        with pytest.raises(Malformed):
            decode_connect(willed)


def test_a_property_list_ends_with_its_packet() -> None:
    data = property_list(0x26)
    with pytest.raises(Malformed):
        decode_properties(Fields(data, 0, len(data) - 1))


def test_256_properties_in_a_list() -> None:
    many = tuple((Property.USER_PROPERTY, ("a", "b")) for _ in range(256))
    assert decode_properties(Fields(encode_properties(many))) == many


def test_subscription_options() -> None:
    for options in range(256):
        qos, retain_handling = options & 3, options >> 4 & 3
        for version, legal in (
            (V311, options < 3),  # 3.1.1, 3.8.3: six reserved bits
            (V5, qos < 3 and retain_handling < 3 and options < 0x40),  # 5.0, 3.8.3.1: two
        ):
            body = b"\0\1" + (b"\0" if version == V5 else b"") + b"\0\1a" + bytes((options,))
            if legal:
                assert decode_subscribe(body, version) == Subscribe(1, (Subscription("a", options),))
            else:
                with pytest.raises(Malformed):
                    decode_subscribe(body, version)


def test_1000_filters_in_a_packet() -> None:
    for count in (1000, 1001):
        subscribe = Subscribe(1, tuple(Subscription("a") for _ in range(count)))
        unsubscribe = Unsubscribe(1, ("a",) * count)
        if count == 1000:
            assert decode_subscribe(whole(encode_subscribe(subscribe, V311)).body, V311) == subscribe
            assert decode_unsubscribe(whole(encode_unsubscribe(unsubscribe, V311)).body, V311) == unsubscribe
        else:
            with pytest.raises(TooLarge):
                decode_unsubscribe(whole(encode_unsubscribe(unsubscribe, V311)).body, V311)


def test_connect_flags() -> None:
    for flags in range(256):
        will, will_qos, will_retain = flags & 4, flags >> 3 & 3, flags & 0x20
        username, password = flags & 0x80, flags & 0x40
        tail = b"\0\1w\0\1p" * bool(will) + b"\0\1u" * bool(username) + b"\0\1s" * bool(password)
        for version in (V311, V5):
            # [MQTT-3.1.2-3], [MQTT-3.1.2-11] to [MQTT-3.1.2-15], [MQTT-3.1.2-22]
            legal = not flags & 1 and will_qos < 3 and (will or not (will_qos or will_retain))
            legal = legal and (version == V5 or bool(username) or not password)
            lists = (b"\0", b"\0" * bool(will)) if version == V5 else (b"", b"")
            body = b"\0\4MQTT" + bytes((version, flags)) + b"\1\2" + lists[0] + b"\0\1a" + lists[1] + tail
            if not legal:
                with pytest.raises(Malformed):
                    decode_connect(body)
                continue
            expected = Connect(
                version,
                "a",
                bool(flags & 2),
                0x0102,
                Will("w", b"p", will_qos, bool(will_retain)) if will else None,
                "u" if username else None,
                b"s" if password else None,
            )
            assert decode_connect(body) == expected
            assert encode_connect(expected) == b"\x10" + bytes((len(body),)) + body


def test_connack_flags_and_length() -> None:
    for version, tail in ((V311, b""), (V5, b"\0")):
        for flags in range(256):
            if flags < 2:
                assert decode_connack(bytes((flags, 7)) + tail, version) == Connack(flags == 1, 7)
            else:
                with pytest.raises(Malformed):
                    decode_connack(bytes((flags, 7)) + tail, version)
        with pytest.raises(Malformed):
            decode_connack(b"\0\7" + tail + b"\0", version)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.SUCCESS, 0),
        (Reason.UNSUPPORTED_PROTOCOL_VERSION, 1),
        (Reason.CLIENT_IDENTIFIER_NOT_VALID, 2),
        (Reason.SERVER_UNAVAILABLE, 3),
        (Reason.SERVER_BUSY, 3),
        (Reason.SERVER_SHUTTING_DOWN, 3),
        (Reason.QUOTA_EXCEEDED, 3),
        (Reason.NOT_AUTHORIZED, 5),
        (Reason.BANNED, 5),
        (Reason.MALFORMED_PACKET, 5),
        (Reason.RETAIN_NOT_SUPPORTED, 5),
    ],
)
def test_a_reason_for_311(reason: Reason, code: int) -> None:
    assert refusal(reason, V311) == b"\x20\x02\x00" + bytes((code,))


def test_a_reason_string_that_the_client_does_not_take_is_left_out() -> None:
    whole = refusal(Reason.BANNED, V5, "suspended")
    assert whole == b"\x20\x0f\x00\x8a\x0c\x1f\x00\x09suspended"
    assert refusal(Reason.BANNED, V5, "suspended", len(whole)) == whole
    assert refusal(Reason.BANNED, V5, "suspended", len(whole) - 1) == refusal(Reason.BANNED, V5)
    assert refusal(Reason.BANNED, V311, "suspended") == b"\x20\x02\x00\x05"


def test_reasons_and_packet_types_by_number() -> None:
    assert {reason.name: int(reason) for reason in Reason} == {
        "KEEP_ALIVE_TIMEOUT": 0x8D, "MESSAGE_RATE_TOO_HIGH": 0x96,
        "SUCCESS": 0x00, "DISCONNECT_WITH_WILL": 0x04, "UNSPECIFIED": 0x80, "MALFORMED_PACKET": 0x81,
        "PROTOCOL_ERROR": 0x82, "IMPLEMENTATION_SPECIFIC": 0x83,
        "UNSUPPORTED_PROTOCOL_VERSION": 0x84, "CLIENT_IDENTIFIER_NOT_VALID": 0x85,
        "NOT_AUTHORIZED": 0x87, "SERVER_UNAVAILABLE": 0x88, "SERVER_BUSY": 0x89, "BANNED": 0x8A,
        "SERVER_SHUTTING_DOWN": 0x8B, "BAD_AUTHENTICATION_METHOD": 0x8C, "SESSION_TAKEN_OVER": 0x8E,
        "TOPIC_FILTER_INVALID": 0x8F, "TOPIC_NAME_INVALID": 0x90, "TOPIC_ALIAS_INVALID": 0x94,
        "PACKET_TOO_LARGE": 0x95, "QUOTA_EXCEEDED": 0x97, "ADMINISTRATIVE_ACTION": 0x98,
        "RETAIN_NOT_SUPPORTED": 0x9A, "QOS_NOT_SUPPORTED": 0x9B, "SHARED_SUBSCRIPTIONS_NOT_SUPPORTED": 0x9E,
        "USE_ANOTHER_SERVER": 0x9C, "MAXIMUM_CONNECT_TIME": 0xA0,
    }  # fmt: skip
    assert [packet_type.name for packet_type in PacketType] == [
        "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE", "SUBACK", "UNSUBSCRIBE",
        "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH",
    ]  # fmt: skip
    assert [int(packet_type) for packet_type in PacketType] == list(range(1, 16))
    assert (acks.PUBACK, acks.PUBREC, acks.PUBREL, acks.PUBCOMP) == (0x40, 0x50, 0x62, 0x70)
    assert (acks.PINGREQ, acks.PINGRESP, acks.DISCONNECT) == (b"\xc0\0", b"\xd0\0", 0xE0)


def test_defaults() -> None:
    assert Connect(V311, "a") == Connect(V311, "a", True, 60, None, None, None, ())
    assert Will("w", b"") == Will("w", b"", 0, False, ())
    assert Publish("t", b"") == Publish("t", b"", 0, 0, False, False, ())
    assert Subscription("a") == Subscription("a", 0)


@pytest.mark.parametrize("flags", [flags for flags in range(16) if flags & 6 != 6])
def test_publish_flags(flags: int) -> None:
    qos = flags >> 1 & 3
    for version in (V311, V5):
        body = b"\0\1t" + b"\1\2" * bool(qos) + (b"\0" if version == V5 else b"") + b"payload"
        publish = decode_publish(0x30 | flags, body, version)
        assert publish == Publish("t", b"payload", qos, 0x0102 if qos else 0, bool(flags & 1), bool(flags & 8))
        assert encode_publish(publish, version) == bytes((0x30 | flags, len(body))) + body


@pytest.mark.parametrize("version", [V311, V5])
def test_subscribe_and_its_answers_byte_by_byte(version: int) -> None:
    none = b"\0" if version == V5 else b""
    for data, first, decode, encode in (
        (b"\1\2" + none + b"\0\1a\1\0\1b\2", 0x82, decode_subscribe, encode_subscribe),
        (b"\1\2" + none + b"\0\1a\0\1b", 0xA2, decode_unsubscribe, encode_unsubscribe),
        (b"\1\2" + none + b"\1\x80", 0x90, decode_suback, encode_suback),
    ):
        value = decode(data, version)
        assert value.packet_id == 0x0102
        assert encode(value, version) == bytes((first, len(data))) + data  # type: ignore[arg-type]
        for packet_id in (b"\0\0", b"\1", b""):
            with pytest.raises(Malformed):
                decode(packet_id + data[2:] if packet_id == b"\0\0" else packet_id, version)


def test_fields_at_their_limits() -> None:
    assert len(encode_binary(bytes(65_535))) == 65_537
    with pytest.raises(TooLarge):
        encode_binary(bytes(65_536))
    with pytest.raises(TooLarge):
        encode_varint(-1)
    fields = Fields(b"abcdef", 1, 4)
    assert (fields.left, fields.take(3), fields.left) == (3, b"bcd", 0)
    with pytest.raises(Malformed):
        fields.take(1)
    assert encode_packet(0x30, bytes(200)) == b"\x30\xc8\x01" + bytes(200)
    assert [encode_varint(n) for n in (0, 127, 128, 268_435_455)] == [b"\0", b"\x7f", b"\x80\x01", b"\xff\xff\xff\x7f"]


def test_version_of_a_connect_that_is_cut() -> None:
    assert answer_version(b"\x00\x04MQTT") == V311
    assert answer_version(b"\x00\x04MQTX\x05") == V311
    assert answer_version(b"\x00\x04MQTT\x05\x02") == V5


def test_an_acknowledgement_with_success_has_no_reason() -> None:
    assert acks.acknowledge(acks.PUBREC, 1, V5, Reason.SUCCESS) == b"\x50\x02\x00\x01"
    assert acks.acknowledge(acks.PUBREC, 1, V5, Reason.UNSPECIFIED) == b"\x50\x03\x00\x01\x80"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\0", b"\x04", b"\0\0", b"\x04\x05\x11\0\0\0\x05", b"\x81\x04\x1f\0\x01a", b"\x97", b"\xa2",
        b"\0\x0e\x26\0\x01a\0\x01b\x26\0\x01a\0\x01b",
    ],
)  # fmt: skip
def test_disconnects_of_a_client(body: bytes) -> None:
    acks.check_disconnect(body, V5)
    if body:
        with pytest.raises(Malformed):
            acks.check_disconnect(body, V311)


@pytest.mark.parametrize(
    "body",
    [
        b"\0\x05\x11",  # cut off within a property
        b"\0\x01\x7f",  # an unknown one
        b"\0\0abc",  # something behind it
        b"\0\x05\x11\0\0\0\x05x",
        b"\0\x02\x21\0",
        b"\0\x03\x21\0\x05",  # Receive Maximum
        b"\0\x04\x1c\0\x01x",  # Server Reference: only a server's
        b"\0\x0a\x11\0\0\0\x05\x11\0\0\0\x05",  # twice
        b"\0\x80",  # a length that ends early
        b"\0\x80\0",  # one that is too long for its value
        b"\0\xff\xff\xff\xff",
        b"\0\x04\x1f\0\x01\xff",  # no UTF-8
        b"\0\x04\x1f\0\x01\0",
        b"\0\x04\x1f\0\x01\x07",  # a control character
        b"\x01", b"\x05", b"\x84", b"\x8c", b"\x91", b"\xa3", b"\xff",  # no reason of DISCONNECT
    ],
)  # fmt: skip
def test_disconnects_that_are_refused(body: bytes) -> None:
    for version in (V311, V5):
        with pytest.raises(Malformed):
            acks.check_disconnect(body, version)


def test_a_disconnect_that_ends_the_session() -> None:
    assert acks.ends_session() == b"\xe0\x07\x00\x05\x11\x00\x00\x00\x00"
    acks.check_disconnect(acks.ends_session()[2:], V5)
    assert acks.disconnect_expiry(acks.ends_session()[2:]) == 0
