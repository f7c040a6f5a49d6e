"""Property lists of MQTT 5.0 (2.2.2), as tuples of (identifier, value) in wire order."""

import enum
from math import inf

from fleet.wire.errors import Malformed, ProtocolError
from fleet.wire.mqtt.fields import Fields, encode_binary, encode_integer, encode_string, encode_varint, is_plain

Value = int | str | bytes | tuple[str, str]
Properties = tuple[tuple[int, Value], ...]

NEVER = 0xFFFFFFFF  # a Session Expiry Interval (3.1.2.11.2)
PROPERTIES_MAX = 256  # in one list; user properties may repeat, and each allocates an object


class Property(enum.IntEnum):
    """MQTT 5.0, table 2-4."""

    PAYLOAD_FORMAT_INDICATOR = 0x01
    MESSAGE_EXPIRY_INTERVAL = 0x02
    CONTENT_TYPE = 0x03
    RESPONSE_TOPIC = 0x08
    CORRELATION_DATA = 0x09
    SUBSCRIPTION_IDENTIFIER = 0x0B
    SESSION_EXPIRY_INTERVAL = 0x11
    ASSIGNED_CLIENT_IDENTIFIER = 0x12
    SERVER_KEEP_ALIVE = 0x13
    AUTHENTICATION_METHOD = 0x15
    AUTHENTICATION_DATA = 0x16
    REQUEST_PROBLEM_INFORMATION = 0x17
    WILL_DELAY_INTERVAL = 0x18
    REQUEST_RESPONSE_INFORMATION = 0x19
    RESPONSE_INFORMATION = 0x1A
    SERVER_REFERENCE = 0x1C
    REASON_STRING = 0x1F
    RECEIVE_MAXIMUM = 0x21
    TOPIC_ALIAS_MAXIMUM = 0x22
    TOPIC_ALIAS = 0x23
    MAXIMUM_QOS = 0x24
    RETAIN_AVAILABLE = 0x25
    USER_PROPERTY = 0x26
    MAXIMUM_PACKET_SIZE = 0x27
    WILDCARD_SUBSCRIPTION_AVAILABLE = 0x28
    SUBSCRIPTION_IDENTIFIER_AVAILABLE = 0x29
    SHARED_SUBSCRIPTION_AVAILABLE = 0x2A


_SIZE: dict[int, int] = {
    0x01: 1, 0x02: 4, 0x11: 4, 0x13: 2, 0x17: 1, 0x18: 4, 0x19: 1, 0x21: 2, 0x22: 2, 0x23: 2,
    0x24: 1, 0x25: 1, 0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1,
}  # fmt: skip
_STRING = frozenset({0x03, 0x08, 0x12, 0x15, 0x1A, 0x1C, 0x1F})
_BINARY = frozenset({0x09, 0x16})
_MAY_REPEAT = frozenset({Property.USER_PROPERTY, Property.SUBSCRIPTION_IDENTIFIER})


def decode_properties(fields: Fields, allowed: frozenset[int] | None = None) -> Properties:
    """The property list at the cursor, its length included. `allowed`: the identifiers of this packet type.

    Raises: Malformed: an unknown or misplaced identifier (2.2.2.2), too many properties, an invalid value.
    ProtocolError: a repeated one.
    """
    size = fields.varint()
    stop = fields.pos + size
    if stop > fields.end:
        raise Malformed("A property list runs past the end of its packet.")
    inner = Fields(fields.data, fields.pos, stop)
    fields.pos = stop
    found: list[tuple[int, Value]] = []
    seen: set[int] = set()
    while inner.left:
        identifier = inner.varint()
        if identifier in seen and identifier not in _MAY_REPEAT:
            raise ProtocolError("A property occurs twice.")
        if allowed is not None and identifier not in allowed:
            raise Malformed("A property is not allowed in this packet.")
        seen.add(identifier)
        found.append((identifier, _decode_value(identifier, inner)))
        if len(found) > PROPERTIES_MAX:
            raise Malformed(f"A property list has more than {PROPERTIES_MAX} properties.")
    return tuple(found)


def _decode_value(identifier: int, fields: Fields) -> Value:
    if identifier in _SIZE:
        return fields.integer(_SIZE[identifier])
    if identifier in _STRING:
        return fields.string()
    if identifier in _BINARY:
        return fields.binary()
    if identifier == Property.SUBSCRIPTION_IDENTIFIER:
        return fields.varint()
    if identifier == Property.USER_PROPERTY:
        return fields.string(), fields.string()
    raise Malformed("A property identifier is unknown.")


def encode_properties(properties: Properties) -> bytes:
    """The list, prefixed with its length."""
    body = b"".join(encode_varint(identifier) + _encode_value(identifier, value) for identifier, value in properties)
    return encode_varint(len(body)) + body


def _encode_value(identifier: int, value: Value) -> bytes:
    match value:
        case int():
            return encode_integer(value, _SIZE[identifier]) if identifier in _SIZE else encode_varint(value)
        case str():
            return encode_string(value)
        case bytes():
            return encode_binary(value)
        case (name, text):
            return encode_string(name) + encode_string(text)


def without(properties: Properties, *identifiers: int) -> Properties:
    """`properties` without any of `identifiers`."""
    return tuple(p for p in properties if p[0] not in identifiers)


def value_of(properties: Properties, identifier: int) -> Value | None:
    """The first value of `identifier`, or None."""
    return next((value for found, value in properties if found == identifier), None)


def expiry_seconds(properties: Properties) -> float | None:
    """The Session Expiry Interval, infinity for one that never ends; None without one."""
    value = value_of(properties, Property.SESSION_EXPIRY_INTERVAL)
    if not isinstance(value, int):
        return None
    return inf if value == NEVER else float(value)


def are_plain(properties: Properties) -> bool:
    """Whether every string in them is plain."""
    found = (value if isinstance(value, tuple) else (value,) for _, value in properties)
    return all(is_plain(text) for texts in found for text in texts if isinstance(text, str))


def reason_string(text: str) -> Properties:
    """The properties that hold `text` as Reason String; none without text."""
    return ((Property.REASON_STRING, text),) if text else ()
