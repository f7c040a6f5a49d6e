"""Values to columns and back, the same for every engine: times as microseconds, lists and maps as JSON text.

Each table's columns are named once, in the order in which the functions here take and give them.
"""

import json
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from fleet.domain.changes import AuditEntry, AuditRow, Event
from fleet.domain.credential import Credential, CredentialKind, CredentialState, Station, Token
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import Invalid

Row = tuple[Any, ...]
"""One row as a database driver gives it, in the order of the columns asked for."""

MODEL_COLUMNS = ("name", "lifetime", "key_types", "publish", "subscribe", "retain")
DEVICE_COLUMNS = ("id", "model", "state", "created_at", "hardware_serial")
CREDENTIAL_COLUMNS = (
    "fingerprint",
    "serial",
    "kind",
    "holder",
    "key_sha256",
    "not_before",
    "not_after",
    "state",
    "issued_at",
    "der",
    "earned_by",
)
TOKEN_COLUMNS = (
    "id",
    "secret_sha256",
    "device_id",
    "model",
    "uses_max",
    "uses",
    "created_at",
    "expires_at",
    "revoked_at",
)
STATION_COLUMNS = ("name", "models", "created_at")
AUDIT_COLUMNS = ("seq", "at", "actor", "action", "subject", "outcome", "address", "detail", "previous", "hash")
EVENT_COLUMNS = ("seq", "kind", "subject", "detail")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def columns(names: tuple[str, ...], table: str = "") -> str:
    """`names` for a SELECT or an INSERT, each with `table.` in front when one is given."""
    return ", ".join(f"{table}.{name}" if table else name for name in names)


def micros(at: datetime) -> int:
    """`at`, which must be aware, as microseconds since the epoch. Integer arithmetic: a float loses the last digits."""
    return (at - _EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _listing(values: tuple[str, ...]) -> str:
    return json.dumps(values, separators=(",", ":"))


def model_row(model: Model) -> Row:
    return (
        model.name,
        model.certificate_lifetime // _MICROSECOND,
        _listing(model.key_types),
        _listing(model.publish),
        _listing(model.subscribe),
        int(model.retain),
    )


@lru_cache(maxsize=1024)  # every enrollment and every connection reads one of a few models
def model_of(name: str, lifetime: int, key_types: str, publish: str, subscribe: str, retain: int) -> Model:
    return Model(
        name=name,
        certificate_lifetime=timedelta(microseconds=lifetime),
        key_types=tuple(json.loads(key_types)),
        publish=tuple(json.loads(publish)),
        subscribe=tuple(json.loads(subscribe)),
        retain=bool(retain),
    )


def device_row(device: Device) -> Row:
    return (device.id, device.model, device.state.value, micros(device.created_at), device.hardware_serial)


def device_of(row: Row) -> Device:
    return Device(DeviceId(row[0]), row[1], DeviceState(row[2]), moment(row[3]), row[4])


def credential_row(c: Credential) -> Row:
    return (
        c.fingerprint,
        c.serial,
        c.kind.value,
        c.holder,
        c.key_sha256,
        micros(c.not_before),
        micros(c.not_after),
        c.state.value,
        micros(c.issued_at),
        c.der,
        c.grant,
    )


def credential_of(row: Row) -> Credential:
    return Credential(
        fingerprint=row[0],
        serial=row[1],
        kind=CredentialKind(row[2]),
        holder=row[3],
        key_sha256=row[4],
        not_before=moment(row[5]),
        not_after=moment(row[6]),
        state=CredentialState(row[7]),
        issued_at=moment(row[8]),
        der=row[9],
        grant=row[10],
    )


def token_row(t: Token) -> Row:
    return (
        t.id,
        t.secret_sha256,
        t.device_id,
        t.model,
        t.uses_max,
        t.uses,
        micros(t.created_at),
        micros(t.expires_at),
        None if t.revoked_at is None else micros(t.revoked_at),
    )


def token_of(row: Row) -> Token:
    return Token(
        id=row[0],
        secret_sha256=row[1],
        device_id=None if row[2] is None else DeviceId(row[2]),
        model=row[3],
        uses_max=row[4],
        uses=row[5],
        created_at=moment(row[6]),
        expires_at=moment(row[7]),
        revoked_at=None if row[8] is None else moment(row[8]),
    )


def station_row(station: Station) -> Row:
    return (station.name, _listing(station.models), micros(station.created_at))


def station_of(row: Row) -> Station:
    return Station(row[0], tuple(json.loads(row[1])), moment(row[2]))


def audit_row(row: AuditRow) -> Row:
    e = row.entry
    detail = json.dumps(e.detail, separators=(",", ":"), sort_keys=True) if e.detail else "{}"
    return (
        row.seq,
        micros(e.at),
        e.actor,
        e.action,
        e.subject,
        e.outcome,
        e.address,
        detail,
        row.previous,
        row.hash,
    )


def audit_of(row: Row) -> AuditRow:
    """Raises: Invalid (`audit-changed`) when somebody has put in what no entry could have held."""
    try:
        detail = json.loads(row[7])
        if not isinstance(detail, dict) or not isinstance(row[8], bytes) or not isinstance(row[9], bytes):
            raise TypeError("a column holds what was never written to it")
        entry = AuditEntry(moment(row[1]), row[2], row[3], row[4], row[5], row[6], detail)
    except (ValueError, TypeError, OverflowError) as error:
        raise Invalid("audit-changed", f"The audit is broken: row {row[0]} has been changed.") from error
    return AuditRow(row[0], entry, row[8], row[9])


def event_of(row: Row) -> Event:
    return Event(kind=row[1], subject=row[2], detail=row[3], seq=row[0])
