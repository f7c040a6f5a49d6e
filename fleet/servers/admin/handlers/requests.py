"""Requests for a first certificate that wait for an operator's decision."""

import asyncio

from msgspec import UNSET
from msgspec.structs import replace

from fleet.config.timestamps import instant
from fleet.domain.access import Permission
from fleet.domain.approval import ApprovalRequest, RequestFilter
from fleet.domain.changes import Change, made_by
from fleet.domain.errors import Conflict, NotFound, no_such
from fleet.domain.request_filter import parse_request_filter
from fleet.domain.writes import DecideRequest
from fleet.servers.admin.auth import must_be_in_service
from fleet.servers.admin.conditions import demand_match
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import paged, position
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.records.base import NO_REASON, Page, Reason
from fleet.servers.admin.records.credentials import DeniedRequests, DenyRequests, Request, RequestQuery
from fleet.servers.admin.routing import Condition, Result, Route, get, post
from fleet.services import approvals
from fleet.services.bulk import STEP_DEVICES_MAX as STEP_MAX
from fleet.services.bulk import WINDOW, must_be_confirmed


@get("/v1/requests", Permission.REQUEST_READ, "Requests for a first certificate, by id.")
async def list_requests(context: Context, call: Call, query: RequestQuery) -> Result[Page[Request]]:
    values = position(call, query, str)
    after = values[0] if values else ""
    where = RequestFilter(query.state, device_id=query.device)
    found: list[ApprovalRequest] = []
    for model in call.models(query.model):
        of_model = replace(where, model=model)
        found += await context.registry.requests(of_model, now=call.now, after=after, limit=query.limit + 1)
    found.sort(key=lambda request: request.id)
    page = found[: query.limit]
    return paged(call, query, [Request.shown(r) for r in page], [page[-1].id] if len(found) > query.limit else None)


@get("/v1/requests/{request}", Permission.REQUEST_READ, "One request.", has_etag=True)
async def get_request(context: Context, call: Call) -> Result[Request]:
    return _result(await _found(context, call))


def _deciding(verb: str, decide: approvals.Verdict, summary: str) -> Route:
    async def handle(context: Context, call: Call, body: Reason = NO_REASON) -> Result[Request]:
        request = await _found(context, call)
        demand_match(call, request.revision, f"Request {request.id}")

        def result_of(change: Change) -> Result[Request]:
            made = next(write for write in change.writes if isinstance(write, DecideRequest))
            return _result(approvals.decided(request, made))

        decided = await decide(
            answering(context.registry, call.once, result_of),
            request.id,
            act=call.act,
            reason=body.reason,
            revision=None if call.if_match is None else request.revision,
            limits=context.waiting(),
        )
        return _result(decided)

    path, name, optional = f"/v1/requests/{{request}}/{verb}", f"{verb}_request", Condition.OPTIONAL
    return post(path, Permission.REQUEST_DECIDE, summary, has_etag=True, condition=optional, name=name)(handle)


approve_request = _deciding("approve", approvals.approve, "Approve a certificate for this key and device id.")
deny_request = _deciding(
    "deny", approvals.deny, "Deny a certificate for this key; revokes an approval that was not used yet."
)


@post(
    "/v1/requests/deny",
    Permission.REQUEST_DECIDE,
    "Deny every request of a filter: a dry run, then at most 500 at a time, confirmed by their number.",
)
async def deny_requests(context: Context, call: Call, body: DenyRequests) -> Result[DeniedRequests]:
    at = call.now if body.at is UNSET else instant(body.at) or call.now
    selection = parse_request_filter(body.filter, at)
    found = await approvals.selected(context.registry, selection, call.models(selection.where.model), call.now, at)
    if body.dry_run:
        return Result(DeniedRequests(at=at, matched=len(found), done=0, failed=[], left=len(found)))
    must_be_confirmed(body.expected, len(found))
    done, failed = 0, []
    for start in range(0, min(len(found), STEP_MAX), WINDOW):
        await must_be_in_service(context, call)
        some = found[start : min(start + WINDOW, STEP_MAX)]
        outcomes = await asyncio.gather(*(_deny(context, call, body, request) for request in some))
        failed += [request.id for request, is_done in zip(some, outcomes, strict=True) if not is_done]
        done += sum(outcomes)
    left = max(0, len(found) - STEP_MAX)
    result: Result[DeniedRequests] = Result(
        DeniedRequests(at=at, matched=len(found), done=done, failed=failed, left=left)
    )
    if call.once is not None:
        entry = made_by(call.act, "request.deny-many", f"requests {body.filter[:200]}", done=str(done))
        await call.once.keep(context.registry, result, entry)
    return result


async def _deny(context: Context, call: Call, body: DenyRequests, request: ApprovalRequest) -> bool:
    """As it was seen; False when somebody else has decided meanwhile."""
    try:
        await approvals.deny(
            context.registry,
            request.id,
            act=call.act,
            reason=body.reason,
            revision=request.revision,
            limits=context.waiting(),
        )
    except (Conflict, NotFound):
        return False
    return True


async def _found(context: Context, call: Call) -> ApprovalRequest:
    """Raises: NotFound (`no-such-request`): for one of another model, too."""
    request = await approvals.known_request(context.registry, call.path["request"], act=call.act)
    if not call.operator.sees(request.model):
        raise no_such("request", request.id)
    return request


def _result(request: ApprovalRequest) -> Result[Request]:
    return Result(Request.shown(request), etag=str(request.revision))
