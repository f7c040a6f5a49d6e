"""How a session can end, as a table: what the log says, what the device hears, what becomes of its will."""

from dataclasses import dataclass

from fleet.wire.mqtt.codes import Reason


@dataclass(frozen=True, slots=True)
class CloseReason:
    name: str
    """Stable: the log's code, and the counter `ended.NAME`."""
    reason: Reason | None = None
    """For the DISCONNECT of 5.0; None when there is nobody to tell, or nothing that they don't know."""
    connack: Reason | None = Reason.SERVER_UNAVAILABLE
    """For the CONNACK, when it ends before there was one; None when there is nobody to tell."""
    will: bool = True
    """False: the broker gets a DISCONNECT from us, so that it drops the will. True: its connection just closes, as
    the device's own has or might have."""


CLIENT_DISCONNECTED = CloseReason("client-disconnected")
CLIENT_GONE = CloseReason("client-gone", connack=None)
BROKER_CLOSED = CloseReason("broker-closed")
"""The broker ended it and has said so to a 5.0 client itself."""
BROKER_REFUSED = CloseReason("broker-refused", connack=None)
BROKER_LOST = CloseReason("broker-lost", Reason.SERVER_SHUTTING_DOWN)
BROKER_BROKE_PROTOCOL = CloseReason("broker-broke-protocol", Reason.UNSPECIFIED)
TAKEN_OVER = CloseReason("taken-over", Reason.SESSION_TAKEN_OVER)
SHUTTING_DOWN = CloseReason("shutting-down", Reason.SERVER_SHUTTING_DOWN)

DEVICE_ENDED = CloseReason("device-ended", Reason.ADMINISTRATIVE_ACTION, Reason.BANNED, will=False)
CREDENTIAL_ENDED = CloseReason("credential-ended", Reason.NOT_AUTHORIZED, Reason.NOT_AUTHORIZED, will=False)
POLICY_CHANGED = CloseReason("policy-changed", Reason.NOT_AUTHORIZED, Reason.NOT_AUTHORIZED, will=False)
EVENTS_MISSED = CloseReason("events-missed", Reason.SERVER_BUSY)
"""Events were missed for good: it is to connect again and be judged by what the registry says now."""
CERTIFICATE_EXPIRED = CloseReason("certificate-expired", Reason.MAXIMUM_CONNECT_TIME, Reason.NOT_AUTHORIZED)

CONNECT_TIMEOUT = CloseReason("connect-timeout", connack=None)
NOT_CONNECT = CloseReason("not-connect", connack=None)
REFUSED = CloseReason("refused", connack=None)
"""Refused at CONNECT; the CONNACK has said why."""
TOO_MANY_SESSIONS = CloseReason("too-many-sessions", connack=None)

MALFORMED = CloseReason("malformed", Reason.MALFORMED_PACKET, Reason.MALFORMED_PACKET)
PROTOCOL_ERROR = CloseReason("protocol-error", Reason.PROTOCOL_ERROR, Reason.PROTOCOL_ERROR)
TOO_LARGE = CloseReason("too-large", Reason.PACKET_TOO_LARGE, Reason.PACKET_TOO_LARGE)
ALIAS = CloseReason("topic-alias", Reason.TOPIC_ALIAS_INVALID)
PUBLISH_REFUSED = CloseReason("publish-refused", Reason.NOT_AUTHORIZED, Reason.NOT_AUTHORIZED)
TOO_SLOW = CloseReason("too-slow", Reason.QUOTA_EXCEEDED)
"""It has not read what it was sent for too long."""
QUOTA = CloseReason("quota", Reason.QUOTA_EXCEEDED, Reason.QUOTA_EXCEEDED)


class CloseSession(Exception):
    """Raised while a packet is looked at: the session ends this way."""

    def __init__(self, ending: CloseReason) -> None:
        super().__init__(ending.name)
        self.ending = ending
