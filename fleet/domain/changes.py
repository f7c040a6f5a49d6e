"""A change of state as a value: what to write, the audit row and the events, all or nothing.

The services build a Change; a registry commits it in one transaction, and many of them in one fsync. Each write
names what must still be true; a write that finds otherwise raises Conflict and nothing of its Change happens.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from fleet.domain.access import Operator
from fleet.domain.approval import ApprovalRequest, RequestState, WaitingLimits
from fleet.domain.claim import Claim
from fleet.domain.credential import Credential, Station, Token
from fleet.domain.device import Device, DeviceId, DeviceState, Model, Tags
from fleet.domain.idevid import Anchor, IdevidBinding
from fleet.domain.lease import Lease
from fleet.domain.manifest import ListedDevice

ANSWER_KEPT = timedelta(hours=24)  # whoever repeats a request, because its answer was lost, does so within minutes


@dataclass(frozen=True, slots=True)
class AddModel:
    """Conflict when the name is taken."""

    model: Model


@dataclass(frozen=True, slots=True)
class SetModel:
    """The model of this name becomes `model`, its revision one higher. Conflict when there is no such model, or when
    `model.revision` is not the one it has: somebody changed it since it was read.
    """

    model: Model


@dataclass(frozen=True, slots=True)
class AddDevice:
    """Conflict when the id is taken."""

    device: Device


@dataclass(frozen=True, slots=True)
class MoveDevice:
    """Conflict when the device is in none of the states `allowed`, or is not of `revision` when one is given."""

    device_id: DeviceId
    allowed: frozenset[DeviceState]
    to: DeviceState
    expires_at: datetime | None = None
    """When the certificate ends that this move brings; None leaves what is there."""
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class TagDevice:
    """The device's tags and groups become these and no others. Conflict when there is no such device, or when it is
    not of `revision`.
    """

    device_id: DeviceId
    tags: Tags
    groups: tuple[str, ...]
    revision: int


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
class EndCredentials:
    """Each of these that is usable becomes SUPERSEDED; one that is not known, or has ended, is left as it is."""

    fingerprints: tuple[bytes, ...]


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


@dataclass(frozen=True, slots=True)
class SetStation:
    """What it may earn on a day becomes `quota`. Conflict when there is no such station."""

    name: str
    quota: int


@dataclass(frozen=True, slots=True)
class SpendStation:
    """One certificate more on `day`. Conflict when the station's quota for that day has been reached."""

    name: str
    day: int


@dataclass(frozen=True, slots=True)
class ListDevices:
    """All of these are registered, each with its entry in the manifest. Conflict when one of them is there already, or
    has the serial or the key of another.
    """

    listed: tuple[ListedDevice, ...]


@dataclass(frozen=True, slots=True)
class AddClaim:
    """Conflict when the name is taken."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class SpendClaim:
    """One use. Conflict when the claim is revoked or in quarantine, or has no use left."""

    name: str


@dataclass(frozen=True, slots=True)
class CountTakeover:
    """One identity more that the claim asked for and that has an owner."""

    name: str


@dataclass(frozen=True, slots=True)
class QuarantineClaim:
    """Conflict when it is in quarantine already, or revoked."""

    name: str
    at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class ReleaseClaim:
    """Out of quarantine, its takeovers forgotten. Conflict when it is not in quarantine, or revoked."""

    name: str


@dataclass(frozen=True, slots=True)
class RevokeClaim:
    """Conflict when it does not exist or is revoked already."""

    name: str
    at: datetime


@dataclass(frozen=True, slots=True)
class AddAnchor:
    """Conflict when the name is taken, or the certificate."""

    anchor: Anchor


@dataclass(frozen=True, slots=True)
class DropAnchor:
    """Conflict when there is none of this name. What was enrolled by it stays, and stays bound."""

    name: str


@dataclass(frozen=True, slots=True)
class BindIdevid:
    """The key is that device's from now on. Conflict when it is another's already, or the device has another; and when
    the anchor is there no more.
    """

    binding: IdevidBinding


@dataclass(frozen=True, slots=True)
class AddOperator:
    """Conflict when the name is taken."""

    operator: Operator


@dataclass(frozen=True, slots=True)
class AddAnswer:
    """What was answered to a request with an idempotency key. Conflict when `actor` has used `key` already."""

    answer: "Answer"


@dataclass(frozen=True, slots=True)
class DropAnswers:
    """Forget every answer given before `before`."""

    before: datetime


@dataclass(frozen=True, slots=True)
class AddRequest:
    """A new request that waits; whatever has expired by its `first_seen` is forgotten first. Conflict when it is there
    already, or when as many as `limits` allow are pending.
    """

    request: ApprovalRequest
    limits: WaitingLimits


@dataclass(frozen=True, slots=True)
class SeeRequest:
    """It was asked `asked` times more, last at `at` from `address`. Whether it is there still does not matter."""

    request_id: str
    asked: int
    at: datetime
    address: str


@dataclass(frozen=True, slots=True)
class DecideRequest:
    """It becomes `to`, and lives until `expires_at`. With a yes, every other pending request for its device id becomes
    DENIED. Conflict when it is in a state that forbids it, or not of `revision` when one is given; and for a yes when
    another request for the device id has been approved.
    """

    request_id: str
    to: RequestState
    by: str
    at: datetime
    reason: str
    expires_at: datetime
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class CollectRequest:
    """From APPROVED to ISSUED. Conflict when it is not approved any more: the race that only the registry settles."""

    request_id: str


@dataclass(frozen=True, slots=True)
class DropRequests:
    """Forget every request that has expired at `now`."""

    now: datetime


@dataclass(frozen=True, slots=True)
class DropCredentials:
    """Forget these certificates, which have been archived; the keys of revoked ones stay barred. Conflict when one of
    them has not expired at `now`.
    """

    fingerprints: tuple[bytes, ...]
    now: datetime


@dataclass(frozen=True, slots=True)
class DropAudit:
    """Forget audit rows up to `upto`, which have been archived. Conflict when they are not all sealed, or when `upto`
    is not a multiple of 256, so that a whole subtree's hash would be lost.
    """

    upto: int


@dataclass(frozen=True, slots=True)
class DropEvents:
    """Forget events up to `upto`; the newest one always stays."""

    upto: int


@dataclass(frozen=True, slots=True)
class TakeLease:
    """`lease` is its owner's from now on, or still is. Conflict when another owner's has not expired at `now`, unless
    it is taken `by_force`.
    """

    lease: Lease
    now: datetime
    by_force: bool = False


DeviceWrite = AddModel | SetModel | AddDevice | MoveDevice | TagDevice
CredentialWrite = (
    AddCredential | MarkUsed | EndUnused | EndCredentials | RevokeCredentials | AddToken | SpendToken | RevokeToken
)
ClaimWrite = AddClaim | SpendClaim | CountTakeover | QuarantineClaim | ReleaseClaim | RevokeClaim
AdmissionWrite = ClaimWrite | AddStation | SetStation | SpendStation | AddAnchor | DropAnchor | BindIdevid
RequestWrite = AddRequest | SeeRequest | DecideRequest | CollectRequest | DropRequests
AdminWrite = AddOperator | AddAnswer | DropAnswers | TakeLease
RetentionWrite = DropCredentials | DropAudit | DropEvents
Write = ListDevices | DeviceWrite | CredentialWrite | AdmissionWrite | RequestWrite | AdminWrite | RetentionWrite


@dataclass(frozen=True, slots=True)
class Answer:
    """What `actor` was answered when it came with the idempotency key `key`."""

    actor: str
    key: str
    request_sha256: bytes
    """Of method, path and body: the same key with another request is a mistake."""
    status: int
    body: str
    at: datetime


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, to what, by what right, and how it ended. Never holds a secret."""

    at: datetime
    actor: str
    """"operator", "device cam-7", "station st1", "token 3f2a…", "request 91ab…", or "nobody"."""
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
    """An entry as it stands in the audit, with the leaf hash that was worked out when it was written."""

    seq: int
    """1 for the first; without gaps, in the order of the commits."""
    entry: AuditEntry
    leaf: bytes


class EventKind:
    """What a follower of the feed can hear. Names are stable."""

    DEVICE_STATE = "device.state"
    """subject: device id; detail: the new state."""
    DEVICE_TAGGED = "device.tagged"
    """subject: device id: its tags or groups have changed."""
    CREDENTIAL_ISSUED = "credential.issued"
    """subject: holder; detail: fingerprint in hex."""
    CREDENTIAL_ENDED = "credential.ended"
    """subject: holder; detail: fingerprint in hex of a superseded or revoked credential, "" for all of the holder's."""
    MODEL_CHANGED = "model.changed"
    """subject: model name."""
    REQUEST_PENDING = "request.pending"
    """subject: request id; detail: the device id it asks for. Somebody has to say yes or no."""
    REQUEST_DECIDED = "request.decided"
    """subject: request id; detail: "approved" or "denied"."""
    DEVICES_IMPORTED = "devices.imported"
    """subject: what ties the rows of one import together; detail: how many devices were registered."""
    CLAIM_STATE = "claim.state"
    """subject: claim's name; detail: "created", "quarantined", "released" or "revoked"."""
    ANCHOR_CHANGED = "anchor.changed"
    """subject: name of a maker's CA; detail: "added" or "removed"."""


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
