"""Requests that wait for an operator, on SQLite: each Write and each question as SQL."""

import sqlite3
from datetime import datetime

from fleet.domain.approval import DECIDED_FROM, ApprovalRequest, RequestFilter, RequestState
from fleet.domain.changes import AddRequest, CollectRequest, DecideRequest, DropRequests, SeeRequest
from fleet.domain.errors import Conflict
from fleet.storage import request_rows as rows
from fleet.storage.mapping import columns, micros
from fleet.storage.sqlite.listings import bounded

_MARKS = ", ".join(f"?{number}" for number in range(1, len(rows.COLUMNS) + 1))
_PENDING = "(SELECT count(*) FROM approval_request WHERE state = 'pending'"
ADD = f"""
    INSERT INTO approval_request ({columns(rows.COLUMNS)}) SELECT {_MARKS}
    WHERE {_PENDING}) < ?18 AND {_PENDING} AND model = ?3) < ?19 AND {_PENDING} AND network = ?8) < ?20
    ON CONFLICT DO NOTHING"""
SEE = "UPDATE approval_request SET asked = asked + ?, last_seen = ?, address = ? WHERE id = ?"
HAS_OTHER = """
    SELECT 1 FROM approval_request a JOIN approval_request b ON a.device_id = b.device_id
    WHERE a.id = ? AND b.id <> a.id AND b.state = 'approved' AND b.expires_at > ?"""
# One text for each number of states.
DECIDE = {
    n: f"""
    UPDATE approval_request SET state = ?, decided_by = ?, decided_at = ?, reason = ?, expires_at = ?,
        revision = revision + 1
    WHERE id = ? AND revision = coalesce(?, revision) AND expires_at > ? AND state IN ({", ".join("?" * n)})"""  # noqa: S608
    for n in (1, 2)
}
DENY_OTHERS = """
    UPDATE approval_request SET state = 'denied', decided_by = ?1, decided_at = ?2, reason = ?3, expires_at = ?4,
        revision = revision + 1
    WHERE state = 'pending' AND id <> ?5
      AND device_id = (SELECT device_id FROM approval_request WHERE id = ?5)"""
HAS = "SELECT state FROM approval_request WHERE id = ? AND expires_at > ?"
COLLECT = "UPDATE approval_request SET state = 'issued', revision = revision + 1 WHERE id = ? AND state = 'approved'"
DROP = "DELETE FROM approval_request WHERE expires_at <= ?"

RequestWrite = AddRequest | SeeRequest | DecideRequest | CollectRequest | DropRequests


def apply(db: sqlite3.Connection, write: RequestWrite) -> None:
    """Raises: Conflict: what it needs is not so."""
    match write:
        case AddRequest(request=request, limits=limits):
            db.execute(DROP, (micros(request.first_seen),))
            caps = (limits.requests_max, limits.per_model_max, limits.per_address_max)
            if not db.execute(ADD, (*rows.request_row(request), *caps)).rowcount:
                raise rows.not_added(request)
        case SeeRequest(request_id=id_, asked=asked, at=at, address=address):
            db.execute(SEE, (asked, micros(at), address, id_))
        case DecideRequest():
            _decide(db, write)
        case CollectRequest(request_id=id_):
            if not db.execute(COLLECT, (id_,)).rowcount:
                raise rows.not_collected(id_)
        case DropRequests(now=now):
            db.execute(DROP, (micros(now),))


def _decide(db: sqlite3.Connection, write: DecideRequest) -> None:
    at, expires_at = micros(write.at), micros(write.expires_at)
    if write.to is RequestState.APPROVED and db.execute(HAS_OTHER, (write.request_id, at)).fetchone():
        raise rows.decided_already(write)
    states = sorted(state.value for state in DECIDED_FROM[write.to])
    decision = (write.to.value, write.by, at, write.reason, expires_at)
    if not db.execute(DECIDE[len(states)], (*decision, write.request_id, write.revision, at, *states)).rowcount:
        found = db.execute(HAS, (write.request_id, at)).fetchone()
        if found and found[0] in states and write.revision is not None:
            message = f"Request {write.request_id} has been changed since it was read."
            raise Conflict("changed-meanwhile", message, "Read it again and retry.")
        raise rows.not_decided(write)
    if write.to is RequestState.APPROVED:
        reason = f"request {write.request_id} was approved"
        db.execute(DENY_OTHERS, (write.by, at, reason, expires_at, write.request_id))


def request(db: sqlite3.Connection, request_id: str) -> ApprovalRequest | None:
    row = db.execute(f"{rows.SELECT} WHERE id = ?", (request_id,)).fetchone()
    return rows.request_of(row) if row else None


def requests(
    db: sqlite3.Connection, where: RequestFilter, now: datetime, after: str, limit: int
) -> list[ApprovalRequest]:
    statement, parameters = rows.listing_of(where, now, after, bounded(limit), "?")
    return [rows.request_of(row) for row in db.execute(statement, parameters)]


def count_pending(db: sqlite3.Connection, now: datetime, model: str, network: str) -> tuple[int, int, int]:
    in_all, for_model, from_network = db.execute(rows.counting("?"), (micros(now), model, network)).fetchone()
    return in_all, for_model, from_network
