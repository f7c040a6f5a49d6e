"""Packet types, protocol versions and reason codes, under their names in the specifications."""

import enum

V311 = 4  # MQTT 3.1.1, 3.1.2.2: protocol level
V5 = 5  # MQTT 5.0, 3.1.2.2: protocol version


class PacketType(enum.IntEnum):
    """The high four bits of a packet's first byte (MQTT 5.0, 2.1.2)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


FIXED_FLAGS = dict.fromkeys(PacketType, 0) | dict.fromkeys(
    (PacketType.PUBREL, PacketType.SUBSCRIBE, PacketType.UNSUBSCRIBE), 2
)
"""The low four bits required of each type but PUBLISH (MQTT 5.0, 2.1.3; [MQTT-2.2.2-1] in 3.1.1)."""


def flags_are_legal(first: int) -> bool:
    """Whether `first`, the first byte of a packet, is a valid packet type with valid flags."""
    kind, flags = first >> 4, first & 0x0F
    if kind == PacketType.PUBLISH:
        return flags & 0x06 != 0x06  # [MQTT-3.3.1-4] never both QoS bits
    return kind != 0 and FIXED_FLAGS[PacketType(kind)] == flags


class Reason(enum.IntEnum):
    """MQTT 5.0, 2.4: the reason codes that we send or check."""

    SUCCESS = 0x00
    NORMAL_DISCONNECTION = 0x00
    DISCONNECT_WITH_WILL = 0x04
    UNSPECIFIED = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    USE_ANOTHER_SERVER = 0x9C
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    MAXIMUM_CONNECT_TIME = 0xA0


class ReturnCode(enum.IntEnum):
    """MQTT 3.1.1, 3.2.2.3: the return codes of CONNACK."""

    ACCEPTED = 0
    UNACCEPTABLE_PROTOCOL_VERSION = 1
    IDENTIFIER_REJECTED = 2
    SERVER_UNAVAILABLE = 3
    NOT_AUTHORIZED = 5


SUBACK_FAILURE_V311 = 0x80  # MQTT 3.1.1, 3.9.3: the only failure code of SUBACK

RETURN_CODE: dict[Reason, ReturnCode] = {
    Reason.SUCCESS: ReturnCode.ACCEPTED,
    Reason.UNSUPPORTED_PROTOCOL_VERSION: ReturnCode.UNACCEPTABLE_PROTOCOL_VERSION,
    Reason.CLIENT_IDENTIFIER_NOT_VALID: ReturnCode.IDENTIFIER_REJECTED,
    Reason.SERVER_UNAVAILABLE: ReturnCode.SERVER_UNAVAILABLE,
    Reason.SERVER_BUSY: ReturnCode.SERVER_UNAVAILABLE,
    Reason.SERVER_SHUTTING_DOWN: ReturnCode.SERVER_UNAVAILABLE,
    Reason.QUOTA_EXCEEDED: ReturnCode.SERVER_UNAVAILABLE,
}
"""Reason code of 5.0 -> return code of 3.1.1; NOT_AUTHORIZED for any other."""


def is_refusal(code: int) -> bool:
    """Whether a reason code says that nothing was done: 0x80 and above (MQTT 5.0, 2.4)."""
    return code >= 0x80
