"""Acknowledgements, PING and DISCONNECT: packets that a gateway writes itself (3.4 to 3.7, 3.12 to 3.14)."""

from fleet.wire.errors import Malformed
from fleet.wire.mqtt.codes import V5, PacketType, Reason
from fleet.wire.mqtt.fields import Fields, encode_integer, encode_packet
from fleet.wire.mqtt.properties import (
    Property,
    are_plain,
    decode_properties,
    encode_properties,
    expiry_seconds,
    reason_string,
)

PUBACK = PacketType.PUBACK << 4
PUBREC = PacketType.PUBREC << 4
PUBREL = PacketType.PUBREL << 4 | 2
PUBCOMP = PacketType.PUBCOMP << 4
PINGREQ = bytes((PacketType.PINGREQ << 4, 0))
PINGRESP = bytes((PacketType.PINGRESP << 4, 0))
DISCONNECT = PacketType.DISCONNECT << 4

_DISCONNECT_REASONS = frozenset(
    {0x00, 0x04, *range(0x80, 0x84), 0x87, 0x89, 0x8B, *range(0x8D, 0x91), *range(0x93, 0xA3)}
)
"""MQTT 5.0, 3.14.2.1: either side's."""
_CLIENTS_PROPERTIES = frozenset({
    Property.SESSION_EXPIRY_INTERVAL, Property.REASON_STRING, Property.USER_PROPERTY,
})  # fmt: skip
"""Of its DISCONNECT; a Server Reference is only for the server's (3.14.2.2.5)."""
_ANSWERS = frozenset({0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99})  # tables 3-4 and 3-5
_RELEASES = frozenset({0x00, 0x92})  # tables 3-6 and 3-7
_PROPERTIES = frozenset({Property.REASON_STRING, Property.USER_PROPERTY})


def acknowledge(first: int, packet_id: int, version: int, reason: Reason = Reason.SUCCESS, text: str = "") -> bytes:
    """The PUBACK, PUBREC, PUBREL or PUBCOMP of first byte `first`. 3.1.1 has no reason codes there."""
    return encode_packet(first, encode_integer(packet_id, 2) + _reason(version, reason, text))


def acknowledge_publish(qos: int, packet_id: int, version: int, reason: Reason, text: str = "") -> bytes:
    """The first answer to a PUBLISH of QoS 1 or 2: PUBACK or PUBREC (4.3.2, 4.3.3)."""
    return acknowledge(PUBACK if qos == 1 else PUBREC, packet_id, version, reason, text)


def packet_id_of(body: bytes) -> int:
    """The packet identifier that `body` begins with, as in every acknowledgement (2.2.1)."""
    return int.from_bytes(body[:2], "big")


def check_acknowledgement(first: int, body: bytes, version: int) -> None:
    """Raises: Malformed: `body` is not that of a PUBACK, PUBREC, PUBREL or PUBCOMP of first byte `first`."""
    fields = Fields(body)
    if not fields.integer(2):
        raise Malformed("A packet identifier is 0.")
    if version == V5 and fields.left:
        if fields.integer(1) not in (_ANSWERS if first in (PUBACK, PUBREC) else _RELEASES):
            raise Malformed("An acknowledgement has a reason code of another packet.")
        if fields.left and not are_plain(decode_properties(fields, _PROPERTIES)):
            raise Malformed("A string has a control character or a noncharacter.")
    if fields.left:
        raise Malformed("An acknowledgement has data after its last field.")


def disconnect(version: int, reason: Reason = Reason.NORMAL_DISCONNECTION, text: str = "") -> bytes:
    """A DISCONNECT. Only a client may send it in 3.1.1; in 5.0 a server may too, with a reason."""
    return encode_packet(DISCONNECT, _reason(version, reason, text))


def use_another_server(reference: str, text: str = "") -> bytes:
    """The DISCONNECT of MQTT 5.0 that names a server to use meanwhile (3.14.2.2.5, 4.11)."""
    properties = ((Property.SERVER_REFERENCE, reference), *reason_string(text))
    return encode_packet(DISCONNECT, bytes((Reason.USE_ANOTHER_SERVER,)) + encode_properties(properties))


def ends_session() -> bytes:
    """The DISCONNECT of MQTT 5.0 with which a session ends at once, whatever its CONNECT has said (3.14.2.2.2)."""
    expiry = encode_properties(((Property.SESSION_EXPIRY_INTERVAL, 0),))
    return encode_packet(DISCONNECT, bytes((Reason.NORMAL_DISCONNECTION,)) + expiry)


def disconnect_expiry(body: bytes) -> float | None:
    """Seconds of the Session Expiry Interval in the body of a DISCONNECT; None without one, or when it is malformed."""
    try:
        return expiry_seconds(decode_properties(Fields(body, 1))) if len(body) > 1 else None
    except Malformed:
        return None


def check_disconnect(body: bytes, version: int) -> None:
    """Require `body` to be that of a client's DISCONNECT. Raises: Malformed."""
    fields = Fields(body)
    if version == V5 and fields.left:
        if fields.integer(1) not in _DISCONNECT_REASONS:
            raise Malformed("The reason code of a DISCONNECT is unknown.")
        if fields.left and not are_plain(decode_properties(fields, _CLIENTS_PROPERTIES)):
            raise Malformed("A string has a control character or a noncharacter.")
    if fields.left:
        raise Malformed("A DISCONNECT has data after its last field.")


def _reason(version: int, reason: Reason, text: str) -> bytes:
    """Reason code and Reason String. 3.4.2.2.1, 3.14.2.2.1: without properties their length may be omitted."""
    if version != V5 or not reason:
        return b""
    return bytes((reason,)) + (encode_properties(reason_string(text)) if text else b"")
