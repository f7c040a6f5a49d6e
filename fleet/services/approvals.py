"""Certificate requests that wait for an operator's approval: how they are queued, and how an operator decides.

A waiting client has presented nothing but a key, and anybody can generate keys: the number of waiting requests is
limited, and a repeated one fills at most one audit row a minute. Where there is no room for all, whose addresses
have most gives way (`AddRequest`); a key that the manifest lists for its device always has room.
"""

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.approval import (
    DECIDED_FROM,
    DEFAULT_WAITING,
    FACTS_SIZE_MAX,
    ApprovalRequest,
    RequestState,
    WaitingLimits,
    ask_again_seconds,
)
from fleet.domain.changes import AuditEntry, Change, Event, EventKind, made_by
from fleet.domain.errors import Conflict, Pending, TooMany, no_such
from fleet.domain.grants import ApprovalGrant
from fleet.domain.issuance_context import COMMON_NAME, SERIAL_NUMBER, EnrollmentRequest, IssuanceContext
from fleet.domain.ports import Registry
from fleet.domain.request_filter import RequestSelection
from fleet.domain.writes import AddRequest, DecideRequest, TouchRequest
from fleet.services.differences import differences
from fleet.services.refusals import refusals_of
from fleet.services.revocation import checked_reason, given_reason

NO_ROOM_SECONDS = 600  # room is made by an operator, or when another request expires

_SHORT = {COMMON_NAME: "CN", SERIAL_NUMBER: "serialNumber", "2.5.4.6": "C", "2.5.4.10": "O", "2.5.4.11": "OU"}


def facts_of(request: EnrollmentRequest) -> str:
    """A CSR's subject and SAN on one line, for an operator to read; untrusted text."""
    subject = [f"{_SHORT.get(oid, oid)}={value}" for oid, value in request.names.subject]
    text = ", ".join((*subject, *request.names.alt_names))
    shown = "".join(each if each.isprintable() else "?" for each in text[:FACTS_SIZE_MAX])
    return shown + ("…" if len(text) > FACTS_SIZE_MAX else "")


async def wait_for_approval(
    registry: Registry, context: IssuanceContext, limits: WaitingLimits, entry: AuditEntry
) -> Pending:
    """Queue the request of `context`, or note that it was repeated; the answer for the device.

    `entry` is the audit entry of this attempt. Durable when this returns.

    Raises: TooMany (`too-many-requests`). Conflict: it was queued meanwhile; read again. Unavailable.
    """
    grant, now = context.grant, context.now
    assert isinstance(grant, ApprovalGrant)  # noqa: S101  no other grant waits
    stays = min(limits.lifetime, limits.stranger_lifetime) if context.device is None else limits.lifetime
    request = replace(grant.request, expires_at=now + stays) if grant.is_new else grant.request
    detail = {"request": request.id, "key": request.fingerprint, "model": request.model}
    entry = replace(entry, outcome="approval-pending", detail=detail)
    if grant.is_new:
        is_announced = grant.listed is not None and grant.listed.key_sha256 == request.key_sha256
        await _add(registry, request, limits, entry, is_announced=is_announced)
    else:
        row = refusals_of(registry).row(entry, by_itself=False)
        if row is not None:
            asked = 1 + int(row.detail.get("left_out", "0"))
            until = min(request.first_seen + limits.lifetime, now + stays)
            await registry.commit(Change(row, (TouchRequest(request.id, asked, now, entry.address, until),)))
    return Pending(
        "approval-pending",
        f"Waiting for approval: request {request.id}, key {request.fingerprint}.",
        "Retry later with the same key.",
        retry_after_seconds=ask_again_seconds(request, now, limits.ask_again_seconds),
    )


async def _add(
    registry: Registry, request: ApprovalRequest, limits: WaitingLimits, entry: AuditEntry, *, is_announced: bool
) -> None:
    in_all, for_model, from_network = await registry.count_pending(request.first_seen, request.model, request.network)
    if from_network >= limits.per_address_max and not is_announced:
        raise _no_room()
    is_full = in_all >= limits.requests_max or for_model >= limits.per_model_max
    add = AddRequest(request, limits, makes_room=is_full and not is_announced, is_announced=is_announced)
    event = Event(EventKind.REQUEST_PENDING, request.id, request.device_id)
    try:
        await registry.commit(Change(entry, (add,), (event,)))
    except Conflict:
        if not is_full or await registry.request(request.id) is not None:
            raise  # it was queued meanwhile, or others were
        raise _no_room() from None


def _no_room() -> TooMany:
    return TooMany(
        "too-many-requests",
        "Too many requests are waiting for approval.",
        "Retry later.",
        retry_after_seconds=NO_ROOM_SECONDS,
    )


async def known_request(registry: Registry, request_id: str, *, act: Act) -> ApprovalRequest:
    """Raises: NotFound (`no-such-request`): there never was one, or it has expired."""
    found = await registry.request(request_id)
    if found is None or found.expires_at <= act.now:
        raise no_such("request", request_id)
    return found


class Verdict(Struct, frozen=True):
    """An operator's decision on a request."""

    to: RequestState

    async def __call__(
        self,
        registry: Registry,
        request_id: str,
        *,
        act: Act,
        reason: str = "",
        revision: int | None = None,
        limits: WaitingLimits = DEFAULT_WAITING,
    ) -> ApprovalRequest:
        """Decide the request; with `revision`, only while it is of that. It is kept for the lifetime in `limits`.

        Raises: NotFound (`no-such-request`). Conflict: `request-STATE`, `other-request-approved`, `changed-meanwhile`,
        `request-moved`. Invalid (`bad-reason`).
        """
        request = await known_request(registry, request_id, act=act)
        to = self.to
        if request.state not in DECIDED_FROM[to]:
            why = "already" if request.state is to else f"and cannot become {to}"
            message = f"Request {request.id} is {request.state} {why}."
            raise Conflict(f"request-{request.state}", message)
        until = act.now + limits.lifetime
        write = DecideRequest(request.id, to, act.actor, act.now, checked_reason(reason), until, revision)
        verb = "approve" if to is RequestState.APPROVED else "deny"
        about = {"device": request.device_id, "model": request.model, "key": request.fingerprint}
        changed = differences({"state": request.state}, {"state": to})
        entry = made_by(act, f"request.{verb}", f"request {request.id}", **about, **given_reason(reason), **changed)
        await registry.commit(Change(entry, (write,), (Event(EventKind.REQUEST_DECIDED, request.id, to.value),)))
        return decided(request, write)


def decided(request: ApprovalRequest, write: DecideRequest) -> ApprovalRequest:
    """What `request` is after `write`."""
    return replace(
        request,
        state=write.to,
        decided_by=write.by,
        decided_at=write.at,
        reason=write.reason,
        expires_at=write.expires_at,
        revision=request.revision + 1,
    )


approve = Verdict(RequestState.APPROVED)
"""Let the key of this request have one certificate for the device id requested, and no other key for that id. The
device collects it with its next request, which must pass every other check then.
"""
deny = Verdict(RequestState.DENIED)
"""Refuse the key of this request for as long as the request is kept; an approval whose certificate has not been
collected is withdrawn.
"""


async def selected(
    registry: Registry, selection: RequestSelection, models: Sequence[str | None], now: datetime, seen_by: datetime
) -> list[ApprovalRequest]:
    """The requests of `selection` for `models`, None for all, that were first sent by `seen_by`; by id."""
    found: list[ApprovalRequest] = []
    for model in models:
        after, where = "", replace(selection.where, model=model)
        while page := await registry.requests(where, now=now, after=after):
            came = (each for each in page if each.first_seen <= seen_by)
            found += (each for each in came if selection.takes(each.address, each.expires_at))
            after = page[-1].id
    return sorted(found, key=lambda request: request.id)
