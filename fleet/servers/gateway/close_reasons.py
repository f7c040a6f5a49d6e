"""Close reasons of a session, as a table: the log's code, CONNACK or DISCONNECT for the device, and the will's fate."""

from dataclasses import dataclass, replace
from functools import partial

from fleet.servers.gateway.limits.limits import ALIASED_TOPIC_SIZE_MAX
from fleet.wire.errors import ProtocolError, TooLarge, WireError
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, Reason


@dataclass(frozen=True, slots=True)
class CloseReason:
    code: str
    """Stable: the log's code, and the counter `EVENT.CODE`."""
    disconnect: Reason | None = None
    """For the DISCONNECT to a 5.0 device; None when the device is gone or knows the reason."""
    connack: Reason | None = Reason.SERVER_UNAVAILABLE
    """For the CONNACK when the session closes before there was one; None when there is none to send."""
    publishes_will: bool = True
    """True: the broker's connection just closes, as the device's own has or might have. False: the broker gets a
    DISCONNECT from us, so that it discards the will."""
    event: str = "mqtt.session"
    """The log's event."""
    text: str = ""
    """Reason String for a 5.0 device: one sentence."""
    reference: str = ""
    """Server Reference for a 5.0 device: where to connect instead."""
    is_audited: bool = False
    """Whether the gateway audits the CONNECT that is refused for it."""

    def packet(self, text: str) -> bytes:
        """The DISCONNECT for a 5.0 device, with `text` as its Reason String."""
        if self.reference:
            return acks.use_another_server(self.reference, text)
        return acks.disconnect(V5, self.disconnect or Reason.NORMAL_DISCONNECTION, text)


def device_ended(state: str) -> CloseReason:
    """DEVICE_ENDED, with the device's new state in its Reason String."""
    return replace(DEVICE_ENDED, text=f"The device has been {state}.")


def shutting_down(reference: str) -> CloseReason:
    """SHUTTING_DOWN, with the server to use instead, if there is one."""
    return replace(ANOTHER_SERVER, reference=reference) if reference else SHUTTING_DOWN


def connect_refused(code: str, connack: Reason | None, text: str = "", *, is_audited: bool = False) -> CloseReason:
    """CONNECT is refused with `connack`; None: the connection is closed without an answer."""
    return CloseReason(code, connack=connack, event="mqtt.connect", text=text, is_audited=is_audited)


_connect_denied = partial(connect_refused, is_audited=True)
"""CONNECT is refused for what is in it, or for what the client has already."""


NO_BROKER = "The message broker is not available. Retry later."

CLIENT_DISCONNECTED = CloseReason("client-disconnected")
CLIENT_GONE = CloseReason("client-gone", connack=None)
BROKER_CLOSED = CloseReason("broker-closed")
"""The broker sent DISCONNECT, which a 5.0 device has received."""
BROKER_REJECTED = CloseReason("broker-rejected")
"""The same, for a packet of the device: malformed, or a protocol error."""
BROKER_REFUSED = CloseReason("broker-refused", connack=None)
BROKER_LOST = CloseReason(
    "broker-lost", Reason.SERVER_SHUTTING_DOWN, text="The message broker is not available. Connect again."
)
BROKER_BROKE_PROTOCOL = CloseReason("broker-broke-protocol", Reason.UNSPECIFIED, text="The server failed.")
TAKEN_OVER = CloseReason("taken-over", Reason.SESSION_TAKEN_OVER, text="The device has connected again.")
SHUTTING_DOWN = CloseReason(
    "shutting-down",
    Reason.SERVER_SHUTTING_DOWN,
    publishes_will=False,
    text="The server is shutting down. Connect again.",
)
"""The device is not lost: its will is discarded."""
ANOTHER_SERVER = replace(
    SHUTTING_DOWN,
    code="use-another-server",
    disconnect=Reason.USE_ANOTHER_SERVER,
    text="The server is shutting down. Use another server.",
)
"""The same, where another is known."""
SERVER_RESTARTING = replace(
    SHUTTING_DOWN, code="server-restarting", text="The server is being restarted. Connect again."
)
"""Another process of the server has the place of the one that ends."""

DEVICE_ENDED = CloseReason(
    "device-ended",
    Reason.ADMINISTRATIVE_ACTION,
    Reason.BANNED,
    publishes_will=False,
    text="The device has been suspended, revoked or retired.",
)
CREDENTIAL_ENDED = CloseReason(
    "credential-ended",
    Reason.NOT_AUTHORIZED,
    Reason.NOT_AUTHORIZED,
    publishes_will=False,
    text="The certificate has been revoked or superseded, or its CA is no longer the model's.",
)
DISTRUSTED = CloseReason(
    "certificate-distrusted",
    Reason.NOT_AUTHORIZED,
    Reason.NOT_AUTHORIZED,
    publishes_will=False,
    text="The certificate is distrusted. Renew it.",
)
KICKED = CloseReason(
    "kicked",
    Reason.ADMINISTRATIVE_ACTION,
    publishes_will=False,
    text="An operator has ended the session. Connect again.",
)
KICKED_WITH_WILL = replace(KICKED, code="kicked-with-will", publishes_will=True)
"""The broker takes the device for lost."""
POLICY_CHANGED = CloseReason(
    "policy-changed",
    Reason.NOT_AUTHORIZED,
    Reason.NOT_AUTHORIZED,
    publishes_will=False,
    text="The device's model has changed and no longer allows a subscription or the will of this session.",
)
EVENTS_MISSED = CloseReason(
    "events-missed",
    Reason.SERVER_BUSY,
    publishes_will=False,
    text="The device must be authenticated again. Connect again.",
)
"""Events were lost: the device must connect again, to be authenticated against the registry's current state. It is
well, or what was lost forbids its will.
"""
WELL = frozenset(each.code for each in (SHUTTING_DOWN, ANOTHER_SERVER, SERVER_RESTARTING, EVENTS_MISSED, KICKED))
"""Codes of reasons to end the connection of a device that is not lost."""
CERTIFICATE_EXPIRED = CloseReason(
    "certificate-expired", Reason.MAXIMUM_CONNECT_TIME, Reason.NOT_AUTHORIZED, text="The certificate has expired."
)

CONNECT_TIMEOUT = CloseReason("connect-timeout", connack=None)
NOT_CONNECT = CloseReason("not-connect", connack=None)
TOO_MANY_SESSIONS = CloseReason("too-many-sessions", connack=None)

UNSUPPORTED_VERSION = _connect_denied(
    "unsupported-version",
    Reason.UNSUPPORTED_PROTOCOL_VERSION,
    "This version of MQTT is not supported.",
)
MALFORMED_CONNECT = _connect_denied("malformed-connect", Reason.MALFORMED_PACKET, "The CONNECT is malformed.")
MALFORMED_CONNECT_311 = _connect_denied("malformed-connect", None)
"""[MQTT-3.1.4-1] of 3.1.1: the connection is closed without a CONNACK."""
CONNECT_PROTOCOL_ERROR = _connect_denied(
    "protocol-error", Reason.PROTOCOL_ERROR, "The CONNECT has what MQTT 5.0 calls a protocol error."
)
"""Its Reason String says which. 3.1.1 has no such answer: only properties are refused for it."""
CONNACK_TOO_LARGE = _connect_denied(
    "connack-too-large", Reason.PACKET_TOO_LARGE, "The Maximum Packet Size of the CONNECT has no room for a CONNACK."
)
"""[MQTT-3.1.2-24]: it could be sent nothing that says what was agreed on; mosquitto closes the connection."""
SESSION_QUOTA = _connect_denied(
    "session-quota",
    Reason.QUOTA_EXCEEDED,
    "The device has sessions of as many client ids as its model allows.",
)
WILL_QUOTA = _connect_denied(
    "will-quota", Reason.QUOTA_EXCEEDED, "The device has too many retained messages for the will to be another."
)
CONNECT_TOO_LARGE = _connect_denied(
    "too-large", Reason.PACKET_TOO_LARGE, "The CONNECT is larger than the server allows."
)
CONNECT_TOO_LARGE_311 = _connect_denied("too-large", None)
"""3.1.1 has no return code for it; nor is there an answer when the version has not arrived."""
WILL_RESPONSE_INVALID = _connect_denied(
    "will-response-topic", Reason.PROTOCOL_ERROR, "The will's Response Topic is not a topic name."
)
"""[MQTT-3.3.2-14]: it contains a wildcard, or nothing."""
DOT_IN_ID = _connect_denied(
    "dot-refused",
    Reason.CLIENT_IDENTIFIER_NOT_VALID,
    "The broker takes a dot in a topic for a slash: no device id may have one.",
)
DOT_IN_WILL = _connect_denied(
    "dot-refused",
    Reason.NOT_AUTHORIZED,
    "The broker takes a dot in a topic for a slash: neither the will's topic nor its Response Topic may have one.",
)
AUTH_METHOD = _connect_denied(
    "auth-method",
    Reason.BAD_AUTHENTICATION_METHOD,
    "No authentication method is supported: the certificate authenticates the device.",
)
"""MQTT 5.0, 4.12: no authentication method is supported. The certificate has authenticated the client."""
FEED_DOWN = connect_refused("feed-down", Reason.SERVER_UNAVAILABLE, "Devices cannot be authenticated now. Retry later.")
"""No new sessions while revocations could not be received."""
INTERNAL = connect_refused("internal", Reason.SERVER_UNAVAILABLE, "The server failed. Retry later.")
"""An exception that nothing here expects; the log has its traceback."""
OPEN_TIMEOUT = connect_refused("open-timeout", Reason.SERVER_UNAVAILABLE, "The server took too long. Retry later.")
BROKER_UNREACHABLE = connect_refused("broker-unreachable", Reason.SERVER_UNAVAILABLE, NO_BROKER)
BROKER_SILENT = connect_refused("broker-silent", Reason.SERVER_UNAVAILABLE, NO_BROKER)
"""It accepts connections, and answers nothing."""
BROKER_LOST_BEFORE_CONNACK = connect_refused("broker-lost", Reason.SERVER_UNAVAILABLE, NO_BROKER)

MALFORMED = CloseReason("malformed", Reason.MALFORMED_PACKET, Reason.MALFORMED_PACKET, text="A packet is malformed.")
PROTOCOL_ERROR = CloseReason(
    "protocol-error", Reason.PROTOCOL_ERROR, Reason.PROTOCOL_ERROR, text="A packet is not allowed here."
)
TOO_LARGE = CloseReason(
    "too-large", Reason.PACKET_TOO_LARGE, Reason.PACKET_TOO_LARGE, text="A packet is larger than the server allows."
)
ALIAS = CloseReason("topic-alias", Reason.TOPIC_ALIAS_INVALID, text="The server did not allow this topic alias.")
ALIASED_TOPIC_TOO_LONG = CloseReason(
    "topic-alias-length",
    Reason.QUOTA_EXCEEDED,
    text=f"A topic with an alias is longer than {ALIASED_TOPIC_SIZE_MAX} bytes.",
)
PUBLISH_REFUSED = CloseReason("publish-refused", Reason.NOT_AUTHORIZED, Reason.NOT_AUTHORIZED)
QOS_REFUSED = CloseReason(
    "qos-refused", Reason.QOS_NOT_SUPPORTED, text="The device's model does not allow messages of this QoS."
)
"""MQTT 5.0, 3.2.2.3.4: a PUBLISH above Maximum QoS is a protocol error, and PUBACK has no code for it. Where the
model has lowered it since CONNACK, the next one announces it.
"""
KEEP_ALIVE_EXPIRED = CloseReason(
    "keep-alive", Reason.KEEP_ALIVE_TIMEOUT, text="Nothing was received for 1.5 times the keep-alive."
)
TOO_SLOW = CloseReason("too-slow", Reason.QUOTA_EXCEEDED, text="The device did not read for too long.")
"""The device did not read for `Limits.stuck_seconds_max`."""
QUOTA = CloseReason("quota", Reason.QUOTA_EXCEEDED, Reason.QUOTA_EXCEEDED, text="Too many requests await their answer.")
TOO_MANY_FILTERS = replace(QUOTA, text="Too many topic filters in one packet.")
MESSAGE_RATE = CloseReason(
    "message-rate", Reason.MESSAGE_RATE_TOO_HIGH, text="More packets a second than the device's model allows."
)
"""More packets per second than the model allows, for longer than it helps not to read."""
BYTE_RATE = CloseReason("byte-rate", Reason.QUOTA_EXCEEDED, text="More bytes a second than the device's model allows.")
"""The same for bytes."""


def broken_by(error: WireError) -> CloseReason:
    """Why a session closes whose device has sent what raised `error`."""
    match error:
        case TooLarge():
            return TOO_LARGE
        case ProtocolError():
            return PROTOCOL_ERROR
        case _:
            return MALFORMED


class CloseSession(Exception):
    """Raised while a packet is processed: the session closes for `reason`."""

    def __init__(self, reason: CloseReason) -> None:
        super().__init__(reason.code)
        self.reason = reason
