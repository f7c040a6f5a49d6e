"""Fill a registry with the rows that a fleet's enrollments would leave, written directly to the file.

Every row follows from its device's number alone, so that a measurement can name any device, fingerprint or serial
without keeping ten million of them. Fingerprints and keys fall on random pages of their indices, as real ones do.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from fleet.ca.profiles import SERIAL_CHANCE_SIZE, serial_number
from fleet.domain.audit_log import leaf_of
from fleet.domain.changes import AuditEntry, AuditRow
from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.storage import mapping
from fleet.storage.sqlite.transaction import insert_rows
from fleet.storage.statements import ADD_CREDENTIAL, ADD_DEVICE, ADD_MODEL, ADD_TAG

PORTION = 20_000  # devices a transaction
CACHE_KIB = 6 * 1024 * 1024  # the indices of ten million devices stay at hand while they are built

LIFETIME = timedelta(days=90)
MODELS = 50
LOTS = 1000
PILOT_EVERY = 1000  # devices for one in the group pilot
SUSPENDED_EVERY = 5000
ENROLLED_EVERY = timedelta(milliseconds=200)
"""Between two enrollments: their certificates end one after another."""

OnCount = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class FilledFleet:
    """The devices of the registry, numbered from 0 to `count` - 1."""

    count: int
    der: bytes
    """A certificate as the fleet's CA makes them; each device's has its number in place of some octets of it."""
    enrolled_by: datetime
    """When the last of them has enrolled, in whole seconds; how long a server keeps things depends on their age."""

    def device_id(self, number: int) -> DeviceId:
        return DeviceId(f"dev-{number:08d}")

    def model(self, number: int) -> str:
        return f"model-{number % MODELS}"

    def lot(self, number: int) -> str:
        return f"L{number % LOTS}"

    def certificate(self, number: int) -> bytes:
        return self.der[:20] + number.to_bytes(8) + self.der[28:]  # in its serial number: it stays readable

    def fingerprint(self, number: int) -> bytes:
        return hashlib.sha256(self.certificate(number)).digest()

    def issued_at(self, number: int) -> datetime:
        return self.enrolled_by - ENROLLED_EVERY * (self.count - number)

    def expires_at(self, number: int) -> datetime:
        return self.issued_at(number) + LIFETIME

    def device(self, number: int) -> Device:
        return Device(
            id=self.device_id(number),
            model=self.model(number),
            state=DeviceState.SUSPENDED if number % SUSPENDED_EVERY == 0 else DeviceState.ACTIVE,
            created_at=self.issued_at(number),
            expires_at=self.expires_at(number),
            tags=(("lot", self.lot(number)),),
            groups=("pilot",) if number % PILOT_EVERY == 0 else (),
        )

    def credential(self, number: int) -> Credential:
        der = self.certificate(number)
        issued_at = self.issued_at(number)
        return Credential(
            fingerprint=hashlib.sha256(der).digest(),
            serial=f"{serial_number(issued_at, hashlib.sha256(b'serial' + der).digest()[:SERIAL_CHANCE_SIZE]):x}",
            kind=CredentialKind.DEVICE,
            holder=self.device_id(number),
            key_sha256=hashlib.sha256(b"key" + der).digest(),
            not_before=issued_at,
            not_after=self.expires_at(number),
            state=CredentialState.ACTIVE,
            issued_at=issued_at,
            der=der,
            grant="token 0123456789ab",
        )

    def audit(self, number: int, seq: int) -> AuditRow:
        entry = AuditEntry(
            at=self.issued_at(number),
            actor="token 0123456789ab",
            action="device.enroll",
            subject=f"device {self.device_id(number)}",
            outcome="ok",
            address="192.0.2.7",
            detail={"serial": f"{number:040x}", "grant": "token 0123456789ab"},
        )
        return AuditRow(seq, entry, leaf_of(entry, seq))


@dataclass(frozen=True, slots=True)
class Sizes:
    """Octets on disk, tables with their indices."""

    devices: int
    """Devices, their tags, and their certificates in DER."""
    audit: int
    """An audit row for each."""


def fill(path: Path, fleet: FilledFleet, on_count: OnCount) -> Sizes:
    """Write `fleet` into the registry at `path`, which must not be in use. `on_count` is called with the count so far.

    Raises: sqlite3.Error.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        db.execute("PRAGMA synchronous = OFF")  # of use only when it is whole
        db.execute("BEGIN")
        for number in range(MODELS):
            db.execute(ADD_MODEL.sqlite, mapping.MODEL.row(Model(f"model-{number}")))
        db.execute("COMMIT")
        before = _octets(db)
        for portion in portions(fleet.count):
            db.execute("BEGIN")
            devices = [fleet.device(number) for number in portion]
            db.executemany(ADD_DEVICE.sqlite, map(mapping.DEVICE.row, devices))
            db.executemany(ADD_TAG.sqlite, [row for device in devices for row in mapping.tag_rows(device)])
            db.executemany(
                ADD_CREDENTIAL.sqlite, (mapping.CREDENTIAL.row(fleet.credential(number)) for number in portion)
            )
            db.execute("COMMIT")
            on_count(portion.stop)
        filled = _octets(db)
        last = db.execute("SELECT coalesce(max(seq), 0) FROM audit").fetchone()[0]
        for portion in portions(fleet.count):
            db.execute("BEGIN")
            found = (fleet.audit(number, last + 1 + number) for number in portion)
            insert_rows(db, mapping.AUDIT, [mapping.AUDIT.row(row) for row in found])
            db.execute("COMMIT")
        return Sizes(filled - before, _octets(db) - filled)


def portions(count: int) -> Iterator[range]:
    """The numbers up to `count`, a transaction's worth at a time."""
    return (range(start, min(start + PORTION, count)) for start in range(0, count, PORTION))


def _octets(db: sqlite3.Connection) -> int:
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    pages: int = db.execute("PRAGMA page_count").fetchone()[0]
    size: int = db.execute("PRAGMA page_size").fetchone()[0]
    return pages * size
