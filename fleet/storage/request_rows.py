"""Requests that wait for an operator, as columns and back, and what is asked of them: the same for every engine."""

from datetime import datetime
from typing import Any

from fleet.domain.approval import ApprovalRequest, RequestFilter, RequestState
from fleet.domain.changes import DecideRequest
from fleet.domain.device import DeviceId
from fleet.domain.errors import Conflict
from fleet.storage.mapping import Row, columns, micros, moment

COLUMNS = (
    "id",
    "device_id",
    "model",
    "key_sha256",
    "key_type",
    "facts",
    "address",
    "network",
    "first_seen",
    "last_seen",
    "expires_at",
    "asked",
    "state",
    "decided_by",
    "decided_at",
    "reason",
    "revision",
)
SELECT = f"SELECT {columns(COLUMNS)} FROM approval_request"  # noqa: S608  our own constants


def request_row(r: ApprovalRequest) -> Row:
    return (
        r.id,
        r.device_id,
        r.model,
        r.key_sha256,
        r.key_type,
        r.facts,
        r.address,
        r.network,
        micros(r.first_seen),
        micros(r.last_seen),
        micros(r.expires_at),
        r.asked,
        r.state.value,
        r.decided_by,
        None if r.decided_at is None else micros(r.decided_at),
        r.reason,
        r.revision,
    )


def request_of(row: Row) -> ApprovalRequest:
    return ApprovalRequest(
        id=row[0],
        device_id=DeviceId(row[1]),
        model=row[2],
        key_sha256=row[3],
        key_type=row[4],
        facts=row[5],
        address=row[6],
        network=row[7],
        first_seen=moment(row[8]),
        last_seen=moment(row[9]),
        expires_at=moment(row[10]),
        asked=row[11],
        state=RequestState(row[12]),
        decided_by=row[13],
        decided_at=None if row[14] is None else moment(row[14]),
        reason=row[15],
        revision=row[16],
    )


def listing_of(where: RequestFilter, now: datetime, after: str, limit: int, mark: str) -> tuple[str, list[Any]]:
    """The statement that lists requests, and its parameters; `mark` is what stands before a parameter's number."""
    terms, parameters = [f"id > {mark}1", f"expires_at > {mark}2"], [after, micros(now)]
    named = (
        ("state", where.state.value if where.state is not None else None),
        ("model", where.model),
        ("device_id", where.device_id),
    )
    for name, value in named:
        if value is not None:
            parameters.append(value)
            terms.append(f"{name} = {mark}{len(parameters)}")
    return f"{SELECT} WHERE {' AND '.join(terms)} ORDER BY id LIMIT {limit}", parameters


def counting(mark: str) -> str:
    """How many are pending at a moment: in all, for a model, from a network."""
    return f"""
        SELECT count(*), count(*) FILTER (WHERE model = {mark}2), count(*) FILTER (WHERE network = {mark}3)
        FROM approval_request WHERE state = 'pending' AND expires_at > {mark}1"""  # noqa: S608


def not_added(request: ApprovalRequest) -> Conflict:
    return Conflict("request-not-added", f"Request {request.id} is there already, or there is no room for it.")


def not_decided(write: DecideRequest) -> Conflict:
    return Conflict("request-moved", f"Request {write.request_id} cannot become {write.to} any more.")


def decided_already(write: DecideRequest) -> Conflict:
    message = f"Another request for the device id of {write.request_id} has been approved already."
    return Conflict("other-request-approved", message, "Deny that one first.")


def not_collected(request_id: str) -> Conflict:
    return Conflict("request-moved", f"Request {request_id} is not approved any more.")
