"""Queries that SQLite answers in a reader's own thread: those of the registry, and what takes several statements."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgspec import structs

from fleet.domain.changes import AuditRow
from fleet.domain.credential import CredentialKind, CredentialState, KeyUse
from fleet.domain.device import Model
from fleet.domain.manifest import ManifestEntry, ManifestFacts, serial_key
from fleet.domain.ports import EnrollmentFacts, HolderFacts
from fleet.storage import mapping, queries
from fleet.storage.queries import HELD_MAX, Query

T = TypeVar("T")

# The index holds each state's in order of seq: however many there are, no more than these are looked at; beside them
# those that the caller needs whatever was issued later. The + keeps a key's lookup on the key's index.
_NEWEST = "SELECT seq FROM credential WHERE holder = ?1 AND kind = 'device' AND state = '{}' ORDER BY seq DESC LIMIT {}"
_OTHERS = f"""
    SELECT seq FROM credential WHERE fingerprint = ?2
    UNION ALL SELECT * FROM (
        SELECT seq FROM credential
        WHERE key_sha256 = ?3 AND +holder = ?1 AND +kind = 'device' AND +state = 'issued' ORDER BY seq DESC LIMIT 1)
    UNION ALL SELECT * FROM (
        SELECT seq FROM credential
        WHERE ?4 IS NOT NULL AND holder = ?1 AND kind = 'device' AND state = 'issued' AND earned_by = ?4
        ORDER BY seq DESC LIMIT {HELD_MAX})"""
_HELD = " UNION ALL ".join(
    (*(f"SELECT * FROM ({_NEWEST.format(s, HELD_MAX)})" for s in ("issued", "active", "revoked")), _OTHERS)
)
HELD_CREDENTIALS = mapping.CREDENTIAL.select(f"WHERE seq IN ({_HELD}) ORDER BY seq")
KEY_USES = """
    SELECT DISTINCT kind, holder, state FROM credential WHERE key_sha256 = ?1
    UNION ALL SELECT kind, holder, 'revoked' FROM revoked_key WHERE key_sha256 = ?1"""
# Whether DEVICE_WITH_MODEL, HELD_CREDENTIALS or KEY_USES finds anything: of a new device with a new key, none does.
IS_KNOWN = """
    SELECT 1 WHERE EXISTS (SELECT 1 FROM device WHERE id = ?1)
        OR EXISTS (SELECT 1 FROM credential WHERE holder = ?1 AND kind = 'device')
        OR EXISTS (SELECT 1 FROM credential WHERE key_sha256 = ?2)
        OR EXISTS (SELECT 1 FROM revoked_key WHERE key_sha256 = ?2)"""
DEVICE_WITH_MODEL = f"SELECT {queries.DEVICE_AND_MODEL} FROM device d JOIN model m ON m.name = d.model WHERE d.id = ?"
_DEVICE_END = len(mapping.DEVICE.columns)
TOKEN_WITH_MODEL = f"""
    SELECT {mapping.TOKEN.listed("t")}, {mapping.MODEL.listed("m")}
    FROM token t LEFT JOIN model m ON m.name = t.model WHERE t.id = ?"""
_TOKEN_END = len(mapping.TOKEN.columns)
HOLDER = f"""
    SELECT {mapping.CREDENTIAL.listed("c")}, {queries.DEVICE_AND_MODEL}
    FROM credential c
    LEFT JOIN device d ON c.kind = 'device' AND d.id = c.holder
    LEFT JOIN model m ON m.name = d.model
    WHERE c.fingerprint = ?"""  # the other holders' tables, joined too, would double its time
_CREDENTIAL_END = len(mapping.CREDENTIAL.columns)
ENTRY_OF_DEVICE = mapping.MANIFEST.select("WHERE device_id = ?")
ENTRY_OF_SERIAL = mapping.MANIFEST.select("WHERE model = ? AND serial_key = ? AND serial_key <> ''")
ENTRY_OF_KEY = mapping.MANIFEST.select("WHERE key_sha256 = ?")
HOLDER_OF_SERIAL = """
    SELECT model, hardware_serial, id FROM device
    WHERE model = ? AND serial_key = ? AND serial_key <> '' AND state NOT IN ('revoked', 'retired')"""
HAS_DEVICE = "SELECT 1 FROM device WHERE id = ?"


def rows_of(db: sqlite3.Connection, query: Query[T], *parameters: Any) -> list[T]:
    """What the rows of `query` become."""
    return [query.of(row) for row in db.execute(query.sqlite, parameters)]


def _one(db: sqlite3.Connection, query: Query[T], *parameters: Any) -> T | None:
    row = db.execute(query.sqlite, parameters).fetchone()
    return query.of(row) if row else None


def audit(db: sqlite3.Connection, after: int, limit: int) -> list[AuditRow]:
    """Raises: Invalid (`audit-changed`): a row holds what no entry could have held."""
    strict = db.text_factory
    db.text_factory = _any_text  # an octet that was changed in the file is to be found by its leaf, not by a decoder
    try:
        return rows_of(db, queries.AUDIT, after, queries.bounded(limit))
    finally:
        db.text_factory = strict


def _any_text(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


class Snapshot:
    """The registry at one moment, for all reads of a batch: what is likely to be asked for again is read once."""

    __slots__ = ("_holders", "db")

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self._holders: dict[bytes, tuple[HolderFacts | None, Model | None]] = {}

    def holder(self, certificate: bytes) -> tuple[HolderFacts | None, Model | None]:
        """The holder of a certificate, and the model of all devices that it may register."""
        if certificate not in self._holders:  # a station enrolls many devices at once
            holder = holder_facts(self.db, certificate)
            name = holder.only_model if holder is not None else None
            self._holders[certificate] = holder, _one(self.db, queries.MODEL, name) if name is not None else None
        return self._holders[certificate]


def enrollment_facts(
    db: sqlite3.Connection,
    device_id: str,
    token_id: str | None,
    key_sha256: bytes,
    presented: bytes | None,
    earned_by: str | None,
) -> EnrollmentFacts:
    with_model = db.execute(TOKEN_WITH_MODEL, (token_id,)).fetchone() if token_id is not None else None
    token = mapping.TOKEN.of(with_model[:_TOKEN_END]) if with_model else None
    if presented is None and not db.execute(IS_KNOWN, (device_id, key_sha256)).fetchone():
        return EnrollmentFacts(None, _model_of(with_model[_TOKEN_END:]) if with_model else None, (), token)
    row = db.execute(DEVICE_WITH_MODEL, (device_id,)).fetchone()
    found = row[_DEVICE_END:] if row else with_model[_TOKEN_END:] if with_model else (None,)
    return EnrollmentFacts(
        device=mapping.DEVICE.of(row[:_DEVICE_END]) if row else None,
        model=_model_of(found),
        credentials=tuple(
            mapping.CREDENTIAL.of(held)
            for held in db.execute(HELD_CREDENTIALS, (device_id, presented, key_sha256, earned_by))
        ),
        token=token,
        key_uses=tuple(
            KeyUse(CredentialKind(kind), holder, CredentialState(state))
            for kind, holder, state in db.execute(KEY_USES, (key_sha256,))
        ),
    )


def _model_of(row: mapping.Row) -> Model | None:
    return mapping.MODEL.of(row) if row[0] is not None else None


def with_holder(at: Snapshot, facts: EnrollmentFacts, certificate: bytes) -> EnrollmentFacts:
    """`facts`, with what `certificate` adds to them."""
    holder, model = at.holder(certificate)
    return structs.replace(facts, holder=holder, model=facts.model or model)


def holder_facts(db: sqlite3.Connection, fingerprint: bytes) -> HolderFacts | None:
    row = db.execute(HOLDER, (fingerprint,)).fetchone()
    if row is None:
        return None
    credential, rest = mapping.CREDENTIAL.of(row[:_CREDENTIAL_END]), row[_CREDENTIAL_END:]
    match credential.kind:
        case CredentialKind.STATION:
            return HolderFacts(credential, station=_one(db, queries.STATION, credential.holder))
        case CredentialKind.OPERATOR:
            return HolderFacts(credential, operator=_one(db, queries.OPERATOR, credential.holder))
        case CredentialKind.CLAIM:
            return HolderFacts(credential, claim=_one(db, queries.CLAIM, credential.holder))
    if rest[0] is None:
        return HolderFacts(credential)
    device, model = mapping.DEVICE.of(rest[:_DEVICE_END]), mapping.MODEL.of(rest[_DEVICE_END:])
    return HolderFacts(credential, device, model, distrusts=tuple(rows_of(db, queries.DISTRUSTS_BY_ID)))


def manifest_facts(
    db: sqlite3.Connection, device_ids: Sequence[str], serials: Sequence[tuple[str, str]], keys: Sequence[bytes]
) -> ManifestFacts:
    found: dict[str, ManifestEntry] = {}

    def look(statement: str, parameters: Sequence[object]) -> None:
        for row in db.execute(statement, parameters):
            found[row[0]] = mapping.MANIFEST.of(row)

    for id_ in device_ids:
        look(ENTRY_OF_DEVICE, (id_,))
    for serial in serials:
        look(ENTRY_OF_SERIAL, serial_key(*serial))
    for key in keys:
        look(ENTRY_OF_KEY, (key,))
    known = frozenset(id_ for id_ in device_ids if id_ in found or db.execute(HAS_DEVICE, (id_,)).fetchone())
    return ManifestFacts(tuple(found[id_] for id_ in sorted(found)), known)


def serial_holders(db: sqlite3.Connection, serials: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
    return [row for serial in serials for row in db.execute(HOLDER_OF_SERIAL, serial_key(*serial))]


def data_version(at: Snapshot) -> int:
    """Differs from the last answer when another connection, here or in another process, has committed since."""
    version: int = at.db.execute("PRAGMA data_version").fetchone()[0]
    return version


Read = Callable[[Snapshot], T]


def read_batch(db: sqlite3.Connection, reads: Sequence[Read[Any]]) -> list[Any]:
    """One answer, or one exception, for each of `reads`, all of one moment: that of this call or later."""
    db.execute("BEGIN")
    try:
        at = Snapshot(db)
        return [_answer(at, read) for read in reads]
    finally:
        if db.in_transaction:
            db.execute("COMMIT")


def _answer(at: Snapshot, read: Read[Any]) -> Any:
    try:
        return read(at)
    except Exception as error:  # given to its caller; the others in the batch get their answers
        return error
