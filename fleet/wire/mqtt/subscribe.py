"""SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (3.8 to 3.11)."""

from dataclasses import dataclass

from fleet.wire.errors import Malformed, TooLarge
from fleet.wire.mqtt.codes import V5, PacketType
from fleet.wire.mqtt.fields import Fields, encode_integer, encode_packet, encode_string
from fleet.wire.mqtt.properties import Properties, decode_properties, encode_properties

SUBSCRIBE = PacketType.SUBSCRIBE << 4 | 2
SUBACK = PacketType.SUBACK << 4
UNSUBSCRIBE = PacketType.UNSUBSCRIBE << 4 | 2

FILTERS_MAX = 1_000  # in one packet: each allocates an object and is checked against the policy


@dataclass(frozen=True, slots=True)
class Subscription:
    """One requested filter. `options` is the byte after it: the QoS, and in 5.0 the subscription options."""

    topic_filter: str
    options: int = 0


@dataclass(frozen=True, slots=True)
class Subscribe:
    packet_id: int
    subscriptions: tuple[Subscription, ...]
    properties: Properties = ()


@dataclass(frozen=True, slots=True)
class Suback:
    packet_id: int
    codes: tuple[int, ...]
    """One for each filter, in order: the QoS granted, or 0x80 and above."""
    properties: Properties = ()


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    packet_id: int
    filters: tuple[str, ...]
    properties: Properties = ()


def decode_subscribe(body: bytes, version: int, filters_max: int = FILTERS_MAX) -> Subscribe:
    """Filters are well-formed UTF-8; whether they are topic filters is for `topics.is_topic_filter` to check.

    Raises: Malformed, TooLarge.
    """
    packet_id, properties, fields = _head(body, version)
    found = []
    while fields.left:
        topic_filter, options = fields.string(), fields.integer(1)
        # [MQTT-3.8.3-4] of 3.1.1, [MQTT-3.8.3-5] of 5.0: reserved bits must be 0; 3.8.3: QoS 3 is malformed
        if options & 3 == 3 or options & (0xC0 if version == V5 else 0xFC) or options & 0x30 == 0x30:
            raise Malformed("A subscription has invalid options.")
        found.append(Subscription(topic_filter, options))
        _count(found, filters_max)
    # [MQTT-3.8.3-3] of 3.1.1, [MQTT-3.8.3-2] of 5.0
    if not found:
        raise Malformed("A SUBSCRIBE has no topic filter.")
    return Subscribe(packet_id, tuple(found), properties)


def encode_subscribe(subscribe: Subscribe, version: int) -> bytes:
    """The whole packet."""
    filters = (encode_string(s.topic_filter) + bytes((s.options,)) for s in subscribe.subscriptions)
    return encode_packet(SUBSCRIBE, _encoded_head(subscribe, version) + b"".join(filters))


def decode_suback(body: bytes, version: int) -> Suback:
    """Raises: Malformed."""
    packet_id, properties, fields = _head(body, version)
    return Suback(packet_id, tuple(fields.take(fields.left)), properties)


def encode_suback(suback: Suback, version: int) -> bytes:
    """The whole packet."""
    return encode_packet(SUBACK, _encoded_head(suback, version) + bytes(suback.codes))


def decode_unsubscribe(body: bytes, version: int, filters_max: int = FILTERS_MAX) -> Unsubscribe:
    """Raises: Malformed, TooLarge."""
    packet_id, properties, fields = _head(body, version)
    found = []
    while fields.left:
        found.append(fields.string())
        _count(found, filters_max)
    # [MQTT-3.10.3-2]
    if not found:
        raise Malformed("An UNSUBSCRIBE has no topic filter.")
    return Unsubscribe(packet_id, tuple(found), properties)


def encode_unsubscribe(unsubscribe: Unsubscribe, version: int) -> bytes:
    """The whole packet."""
    return encode_packet(
        UNSUBSCRIBE, _encoded_head(unsubscribe, version) + b"".join(map(encode_string, unsubscribe.filters))
    )


def _head(body: bytes, version: int) -> tuple[int, Properties, Fields]:
    """The packet identifier and the properties at the start of `body`, and the fields after them."""
    fields = Fields(body)
    packet_id = fields.integer(2)
    # [MQTT-2.2.1-3] (5.0), [MQTT-2.3.1-1] (3.1.1)
    if not packet_id:
        raise Malformed("A packet identifier is 0.")
    return packet_id, decode_properties(fields) if version == V5 else (), fields


def _encoded_head(packet: Subscribe | Suback | Unsubscribe, version: int) -> bytes:
    properties = encode_properties(packet.properties) if version == V5 else b""
    return encode_integer(packet.packet_id, 2) + properties


def _count(found: list[Subscription] | list[str], filters_max: int) -> None:
    if len(found) > filters_max:
        raise TooLarge(f"A packet has more than {filters_max} topic filters.")
