"""Events that end sessions, or change a right to connect, decoded."""

import json
from typing import Self

from msgspec import Struct

from fleet.domain.changes import Event, EventKind
from fleet.domain.device import OUT_OF_SERVICE, DeviceState


class DeviceStateChanged(Struct, frozen=True):
    device_id: str
    state: str

    @property
    def is_active(self) -> bool:
        return self.state == DeviceState.ACTIVE

    @property
    def is_out_of_service(self) -> bool:
        """Permanently: revoked or retired."""
        return self.state in OUT_OF_SERVICE


class CredentialEnded(Struct, frozen=True):
    """Superseded or revoked."""

    holder: str
    fingerprint: bytes | None
    """None: all of the holder's."""


class CredentialSuperseded(Struct, frozen=True):
    """It ends next, since its holder has used a newer one."""

    fingerprint: bytes


class ModelChanged(Struct, frozen=True):
    name: str


class DeviceTagged(Struct, frozen=True):
    """Its tags or groups have changed."""

    device_id: str


class DistrustChanged(Struct, frozen=True):
    rule: str
    """Id of the rule that was made or undone."""
    text: str = ""
    """The rule (`fleet.domain.distrust.rule_of`); "": it was undone."""


class SessionKicked(Struct, frozen=True):
    """Sessions of a device are closed; it may connect again."""

    device_id: str
    client_id: str | None = None
    """None: all of the device's."""
    publishes_will: bool = False
    ends_kept: bool = False
    """The one of `client_id` was not connected: what the broker keeps of it ends."""

    def event(self) -> Event:
        detail = {"client_id": self.client_id, "will": self.publishes_will}
        if self.ends_kept:
            detail["kept"] = True
        return Event(EventKind.SESSION_KICKED, self.device_id, json.dumps(detail))

    @classmethod
    def of(cls, event: Event) -> Self:
        detail = json.loads(event.detail)
        return cls(event.subject, detail["client_id"], detail["will"], detail.get("kept", False))


RightChanged = (
    DeviceStateChanged
    | CredentialEnded
    | CredentialSuperseded
    | ModelChanged
    | DeviceTagged
    | DistrustChanged
    | SessionKicked
)


def decode_event(event: Event) -> RightChanged | None:
    """None for an event of another kind."""
    match event.kind:
        case EventKind.DEVICE_STATE:
            return DeviceStateChanged(event.subject, event.detail)
        case EventKind.CREDENTIAL_ENDED:
            return CredentialEnded(event.subject, bytes.fromhex(event.detail) if event.detail else None)
        case EventKind.CREDENTIAL_SUPERSEDED:
            return CredentialSuperseded(bytes.fromhex(event.detail))
        case EventKind.MODEL_CHANGED:
            return ModelChanged(event.subject)
        case EventKind.DEVICE_TAGGED:
            return DeviceTagged(event.subject)
        case EventKind.DISTRUST_CHANGED:
            return DistrustChanged(event.subject, event.detail)
        case EventKind.SESSION_KICKED:
            return SessionKicked.of(event)
    return None
