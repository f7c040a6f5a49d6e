"""Events that end or change a right to connect, decoded."""

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


class ModelChanged(Struct, frozen=True):
    name: str


class DistrustChanged(Struct, frozen=True):
    rule: str
    """Id of the rule that was made or undone."""
    text: str = ""
    """The rule (`fleet.domain.distrust.rule_of`); "": it was undone."""


RightChanged = DeviceStateChanged | CredentialEnded | ModelChanged | DistrustChanged


def decode_event(event: Event) -> RightChanged | None:
    """None for an event of another kind."""
    match event.kind:
        case EventKind.DEVICE_STATE:
            return DeviceStateChanged(event.subject, event.detail)
        case EventKind.CREDENTIAL_ENDED:
            return CredentialEnded(event.subject, bytes.fromhex(event.detail) if event.detail else None)
        case EventKind.MODEL_CHANGED:
            return ModelChanged(event.subject)
        case EventKind.DISTRUST_CHANGED:
            return DistrustChanged(event.subject, event.detail)
    return None
