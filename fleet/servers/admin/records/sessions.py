"""MQTT sessions: one, those of a device, a list's query."""

from datetime import datetime
from typing import Annotated, Literal, Self

from msgspec import Meta

from fleet.domain.members import about
from fleet.domain.model_rules import ModelKind
from fleet.domain.presence import CLIENT_ID_MAX, SessionFound, SessionState
from fleet.servers.admin.records.base import DeviceId, Name, Paging, Reason, Record, Time

NODE_SIZE_MAX = 256

_ClientId = Annotated[str, Meta(min_length=1, max_length=CLIENT_ID_MAX)]


class Session(Record):
    """The newest MQTT session of a client id."""

    device_id: DeviceId
    client_id: str
    state: Annotated[SessionState, about("`unknown`: it was connected, at a node that is not heard from.")]
    connected_at: Annotated[Time, about("When its CONNECT was accepted.")]
    seen_at: Annotated[Time, about("When the device was last heard; noted every five minutes while it is connected.")]
    ended_at: Time | None
    reason: Annotated[str, about("Why it ended, as in the log; empty while it is connected.")]
    address: Annotated[str, about("IP address of the device.")]
    node: Annotated[str, about("Host and home of the gateway.")]
    mqtt: Annotated[str, about("Version of the protocol.")]
    tls: str
    tls_group: Annotated[str, about("Key exchange group; empty if not known.")]

    @classmethod
    def shown(cls, found: SessionFound, now: datetime) -> Self:
        return cls.of(found.session, state=found.state(now), ended_at=found.ended_at, reason=found.reason)


class DeviceSessions(Record):
    """What is known of a device's sessions."""

    device_id: DeviceId
    sessions: Annotated[list[Session], about("By client id; empty when it has never connected.")]


class SessionQuery(Paging):
    """Which sessions: those of which everything given is true."""

    device: DeviceId | None = None
    model: Name | None = None
    kind: Annotated[ModelKind | None, about("Sessions of devices alone, or of applications alone.")] = None
    node: Annotated[str, Meta(max_length=NODE_SIZE_MAX)] | None = None
    connected: (
        Annotated[Literal["true", "false"], about("`true`: also those at a node that is not heard from.")] | None
    ) = None


class Kick(Reason):
    """Which of a device's sessions to end, and how."""

    client_id: Annotated[_ClientId | None, about("One session; all of the device's by default.")] = None
    will: Annotated[
        bool, about("True: the broker publishes the will, as of a device that is lost. False: it discards it.")
    ] = False


EVERY_ONE = Kick()


class Kicked(Record):
    """Sessions that are being ended, at whichever gateway they are."""

    device_id: DeviceId
    client_ids: Annotated[list[str], about("Those known to be connected; one that has just come is ended too.")]
    will: bool
