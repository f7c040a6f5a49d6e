"""The writes that a Change is made of.

Each write names what must still be true; one whose condition no longer holds raises Conflict, and nothing of its Change
happens.
"""

from datetime import datetime

from msgspec import Struct

from fleet.domain.access import Operator
from fleet.domain.approval import ApprovalRequest, RequestState, WaitingLimits
from fleet.domain.claim import Claim
from fleet.domain.credential import Credential, CredentialState, Station, Token
from fleet.domain.crl import CrlReason
from fleet.domain.device import Device, DeviceId, DeviceState, Model, StateChange, Tags
from fleet.domain.distrust import Distrust
from fleet.domain.idempotency import Answer
from fleet.domain.idevid import Anchor, IdevidBinding
from fleet.domain.lease import Lease
from fleet.domain.manifest import ListedDevice

Inserted = Model | Device | Token | Claim | Station | Anchor | Distrust | Operator | Answer


class PlainWrite(Struct, frozen=True):
    """A write whose statements take its fields as they are, in their order."""


class Insert(Struct, frozen=True):
    """Add `value`. Conflict when its id or name is taken: of an anchor also its certificate, of a device its hardware
    serial; of an answer, when its actor has used the idempotency key already.
    """

    value: Inserted


class SetModel(Struct, frozen=True):
    """Replace the model of this name; its revision becomes one higher. Conflict when there is no such model, or when
    `model.revision` is not its revision: it was changed since it was read.
    """

    model: Model


class MoveDevice(Struct, frozen=True):
    """Change the device's state. Conflict when it is in none of the states `allowed`, or not of `revision` when one is
    given.
    """

    device_id: DeviceId
    allowed: frozenset[DeviceState]
    to: DeviceState
    expires_at: datetime | None = None
    """notAfter of the certificate that comes with this move; None leaves the stored value."""
    revision: int | None = None
    budget: tuple[datetime | None, datetime] | None = None
    """When the device's budget of certificates is full again: as it was read, and from now on; None leaves it. Conflict
    when it is not as it was read.
    """
    noted: StateChange | None = None
    """Kept in place of the one before; None leaves that."""


class TagDevice(Struct, frozen=True):
    """Replace the device's tags and groups. Conflict when there is no such device, or when it is not of `revision`."""

    device_id: DeviceId
    tags: Tags
    groups: tuple[str, ...]
    revision: int


class AddCredential(Struct, frozen=True):
    """Conflict when the fingerprint or the serial is taken, or when its key is another holder's or was revoked."""

    credential: Credential


class MarkUsed(PlainWrite, frozen=True):
    """Move the credential from ISSUED to ACTIVE; every usable credential that its holder was issued before becomes
    SUPERSEDED. Conflict when it is neither ISSUED nor ACTIVE any more.
    """

    fingerprint: bytes


class StillUsable(PlainWrite, frozen=True):
    """The credential is ISSUED or ACTIVE; Conflict otherwise."""

    fingerprint: bytes


def use_of(credential: Credential) -> MarkUsed | StillUsable:
    """The write for a use of `credential`. One that is ACTIVE has been marked, and what is older has ended: it stays
    as it is, and only must not have ended since we looked.
    """
    is_marked = credential.state is CredentialState.ACTIVE
    return StillUsable(credential.fingerprint) if is_marked else MarkUsed(credential.fingerprint)


class FirstUse(PlainWrite, frozen=True):
    """The credential was not used yet: in front of its MarkUsed. Conflict (`used-already`) when it is ACTIVE."""

    fingerprint: bytes


class EndUnused(Struct, frozen=True):
    """Every credential of the holder that was issued by `grant` and never used becomes SUPERSEDED. Conflict when the
    newest of them is not `newest`: the same request, sent twice, has been answered in the meantime.
    """

    kind: str
    holder: str
    grant: str
    newest: bytes | None
    """Its fingerprint; None when there was none."""


class EndCredentials(Struct, frozen=True):
    """Each of these that is usable becomes SUPERSEDED, and is listed in CRLs; one that is unknown or has ended is left
    as it is.
    """

    fingerprints: tuple[bytes, ...]
    at: datetime | None = None
    """When; None: from the beginning of each."""


class RevokeSome(Struct, frozen=True):
    """Each of these becomes REVOKED and is listed in CRLs, whatever becomes of its holder; what is listed is treated as
    by RevokeCredentials. One that is unknown is left alone.
    """

    fingerprints: tuple[bytes, ...]
    at: datetime
    reason: CrlReason = CrlReason.UNSPECIFIED


class NewestForKeyIs(PlainWrite, frozen=True):
    """Of the holder's certificates for the key, `newest`, a fingerprint, is the newest. Conflict when it is not."""

    holder: str
    kind: str
    key_sha256: bytes
    newest: bytes


class RevokeCredentials(Struct, frozen=True):
    """Every credential of the holder becomes REVOKED, and is listed in CRLs until it expires; one that is listed keeps
    its reason, unless that was a hold or this is KEY_COMPROMISE. `kind` tells a station from a device of the same name.
    """

    kind: str
    holder: str
    at: datetime | None = None
    """When; None: from the beginning of each."""
    reason: CrlReason = CrlReason.UNSPECIFIED


class HoldCredentials(Struct, frozen=True):
    """Every credential of the holder is listed in CRLs as on hold; its state stays."""

    kind: str
    holder: str
    at: datetime


class ReleaseCredentials(PlainWrite, frozen=True):
    """Every credential of the holder that is on hold leaves the CRLs."""

    kind: str
    holder: str


class SpendToken(PlainWrite, frozen=True):
    """Count one use. Conflict when the token is revoked or has no use left: a race that only the registry settles."""

    token_id: str


class RevokeToken(PlainWrite, frozen=True):
    """Conflict when it does not exist or is revoked already."""

    token_id: str
    at: datetime


class SpendClaim(PlainWrite, frozen=True):
    """Count one use. Conflict when the claim is revoked or in quarantine, or has no use left."""

    name: str


class CountTakeover(PlainWrite, frozen=True):
    """Count a request of the claim for an identity that another device holds, as number `count`. Conflict when that is
    not the next one, or when the claim is in quarantine or revoked.
    """

    name: str
    count: int


class QuarantineClaim(PlainWrite, frozen=True):
    """Conflict when it is in quarantine already, or revoked."""

    name: str
    at: datetime
    reason: str


class ReleaseClaim(PlainWrite, frozen=True):
    """End its quarantine and reset its takeovers. Conflict when it is not in quarantine, or revoked."""

    name: str


class RevokeClaim(PlainWrite, frozen=True):
    """Conflict when it does not exist or is revoked already."""

    name: str
    at: datetime


class SetStation(PlainWrite, frozen=True):
    """Set the station's daily quota. Conflict when there is no such station."""

    name: str
    quota: int


class SpendStation(PlainWrite, frozen=True):
    """Count one certificate on `day`. Conflict when the station's quota for that day has been reached."""

    name: str
    day: int


class DropAnchor(PlainWrite, frozen=True):
    """Conflict when there is none of this name. Devices enrolled by it stay enrolled, and bound."""

    name: str


class DropDistrust(PlainWrite, frozen=True):
    """Conflict when there is none of this id."""

    id: str


class BindIdevid(Struct, frozen=True):
    """Bind the key of an IDevID to a device. Conflict when the key is another device's, the device has another key, or
    the anchor has been removed.
    """

    binding: IdevidBinding


class ImportDevices(Struct, frozen=True):
    """Register all of these, each with its manifest entry. Conflict when one of them exists already, or has the serial
    or the key of another.
    """

    devices: tuple[ListedDevice, ...]


class AddRequest(Struct, frozen=True):
    """Add a pending request; requests that have expired by its `first_seen` are deleted first. Conflict when it exists
    already, or when as many as `limits` allow are pending, unless it `is_announced`.

    With `makes_room`, where all or the model's are as many, the one of them that was not seen for longest gives way: of
    the region that has most, in that of the block that has most, and in that of the network that has most. Who would
    have as many as that one makes no room, unless that one was not seen for UNSEEN; of one region, the blocks are
    compared, and of one block, the networks.
    """

    request: ApprovalRequest
    limits: WaitingLimits
    makes_room: bool = False
    is_announced: bool = False
    """Its key is the one that the manifest lists for its device."""


class TouchRequest(Struct, frozen=True):
    """Record that it was sent `asked` times more, last at `at` from `address`; a pending one is kept until `until` at
    least. No conflict when it is gone.
    """

    request_id: str
    asked: int
    at: datetime
    address: str
    until: datetime | None = None


class DecideRequest(Struct, frozen=True):
    """Move the request to `to`, and its expiry to `expires_at`. An approval denies every other pending request for its
    device id. Conflict when its state forbids it, when it is not of `revision` if one is given, or when another request
    for the device id has been approved.
    """

    request_id: str
    to: RequestState
    by: str
    at: datetime
    reason: str
    expires_at: datetime
    revision: int | None = None


class CollectRequest(PlainWrite, frozen=True):
    """From APPROVED to ISSUED. Conflict when it is not approved any more: a race that only the registry settles."""

    request_id: str


class DropRequests(PlainWrite, frozen=True):
    """Delete every request that has expired at `now`."""

    now: datetime


RequestWrite = AddRequest | TouchRequest | DecideRequest


class DropAnswers(PlainWrite, frozen=True):
    """Delete every answer given before `before`."""

    before: datetime


class TakeLease(Struct, frozen=True):
    """Take or renew `lease`. Conflict when another owner's has not expired at `now`, unless taken `by_force`."""

    lease: Lease
    now: datetime
    by_force: bool = False


class DropCredentials(Struct, frozen=True):
    """Delete these certificates, which have been archived; the keys of revoked ones stay barred. Conflict when one has
    not expired at `now`.
    """

    fingerprints: tuple[bytes, ...]
    now: datetime


class DropAudit(Struct, frozen=True):
    """Delete audit rows up to `upto`, which have been archived. Conflict when they are not all sealed, or when `upto`
    is not a multiple of 256, so that a whole subtree's hash would be lost.
    """

    upto: int


class DropEvents(PlainWrite, frozen=True):
    """Delete events up to `upto`; the newest one always stays."""

    upto: int


CredentialWrite = AddCredential | EndUnused | EndCredentials | RevokeSome | RevokeCredentials | HoldCredentials
DeviceWrite = SetModel | MoveDevice | TagDevice | BindIdevid
RetentionWrite = DropCredentials | DropAudit | TakeLease
SteppedWrite = PlainWrite | Insert | DeviceWrite | CredentialWrite | RequestWrite | RetentionWrite
"""Those whose statements are the same on each engine."""
Write = ImportDevices | SteppedWrite
