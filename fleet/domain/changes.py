"""A change of state as a value: what to write, the audit row and the events, all or nothing.

The services build a Change; a registry commits it in one transaction, and many of them in one fsync. Each write
names what must still be true; a write that finds otherwise raises Conflict and nothing of its Change happens.
"""

from dataclasses import dataclass, field
from datetime import datetime

from fleet.domain.credential import Credential, Station, Token
from fleet.domain.device import Device, DeviceId, DeviceState, Model


@dataclass(frozen=True, slots=True)
class AddModel:
    """Conflict when the name is taken."""

    model: Model


@dataclass(frozen=True, slots=True)
class SetModel:
    """Conflict when there is no such model."""

    model: Model


@dataclass(frozen=True, slots=True)
class AddDevice:
    """Conflict when the id is taken."""

    device: Device


@dataclass(frozen=True, slots=True)
class MoveDevice:
    """Conflict when the device is in none of the states `allowed`."""

    device_id: DeviceId
    allowed: frozenset[DeviceState]
    to: DeviceState


@dataclass(frozen=True, slots=True)
class AddCredential:
    """Conflict when the fingerprint or the serial is taken, and when its key is another holder's or was revoked."""

    credential: Credential


@dataclass(frozen=True, slots=True)
class MarkUsed:
    """The credential moves from ISSUED to ACTIVE, and every usable credential of its holder that was issued before
    it becomes SUPERSEDED. Conflict when it is neither ISSUED nor ACTIVE any more.
    """

    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class EndUnused:
    """Every credential of the holder that `grant` has earned and nobody has used becomes SUPERSEDED. Conflict when
    the newest of them is not `newest`: the same request, sent twice, has been answered since we looked.
    """

    kind: str
    holder: str
    grant: str
    newest: bytes | None
    """Its fingerprint; None when there was none."""


@dataclass(frozen=True, slots=True)
class RevokeCredentials:
    """Every credential of the holder that is not revoked yet becomes REVOKED. `kind` keeps a station and a device
    of one name apart.
    """

    kind: str
    holder: str


@dataclass(frozen=True, slots=True)
class AddToken:
    token: Token


@dataclass(frozen=True, slots=True)
class SpendToken:
    """One use. Conflict when the token is revoked or has no use left: the race that only the registry can settle."""

    token_id: str


@dataclass(frozen=True, slots=True)
class RevokeToken:
    """Conflict when it does not exist or is revoked already."""

    token_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class AddStation:
    """Conflict when the name is taken."""

    station: Station


Write = (
    AddModel
    | SetModel
    | AddDevice
    | MoveDevice
    | AddCredential
    | MarkUsed
    | EndUnused
    | RevokeCredentials
    | AddToken
    | SpendToken
    | RevokeToken
    | AddStation
)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, to what, by what right, and how it ended. Never holds a secret."""

    at: datetime
    actor: str
    """"operator", "device cam-7", "station st1", "token 3f2a…", or "nobody"."""
    action: str
    """For instance "device.enroll", "device.revoke", "mqtt.connect"."""
    subject: str
    """What it was done to: "device cam-7", "model cam2"."""
    outcome: str
    """"ok", or the code of the refusal."""
    address: str = ""
    detail: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An entry as it stands in the chain: `hash` covers the entry, its sequence and the hash before it."""

    seq: int
    entry: AuditEntry
    previous: bytes
    hash: bytes


class EventKind:
    """What a follower of the feed can hear. Names are stable."""

    DEVICE_STATE = "device.state"
    """subject: device id; detail: the new state."""
    CREDENTIAL_ISSUED = "credential.issued"
    """subject: holder; detail: fingerprint in hex."""
    CREDENTIAL_ENDED = "credential.ended"
    """subject: holder; detail: fingerprint in hex of a superseded or revoked credential, "" for all of the holder's."""
    MODEL_CHANGED = "model.changed"
    """subject: model name."""


@dataclass(frozen=True, slots=True)
class Event:
    kind: str
    subject: str
    detail: str = ""
    seq: int = 0
    """Given by the registry; 0 until then."""


@dataclass(frozen=True, slots=True)
class Change:
    """All of it is committed, or none. A Change with no writes records a refusal."""

    audit: AuditEntry
    writes: tuple[Write, ...] = ()
    events: tuple[Event, ...] = ()
