"""Reading of a CONNECT, its admission by the registry, and the CONNECT that the broker gets for it."""

from dataclasses import replace
from datetime import datetime

from fleet.domain.errors import FleetError, Unavailable
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import (
    CONNECT_PROTOCOL_ERROR,
    CONNECT_TOO_LARGE,
    CONNECT_TOO_LARGE_311,
    MALFORMED_CONNECT,
    MALFORMED_CONNECT_311,
    UNSUPPORTED_VERSION,
    WILL_RESPONSE_INVALID,
    CloseSession,
    connect_refused,
)
from fleet.servers.gateway.wills.waiting import may_wait, will_of
from fleet.services.admission import Admission, admit
from fleet.wire.errors import Malformed, ProtocolError, TooLarge, Unsupported, WireError
from fleet.wire.mqtt.codes import V5, Reason
from fleet.wire.mqtt.connect import Connect, answer_version, decode_connect, packet_size_max
from fleet.wire.mqtt.fields import is_plain
from fleet.wire.mqtt.properties import Property, are_plain, value_of, without
from fleet.wire.mqtt.reader import PacketReader, remaining_length
from fleet.wire.mqtt.topics import BRIDGE_TOPICS, is_topic_name

WILL_SLASHES_MAX = 200  # with more, mosquitto closes the connection without an answer
CONNACK_SIZE = 32  # of one with every property that is a number

CONNACK_REASONS: dict[str, Reason] = {
    "client-id-mismatch": Reason.CLIENT_IDENTIFIER_NOT_VALID,
    "device-suspended": Reason.BANNED,
    "device-revoked": Reason.BANNED,
    "device-retired": Reason.BANNED,
    "certificate-revoked": Reason.BANNED,
    "will-retain": Reason.RETAIN_NOT_SUPPORTED,  # [MQTT-3.2.2-13]
    "will-qos": Reason.QOS_NOT_SUPPORTED,  # [MQTT-3.2.2-12]
}
"""Refusal code -> reason in CONNACK; NOT_AUTHORIZED for any other."""


def connect_body(reader: PacketReader, data: bytes) -> tuple[bytes, bool] | None:
    """The body of the CONNECT that `data` completes, and True; of one over its limit what has arrived, and False; None:
    more is needed. One whose length is malformed has an empty body, which is no CONNECT's.
    """
    try:
        packet = next(reader.feed(data), None)
    except Malformed:
        return b"", True
    except TooLarge:
        begun = reader.rest()
        head = remaining_length(begun, 1)
        return begun[head[1] :] if head is not None else b"", False
    return None if packet is None else (packet.body, True)


def connect_in(body: bytes, is_whole: bool) -> Connect:
    """The CONNECT with this body. Raises: CloseSession.

    The will by which a mosquitto bridge tells of itself is dropped: the broker's own topics are closed to devices.
    """
    is_v5 = answer_version(body) == V5
    if not is_whole:
        raise CloseSession(CONNECT_TOO_LARGE if is_v5 else CONNECT_TOO_LARGE_311)
    try:
        connect = decode_connect(body)
        will_topic, will_properties = (connect.will.topic, connect.will.properties) if connect.will else ("", ())
        if not is_plain(will_topic) or not are_plain((*connect.properties, *will_properties)):
            raise Malformed("A string has a control character or a noncharacter.")
        if will_topic.count("/") > WILL_SLASHES_MAX:
            raise Malformed("The will's topic has too many levels.")
    except Unsupported as error:
        raise CloseSession(UNSUPPORTED_VERSION) from error
    except ProtocolError as error:
        raise CloseSession(replace(CONNECT_PROTOCOL_ERROR, text=str(error))) from error
    except WireError as error:
        raise CloseSession(MALFORMED_CONNECT if is_v5 else MALFORMED_CONNECT_311) from error
    will = will_of(connect)
    if will is not None and will.response_topic is not None and not is_topic_name(will.response_topic):
        raise CloseSession(WILL_RESPONSE_INVALID)
    is_dropped = connect.will is not None and connect.will.topic.startswith(BRIDGE_TOPICS)
    return replace(connect, will=None) if is_dropped else connect


def must_be_servable(connect: Connect, *, speaks_v5: bool, feed_is_up: bool) -> None:
    """Require what an admission needs of the CONNECT, the broker and the registry's feed. Raises: CloseSession."""
    if (packet_size_max(connect) or CONNACK_SIZE) < CONNACK_SIZE:
        raise CloseSession(close_reasons.CONNACK_TOO_LARGE)
    if value_of(connect.properties, Property.AUTHENTICATION_METHOD) is not None:
        raise CloseSession(close_reasons.AUTH_METHOD)
    if connect.version == V5 and not speaks_v5:
        raise CloseSession(UNSUPPORTED_VERSION)
    if not feed_is_up:
        raise CloseSession(close_reasons.FEED_DOWN)


async def admit_client(registry: Registry, peer: Peer, connect: Connect, now: datetime) -> Admission:
    """Admission of `peer` under the client id and with the will of `connect`. Raises: CloseSession."""
    client_id = None if connect.asks_for_client_id else connect.client_id
    try:
        return await admit(registry, peer, client_id, now, will=will_of(connect))
    except Unavailable as error:
        raise CloseSession(
            connect_refused(error.code, Reason.SERVER_UNAVAILABLE, close_reasons.FEED_DOWN.text)
        ) from error
    except FleetError as error:
        reason = CONNACK_REASONS.get(error.code, Reason.NOT_AUTHORIZED)
        text = f"{error.message} {error.advice}".rstrip()
        raise CloseSession(connect_refused(error.code, reason, text)) from error


def broker_connect(connect: Connect, admission: Admission, username: str, *, delays_will: bool) -> Connect:
    """`connect` for the broker, under the identity that the certificate proves.

    `delays_will`: whether its will, once it waits, can be cancelled when the device is suspended meanwhile.
    """
    will = connect.will
    if will is not None and not (delays_will and may_wait(connect)):
        # Without a session that outlives the connection it is not delayed (3.1.3.2.2); mosquitto would all the same.
        will = replace(will, properties=without(will.properties, Property.WILL_DELAY_INTERVAL))
    return replace(
        connect,
        will=will,
        client_id=admission.client_id,
        # [MQTT-3.2.2-5] a client without an id has no stored session: the device's must not be resumed for it.
        clean=connect.clean or connect.asks_for_client_id,
        username=username,
        password=None,
        # Topic aliases are between the gateway and the device.
        properties=without(connect.properties, Property.TOPIC_ALIAS_MAXIMUM),
    )
