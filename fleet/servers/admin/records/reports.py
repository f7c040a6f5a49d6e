"""The state of the whole: health, counters, what expires when, what is kept for how long; events."""

from typing import Annotated, Literal, Self

import msgspec
from msgspec import UNSET, Meta, UnsetType

from fleet.domain import changes
from fleet.domain.members import about, pattern
from fleet.servers.admin.records.base import LIMIT, LIMIT_MAX, Count, DeviceId, Record, Sequence
from fleet.services import forecast
from fleet.services.forecast import CLIFF_PERCENT

WEEKS = 26


Degraded = Literal["broker-not-saved", "crl-late", "crl-slow"]


class Health(Record):
    """The server can reach its registry, and the gateway its broker."""

    status: Annotated[Literal["ok", "degraded"], about("Degraded: it serves, and an operator is needed.")]
    reasons: Annotated[
        list[Degraded] | UnsetType,
        about(
            "Of a degraded one. broker-not-saved: our own broker can't write to its disk what it holds. crl-late: a "
            "CRL ends soon and was not signed again, or revocations are in none. crl-slow: signing a full CRL takes "
            "more than half of crl.max_delay."
        ),
    ] = UNSET


class Status(msgspec.Struct):
    """Counters of every part of the worker that answers."""

    uptime_seconds: Annotated[float, Meta(ge=0)]
    worker: Annotated[int, Meta(ge=1, description="Number of the worker that answers.")] | UnsetType = UNSET
    pid: Annotated[int, Meta(ge=1, description="Its process.")] | UnsetType = UNSET
    registry: Annotated[dict[str, Count] | UnsetType, about("Contents of the registry; for operators.")] = UNSET
    crls: Annotated[
        dict[str, float | list[str]] | UnsetType,
        about("How the published CRLs are; for operators. `named`: paths of those that late and overdue are about."),
    ] = UNSET


class StatusQuery(Record):
    """What to count."""

    devices: Annotated[
        Literal["count"] | None, about("Count the devices, too, which reads each of them. For operators.")
    ] = None


class ForecastQuery(Record):
    """How far to look, and what to warn of."""

    weeks: Annotated[int, Meta(ge=1, le=520)] = WEEKS
    cliff_percent: Annotated[float, Meta(ge=1, le=100)] = CLIFF_PERCENT


class Week(Record):
    """What expires in one week."""

    week: Annotated[str, Meta(description="Its Monday.", extra_json_schema={"format": "date"})]
    devices: Count
    tokens: Count
    authorities: Annotated[list[str], about("CAs that expire in it, by role.")]


class Warned(Record):
    """Something to prepare for."""

    code: str
    message: str


class Forecast(Record):
    """What expires when, by week from this one on, and what to prepare for."""

    devices: Annotated[Count, about("In service with a certificate, valid or not.")]
    overdue: Annotated[Count, about("Of them, those whose newest certificate expired before this week.")]
    weeks: list[Week]
    warnings: list[Warned]

    @classmethod
    def shown(cls, f: forecast.Forecast) -> Self:
        weeks = [Week.of(week, week=f"{week.monday:%Y-%m-%d}") for week in f.weeks]
        return cls.of(f, weeks=weeks, warnings=[Warned.of(each) for each in f.warnings])


class Retention(Record):
    """How long the registry keeps records, and what it has now."""

    events_days: Annotated[Count, about("Kept for so many days; 0: for ever.")]
    audit_days: Count
    expired_credentials_days: Count
    first_event: Annotated[Sequence, about("The oldest event that is kept; 0: none.")]
    last_event: Sequence
    first_audit: Sequence
    last_audit: Sequence


class Event(Record):
    """One change, as the event stream has it."""

    seq: Sequence
    kind: str
    subject: str
    detail: str

    @classmethod
    def shown(cls, event: changes.Event) -> Self:
        return cls.of(event)


class EventQuery(Record):
    """Where to begin."""

    after: Annotated[Sequence | None, about("Resume after this event; without it, from now on.")] = None


EventKindName = Annotated[str, pattern(r"^[a-z]{1,32}\.[a-z-]{1,32}\Z")]


class KeptEventsQuery(Record):
    """Which events."""

    after: Annotated[Sequence, about("Events after this one.")] = 0
    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX, description="Maximum number; a change stays whole.")] = LIMIT
    device: Annotated[DeviceId | None, about("Only those about this device.")] = None
    kind: Annotated[EventKindName | None, about("Only of this kind, such as device.state.")] = None


class KeptEvents(Record):
    """Some of the events that are kept, oldest first."""

    items: list[Event]
    read: Annotated[Sequence, about("Those up to this one were looked at: `after` of the next request.")]
    first: Annotated[Sequence, about("The oldest that is kept; 0: there is none.")]
    last: Annotated[Sequence, about("The newest.")]
