"""Each Write as SQL, and a batch of Changes as one transaction. Runs in the writer's own thread.

Every statement checks the promise of its Write itself (`WHERE state IN …`, `ON CONFLICT DO NOTHING`) and a row count of
zero is the Conflict: there is no gap between looking and writing.
"""

import sqlite3
from collections.abc import Sequence
from typing import assert_never

from fleet.domain.audit_chain import GENESIS, row_hash
from fleet.domain.changes import (
    AddCredential,
    AddDevice,
    AddModel,
    AddStation,
    AddToken,
    AuditRow,
    Change,
    EndUnused,
    MarkUsed,
    MoveDevice,
    RevokeCredentials,
    RevokeToken,
    SetModel,
    SpendToken,
    Write,
)
from fleet.domain.errors import Conflict
from fleet.storage import rows


def _insert(table: str, names: tuple[str, ...], ending: str = " ON CONFLICT DO NOTHING") -> str:
    marks = ", ".join("?" * len(names))
    return f"INSERT INTO {table} ({rows.columns(names)}) VALUES ({marks}){ending}"  # noqa: S608  our own constants


ADD_MODEL = _insert("model", rows.MODEL_COLUMNS)
SET_MODEL = "UPDATE model SET lifetime = ?2, key_types = ?3, publish = ?4, subscribe = ?5, retain = ?6 WHERE name = ?1"
ADD_DEVICE = _insert("device", rows.DEVICE_COLUMNS)
ADD_CREDENTIAL = _insert("credential", rows.CREDENTIAL_COLUMNS)
KEY_TAKEN = """
    SELECT 1 FROM credential
    WHERE key_sha256 = ?1 AND (holder <> ?2 OR kind <> ?3 OR state = 'revoked') LIMIT 1"""
_UNUSED = "WHERE holder = ? AND kind = ? AND state = 'issued' AND earned_by = ?"
NEWEST_UNUSED = f"SELECT fingerprint FROM credential {_UNUSED} ORDER BY seq DESC LIMIT 1"  # noqa: S608
END_UNUSED = f"UPDATE credential SET state = 'superseded' {_UNUSED}"  # noqa: S608
USE_CREDENTIAL = "UPDATE credential SET state = 'active' WHERE fingerprint = ? AND state IN ('issued', 'active')"
SUPERSEDE_OLDER = """
    UPDATE credential SET state = 'superseded'
    FROM (SELECT seq, holder, kind FROM credential WHERE fingerprint = ?) AS used
    WHERE credential.holder = used.holder AND credential.kind = used.kind
      AND credential.state IN ('issued', 'active') AND credential.seq < used.seq"""
REVOKE_CREDENTIALS = "UPDATE credential SET state = 'revoked' WHERE holder = ? AND kind = ? AND state <> 'revoked'"
ADD_TOKEN = _insert("token", rows.TOKEN_COLUMNS)
SPEND_TOKEN = "UPDATE token SET uses = uses + 1 WHERE id = ? AND revoked_at IS NULL AND uses < uses_max"  # noqa: S105
REVOKE_TOKEN = "UPDATE token SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"  # noqa: S105
ADD_STATION = _insert("station", rows.STATION_COLUMNS)
ADD_AUDIT = _insert("audit", rows.AUDIT_COLUMNS, ending="")
ADD_EVENT = _insert("event", rows.EVENT_COLUMNS, ending="")
# One text for each number of states, so that the statement cache holds a handful of them.
MOVE_DEVICE = {n: f"UPDATE device SET state = ? WHERE id = ? AND state IN ({', '.join('?' * n)})" for n in range(1, 6)}  # noqa: S608


def apply(db: sqlite3.Connection, write: Write) -> None:
    """Write `write`, inside the transaction that is open.

    Raises: Conflict: what it needs is not so.
    """
    match write:
        case AddModel(model=model):
            if not db.execute(ADD_MODEL, rows.model_row(model)).rowcount:
                raise Conflict(
                    "model-exists", f"Model {model.name} exists already.", "Change it with: fleet model set."
                )
        case SetModel(model=model):
            if not db.execute(SET_MODEL, rows.model_row(model)).rowcount:
                raise Conflict("no-such-model", f"There is no model {model.name}.", "Add it with: fleet model add.")
        case AddDevice(device=device):
            if not db.execute(ADD_DEVICE, rows.device_row(device)).rowcount:
                raise Conflict("device-exists", f"Device {device.id} exists already.")
        case MoveDevice(device_id=device_id, allowed=allowed, to=to):
            parameters = (to.value, device_id, *sorted(state.value for state in allowed))
            if not allowed or not db.execute(MOVE_DEVICE[len(allowed)], parameters).rowcount:
                raise Conflict("device-moved", f"Device {device_id} is not in a state from which it can become {to}.")
        case AddCredential(credential=credential):
            if db.execute(KEY_TAKEN, (credential.key_sha256, credential.holder, credential.kind.value)).fetchone():
                raise Conflict("key-taken", "The key is another holder's, or was revoked.", "Make a new key.")
            if not db.execute(ADD_CREDENTIAL, rows.credential_row(credential)).rowcount:
                raise Conflict(
                    "credential-exists", f"A certificate with serial {credential.serial} is recorded already."
                )
        case MarkUsed(fingerprint=fingerprint):
            if not db.execute(USE_CREDENTIAL, (fingerprint,)).rowcount:
                raise Conflict("credential-ended", "The certificate is not usable any more.", "Enroll again.")
            db.execute(SUPERSEDE_OLDER, (fingerprint,))
        case EndUnused(kind=kind, holder=holder, grant=grant, newest=newest):
            found = db.execute(NEWEST_UNUSED, (holder, kind, grant)).fetchone()
            if (found[0] if found else None) != newest:
                raise Conflict("answered-already", f"{holder} has been given another certificate meanwhile.")
            db.execute(END_UNUSED, (holder, kind, grant))
        case RevokeCredentials(kind=kind, holder=holder):
            db.execute(REVOKE_CREDENTIALS, (holder, kind))
        case AddToken(token=token):
            if not db.execute(ADD_TOKEN, rows.token_row(token)).rowcount:
                raise Conflict("token-exists", f"Token {token.id} exists already.")
        case SpendToken(token_id=token_id):
            if not db.execute(SPEND_TOKEN, (token_id,)).rowcount:
                raise Conflict("token-spent", "The token is revoked or has no use left.", "Ask for a new one.")
        case RevokeToken(token_id=token_id, at=at):
            if not db.execute(REVOKE_TOKEN, (rows.micros(at), token_id)).rowcount:
                raise Conflict("token-gone", f"Token {token_id} does not exist or is revoked already.")
        case AddStation(station=station):
            if not db.execute(ADD_STATION, rows.station_row(station)).rowcount:
                raise Conflict("station-exists", f"Station {station.name} exists already.", "Choose another name.")
        case _:
            assert_never(write)


class Batch:
    """The Changes of one transaction: knows where the audit chain and the feed stand, and moves them on."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        head = db.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
        self._audit_seq: int = head[0] if head else 0
        self._audit_hash: bytes = head[1] if head else GENESIS
        self._event_seq: int = db.execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()[0]

    def add(self, change: Change) -> Exception | None:
        """Write `change` whole, or write nothing and say why.

        Raises: sqlite3.OperationalError, sqlite3.DatabaseError: the database itself failed, and the batch with it.
        """
        self._db.execute("SAVEPOINT one")
        try:
            for write in change.writes:
                apply(self._db, write)
            audit_hash = self._add_audit(change)
            self._add_events(change)
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError) as error:
            return self._undo(Conflict("against-the-rules", f"The registry's own rules forbid this: {error}."))
        except sqlite3.Error:
            raise
        except Exception as error:  # one caller's bad value must not fail the others in the batch
            return self._undo(error)
        self._db.execute("RELEASE one")
        self._audit_seq += 1
        self._audit_hash = audit_hash
        self._event_seq += len(change.events)
        return None

    def _add_audit(self, change: Change) -> bytes:
        seq = self._audit_seq + 1
        hash_ = row_hash(change.audit, seq, self._audit_hash)
        self._db.execute(ADD_AUDIT, rows.audit_row(AuditRow(seq, change.audit, self._audit_hash, hash_)))
        return hash_

    def _add_events(self, change: Change) -> None:
        for seq, event in enumerate(change.events, self._event_seq + 1):
            self._db.execute(ADD_EVENT, (seq, event.kind, event.subject, event.detail))

    def _undo(self, error: Exception) -> Exception:
        self._db.execute("ROLLBACK TO one")
        self._db.execute("RELEASE one")
        return error


def write_batch(db: sqlite3.Connection, changes: Sequence[Change]) -> list[Exception | None]:
    """Commit `changes` in one transaction and one fsync; one outcome each, None for a Change that was committed.

    Raises: sqlite3.Error: nothing of any of them happened.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        batch = Batch(db)
        outcomes = [batch.add(change) for change in changes]
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk may have rolled it back already
            db.execute("ROLLBACK")
        raise
    return outcomes
