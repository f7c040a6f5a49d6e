"""Values to columns and back, the same for every engine: times as microseconds, lists and maps as JSON text.

Each table's columns are named once, in the order in which the functions here take and give them.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from fleet.domain.access import Operator, Role
from fleet.domain.audit_log import TreeHead
from fleet.domain.changes import Answer, AuditEntry, AuditRow, Event
from fleet.domain.credential import Credential, CredentialKind, CredentialState, Station, Token
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import Conflict, Invalid
from fleet.domain.lease import Lease
from fleet.domain.merkle import HASH_SIZE
from fleet.domain.model_rules import rules_json, rules_of

Row = tuple[Any, ...]
"""One row as a database driver gives it, in the order of the columns asked for."""

MODEL_COLUMNS = ("name", "lifetime", "key_types", "publish", "subscribe", "retain", "rules", "revision")
DEVICE_COLUMNS = (
    "id",
    "model",
    "state",
    "created_at",
    "hardware_serial",
    "expires_at",
    "tags",
    "groups",
    "revision",
)
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
LEASE_COLUMNS = ("name", "owner", "expires_at")
STATION_COLUMNS = ("name", "models", "created_at", "quota", "day", "used")
OPERATOR_COLUMNS = ("name", "role", "models", "created_at")
ANSWER_COLUMNS = ("actor", "key", "request_sha256", "status", "body", "at")
AUDIT_COLUMNS = ("seq", "at", "actor", "action", "subject", "outcome", "address", "detail", "leaf")
HEAD_COLUMNS = ("size", "root", "at", "key_id", "signature")
EVENT_COLUMNS = ("seq", "kind", "subject", "detail")

_SERIAL = re.compile(r"[0-9a-f]{1,40}")  # RFC 5280, 4.1.2.2: at most 20 octets
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


def listing(values: tuple[object, ...]) -> str:
    return json.dumps(values, separators=(",", ":"))


def serial_octets(serial: str) -> bytes:
    """A serial number's hex digits as the octets of the number, at least one.

    Raises: ValueError: they are no serial number.
    """
    if not _SERIAL.fullmatch(serial):
        raise ValueError("A serial number is 1 to 40 hex digits in lower case.")
    number = int(serial, 16)
    return number.to_bytes(max(1, (number.bit_length() + 7) // 8))


def serial_text(octets: bytes) -> str:
    return f"{int.from_bytes(octets):x}"


def model_row(model: Model) -> Row:
    return (
        model.name,
        model.certificate_lifetime // _MICROSECOND,
        listing(model.key_types),
        listing(model.publish),
        listing(model.subscribe),
        int(model.retain),
        json.dumps(rules_json(model.rules), separators=(",", ":")),
        model.revision,
    )


@lru_cache(maxsize=1024)  # every enrollment and every connection reads one of a few models
def model_of(
    name: str, lifetime: int, key_types: str, publish: str, subscribe: str, retain: int, rules: str, revision: int
) -> Model:
    return Model(
        name=name,
        certificate_lifetime=timedelta(microseconds=lifetime),
        key_types=tuple(json.loads(key_types)),
        publish=tuple(json.loads(publish)),
        subscribe=tuple(json.loads(subscribe)),
        retain=bool(retain),
        rules=rules_of(json.loads(rules)),
        revision=revision,
    )


def device_row(device: Device) -> Row:
    return (
        device.id,
        device.model,
        device.state.value,
        micros(device.created_at),
        device.hardware_serial,
        None if device.expires_at is None else micros(device.expires_at),
        listing(device.tags),
        listing(device.groups),
        device.revision,
    )


def device_of(row: Row) -> Device:
    return Device(
        id=DeviceId(row[0]),
        model=row[1],
        state=DeviceState(row[2]),
        created_at=moment(row[3]),
        hardware_serial=row[4],
        expires_at=None if row[5] is None else moment(row[5]),
        tags=() if row[6] == "[]" else tuple((key, value) for key, value in json.loads(row[6])),
        groups=() if row[7] == "[]" else tuple(json.loads(row[7])),
        revision=row[8],
    )


def tag_rows(device: Device) -> list[Row]:
    """(key, value, device id) of each tag and, under the key "", of each group."""
    return [(key, value, device.id) for key, value in (*device.tags, *(("", group) for group in device.groups))]


def credential_row(c: Credential) -> Row:
    return (
        c.fingerprint,
        serial_octets(c.serial),
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
        serial=serial_text(row[1]),
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
    return (
        station.name,
        listing(station.models),
        micros(station.created_at),
        station.quota,
        station.day,
        station.used,
    )


def station_of(row: Row) -> Station:
    return Station(row[0], tuple(json.loads(row[1])), moment(row[2]), row[3], row[4], row[5])


def operator_row(operator: Operator) -> Row:
    return (operator.name, operator.role.value, listing(operator.models), micros(operator.created_at))


def operator_of(row: Row) -> Operator:
    return Operator(name=row[0], role=Role(row[1]), models=tuple(json.loads(row[2])), created_at=moment(row[3]))


def answer_row(a: Answer) -> Row:
    return (a.actor, a.key, a.request_sha256, a.status, a.body, micros(a.at))


def answer_of(row: Row) -> Answer:
    return Answer(row[0], row[1], row[2], row[3], row[4], moment(row[5]))


def audit_row(row: AuditRow) -> Row:
    e = row.entry
    detail = json.dumps(e.detail, separators=(",", ":"), sort_keys=True) if e.detail else "{}"
    return (row.seq, micros(e.at), e.actor, e.action, e.subject, e.outcome, e.address, detail, row.leaf)


def audit_of(row: Row) -> AuditRow:
    """Raises: Invalid (`audit-changed`) when somebody has put in what no entry could have held."""
    try:
        detail = json.loads(row[7])
        if not isinstance(detail, dict) or not isinstance(row[8], bytes):
            raise TypeError("a column holds what was never written to it")
        entry = AuditEntry(moment(row[1]), row[2], row[3], row[4], row[5], row[6], detail)
    except (ValueError, TypeError, OverflowError) as error:
        raise Invalid("audit-changed", f"The audit is broken: row {row[0]} has been changed.") from error
    return AuditRow(row[0], entry, row[8])


def head_row(head: TreeHead) -> Row:
    return (head.size, head.root, micros(head.at), head.key_id, head.signature)


def head_of(row: Row) -> TreeHead:
    """Raises: Invalid (`audit-head-changed`) when somebody has put in what no head could have held."""
    try:
        head = TreeHead(row[0], row[1], moment(row[2]), row[3], row[4])
    except (TypeError, OverflowError):
        head = None
    if head is None or head.size < 1 or len(head.root) != HASH_SIZE or head.at < _EPOCH:
        raise Invalid("audit-head-changed", f"The audit is broken: the head of {row[0]} rows has been changed.")
    return head


def event_of(row: Row) -> Event:
    return Event(kind=row[1], subject=row[2], detail=row[3], seq=row[0])


def lease_row(lease: Lease) -> Row:
    return (lease.name, lease.owner, micros(lease.expires_at))


def lease_of(row: Row) -> Lease:
    return Lease(row[0], row[1], moment(row[2]))


def lease_held(lease: Lease) -> Conflict:
    return Conflict("lease-held", f"Another than {lease.owner} holds the lease of {lease.name}.")
