"""Requests for a first certificate that wait for an operator's decision."""

from msgspec.structs import replace

from fleet.domain.access import Permission
from fleet.domain.approval import ApprovalRequest, RequestFilter
from fleet.domain.changes import Change
from fleet.domain.errors import no_such
from fleet.domain.writes import DecideRequest
from fleet.servers.admin.conditions import demand_match
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import paged, position
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.records.base import NO_REASON, Page, Reason
from fleet.servers.admin.records.credentials import Request, RequestQuery
from fleet.servers.admin.result import Result
from fleet.servers.admin.routing import Condition, Route, get, post
from fleet.services import approvals


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


def _deciding(verb: str, decide: approvals.Decision, summary: str) -> Route:
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


async def _found(context: Context, call: Call) -> ApprovalRequest:
    """Raises: NotFound (`no-such-request`): for one of another model, too."""
    request = await approvals.known_request(context.registry, call.path["request"], act=call.act)
    if not call.operator.sees(request.model):
        raise no_such("request", request.id)
    return request


def _result(request: ApprovalRequest) -> Result[Request]:
    return Result(Request.shown(request), etag=str(request.revision))
