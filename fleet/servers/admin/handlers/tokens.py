"""Tokens. The secret of one is in the answer that makes it, and nowhere else."""

from datetime import timedelta

from msgspec import UNSET
from msgspec.structs import replace

from fleet.domain.access import PERMISSIONS, Operator, Permission, demand_model
from fleet.domain.changes import Change
from fleet.domain.credential import Token as DomainToken
from fleet.domain.errors import no_such
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import paged, start_of
from fleet.servers.admin.handlers.devices import found_device
from fleet.servers.admin.idempotency import answering, inserted
from fleet.servers.admin.records.base import Page, Paging
from fleet.servers.admin.records.credentials import NewToken, Token
from fleet.servers.admin.routing import Result, get, post
from fleet.services import inventory

SHOWN_ONCE = "The token was shown once, in the first answer to this request. Revoke it if it was lost."


@get("/v1/tokens", Permission.TOKEN_READ, "Tokens, newest first; never their secrets.")
async def list_tokens(context: Context, call: Call, query: Paging) -> Result[Page[Token]]:
    known = await context.registry.tokens()
    page: list[DomainToken] = []
    more = False  # that the caller may see: it does not learn whether there are others
    for token in known[start_of(call, query, known, lambda token: token.id) :]:
        if await _may_see(context, call.operator, token):
            if more := len(page) == query.limit:
                break
            page.append(token)
    return paged(call, query, [Token.shown(t, call.now) for t in page], [page[-1].id] if more else None)


@post(
    "/v1/tokens",
    Permission.TOKEN_CREATE,
    "Make a token; its secret is in this answer and nowhere else.",
    status=201,
    may_not_find=True,
)
async def create_token(context: Context, call: Call, body: NewToken) -> Result[Token]:
    device = None if body.device is UNSET else body.device
    model = None if body.model is UNSET else body.model
    if model is not None:
        demand_model(call.operator, model)
    if device is not None and call.operator.models:
        await found_device(context, call.operator, device)

    def result_of(change: Change) -> Result[Token]:
        made = inserted(change, DomainToken)
        return Result(Token.shown(made, call.now, note=SHOWN_ONCE), 201)

    token, text = await inventory.create_token(
        answering(context.registry, call.once, result_of),
        device=device,
        model=model,
        # Without the permission to change devices, tokens are for new ones alone.
        terms=inventory.TokenTerms(
            body.uses,
            timedelta(seconds=body.ttl_seconds),
            takes_over=Permission.DEVICE_WRITE in PERMISSIONS[call.operator.role],
        ),
        act=call.act,
    )
    return Result(Token.shown(token, call.now, token=text), 201)


@post("/v1/tokens/{token}/revoke", Permission.TOKEN_REVOKE, "Revoke a token; certificates that it earned stay.")
async def revoke_token(context: Context, call: Call) -> Result[Token]:
    token = await context.registry.token(call.path["token"])
    if token is None or not await _may_see(context, call.operator, token):
        raise no_such("token", call.path["token"])
    result: Result[Token] = Result(Token.shown(replace(token, revoked_at=call.now), call.now))
    await inventory.revoke_token(answering(context.registry, call.once, lambda _: result), token.id, act=call.act)
    return result


async def _may_see(context: Context, operator: Operator, token: DomainToken) -> bool:
    """One for a model of the operator's, or for a device of one."""
    if not operator.models:
        return True
    if token.model is not None:
        return operator.sees(token.model)
    device = await context.registry.device(token.device_id or "")
    return device is not None and operator.sees(device.model)
