"""Devices: one, a list's query, a manifest, an operation on many."""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

from fleet.domain import device as domain
from fleet.domain.device import DeviceState
from fleet.domain.device_filter import FILTER_MAX
from fleet.domain.distrust import Distrust
from fleet.domain.members import about, at_most, pattern
from fleet.domain.model_rules import ModelKind
from fleet.domain.tags import TAG_KEY, TAG_VALUE_MAX
from fleet.servers.admin.records.base import (
    DEVICE_ID_PATTERN,
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
    check_times,
)
from fleet.services.notifying import NAME_PATTERN, Message

MANIFEST_ROWS_MAX = 500  # some 25 ms for which others wait
MANIFEST_SIZE_MAX = 1024 * 1024

_Text256 = Annotated[str, Meta(max_length=256)]


class StateChange(Record):
    """When, by whom and why a device was suspended, revoked or retired."""

    at: Time
    actor: Annotated[str, about("As in the audit: `operator bob`, `user alice`.")]
    reason: Annotated[str, about("Empty when none was given.")]


class LastRefusal(Record):
    """When and why a device was last refused."""

    refused_at: Time
    action: Annotated[str, about("As in the audit: `mqtt.connect`, `enroll`, ...")]
    code: str
    address: str


class CoveringDistrust(Record):
    """A distrust that covers a device's newest certificate."""

    id: str
    refuses: Annotated[bool, about("False: the device is only asked to renew.")]
    reason: str


class Device(Record):
    """A registered device."""

    id: DeviceId
    model: Name
    kind: Annotated[ModelKind, about("Its model's.")]
    state: DeviceState
    hardware_serial: str
    created_at: Time
    expires_at: Annotated[Time | None, about("notAfter of its newest certificate, usable or not.")]
    tags: Tags
    groups: Names
    revision: Count
    state_change: Annotated[
        StateChange | UnsetType,
        about("Of a single device that is suspended, revoked or retired: when, by whom and why, where that is known."),
    ] = UNSET
    usable_until: Annotated[
        Time | UnsetType | None,
        about(
            "In listings, and of a single device, that has had a certificate: notAfter of its last one that is not "
            "revoked, superseded, expired or distrusted; null: none is left."
        ),
    ] = UNSET
    distrusted_by: Annotated[
        list[CoveringDistrust] | UnsetType,
        about("Of a single device: the distrusts that cover its newest certificate, where there are some."),
    ] = UNSET
    last_refusal: Annotated[
        LastRefusal | UnsetType,
        about("Of a single device that was refused with its certificate, or its right to enroll: seconds later."),
    ] = UNSET

    @classmethod
    def shown(
        cls,
        d: domain.Device,
        kind: ModelKind,
        change: domain.StateChange | None = None,
        distrusts: Iterable[Distrust] = (),
        usable_until: datetime | UnsetType | None = UNSET,
    ) -> Self:
        noted = StateChange.of(change) if change is not None and change.state is d.state else UNSET
        distrusted_by = [CoveringDistrust.of(rule) for rule in distrusts] or UNSET
        given = {"state_change": noted, "distrusted_by": distrusted_by, "usable_until": usable_until}
        given["last_refusal"] = UNSET  # its reader has it
        return cls.of(d, kind=kind, tags=dict(d.tags), **given)


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
    kind: Annotated[ModelKind | None, about("Devices alone, or applications alone.")] = None
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
    expires_before: Annotated[
        TimeText | None, about("Devices whose newest certificate expires before then, soonest first.")
    ] = None

    def __post_init__(self) -> None:
        check_times(self, "expires_before")


class FleetMessage(Record):
    """A message of the fleet to a device."""

    name: Annotated[str, pattern(NAME_PATTERN, "Of its topic, devices/ID/fleet/NAME.")]
    payload: Annotated[
        Any,
        about("JSON value, 64 KiB at most, published as it is written here; without it the payload is empty."),
    ] = UNSET

    def message(self, text: bytes) -> Message:
        """`text`: this record as it came. Raises: Invalid (`payload-too-large`)."""
        return Message(self.name, bytes(msgspec.json.decode(text, type=_AsWritten).payload))


class _AsWritten(msgspec.Struct):
    """The members of a message, or of an act on many, as they are written: JSON that has been checked already."""

    payload: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()


def message_as_written(act: bytes) -> bytes:
    """The `message` of a BulkAct with this text."""
    return bytes(msgspec.json.decode(act, type=_AsWritten).message)


class Notice(FleetMessage):
    """A message of the fleet to one device."""

    reason: ReasonText = ""


class Notified(Record):
    """A message of the fleet that the broker has taken."""

    device_id: DeviceId
    topic: str
    subscribed: Annotated[
        bool | None,
        about("False: nobody had subscribed, and the message is gone. Null: the broker does not say (MQTT 3.1.1)."),
    ]


class DeviceReport(Record):
    """The last report of a device's agent, whose signature has been verified."""

    device_id: DeviceId
    received_at: Time
    serial: Annotated[str, about("Of the certificate with whose key it is signed.")]
    report: Annotated[dict[str, Any], about("What the agent says of itself.")]
    text: Annotated[str, about("The report as it was signed.")]
    signature: Annotated[str, about("Base64; over `fleet device report 1`, a line feed, and the text.")]


class BulkAct(Record):
    """An operation on every device of a filter."""

    filter: Annotated[
        str, at_most(FILTER_MAX, "As in the commands: model=cam2 and lot=L7 and state=active and expires<30d")
    ]
    act: Literal["suspend", "resume", "revoke", "retire", "tag", "notify"]
    tags: Annotated[TagChanges | UnsetType, about("With tag: tags to set; one that is null is removed.")] = UNSET
    join: Annotated[Groups | UnsetType, about("With tag: groups to add the devices to.")] = UNSET
    leave: Annotated[Groups | UnsetType, about("With tag: groups to remove them from.")] = UNSET
    message: Annotated[FleetMessage | UnsetType, about("With notify: what is published to each device.")] = UNSET
    crl_reason: Annotated[CrlReasonText | UnsetType, about("With revoke: the reason in CRLs and OCSP.")] = UNSET
    reason: ReasonText = ""
    dry_run: Annotated[bool, about("Count the devices, and change nothing.")] = False
    expected: Annotated[Sequence | UnsetType, about("How many devices must match; required for the first step.")] = (
        UNSET
    )
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
    line: Annotated[
        Sequence | UnsetType, about("Its line in the manifest, for refusals; its position in the request by default.")
    ] = UNSET
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
