"""UNSUBSCRIBE (3.10) as clients write it."""

from fleet.wire.mqtt.codes import V5, PacketType
from fleet.wire.mqtt.fields import encode_integer, encode_packet, encode_string
from fleet.wire.mqtt.properties import encode_properties
from fleet.wire.mqtt.subscribe import Unsubscribe

UNSUBSCRIBE = PacketType.UNSUBSCRIBE << 4 | 2


def encode_unsubscribe(unsubscribe: Unsubscribe, version: int) -> bytes:
    """The whole packet."""
    body = encode_integer(unsubscribe.packet_id, 2)
    if version == V5:
        body += encode_properties(unsubscribe.properties)
    return encode_packet(UNSUBSCRIBE, body + b"".join(map(encode_string, unsubscribe.filters)))
