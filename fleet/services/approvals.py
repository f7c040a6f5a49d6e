"""Requests that wait for an operator: how a device gets into the queue, and how an operator decides.

Whoever waits has shown nothing but a key, and anybody can make keys: how many may wait is limited, and one that asks
again and again fills a row of the audit a minute and no more.
"""

from dataclasses import replace

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
from fleet.domain.changes import AuditEntry, Change, Event, EventKind
from fleet.domain.errors import Conflict, NotFound, Pending, TooMany
from fleet.domain.grants import ApprovalGrant
from fleet.domain.issuance_context import COMMON_NAME, SERIAL_NUMBER, Application, EnrollmentRequest
from fleet.domain.ports import Registry
from fleet.domain.writes import AddRequest, DecideRequest, TouchRequest
from fleet.services.differences import differences
from fleet.services.refusals import refusals_of
from fleet.services.revocation import checked_reason

NO_ROOM_SECONDS = 600  # it takes an operator, or the end of somebody else's request, to make room

_SHORT = {COMMON_NAME: "CN", SERIAL_NUMBER: "serialNumber", "2.5.4.6": "C", "2.5.4.10": "O", "2.5.4.11": "OU"}


def facts_of(request: EnrollmentRequest) -> str:
    """What a CSR says of itself, on one line, for an operator to read: strangers have written it."""
    subject = [f"{_SHORT.get(oid, oid)}={value}" for oid, value in request.names.subject]
    text = ", ".join((*subject, *request.names.alt_names))
    shown = "".join(each if each.isprintable() else "?" for each in text[:FACTS_SIZE_MAX])
    return shown + ("…" if len(text) > FACTS_SIZE_MAX else "")


async def wait(registry: Registry, application: Application, limits: WaitingLimits, entry: AuditEntry) -> Pending:
    """Put down that `application` waits, when that is new or a while ago; what to tell the device.

    `entry` is what the audit says of this attempt. Durable when this returns.

    Raises: TooMany (`too-many-requests`). Conflict: somebody else has put it down meanwhile; look again. Unavailable.
    """
    grant, now = application.grant, application.now
    assert isinstance(grant, ApprovalGrant)  # noqa: S101  no other grant waits
    request = replace(grant.request, expires_at=now + limits.lifetime) if grant.is_new else grant.request
    detail = {"request": request.id, "key": request.fingerprint, "model": request.model}
    entry = replace(entry, outcome="approval-pending", detail=detail)
    if grant.is_new:
        await _must_have_room(registry, request, limits)
        event = Event(EventKind.REQUEST_PENDING, request.id, request.device_id)
        await registry.commit(Change(entry, (AddRequest(request, limits),), (event,)))
    else:
        row = refusals_of(registry).row(entry)
        if row is not None:
            asked = 1 + int(row.detail.get("left_out", "0"))
            await registry.commit(Change(row, (TouchRequest(request.id, asked, now, entry.address),)))
    return Pending(
        "approval-pending",
        f"Waiting for approval: request {request.id}, key {request.fingerprint}.",
        "Ask again later with the same key.",
        retry_after_seconds=ask_again_seconds(request, now, limits.ask_again_seconds),
    )


async def _must_have_room(registry: Registry, request: ApprovalRequest, limits: WaitingLimits) -> None:
    counts = await registry.count_pending(request.first_seen, request.model, request.network)
    caps = (limits.requests_max, limits.per_model_max, limits.per_address_max)
    if any(count >= cap for count, cap in zip(counts, caps, strict=True)):
        raise TooMany(
            "too-many-requests",
            "Too many requests wait for approval already.",
            "Ask again later.",
            retry_after_seconds=NO_ROOM_SECONDS,
        )


async def approve(
    registry: Registry,
    request_id: str,
    *,
    act: Act,
    reason: str = "",
    revision: int | None = None,
    limits: WaitingLimits = DEFAULT_WAITING,
) -> ApprovalRequest:
    """Let the key of this request have one certificate for the device id that it asked for, and no other key that asks
    for it. The device comes for it; whatever else it is refused for then, it is refused for.

    Raises: NotFound (`no-such-request`). Conflict: `request-STATE`, `other-request-approved`, `changed-meanwhile`,
    `request-moved`. Invalid (`bad-reason`).
    """
    return await _decide(registry, request_id, RequestState.APPROVED, act, reason, revision, limits)


async def deny(
    registry: Registry,
    request_id: str,
    *,
    act: Act,
    reason: str = "",
    revision: int | None = None,
    limits: WaitingLimits = DEFAULT_WAITING,
) -> ApprovalRequest:
    """No certificate for the key of this request, as long as it is remembered; an approval that the device has not
    come for yet is taken back.

    Raises: as `approve`.
    """
    return await _decide(registry, request_id, RequestState.DENIED, act, reason, revision, limits)


async def known_request(registry: Registry, request_id: str, *, act: Act) -> ApprovalRequest:
    """Raises: NotFound (`no-such-request`): never asked, or expired."""
    found = await registry.request(request_id)
    if found is None or found.expires_at <= act.now:
        raise NotFound("no-such-request", f"There is no request {request_id[:80]!r}.", "See: fleet request list")
    return found


async def _decide(
    registry: Registry,
    request_id: str,
    to: RequestState,
    act: Act,
    reason: str,
    revision: int | None,
    limits: WaitingLimits,
) -> ApprovalRequest:
    request = await known_request(registry, request_id, act=act)
    change, decided = deciding(request, to, act=act, reason=reason, revision=revision, limits=limits)
    await registry.commit(change)
    return decided


def deciding(
    request: ApprovalRequest,
    to: RequestState,
    *,
    act: Act,
    reason: str,
    revision: int | None,
    limits: WaitingLimits,
) -> tuple[Change, ApprovalRequest]:
    """The Change that decides `request`, and what becomes of it.

    Raises: Conflict (`request-STATE`): there is no such move. Invalid (`bad-reason`).
    """
    if request.state not in DECIDED_FROM[to]:
        already = " already" if request.state is to else ""
        message = f"Request {request.id} is {request.state}{already}; it cannot become {to}."
        raise Conflict(f"request-{request.state}", message)
    decided = replace(
        request,
        state=to,
        decided_by=act.actor,
        decided_at=act.now,
        reason=checked_reason(reason),
        expires_at=act.now + limits.lifetime,
        revision=request.revision + 1,
    )
    write = DecideRequest(request.id, to, act.actor, act.now, reason, decided.expires_at, revision)
    verb = "approve" if to is RequestState.APPROVED else "deny"
    detail = _detail(request, reason, **differences({"state": request.state}, {"state": to}))
    subject = f"request {request.id}"
    entry = AuditEntry(act.now, act.actor, f"request.{verb}", subject, "ok", act.address, detail)
    return Change(entry, (write,), (Event(EventKind.REQUEST_DECIDED, request.id, to.value),)), decided


def _detail(request: ApprovalRequest, reason: str, **changed: str) -> dict[str, str]:
    given = {"reason": reason} if reason else {}
    return {"device": request.device_id, "model": request.model, "key": request.fingerprint, **given, **changed}
