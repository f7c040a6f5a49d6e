"""How a session can end, as a table: what the log says, what the device hears, what becomes of its will."""

from dataclasses import dataclass

from fleet.wire.mqtt.codes import Reason


@dataclass(frozen=True, slots=True)
class Ending:
    name: str
    """Stable: the log's code, and the counter `ended.NAME`."""
    reason: Reason | None = None
    """For the DISCONNECT of 5.0; None when there is nobody to tell, or nothing that they don't know."""
    connack: Reason | None = Reason.SERVER_UNAVAILABLE
    """For the CONNACK, when it ends before there was one; None when there is nobody to tell."""
    will: bool = True
    """False: the broker gets a DISCONNECT from us, so that it drops the will. True: its connection just closes, as
    the device's own has or might have."""


CLIENT_DISCONNECTED = Ending("client-disconnected")
CLIENT_GONE = Ending("client-gone", connack=None)
BROKER_CLOSED = Ending("broker-closed")
"""The broker ended it and has said so to a 5.0 client itself."""
BROKER_REFUSED = Ending("broker-refused", connack=None)
BROKER_LOST = Ending("broker-lost", Reason.SERVER_SHUTTING_DOWN)
BROKER_BROKE_PROTOCOL = Ending("broker-broke-protocol", Reason.UNSPECIFIED)
TAKEN_OVER = Ending("taken-over", Reason.SESSION_TAKEN_OVER)
SHUTTING_DOWN = Ending("shutting-down", Reason.SERVER_SHUTTING_DOWN)

DEVICE_ENDED = Ending("device-ended", Reason.ADMINISTRATIVE_ACTION, Reason.BANNED, will=False)
CREDENTIAL_ENDED = Ending("credential-ended", Reason.NOT_AUTHORIZED, Reason.NOT_AUTHORIZED, will=False)
POLICY_CHANGED = Ending("policy-changed", Reason.NOT_AUTHORIZED, Reason.NOT_AUTHORIZED, will=False)
EVENTS_MISSED = Ending("events-missed", Reason.SERVER_BUSY)
"""Events were missed for good: it is to connect again and be judged by what the registry says now."""
CERTIFICATE_EXPIRED = Ending("certificate-expired", Reason.MAXIMUM_CONNECT_TIME, Reason.NOT_AUTHORIZED)

CONNECT_TIMEOUT = Ending("connect-timeout", connack=None)
NOT_CONNECT = Ending("not-connect", connack=None)
REFUSED = Ending("refused", connack=None)
"""Refused at CONNECT; the CONNACK has said why."""
TOO_MANY_SESSIONS = Ending("too-many-sessions", connack=None)

MALFORMED = Ending("malformed", Reason.MALFORMED_PACKET, Reason.MALFORMED_PACKET)
PROTOCOL_ERROR = Ending("protocol-error", Reason.PROTOCOL_ERROR, Reason.PROTOCOL_ERROR)
TOO_LARGE = Ending("too-large", Reason.PACKET_TOO_LARGE, Reason.PACKET_TOO_LARGE)
ALIAS = Ending("topic-alias", Reason.TOPIC_ALIAS_INVALID)
PUBLISH_REFUSED = Ending("publish-refused", Reason.NOT_AUTHORIZED, Reason.NOT_AUTHORIZED)
TOO_SLOW = Ending("too-slow", Reason.QUOTA_EXCEEDED)
"""It has not read what it was sent for too long."""
QUOTA = Ending("quota", Reason.QUOTA_EXCEEDED, Reason.QUOTA_EXCEEDED)


class SessionOver(Exception):
    """Raised while a packet is looked at: the session ends this way."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.name)
        self.ending = ending
