"""Each Write as SQL, inside the transaction that is open. Runs in the writer's own thread.

Every statement checks the promise of its Write itself (`WHERE state IN …`, `ON CONFLICT DO NOTHING`) and a row count of
zero is the Conflict: there is no gap between looking and writing.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from fleet.domain.audit_log import NODE_LEVELS, AuditNode, Sealed
from fleet.domain.changes import (
    AddAnchor,
    AddAnswer,
    AddClaim,
    AddCredential,
    AddDevice,
    AddModel,
    AddOperator,
    AddRequest,
    AddStation,
    AddToken,
    BindIdevid,
    CollectRequest,
    CountTakeover,
    DecideRequest,
    DropAnchor,
    DropAnswers,
    DropAudit,
    DropCredentials,
    DropEvents,
    DropRequests,
    EndCredentials,
    EndUnused,
    ListDevices,
    MarkUsed,
    MoveDevice,
    QuarantineClaim,
    ReleaseClaim,
    RevokeClaim,
    RevokeCredentials,
    RevokeToken,
    SeeRequest,
    SetModel,
    SetStation,
    SpendClaim,
    SpendStation,
    SpendToken,
    TagDevice,
    TakeLease,
    Write,
)
from fleet.domain.errors import Conflict
from fleet.storage import mapping
from fleet.storage.sqlite import admission as sqlite_admission
from fleet.storage.sqlite import requests as sqlite_requests


def _insert(table: str, names: tuple[str, ...], ending: str = " ON CONFLICT DO NOTHING") -> str:
    marks = ", ".join("?" * len(names))
    return f"INSERT INTO {table} ({mapping.columns(names)}) VALUES ({marks}){ending}"  # noqa: S608  our own constants


ADD_MODEL = _insert("model", mapping.MODEL_COLUMNS)
SET_MODEL = """
    UPDATE model SET lifetime = ?2, key_types = ?3, publish = ?4, subscribe = ?5, retain = ?6, rules = ?7,
        revision = revision + 1
    WHERE name = ?1 AND revision = ?8"""
HAS_MODEL = "SELECT 1 FROM model WHERE name = ?"
ADD_DEVICE = _insert("device", mapping.DEVICE_COLUMNS)
ADD_CREDENTIAL = _insert("credential", mapping.CREDENTIAL_COLUMNS)
KEY_TAKEN = """
    SELECT 1 FROM credential
    WHERE key_sha256 = ?1 AND (holder <> ?2 OR kind <> ?3 OR state = 'revoked')
    UNION ALL SELECT 1 FROM revoked_key WHERE key_sha256 = ?1 LIMIT 1"""
_UNUSED = "WHERE holder = ? AND kind = ? AND state = 'issued' AND earned_by = ?"
NEWEST_UNUSED = f"SELECT fingerprint FROM credential {_UNUSED} ORDER BY seq DESC LIMIT 1"  # noqa: S608
END_UNUSED = f"UPDATE credential SET state = 'superseded' {_UNUSED}"  # noqa: S608
USE_CREDENTIAL = "UPDATE credential SET state = 'active' WHERE fingerprint = ? AND state IN ('issued', 'active')"
SUPERSEDE_OLDER = """
    UPDATE credential SET state = 'superseded'
    FROM (SELECT seq, holder, kind FROM credential WHERE fingerprint = ?) AS used
    WHERE credential.holder = used.holder AND credential.kind = used.kind
      AND credential.state IN ('issued', 'active') AND credential.seq < used.seq"""
END_CREDENTIAL = "UPDATE credential SET state = 'superseded' WHERE fingerprint = ? AND state IN ('issued', 'active')"
REVOKE_CREDENTIALS = "UPDATE credential SET state = 'revoked' WHERE holder = ? AND kind = ? AND state <> 'revoked'"
ADD_TOKEN = _insert("token", mapping.TOKEN_COLUMNS)
SPEND_TOKEN = "UPDATE token SET uses = uses + 1 WHERE id = ? AND revoked_at IS NULL AND uses < uses_max"  # noqa: S105
REVOKE_TOKEN = "UPDATE token SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"  # noqa: S105
ADD_STATION = _insert("station", mapping.STATION_COLUMNS)
# One text for each number of states, so that the statement cache holds a handful of them.
MOVE_DEVICE = {
    n: f"""
    UPDATE device SET state = ?, expires_at = coalesce(?, expires_at), revision = revision + 1
    WHERE id = ? AND revision = coalesce(?, revision) AND state IN ({", ".join("?" * n)})"""  # noqa: S608
    for n in range(1, 6)
}
TAG_DEVICE = "UPDATE device SET tags = ?, groups = ?, revision = revision + 1 WHERE id = ? AND revision = ?"
OLD_TAGS = f"SELECT {mapping.columns(mapping.DEVICE_COLUMNS)} FROM device WHERE id = ?"  # noqa: S608
ADD_TAG = _insert("device_tag", ("key", "value", "device_id"))
DROP_TAG = "DELETE FROM device_tag WHERE key = ? AND value = ? AND device_id = ?"
ADD_OPERATOR = _insert("operator", mapping.OPERATOR_COLUMNS)
ADD_ANSWER = _insert("answer", mapping.ANSWER_COLUMNS)
DROP_ANSWERS = "DELETE FROM answer WHERE at < ?"
KEEP_REVOKED_KEY = """
    INSERT INTO revoked_key (key_sha256, kind, holder)
    SELECT key_sha256, kind, holder FROM credential WHERE fingerprint = ? AND state = 'revoked'
    ON CONFLICT DO NOTHING"""
DROP_CREDENTIAL = "DELETE FROM credential WHERE fingerprint = ? AND not_after <= ?"
DROP_AUDIT = """
    DELETE FROM audit WHERE seq <= ?1 AND ?1 < (SELECT max(seq) FROM audit)
    AND ?1 <= (SELECT max(size) FROM audit_head)"""
TAKE_LEASE = """
    INSERT INTO lease (name, owner, expires_at) VALUES (?1, ?2, ?3)
    ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
    WHERE lease.owner = excluded.owner OR lease.expires_at <= ?4 OR ?5"""
DROP_EVENTS = "DELETE FROM event WHERE seq <= ? AND seq < (SELECT max(seq) FROM event)"
LARGEST_HEAD = "SELECT max(size) FROM audit_head"
ADD_HEAD = _insert("audit_head", mapping.HEAD_COLUMNS, ending="")
ADD_NODE = _insert("audit_node", ("level", "idx", "hash"))  # a smaller head may have made it whole meanwhile
SET_FRONTIER = "INSERT OR REPLACE INTO audit_frontier (one, size, hashes) VALUES (1, ?, ?)"


def apply(db: sqlite3.Connection, write: Write) -> None:
    """Write `write`, inside the transaction that is open.

    Raises: Conflict: what it needs is not so.
    """
    match write:
        case AddModel(model=model):
            if not db.execute(ADD_MODEL, mapping.model_row(model)).rowcount:
                raise Conflict(
                    "model-exists", f"Model {model.name} exists already.", "Change it with: fleet model set."
                )
        case SetModel(model=model):
            if not db.execute(SET_MODEL, mapping.model_row(model)).rowcount:
                if not db.execute(HAS_MODEL, (model.name,)).fetchone():
                    raise Conflict("no-such-model", f"There is no model {model.name}.", "Add it with: fleet model add.")
                raise changed_meanwhile(f"Model {model.name}")
        case AddDevice(device=device):
            if not db.execute(ADD_DEVICE, mapping.device_row(device)).rowcount:
                raise Conflict("device-exists", f"Device {device.id} exists already.")
            if device.tags or device.groups:
                db.executemany(ADD_TAG, mapping.tag_rows(device))
        case MoveDevice():
            _move_device(db, write)
        case TagDevice():
            _tag_device(db, write)
        case AddCredential(credential=credential):
            if db.execute(KEY_TAKEN, (credential.key_sha256, credential.holder, credential.kind.value)).fetchone():
                raise Conflict("key-taken", "The key is another holder's, or was revoked.", "Make a new key.")
            if not db.execute(ADD_CREDENTIAL, mapping.credential_row(credential)).rowcount:
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
        case EndCredentials(fingerprints=fingerprints):
            db.executemany(END_CREDENTIAL, [(fingerprint,) for fingerprint in fingerprints])
        case RevokeCredentials(kind=kind, holder=holder):
            db.execute(REVOKE_CREDENTIALS, (holder, kind))
        case AddToken(token=token):
            if not db.execute(ADD_TOKEN, mapping.token_row(token)).rowcount:
                raise Conflict("token-exists", f"Token {token.id} exists already.")
        case SpendToken(token_id=token_id):
            if not db.execute(SPEND_TOKEN, (token_id,)).rowcount:
                raise Conflict("token-spent", "The token is revoked or has no use left.", "Ask for a new one.")
        case RevokeToken(token_id=token_id, at=at):
            if not db.execute(REVOKE_TOKEN, (mapping.micros(at), token_id)).rowcount:
                raise Conflict("token-gone", f"Token {token_id} does not exist or is revoked already.")
        case AddStation(station=station):
            if not db.execute(ADD_STATION, mapping.station_row(station)).rowcount:
                raise Conflict("station-exists", f"Station {station.name} exists already.", "Choose another name.")
        case AddOperator(operator=operator):
            if not db.execute(ADD_OPERATOR, mapping.operator_row(operator)).rowcount:
                raise Conflict("operator-exists", f"Operator {operator.name} exists already.", "Choose another name.")
        case AddAnswer(answer=answer):
            if not db.execute(ADD_ANSWER, mapping.answer_row(answer)).rowcount:
                raise Conflict("idempotency-key-used", "The idempotency key has been used already.", "Take a new one.")
        case AddRequest() | SeeRequest() | DecideRequest() | CollectRequest() | DropRequests():
            sqlite_requests.apply(db, write)
        case ListDevices() | SetStation() | SpendStation() | AddAnchor() | DropAnchor() | BindIdevid():
            sqlite_admission.apply(db, write)
        case AddClaim() | SpendClaim() | CountTakeover() | QuarantineClaim() | ReleaseClaim() | RevokeClaim():
            sqlite_admission.apply(db, write)
        case DropAnswers() | DropCredentials() | DropAudit() | DropEvents():
            _drop(db, write)
        case TakeLease(lease=lease, now=now, by_force=by_force):
            if not db.execute(TAKE_LEASE, (*mapping.lease_row(lease), mapping.micros(now), by_force)).rowcount:
                raise mapping.lease_held(lease)
        case _:
            assert_never(write)


def changed_meanwhile(what: str) -> Conflict:
    return Conflict("changed-meanwhile", f"{what} has been changed since it was read.", "Read it again and retry.")


def _move_device(db: sqlite3.Connection, write: MoveDevice) -> None:
    expires_at = None if write.expires_at is None else mapping.micros(write.expires_at)
    states = sorted(state.value for state in write.allowed)
    parameters = (write.to.value, expires_at, write.device_id, write.revision, *states)
    if states and db.execute(MOVE_DEVICE[len(states)], parameters).rowcount:
        return
    found = db.execute(OLD_TAGS, (write.device_id,)).fetchone()
    if found is not None and mapping.device_of(found).state in write.allowed:
        raise changed_meanwhile(f"Device {write.device_id}")
    raise Conflict("device-moved", f"Device {write.device_id} is not in a state from which it can become {write.to}.")


def _tag_device(db: sqlite3.Connection, write: TagDevice) -> None:
    found = db.execute(OLD_TAGS, (write.device_id,)).fetchone()
    if found is None:
        raise Conflict("no-such-device", f"There is no device {write.device_id}.")
    old = mapping.device_of(found)
    new = replace(old, tags=write.tags, groups=write.groups)
    row = mapping.device_row(new)
    if not db.execute(TAG_DEVICE, (row[6], row[7], new.id, write.revision)).rowcount:
        raise changed_meanwhile(f"Device {new.id}")
    db.executemany(DROP_TAG, mapping.tag_rows(old))
    db.executemany(ADD_TAG, mapping.tag_rows(new))


def _drop(db: sqlite3.Connection, write: DropAnswers | DropCredentials | DropAudit | DropEvents) -> None:
    match write:
        case DropAnswers(before=before):
            db.execute(DROP_ANSWERS, (mapping.micros(before),))
        case DropCredentials(fingerprints=fingerprints, now=now):
            for fingerprint in fingerprints:
                db.execute(KEEP_REVOKED_KEY, (fingerprint,))
                if not db.execute(DROP_CREDENTIAL, (fingerprint, mapping.micros(now))).rowcount:
                    raise Conflict("credential-kept", "A certificate that has not expired is not forgotten.")
        case DropAudit(upto=upto):
            if upto % (1 << NODE_LEVELS[0]) or not db.execute(DROP_AUDIT, (upto,)).rowcount:
                raise Conflict("audit-kept", f"The audit up to row {upto} is not sealed, or is not there any more.")
        case DropEvents(upto=upto):
            db.execute(DROP_EVENTS, (upto,))


def add_head(db: sqlite3.Connection, sealed: Sealed, nodes: Sequence[AuditNode]) -> None:
    """Keep a new head, its frontier and the nodes that it has made whole, in one transaction.

    Raises: Conflict (`sealed-already`): nothing happened. sqlite3.Error: likewise.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        largest = db.execute(LARGEST_HEAD).fetchone()[0]
        if largest is not None and largest >= sealed.head.size:
            raise Conflict("sealed-already", f"The audit is sealed up to row {largest} already.")
        db.execute(ADD_HEAD, mapping.head_row(sealed.head))
        db.executemany(ADD_NODE, [(node.level, node.index, node.hash) for node in nodes])
        db.execute(SET_FRONTIER, (sealed.frontier.size, sealed.frontier.packed()))
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
