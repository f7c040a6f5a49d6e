"""Distrusts: rules that refuse certificates by what they are."""

from datetime import timedelta
from typing import Annotated, Self

from msgspec import UNSET, UnsetType

from fleet.domain import distrust as domain
from fleet.domain.distrust import KEY_MARKS, SPREAD_MAX
from fleet.domain.members import about, choice, seconds
from fleet.servers.admin.records.base import (
    BulkId,
    CertificateSha256,
    Count,
    DeviceId,
    Name,
    ReasonText,
    Record,
    RevocationReason,
    Sequence,
    Time,
    TimeText,
    check_times,
)
from fleet.servers.admin.records.devices import BulkFailure
from fleet.services.distrust import Scope

SPREAD = timedelta(minutes=10)

DistrustId = Annotated[BulkId, about("12 hex digits.")]
_KeyType = Annotated[str, choice(tuple(KEY_MARKS))]
_Refuses = Annotated[bool, about("Whether they are refused; else their devices are only asked to renew.")]
_MayRenew = Annotated[bool, about("Whether EST accepts such a certificate for its own renewal.")]


class Distrust(Record):
    """A rule in force."""

    id: DistrustId
    model: str | None
    ca_key_id: Annotated[str | None, about("Subject key identifier of the CA that signed, hex.")]
    key_type: str | None
    issued_from: Time | None
    issued_before: Time
    refuses: _Refuses
    may_renew: _MayRenew
    spread_seconds: Annotated[Count, about("Within which devices are asked to renew, from created_at on.")]
    devices: Annotated[Count, about("In service under it when it was made.")]
    created_at: Time
    created_by: str
    reason: str

    @classmethod
    def shown(cls, rule: domain.Distrust, **given: object) -> Self:
        return cls.of(
            rule,
            model=rule.model or None,
            ca_key_id=rule.issuer_key_id.hex() or None,
            key_type=rule.key_type or None,
            spread_seconds=int(rule.spread.total_seconds()),
            devices=rule.matched,
            **given,
        )


class DistrustProgress(Distrust):
    """A rule in force, and who is still under it."""

    left: Annotated[Count, about("Devices in service whose newest certificate it covers.")]
    left_by_model: dict[Name, Count]
    first: Annotated[list[DeviceId], about("Ids of the first of these.")]
    certificates: Annotated[Count, about("That it covers, of any device, neither expired nor revoked.")]


class NewDistrust(Record):
    """Certificates to distrust: those to which everything that is given applies."""

    model: Name | None = None
    ca: Annotated[CertificateSha256 | None, about("Of the issuing CA, present or former, that signed them.")] = None
    key_type: _KeyType | None = None
    issued_from: TimeText | None = None
    issued_before: TimeText | None = None
    refuses: _Refuses = True
    may_renew: _MayRenew = True
    spread_seconds: Annotated[
        int, seconds(timedelta(0), SPREAD_MAX, "Time from now within which the devices are asked to renew.")
    ] = int(SPREAD.total_seconds())
    reason: ReasonText = ""
    dry_run: Annotated[bool, about("Count the devices, and change nothing.")] = False
    expected: Annotated[Sequence | UnsetType, about("How many devices must match; required.")] = UNSET

    def __post_init__(self) -> None:
        check_times(self, "issued_from", "issued_before")


class DistrustPlan(Record):
    """What a distrust covers, and the rule, if it was made."""

    matched: Annotated[Count, about("Devices in service whose newest certificate it covers.")]
    by_model: dict[Name, Count]
    first: Annotated[list[DeviceId], about("Ids of the first of these.")]
    distrust: Annotated[Distrust | None, about("Null for a dry run.")]

    @classmethod
    def shown(cls, scope: Scope, rule: domain.Distrust | None) -> Self:
        made = Distrust.shown(rule) if rule is not None else None
        return cls(matched=scope.matched, by_model=scope.models, first=scope.first, distrust=made)


class RevokeDistrusted(RevocationReason):
    """A step of the revocation of every device under a rule."""

    expected: Annotated[Sequence | UnsetType, about("How many there are; required.")] = UNSET


class RevokedDistrusted(Record):
    """The result of a step."""

    bulk: BulkId
    done: Annotated[Count, about("Devices revoked in this step.")]
    failed: Annotated[list[BulkFailure], about("In this step: they are left, too.")]
    left: Annotated[Count, about("Devices in service that are still under the rule.")]
    certificates: Annotated[Count, about("Of other devices, revoked in this step; none while devices are left.")]
    certificates_left: Annotated[Count, about("Under the rule, neither expired nor revoked.")]


class UndoneDistrust(Record):
    """A rule that is no longer in force."""

    id: DistrustId
