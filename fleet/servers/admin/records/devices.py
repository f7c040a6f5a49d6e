"""Devices: one, a list's query, a manifest, an operation on many."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from msgspec import UNSET, Meta, UnsetType, field

from fleet.domain import device as domain
from fleet.domain.device import DeviceState
from fleet.domain.device_filter import FILTER_MAX
from fleet.domain.distrust import Distrust
from fleet.domain.tags import TAG_KEY, TAG_VALUE_MAX
from fleet.servers.admin.records.base import (
    DEVICE_ID_PATTERN,
    SEQUENCE_MAX,
    BulkId,
    Changes,
    Count,
    CrlReasonText,
    Cursor,
    DeviceId,
    Groups,
    Name,
    Names,
    Paging,
    ReasonText,
    Record,
    Sequence,
    TagChanges,
    Tags,
    Time,
    TimeText,
    about,
    at_most,
    check_times,
    pattern,
)

MANIFEST_ROWS_MAX = 500  # some 25 ms for which others wait
MANIFEST_SIZE_MAX = 1024 * 1024

_Text256 = Annotated[str, Meta(max_length=256)]


class StateChange(Record):
    """When, by whom and why a device was suspended, revoked or retired."""

    at: Time
    actor: Annotated[str, about("As in the audit: `operator bob`, `user alice`.")]
    reason: Annotated[str, about("Empty when none was given.")]


class CoveringDistrust(Record):
    """A distrust that covers a device's newest certificate."""

    id: str
    refuses: Annotated[bool, about("False: the device is only asked to renew.")]
    reason: str


class Device(Record):
    """A registered device."""

    id: DeviceId
    model: Name
    state: DeviceState
    hardware_serial: str
    created_at: Time
    expires_at: Annotated[Time | None, about("notAfter of its newest certificate.")]
    tags: Tags
    groups: Names
    revision: Count
    state_change: Annotated[
        StateChange | UnsetType,
        about("Of a single device that is suspended, revoked or retired: when, by whom and why, where that is known."),
    ] = UNSET
    distrusted_by: Annotated[
        list[CoveringDistrust] | UnsetType,
        about("Of a single device: the distrusts that cover its newest certificate, where there are some."),
    ] = UNSET

    @classmethod
    def shown(
        cls, d: domain.Device, change: domain.StateChange | None = None, distrusts: Iterable[Distrust] = ()
    ) -> Self:
        noted = StateChange.of(change) if change is not None and change.state is d.state else UNSET
        distrusted_by = [CoveringDistrust.of(rule) for rule in distrusts] or UNSET
        return cls.of(d, tags=dict(d.tags), state_change=noted, distrusted_by=distrusted_by)


class NewDevice(Record):
    """A device to register."""

    id: DeviceId
    model: Name
    hardware_serial: Annotated[str, pattern(r"^[A-Za-z0-9 '()+,\-./:=?]{0,64}\Z")] = ""
    tags: Tags = field(default_factory=dict)
    groups: Groups = field(default_factory=list)


class DeviceChanges(Changes):
    """A merge patch (RFC 7396): a tag that is null is removed, one that is not named stays."""

    tags: TagChanges | UnsetType = UNSET
    groups: Groups | UnsetType = UNSET
    reason: ReasonText | UnsetType = UNSET


class DeviceQuery(Paging):
    """Which devices: those of which everything given is true."""

    model: Name | None = None
    state: DeviceState | None = None
    tag: Annotated[
        list[Annotated[str, pattern(rf"^{TAG_KEY}:[^\x00-\x1f\x7f]{{1,{TAG_VALUE_MAX}}}\Z")]],
        Meta(max_length=8, description="KEY:VALUE; repeated, all of them must match."),
    ] = field(default_factory=list)
    group: Name | None = None
    after: (
        Annotated[
            str,
            pattern(
                rf"^([0-9T:.+Z-]{{20,40}}/)?{DEVICE_ID_PATTERN[1:]}",
                "Resume after this device id; with expires_before, after this TIME/ID.",
            ),
        ]
        | None
    ) = None
    expires_before: (
        Annotated[TimeText, about("Devices whose newest certificate expires before then, soonest first.")] | None
    ) = None

    def __post_init__(self) -> None:
        check_times(self, "expires_before")


class BulkAct(Record):
    """An operation on every device of a filter."""

    filter: Annotated[
        str, at_most(FILTER_MAX, "As in the commands: model=cam2 and lot=L7 and state=active and expires<30d")
    ]
    act: Literal["suspend", "resume", "revoke", "retire", "tag"]
    tags: Annotated[TagChanges | UnsetType, about("With tag: tags to set; one that is null is removed.")] = UNSET
    join: Annotated[Groups | UnsetType, about("With tag: groups to add the devices to.")] = UNSET
    leave: Annotated[Groups | UnsetType, about("With tag: groups to remove them from.")] = UNSET
    crl_reason: Annotated[CrlReasonText | UnsetType, about("With revoke: the reason in CRLs and OCSP.")] = UNSET
    reason: ReasonText = ""
    dry_run: Annotated[bool, about("Count the devices, and change nothing.")] = False
    expected: (
        Annotated[
            int, Meta(ge=0, le=SEQUENCE_MAX, description="How many devices must match; required for the first step.")
        ]
        | UnsetType
    ) = UNSET
    cursor: Annotated[Cursor | UnsetType, about("For each further step: `next` of the previous one.")] = UNSET


class BulkFailure(Record):
    """A device that was changed by somebody else first, or that the registry failed on."""

    id: DeviceId
    code: str
    why: str


class BulkStep(Record):
    """The result of one step of an operation on many devices."""

    bulk: BulkId
    matched: Annotated[Count, about("Devices that the whole operation is for.")]
    done: Annotated[Count, about("In this step.")]
    skipped: Annotated[dict[str, Count], about("In this step, by code: devices to which there was nothing to do.")]
    failed: Annotated[list[BulkFailure], about("In this step.")]
    next: Annotated[str | None, about("Cursor of the next step; null after the last.")]


class ManifestRow(Record):
    """One device of a manifest; checked by itself, so that a bad row is refused alone."""

    device_id: _Text256
    model: _Text256
    line: (
        Annotated[Sequence, about("Its line in the manifest, for refusals; its position in the request by default.")]
        | UnsetType
    ) = UNSET
    hardware_serial: _Text256 = ""
    key_sha256: Annotated[str, at_most(256, "Of the DER SubjectPublicKeyInfo, hex.")] = ""
    tags: Annotated[dict[str, Annotated[str, Meta(max_length=1024)]], Meta(max_length=256)] = field(
        default_factory=dict
    )
    groups: Annotated[list[_Text256], Meta(max_length=256)] = field(default_factory=list)


class ManifestPart(Record):
    """Rows of a manifest. Each is taken or refused by itself; the same row again changes nothing."""

    rows: Annotated[list[ManifestRow], Meta(min_length=1, max_length=MANIFEST_ROWS_MAX)]
    bulk: BulkId | UnsetType = UNSET


class RefusedRow(Record):
    """A row that was not taken."""

    line: Sequence
    device_id: str
    code: str
    message: str


class ManifestTaken(Record):
    """What became of the rows."""

    bulk: BulkId
    added: Count
    unchanged: Annotated[Count, about("Taken before.")]
    refused: list[RefusedRow]
