"""SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (3.8 to 3.11)."""

from dataclasses import dataclass

from fleet.wire.errors import Malformed, TooLarge
from fleet.wire.mqtt.codes import V5, PacketType
from fleet.wire.mqtt.fields import Fields, encode_integer, encode_packet, encode_string
from fleet.wire.mqtt.properties import Properties, decode_properties, encode_properties

SUBSCRIBE = PacketType.SUBSCRIBE << 4 | 2
SUBACK = PacketType.SUBACK << 4

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


def decode_subscribe(body: bytes, version: int) -> Subscribe:
    """Filters are well-formed UTF-8; whether they are topic filters is for `topics.is_topic_filter` to check.

    Raises: Malformed, TooLarge.
    """
    fields = Fields(body)
    packet_id = _packet_id(fields)
    properties = decode_properties(fields) if version == V5 else ()
    found = []
    while fields.left:
        topic_filter, options = fields.string(), fields.integer(1)
        # [MQTT-3.8.3-4] of 3.1.1, [MQTT-3.8.3-5] of 5.0: reserved bits must be 0; 3.8.3: QoS 3 is malformed
        if options & 3 == 3 or options & (0xC0 if version == V5 else 0xFC) or options & 0x30 == 0x30:
            raise Malformed("A subscription has invalid options.")
        found.append(Subscription(topic_filter, options))
        _count(found)
    # [MQTT-3.8.3-3] of 3.1.1, [MQTT-3.8.3-2] of 5.0
    if not found:
        raise Malformed("A SUBSCRIBE has no topic filter.")
    return Subscribe(packet_id, tuple(found), properties)


def encode_subscribe(subscribe: Subscribe, version: int) -> bytes:
    """The whole packet."""
    body = encode_integer(subscribe.packet_id, 2)
    if version == V5:
        body += encode_properties(subscribe.properties)
    body += b"".join(encode_string(s.topic_filter) + bytes((s.options,)) for s in subscribe.subscriptions)
    return encode_packet(SUBSCRIBE, body)


def decode_suback(body: bytes, version: int) -> Suback:
    """Raises: Malformed."""
    fields = Fields(body)
    packet_id = _packet_id(fields)
    properties = decode_properties(fields) if version == V5 else ()
    return Suback(packet_id, tuple(fields.take(fields.left)), properties)


def encode_suback(suback: Suback, version: int) -> bytes:
    """The whole packet."""
    body = encode_integer(suback.packet_id, 2)
    if version == V5:
        body += encode_properties(suback.properties)
    return encode_packet(SUBACK, body + bytes(suback.codes))


def decode_unsubscribe(body: bytes, version: int) -> Unsubscribe:
    """Raises: Malformed, TooLarge."""
    fields = Fields(body)
    packet_id = _packet_id(fields)
    properties = decode_properties(fields) if version == V5 else ()
    found = []
    while fields.left:
        found.append(fields.string())
        _count(found)
    # [MQTT-3.10.3-2]
    if not found:
        raise Malformed("An UNSUBSCRIBE has no topic filter.")
    return Unsubscribe(packet_id, tuple(found), properties)


def _packet_id(fields: Fields) -> int:
    packet_id = fields.integer(2)
    # [MQTT-2.2.1-3] (5.0), [MQTT-2.3.1-1] (3.1.1)
    if not packet_id:
        raise Malformed("A packet identifier is 0.")
    return packet_id


def _count(found: list[Subscription] | list[str]) -> None:
    if len(found) > FILTERS_MAX:
        raise TooLarge(f"A packet has more than {FILTERS_MAX} topic filters.")
