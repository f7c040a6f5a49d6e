"""Small values for tests of registries, each valid by itself; every field that matters to a test is an argument."""

import hashlib
import itertools
import os
from datetime import UTC, datetime, timedelta

from fleet.domain.changes import AuditEntry, Change, Event
from fleet.domain.credential import Credential, CredentialKind, CredentialState, Station, Token
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.writes import Write
from fleet.storage import mapping

NOW = datetime(2026, 3, 1, 12, 0, 0, 654321, tzinfo=UTC)
MODEL = Model("cam2", timedelta(days=30), ("EC-P256",), ("devices/{id}/up/#", "all/é"), ())

_serials = itertools.count(1)


def device(id_: str, state: DeviceState = DeviceState.REGISTERED, model: str = "cam2") -> Device:
    return Device(DeviceId(id_), model, state, NOW, f"SN {id_}")


def credential(
    holder: str,
    state: CredentialState = CredentialState.ISSUED,
    kind: CredentialKind = CredentialKind.DEVICE,
    serial: str = "",
) -> Credential:
    """Any bytes do for a certificate: a registry never looks into it."""
    der = os.urandom(48)
    return Credential(
        fingerprint=hashlib.sha256(der).digest(),
        serial=serial or f"{next(_serials):x}",
        kind=kind,
        holder=holder,
        key_sha256=hashlib.sha256(b"key" + der).digest(),
        not_before=NOW,
        not_after=NOW + timedelta(days=30, microseconds=1),
        state=state,
        issued_at=NOW,
        der=der,
    )


def token(id_: str, uses_max: int = 1, device_id: str | None = None, minutes: int = 0) -> Token:
    """For the model cam2, or for a device; created `minutes` after NOW."""
    created = NOW + timedelta(minutes=minutes)
    return Token(
        id=id_,
        secret_sha256=hashlib.sha256(id_.encode()).digest(),
        device_id=DeviceId(device_id) if device_id else None,
        model=None if device_id else "cam2",
        uses_max=uses_max,
        uses=0,
        created_at=created,
        expires_at=created + timedelta(hours=1),
    )


def station(name: str) -> Station:
    return Station(name, ("cam2", "default"), NOW)


def entry(action: str = "test") -> AuditEntry:
    return AuditEntry(NOW, "operator", action, "device cam-7", "ok", "192.0.2.1", {"b": "é\n", "a": '"'})


def change(*writes: Write, action: str = "test", events: tuple[Event, ...] = ()) -> Change:
    return Change(entry(action), writes, events)


COLUMNS_BEFORE_BUDGETS = mapping.DEVICE.columns[:-1]
"""Of a device, in the schemas before 23."""
ADD_DEVICE_BEFORE_BUDGETS = (
    f"INSERT INTO device ({', '.join(COLUMNS_BEFORE_BUDGETS)})"  # noqa: S608
    f" VALUES ({', '.join(f'${n}' for n in range(1, len(COLUMNS_BEFORE_BUDGETS) + 1))})"
)


def row_before_budgets(device: Device) -> mapping.Row:
    return mapping.DEVICE.row(device)[:-1]
