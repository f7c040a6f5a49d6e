"""The routes of tokens. The secret of one stands in the answer that makes it, and nowhere else."""

from dataclasses import replace
from datetime import timedelta

from fleet.domain.access import PERMISSIONS, Operator, Permission, demand_model
from fleet.domain.changes import Change
from fleet.domain.credential import Token
from fleet.domain.errors import NotFound
from fleet.domain.writes import AddToken
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import page_limit, paged, place
from fleet.servers.admin.devices import found_device
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.result import Result
from fleet.servers.admin.shapes import token_json
from fleet.servers.refusals import HttpRefused
from fleet.services import inventory

SHOWN_ONCE = "The token was shown once, in the first answer to this request. Revoke it if it was lost."


async def list_tokens(context: Context, call: Call) -> Result:
    """Newest first."""
    known, limit = await context.registry.tokens(), page_limit(call)
    values, start = place(call, str), 0
    if values is not None:
        start = next((n for n, token in enumerate(known, 1) if token.id == values[0]), -1)
        if start < 0:
            raise HttpRefused(400, "bad-cursor", "The cursor is none of this list's. Start again without one.")
    page: list[Token] = []
    more = False  # that the caller may see: whether there are others is none of its business
    for token in known[start:]:
        if await _may_see(context, call.operator, token):
            if more := len(page) == limit:
                break
            page.append(token)
    items = [token_json(token, call.now) for token in page]
    return paged(call, items, [page[-1].id] if more else None)


async def create_token(context: Context, call: Call) -> Result:
    body = call.body
    device, model = body.get("device"), body.get("model")
    if model is not None:
        demand_model(call.operator, model)
    if device is not None and call.operator.models:
        await found_device(context, call.operator, device)

    def reply_of(change: Change) -> Result:
        made = next(write.token for write in change.writes if isinstance(write, AddToken))
        return _created(made, call, {"note": SHOWN_ONCE})

    token, text = await inventory.create_token(
        answering(context.registry, call.once, reply_of),
        device=device,
        model=model,
        uses=int(body.get("uses", 1)),
        ttl=timedelta(seconds=int(body.get("ttl_seconds", inventory.TOKEN_TTL.total_seconds()))),
        # Who may not change devices makes tokens for new ones alone.
        takes_over=Permission.DEVICE_WRITE in PERMISSIONS[call.operator.role],
        act=call.act,
    )
    return _created(token, call, {"token": text})


def _created(made: Token, call: Call, shown: dict[str, str]) -> Result:
    return Result({**token_json(made, call.now), **shown}, 201)


async def revoke_token(context: Context, call: Call) -> Result:
    token = await context.registry.token(call.path["token"])
    if token is None or not await _may_see(context, call.operator, token):
        raise NotFound("no-such-token", f"There is no token {call.path['token']}.")
    reply = Result(token_json(replace(token, revoked_at=call.now), call.now))
    await inventory.revoke_token(answering(context.registry, call.once, lambda _: reply), token.id, act=call.act)
    return reply


async def _may_see(context: Context, operator: Operator, token: Token) -> bool:
    """One for a model of the operator's, or for a device of one."""
    if not operator.models:
        return True
    if token.model is not None:
        return operator.sees(token.model)
    device = await context.registry.device(token.device_id or "")
    return device is not None and operator.sees(device.model)
