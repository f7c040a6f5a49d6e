"""The routes of requests that wait for an operator."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from fleet.domain.access import Operator
from fleet.domain.approval import ApprovalRequest, RequestFilter, RequestState
from fleet.domain.changes import Change
from fleet.domain.errors import NotFound
from fleet.domain.writes import DecideRequest
from fleet.servers.admin.conditions import demand_match
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import page_limit, paged, place
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.result import Result
from fleet.servers.admin.shapes import request_json
from fleet.services import approvals

Decide = Callable[..., Awaitable[ApprovalRequest]]


async def list_requests(context: Context, call: Call) -> Result:
    """By id. Of an operator's models, each is asked for by itself: what belongs to others is never looked at."""
    query, limit = call.query, page_limit(call)
    values = place(call, str)
    after = values[0] if values else ""
    state = query.get("state")
    where = RequestFilter(RequestState(state) if state is not None else None, device_id=query.get("device"))
    found: list[ApprovalRequest] = []
    for model in _models(call):
        of_model = replace(where, model=model)
        found += await context.registry.requests(of_model, now=call.now, after=after, limit=limit + 1)
    found.sort(key=lambda request: request.id)
    page = found[:limit]
    return paged(call, [request_json(each) for each in page], [page[-1].id] if len(found) > limit else None)


def _models(call: Call) -> tuple[str | None, ...]:
    operator, asked = call.operator, call.query.get("model")
    if asked is not None:
        return (asked,) if operator.sees(asked) else ()
    return operator.models or (None,)


async def get_request(context: Context, call: Call) -> Result:
    return _reply(await _found(context, call.operator, call))


async def approve_request(context: Context, call: Call) -> Result:
    return await _decide(context, call, approvals.approve)


async def deny_request(context: Context, call: Call) -> Result:
    return await _decide(context, call, approvals.deny)


async def _decide(context: Context, call: Call, decide: Decide) -> Result:
    request = await _found(context, call.operator, call)
    demand_match(call, request.revision, f"Request {request.id}")

    def reply_of(change: Change) -> Result:
        made = next(write for write in change.writes if isinstance(write, DecideRequest))
        return _reply(
            replace(
                request,
                state=made.to,
                decided_by=made.by,
                decided_at=made.at,
                reason=made.reason,
                expires_at=made.expires_at,
                revision=request.revision + 1,
            )
        )

    return _reply(
        await decide(
            answering(context.registry, call.once, reply_of),
            request.id,
            act=call.act,
            reason=(call.body or {}).get("reason", ""),
            revision=None if call.if_match is None else request.revision,
            limits=context.waiting(),
        )
    )


async def _found(context: Context, operator: Operator, call: Call) -> ApprovalRequest:
    """Raises: NotFound (`no-such-request`): for another's model, too."""
    request = await approvals.known_request(context.registry, call.path["request"], act=call.act)
    if not operator.sees(request.model):
        raise NotFound("no-such-request", f"There is no request {request.id}.")
    return request


def _reply(request: ApprovalRequest) -> Result:
    return Result(request_json(request), etag=str(request.revision))
