"""The registry's questions as SQL. Each takes an open connection and runs in a reader's own thread."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fleet.domain.access import Operator
from fleet.domain.changes import Answer
from fleet.domain.credential import Credential, CredentialKind, CredentialState, KeyUse, Station, Token
from fleet.domain.device import Device, Model
from fleet.domain.lease import Lease
from fleet.domain.ports import EnrollmentFacts, HolderFacts
from fleet.storage import mapping
from fleet.storage.sqlite import admission as sqlite_admission

T = TypeVar("T")
Query = Callable[[sqlite3.Connection], T]

HELD_MAX = 16  # of a device's certificates in one state: an enrollment needs the newest of them


def _select(table: str, names: tuple[str, ...], rest: str) -> str:
    return f"SELECT {mapping.columns(names)} FROM {table} {rest}"  # noqa: S608  our own constants


MODEL = _select("model", mapping.MODEL_COLUMNS, "WHERE name = ?")
MODELS = _select("model", mapping.MODEL_COLUMNS, "ORDER BY name")
DEVICE = _select("device", mapping.DEVICE_COLUMNS, "WHERE id = ?")
CREDENTIALS = _select("credential", mapping.CREDENTIAL_COLUMNS, "WHERE holder = ? ORDER BY seq")
# The index holds each state's in order of seq: however many there are, no more than these are looked at.
_NEWEST = "SELECT seq FROM credential WHERE holder = ?1 AND kind = 'device' AND state = '{}' ORDER BY seq DESC LIMIT {}"
_HELD = " UNION ALL ".join(f"SELECT * FROM ({_NEWEST.format(s, HELD_MAX)})" for s in ("issued", "active", "revoked"))  # noqa: S608
HELD_CREDENTIALS = _select("credential", mapping.CREDENTIAL_COLUMNS, f"WHERE seq IN ({_HELD}) ORDER BY seq")
KEY_USES = """
    SELECT DISTINCT kind, holder, state FROM credential WHERE key_sha256 = ?1
    UNION ALL SELECT kind, holder, 'revoked' FROM revoked_key WHERE key_sha256 = ?1"""
TOKEN = _select("token", mapping.TOKEN_COLUMNS, "WHERE id = ?")
TOKENS = _select("token", mapping.TOKEN_COLUMNS, "ORDER BY created_at DESC, seq DESC")
STATION = _select("station", mapping.STATION_COLUMNS, "WHERE name = ?")
STATIONS = _select("station", mapping.STATION_COLUMNS, "ORDER BY name")
OPERATOR = _select("operator", mapping.OPERATOR_COLUMNS, "WHERE name = ?")
OPERATORS = _select("operator", mapping.OPERATOR_COLUMNS, "ORDER BY name")
ANSWER = _select("answer", mapping.ANSWER_COLUMNS, "WHERE actor = ? AND key = ?")
LEASE = _select("lease", mapping.LEASE_COLUMNS, "WHERE name = ?")
CREDENTIAL = _select("credential", mapping.CREDENTIAL_COLUMNS, "WHERE serial = ?")

_DEVICE_AND_MODEL = f"{mapping.columns(mapping.DEVICE_COLUMNS, 'd')}, {mapping.columns(mapping.MODEL_COLUMNS, 'm')}"
_DEVICE_END = len(mapping.DEVICE_COLUMNS)
_CREDENTIAL_END = len(mapping.CREDENTIAL_COLUMNS)
DEVICE_WITH_MODEL = f"SELECT {_DEVICE_AND_MODEL} FROM device d JOIN model m ON m.name = d.model WHERE d.id = ?"  # noqa: S608
HOLDER = f"""
    SELECT {mapping.columns(mapping.CREDENTIAL_COLUMNS, "c")}, {_DEVICE_AND_MODEL}
    FROM credential c
    LEFT JOIN device d ON c.kind = 'device' AND d.id = c.holder
    LEFT JOIN model m ON m.name = d.model
    WHERE c.fingerprint = ?"""  # noqa: S608


def model(db: sqlite3.Connection, name: str) -> Model | None:
    row = db.execute(MODEL, (name,)).fetchone()
    return mapping.model_of(*row) if row else None


def models(db: sqlite3.Connection) -> list[Model]:
    return [mapping.model_of(*row) for row in db.execute(MODELS)]


def device(db: sqlite3.Connection, device_id: str) -> Device | None:
    row = db.execute(DEVICE, (device_id,)).fetchone()
    return mapping.device_of(row) if row else None


def credentials(db: sqlite3.Connection, holder: str) -> list[Credential]:
    return [mapping.credential_of(row) for row in db.execute(CREDENTIALS, (holder,))]


def token(db: sqlite3.Connection, token_id: str) -> Token | None:
    row = db.execute(TOKEN, (token_id,)).fetchone()
    return mapping.token_of(row) if row else None


def tokens(db: sqlite3.Connection) -> list[Token]:
    return [mapping.token_of(row) for row in db.execute(TOKENS)]


def station(db: sqlite3.Connection, name: str) -> Station | None:
    row = db.execute(STATION, (name,)).fetchone()
    return mapping.station_of(row) if row else None


def stations(db: sqlite3.Connection) -> list[Station]:
    return [mapping.station_of(row) for row in db.execute(STATIONS)]


def operator(db: sqlite3.Connection, name: str) -> Operator | None:
    row = db.execute(OPERATOR, (name,)).fetchone()
    return mapping.operator_of(row) if row else None


def operators(db: sqlite3.Connection) -> list[Operator]:
    return [mapping.operator_of(row) for row in db.execute(OPERATORS)]


def answer(db: sqlite3.Connection, actor: str, key: str) -> Answer | None:
    row = db.execute(ANSWER, (actor, key)).fetchone()
    return mapping.answer_of(row) if row else None


def lease(db: sqlite3.Connection, name: str) -> Lease | None:
    row = db.execute(LEASE, (name,)).fetchone()
    return mapping.lease_of(row) if row else None


def credential(db: sqlite3.Connection, serial: str) -> Credential | None:
    try:
        octets = mapping.serial_octets(serial)
    except ValueError:
        return None  # no certificate has such a serial
    row = db.execute(CREDENTIAL, (octets,)).fetchone()
    return mapping.credential_of(row) if row else None


def enrollment_facts(
    db: sqlite3.Connection, device_id: str, token_id: str | None, key_sha256: bytes
) -> EnrollmentFacts:
    row = db.execute(DEVICE_WITH_MODEL, (device_id,)).fetchone()
    found = token(db, token_id) if token_id is not None else None
    if row:
        its_model: Model | None = mapping.model_of(*row[_DEVICE_END:])
    else:
        its_model = model(db, found.model) if found is not None and found.model is not None else None
    return EnrollmentFacts(
        device=mapping.device_of(row[:_DEVICE_END]) if row else None,
        model=its_model,
        credentials=tuple(mapping.credential_of(c) for c in db.execute(HELD_CREDENTIALS, (device_id,))),
        token=found,
        key_uses=tuple(
            KeyUse(CredentialKind(kind), holder, CredentialState(state))
            for kind, holder, state in db.execute(KEY_USES, (key_sha256,))
        ),
    )


def holder_facts(db: sqlite3.Connection, fingerprint: bytes) -> HolderFacts | None:
    row = db.execute(HOLDER, (fingerprint,)).fetchone()
    if row is None:
        return None
    credential = mapping.credential_of(row[:_CREDENTIAL_END])
    if credential.kind is CredentialKind.STATION:
        return HolderFacts(credential, None, None, station(db, credential.holder))
    if credential.kind is CredentialKind.OPERATOR:
        return HolderFacts(credential, None, None, None, operator(db, credential.holder))
    if credential.kind is CredentialKind.CLAIM:
        return HolderFacts(credential, None, None, None, claim=sqlite_admission.claim(db, credential.holder))
    rest = row[_CREDENTIAL_END:]
    if rest[0] is None:
        return HolderFacts(credential, None, None, None)
    return HolderFacts(credential, mapping.device_of(rest[:_DEVICE_END]), mapping.model_of(*rest[_DEVICE_END:]), None)


def data_version(db: sqlite3.Connection) -> int:
    """Differs from the last answer when another connection, here or in another process, has committed since."""
    version: int = db.execute("PRAGMA data_version").fetchone()[0]
    return version


def read_batch(db: sqlite3.Connection, queries: Sequence[Query[Any]]) -> list[Any]:
    """One answer, or one exception, for each of `queries`, all of one moment: that of this call or later."""
    db.execute("BEGIN")
    try:
        return [_answer(db, query) for query in queries]
    finally:
        if db.in_transaction:
            db.execute("COMMIT")


def _answer(db: sqlite3.Connection, query: Query[Any]) -> Any:
    try:
        return query(db)
    except Exception as error:  # handed to the one who asked; the others in the batch get their answers
        return error
