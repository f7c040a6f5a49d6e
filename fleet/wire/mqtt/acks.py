"""Acknowledgements, PING and DISCONNECT: packets that a gateway writes itself (3.4 to 3.7, 3.12 to 3.14)."""

from fleet.wire.mqtt.codes import V5, PacketType, Reason
from fleet.wire.mqtt.fields import encode_integer, encode_packet

PUBACK = PacketType.PUBACK << 4
PUBREC = PacketType.PUBREC << 4
PUBREL = PacketType.PUBREL << 4 | 2
PUBCOMP = PacketType.PUBCOMP << 4
PINGREQ = bytes((PacketType.PINGREQ << 4, 0))
PINGRESP = bytes((PacketType.PINGRESP << 4, 0))
DISCONNECT = PacketType.DISCONNECT << 4


def acknowledge(first: int, packet_id: int, version: int, reason: Reason = Reason.SUCCESS) -> bytes:
    """The PUBACK, PUBREC, PUBREL or PUBCOMP of first byte `first`. 3.1.1 has no reason codes there."""
    body = encode_integer(packet_id, 2)
    if version == V5 and reason:
        body += bytes((reason,))  # 3.4.2.2.1: without properties their length may be omitted
    return encode_packet(first, body)


def disconnect(version: int, reason: Reason = Reason.NORMAL_DISCONNECTION) -> bytes:
    """A DISCONNECT. Only a client may send it in 3.1.1; in 5.0 a server may too, with a reason."""
    return encode_packet(DISCONNECT, bytes((reason,)) if version == V5 and reason else b"")
