"""Manifest, claims, makers' CAs and quotas on SQLite: their writes, in the writer's thread, and their questions."""

import sqlite3
from collections.abc import Sequence
from typing import assert_never

from fleet.domain.changes import (
    AddAnchor,
    AddClaim,
    BindIdevid,
    CountTakeover,
    DropAnchor,
    ListDevices,
    QuarantineClaim,
    ReleaseClaim,
    RevokeClaim,
    SetStation,
    SpendClaim,
    SpendStation,
)
from fleet.domain.claim import Claim
from fleet.domain.errors import Conflict
from fleet.domain.idevid import Anchor, IdevidBinding
from fleet.domain.manifest import ManifestEntry, ManifestFacts
from fleet.storage import admission_rows as columns
from fleet.storage import conflicts, mapping

AdmissionWrite = (
    ListDevices
    | AddClaim
    | SpendClaim
    | CountTakeover
    | QuarantineClaim
    | ReleaseClaim
    | RevokeClaim
    | AddAnchor
    | DropAnchor
    | BindIdevid
    | SetStation
    | SpendStation
)


def _insert(table: str, names: tuple[str, ...], ending: str = "") -> str:
    marks = ", ".join("?" * len(names))
    return f"INSERT INTO {table} ({mapping.columns(names)}) VALUES ({marks}){ending}"  # noqa: S608  our own constants


LIST_DEVICE = _insert("device", mapping.DEVICE_COLUMNS)
LIST_TAG = _insert("device_tag", ("key", "value", "device_id"))
LIST_ENTRY = _insert("manifest", columns.MANIFEST_COLUMNS)
ADD_CLAIM = _insert("claim", columns.CLAIM_COLUMNS, " ON CONFLICT DO NOTHING")
SPEND_CLAIM = """
    UPDATE claim SET uses = uses + 1
    WHERE name = ? AND revoked_at IS NULL AND quarantined_at IS NULL AND uses < quota"""
COUNT_TAKEOVER = "UPDATE claim SET takeovers = takeovers + 1 WHERE name = ?"
QUARANTINE_CLAIM = """
    UPDATE claim SET quarantined_at = ?, quarantine_reason = ?
    WHERE name = ? AND quarantined_at IS NULL AND revoked_at IS NULL"""
RELEASE_CLAIM = """
    UPDATE claim SET quarantined_at = NULL, quarantine_reason = '', takeovers = 0
    WHERE name = ? AND quarantined_at IS NOT NULL AND revoked_at IS NULL"""
REVOKE_CLAIM = "UPDATE claim SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL"
ADD_ANCHOR = _insert("anchor", columns.ANCHOR_COLUMNS, " ON CONFLICT DO NOTHING")
DROP_ANCHOR = "DELETE FROM anchor WHERE name = ?"
HAS_ANCHOR = "SELECT 1 FROM anchor WHERE name = ?"
BIND_IDEVID = _insert("idevid", columns.IDEVID_COLUMNS, " ON CONFLICT DO NOTHING")
IS_BOUND = "SELECT 1 FROM idevid WHERE key_sha256 = ? AND device_id = ?"
SET_STATION = "UPDATE station SET quota = ? WHERE name = ?"
# A node whose clock is still in the day before counts in the later one: two that disagree at midnight are no way round.
SPEND_STATION = """
    UPDATE station SET used = CASE WHEN day IN (?2, ?2 + 1) THEN used + 1 ELSE 1 END,
        day = CASE WHEN day = ?2 + 1 THEN day ELSE ?2 END
    WHERE name = ?1 AND (quota = 0 OR day NOT IN (?2, ?2 + 1) OR used < quota)"""


def apply(db: sqlite3.Connection, write: AdmissionWrite) -> None:
    """Raises: Conflict: what it needs is not so."""

    def must_change(statement: str, parameters: Sequence[object], otherwise: Conflict) -> None:
        if not db.execute(statement, parameters).rowcount:
            raise otherwise

    match write:
        case ListDevices():
            _list_devices(db, write)
        case AddClaim(claim=claim):
            must_change(ADD_CLAIM, columns.claim_row(claim), conflicts.claim_exists(claim.name))
        case SpendClaim(name=name):
            must_change(SPEND_CLAIM, (name,), conflicts.claim_spent())
        case CountTakeover(name=name):
            db.execute(COUNT_TAKEOVER, (name,))
        case QuarantineClaim(name=name, at=at, reason=reason):
            must_change(QUARANTINE_CLAIM, (mapping.micros(at), reason, name), conflicts.claim_not_open(name))
        case ReleaseClaim(name=name):
            must_change(RELEASE_CLAIM, (name,), conflicts.claim_not_quarantined(name))
        case RevokeClaim(name=name, at=at):
            must_change(REVOKE_CLAIM, (mapping.micros(at), name), conflicts.claim_gone(name))
        case AddAnchor(anchor=anchor):
            must_change(ADD_ANCHOR, columns.anchor_row(anchor), conflicts.anchor_exists(anchor.name))
        case DropAnchor(name=name):
            must_change(DROP_ANCHOR, (name,), conflicts.no_such_anchor(name))
        case BindIdevid(binding=binding):
            _bind(db, binding)
        case SetStation(name=name, quota=quota):
            must_change(SET_STATION, (quota, name), conflicts.no_such_station(name))
        case SpendStation(name=name, day=day):
            must_change(SPEND_STATION, (name, day), conflicts.station_spent(name))
        case _:
            assert_never(write)


def _list_devices(db: sqlite3.Connection, write: ListDevices) -> None:
    try:
        db.executemany(LIST_DEVICE, (mapping.device_row(each.device) for each in write.listed))
        db.executemany(LIST_ENTRY, (columns.manifest_row(each.entry) for each in write.listed))
        db.executemany(LIST_TAG, (row for each in write.listed for row in mapping.tag_rows(each.device)))
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode in (sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_UNIQUE):
            raise conflicts.listed_already() from error
        if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
            raise conflicts.no_such_model() from error
        raise


def _bind(db: sqlite3.Connection, binding: IdevidBinding) -> None:
    if not db.execute(HAS_ANCHOR, (binding.anchor,)).fetchone():
        raise conflicts.idevid_taken()
    db.execute(BIND_IDEVID, columns.idevid_row(binding))
    if not db.execute(IS_BOUND, (binding.key_sha256, binding.device_id)).fetchone():
        raise conflicts.idevid_taken()


def _select(table: str, names: tuple[str, ...], rest: str) -> str:
    return f"SELECT {mapping.columns(names)} FROM {table} {rest}"  # noqa: S608  our own constants


CLAIM = _select("claim", columns.CLAIM_COLUMNS, "WHERE name = ?")
CLAIMS = _select("claim", columns.CLAIM_COLUMNS, "ORDER BY name")
ANCHORS = _select("anchor", columns.ANCHOR_COLUMNS, "ORDER BY name")
ENTRY_OF_DEVICE = _select("manifest", columns.MANIFEST_COLUMNS, "WHERE device_id = ?")
ENTRY_OF_SERIAL = _select(
    "manifest", columns.MANIFEST_COLUMNS, "WHERE model = ? AND hardware_serial = ? AND hardware_serial <> ''"
)
ENTRY_OF_KEY = _select("manifest", columns.MANIFEST_COLUMNS, "WHERE key_sha256 = ?")
HAS_DEVICE = "SELECT 1 FROM device WHERE id = ?"
BINDINGS = _select("idevid", columns.IDEVID_COLUMNS, "WHERE key_sha256 = ? OR device_id = ? ORDER BY device_id")


def claim(db: sqlite3.Connection, name: str) -> Claim | None:
    row = db.execute(CLAIM, (name,)).fetchone()
    return columns.claim_of(row) if row else None


def claims(db: sqlite3.Connection) -> list[Claim]:
    return [columns.claim_of(row) for row in db.execute(CLAIMS)]


def anchors(db: sqlite3.Connection) -> list[Anchor]:
    return [columns.anchor_of(row) for row in db.execute(ANCHORS)]


def manifest_facts(
    db: sqlite3.Connection,
    device_ids: Sequence[str],
    serials: Sequence[tuple[str, str]],
    keys: Sequence[bytes],
) -> ManifestFacts:
    found: dict[str, ManifestEntry] = {}

    def look(statement: str, parameters: Sequence[object]) -> None:
        row = db.execute(statement, parameters).fetchone()
        if row:
            found[row[0]] = columns.manifest_of(row)

    for id_ in device_ids:
        look(ENTRY_OF_DEVICE, (id_,))
    for serial in serials:
        look(ENTRY_OF_SERIAL, serial)
    for key in keys:
        look(ENTRY_OF_KEY, (key,))
    known = frozenset(id_ for id_ in device_ids if id_ in found or db.execute(HAS_DEVICE, (id_,)).fetchone())
    return ManifestFacts(tuple(found[id_] for id_ in sorted(found)), known)


def idevid_bindings(db: sqlite3.Connection, key_sha256: bytes, device_id: str) -> list[IdevidBinding]:
    return [columns.idevid_of(row) for row in db.execute(BINDINGS, (key_sha256, device_id))]
