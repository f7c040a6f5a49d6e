"""PUBLISH as clients and brokers write it (3.3); the gateway reads the heads of its sessions' in place."""

from dataclasses import dataclass

from fleet.wire.errors import Malformed
from fleet.wire.mqtt.codes import V5, PacketType
from fleet.wire.mqtt.fields import Fields, encode_integer, encode_packet, encode_string
from fleet.wire.mqtt.properties import Properties, Property, decode_properties, encode_properties, value_of
from fleet.wire.mqtt.topics import topic_name

PUBLISH = PacketType.PUBLISH << 4
_DUP, _RETAIN = 0x08, 0x01


@dataclass(frozen=True, slots=True)
class Publish:
    """`packet_id` is 0 for QoS 0. `topic` is "" only with a topic alias."""

    topic: str
    payload: bytes
    qos: int = 0
    packet_id: int = 0
    retain: bool = False
    dup: bool = False
    properties: Properties = ()

    @property
    def alias(self) -> int | None:
        """The topic alias, or None (MQTT 5.0, 3.3.2.3.4)."""
        found = value_of(self.properties, Property.TOPIC_ALIAS)
        return found if isinstance(found, int) else None


def decode_publish(first: int, body: bytes, version: int) -> Publish:
    """The PUBLISH of first byte `first`.

    Raises: Malformed: QoS 3, packet identifier 0, an invalid topic name, invalid properties.
    """
    qos = first >> 1 & 3
    # [MQTT-3.3.1-4]
    if qos == 3:
        raise Malformed("A PUBLISH has both QoS bits set.")
    fields = Fields(body)
    topic = fields.binary()
    packet_id = fields.integer(2) if qos else 0
    # [MQTT-2.2.1-3] (5.0), [MQTT-2.3.1-1] (3.1.1)
    if qos and not packet_id:
        raise Malformed("A packet identifier is 0.")
    properties = decode_properties(fields) if version == V5 else ()
    alias = value_of(properties, Property.TOPIC_ALIAS)
    # MQTT 5.0, 3.3.2.1: without a topic there must be an alias; [MQTT-3.3.2-8]: which is never 0
    if alias == 0:
        raise Malformed("A topic alias is 0.")
    name = "" if alias is not None and not topic else topic_name(topic)
    payload = fields.take(fields.left)
    return Publish(name, payload, qos, packet_id, bool(first & _RETAIN), bool(first & _DUP), properties)


def encode_publish(publish: Publish, version: int) -> bytes:
    """The whole packet."""
    first = PUBLISH | publish.qos << 1 | (_RETAIN if publish.retain else 0) | (_DUP if publish.dup else 0)
    body = encode_string(publish.topic)
    if publish.qos:
        body += encode_integer(publish.packet_id, 2)
    if version == V5:
        body += encode_properties(publish.properties)
    return encode_packet(first, body + publish.payload)
