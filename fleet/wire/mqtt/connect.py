"""CONNECT and CONNACK of 3.1.1 and 5.0 (section 3.1 and 3.2 in both)."""

from dataclasses import dataclass
from math import inf

from fleet.wire.errors import Malformed, ProtocolError, Unsupported
from fleet.wire.mqtt.codes import RETURN_CODE, V5, V311, PacketType, Reason, ReturnCode
from fleet.wire.mqtt.fields import Fields, encode_binary, encode_integer, encode_packet, encode_string
from fleet.wire.mqtt.properties import (
    Properties,
    Property,
    decode_properties,
    encode_properties,
    expiry_seconds,
    reason_string,
    value_of,
)
from fleet.wire.mqtt.topics import topic_name

CONNECT = PacketType.CONNECT << 4
CONNACK = PacketType.CONNACK << 4

_CONNECT_PROPERTIES = frozenset({
    Property.SESSION_EXPIRY_INTERVAL, Property.RECEIVE_MAXIMUM, Property.MAXIMUM_PACKET_SIZE,
    Property.TOPIC_ALIAS_MAXIMUM, Property.REQUEST_RESPONSE_INFORMATION, Property.REQUEST_PROBLEM_INFORMATION,
    Property.USER_PROPERTY, Property.AUTHENTICATION_METHOD, Property.AUTHENTICATION_DATA,
})  # fmt: skip
_WILL_PROPERTIES = frozenset({
    Property.WILL_DELAY_INTERVAL, Property.PAYLOAD_FORMAT_INDICATOR, Property.MESSAGE_EXPIRY_INTERVAL,
    Property.CONTENT_TYPE, Property.RESPONSE_TOPIC, Property.CORRELATION_DATA, Property.USER_PROPERTY,
})  # fmt: skip

_VALUES: dict[int, tuple[int, int]] = {
    Property.RECEIVE_MAXIMUM: (1, 0xFFFF),  # 3.1.2.11.3
    Property.MAXIMUM_PACKET_SIZE: (1, 0xFFFFFFFF),  # 3.1.2.11.4
    Property.REQUEST_RESPONSE_INFORMATION: (0, 1),  # 3.1.2.11.6
    Property.REQUEST_PROBLEM_INFORMATION: (0, 1),  # 3.1.2.11.7
    Property.PAYLOAD_FORMAT_INDICATOR: (0, 1),  # 3.1.3.2.3
}
"""Of CONNECT and its will: the least and the largest value, where not any is allowed. Others are protocol errors."""

_USERNAME, _PASSWORD, _WILL_RETAIN, _WILL, _CLEAN, _RESERVED = 0x80, 0x40, 0x20, 0x04, 0x02, 0x01


@dataclass(frozen=True, slots=True)
class Will:
    """The message that the broker publishes when the connection closes without a DISCONNECT."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = ()


@dataclass(frozen=True, slots=True)
class Connect:
    """`version` is V311 or V5; `clean` is Clean Session or Clean Start."""

    version: int
    client_id: str
    clean: bool = True
    keep_alive: int = 60
    """Seconds; 0 disables it."""
    will: Will | None = None
    username: str | None = None
    password: bytes | None = None
    properties: Properties = ()

    @property
    def asks_for_client_id(self) -> bool:
        """Whether the server assigns the client id: [MQTT-3.1.3-6] of 5.0; with Clean Session, of 3.1.1."""
        # [MQTT-3.1.3-8] of 3.1.1: without Clean Session an empty client id is refused
        return not self.client_id and (self.version == V5 or self.clean)

    @property
    def outlives_connection(self) -> bool:
        """Whether the client asks the server to keep the session when the connection ends."""
        return self.session_seconds > 0

    @property
    def session_seconds(self) -> float:
        """How long the client asks the server to keep it after that; infinity: for ever."""
        if self.version == V5:
            return expiry_seconds(self.properties) or 0.0
        return 0.0 if self.clean else inf


@dataclass(frozen=True, slots=True)
class Connack:
    session_present: bool
    code: int
    """A ReturnCode in 3.1.1, a Reason in 5.0."""
    properties: Properties = ()


def decode_connect(body: bytes) -> Connect:
    """The CONNECT whose variable header and payload are `body`.

    Raises: Unsupported: another protocol name or version. ProtocolError: what 3.1 calls one. Malformed: any other
    violation of it.
    """
    fields = Fields(body)
    name = fields.string()
    version = fields.integer(1)
    # [MQTT-3.1.2-1], [MQTT-3.1.2-2]
    if name != "MQTT" or version not in (V311, V5):
        raise Unsupported("Only MQTT 3.1.1 and MQTT 5.0 are supported.")
    flags = fields.integer(1)
    _check_flags(flags, version)
    keep_alive = fields.integer(2)
    properties = _decode_properties(fields, _CONNECT_PROPERTIES) if version == V5 else ()
    client_id = fields.string()
    will = _decode_will(fields, flags, version) if flags & _WILL else None
    username = fields.string() if flags & _USERNAME else None
    password = fields.binary() if flags & _PASSWORD else None
    if fields.left:
        raise Malformed("CONNECT has data after its last field.")
    return Connect(version, client_id, bool(flags & _CLEAN), keep_alive, will, username, password, properties)


def _decode_properties(fields: Fields, allowed: frozenset[int]) -> Properties:
    properties = decode_properties(fields, allowed)
    for identifier, value in properties:
        if identifier in _VALUES and isinstance(value, int):
            least, most = _VALUES[identifier]
            if not least <= value <= most:
                name = Property(identifier).name.replace("_", " ").title()
                raise ProtocolError(f"MQTT 5.0 does not allow the value {value} of {name} in CONNECT.")
    # 3.1.2.11.10
    found = {identifier for identifier, _ in properties}
    if Property.AUTHENTICATION_DATA in found and Property.AUTHENTICATION_METHOD not in found:
        raise ProtocolError("The CONNECT has Authentication Data and no Authentication Method.")
    return properties


def _check_flags(flags: int, version: int) -> None:
    # [MQTT-3.1.2-3] the reserved flag must be 0
    if flags & _RESERVED:
        raise Malformed("The reserved flag of CONNECT is set.")
    will_qos = flags >> 3 & 3
    # [MQTT-3.1.2-11] to [MQTT-3.1.2-15]
    if will_qos == 3 or (not flags & _WILL and (will_qos or flags & _WILL_RETAIN)):
        raise Malformed("The will flags of CONNECT are inconsistent.")
    # [MQTT-3.1.2-22] of 3.1.1; 5.0 allows a password alone
    if version == V311 and flags & _PASSWORD and not flags & _USERNAME:
        raise Malformed("CONNECT has a password but no user name.")


def _decode_will(fields: Fields, flags: int, version: int) -> Will:
    properties = _decode_properties(fields, _WILL_PROPERTIES) if version == V5 else ()
    topic = topic_name(fields.binary())
    return Will(topic, fields.binary(), flags >> 3 & 3, bool(flags & _WILL_RETAIN), properties)


def encode_connect(connect: Connect) -> bytes:
    """The whole packet."""
    flags = _CLEAN if connect.clean else 0
    payload = encode_string(connect.client_id)
    if connect.will is not None:
        will = connect.will
        flags |= _WILL | will.qos << 3 | (_WILL_RETAIN if will.retain else 0)
        if connect.version == V5:
            payload += encode_properties(will.properties)
        payload += encode_string(will.topic) + encode_binary(will.payload)
    if connect.username is not None:
        flags |= _USERNAME
        payload += encode_string(connect.username)
    if connect.password is not None:
        flags |= _PASSWORD
        payload += encode_binary(connect.password)
    head = encode_string("MQTT") + bytes((connect.version, flags)) + encode_integer(connect.keep_alive, 2)
    if connect.version == V5:
        head += encode_properties(connect.properties)
    return encode_packet(CONNECT, head + payload)


def answer_version(body: bytes) -> int:
    """The version for the answer to a CONNECT, even one that cannot be decoded: V5 for 5 and later, else V311.

    The high bit of the version is mosquitto's private mark of a bridge: 0x84 is a 3.1.1 that tries again without it.
    """
    # Protocol name, then the version byte
    return V5 if body[:6] == b"\0\4MQTT" and len(body) > 6 and body[6] & 0x7F >= V5 else V311


KNOWS_311_ALONE = b"\0\1"
"""How a server that knows nothing newer refuses another version (3.1.1, 3.2.2.3); a CONNACK of 5.0 is longer."""


def decode_connack(body: bytes, version: int) -> Connack:
    """Raises: Malformed."""
    if version == V5 and body == KNOWS_311_ALONE:
        return Connack(False, Reason.UNSUPPORTED_PROTOCOL_VERSION)
    fields = Fields(body)
    flags, code = fields.integer(1), fields.integer(1)
    # [MQTT-3.2.2-1]
    if flags > 1:
        raise Malformed("A reserved flag of CONNACK is set.")
    properties = decode_properties(fields) if version == V5 else ()
    if fields.left:
        raise Malformed("CONNACK has data after its last field.")
    return Connack(bool(flags), code, properties)


def encode_connack(connack: Connack, version: int) -> bytes:
    """The whole packet."""
    body = bytes((connack.session_present, connack.code))
    if version == V5:
        body += encode_properties(connack.properties)
    return encode_packet(CONNACK, body)


def refusal(reason: Reason, version: int, text: str = "", size_max: int | None = None) -> bytes:
    """The CONNACK that refuses for `reason`, as `version` encodes it.

    `text` is the Reason String of 5.0, left out when the packet would be longer than `size_max` ([MQTT-3.2.2-19]).
    """
    # [MQTT-3.2.2-4] of 3.1.1, [MQTT-3.2.2-6] of 5.0: session present is 0 when the connection is refused
    if version == V5:
        packet = encode_connack(Connack(False, reason, reason_string(text)), V5)
        return packet if size_max is None or len(packet) <= size_max else encode_connack(Connack(False, reason), V5)
    return encode_connack(Connack(False, RETURN_CODE.get(reason, ReturnCode.NOT_AUTHORIZED)), V311)


def silence_max(connect: Connect, connack: Connack) -> float:
    """Seconds that may pass between two packets of the client (3.1.2.10); 0: any time.

    One and a half times the keep-alive: the server's, if its CONNACK names one, else the client's.
    """
    servers = value_of(connack.properties, Property.SERVER_KEEP_ALIVE)
    return 1.5 * (servers if isinstance(servers, int) else connect.keep_alive)


def packet_size_max(connect: Connect | None) -> int | None:
    """The longest packet that the client takes (3.1.2.11.4); None: any, or it has not said yet."""
    found = value_of(connect.properties, Property.MAXIMUM_PACKET_SIZE) if connect is not None else None
    return found if isinstance(found, int) else None
