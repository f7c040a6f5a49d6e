"""Operators. Keys are generated where they are used: the body has a certificate request."""

from collections.abc import Mapping
from datetime import timedelta

from msgspec.structs import replace

from fleet.domain import access
from fleet.domain.access import Permission, demand_grantable, operator_actor
from fleet.domain.changes import Change, made_by
from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.crl import GIVEN_REASONS
from fleet.domain.errors import Conflict, no_such
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import paged, slice_of
from fleet.servers.admin.idempotency import answering, inserted
from fleet.servers.admin.records.base import Page, Paging
from fleet.servers.admin.records.holders import (
    AddedOperator,
    NewOperator,
    Operator,
    OperatorRevocation,
    RevokedOperator,
    newest,
)
from fleet.servers.admin.routing import Result, get, post
from fleet.servers.admin.signing import made_in, newest_of, read_named_request, signed
from fleet.services import operators

_NOTHING_MORE = OperatorRevocation()


@get("/v1/operators", Permission.OPERATOR_READ, "Operators, by name.")
async def list_operators(context: Context, call: Call, query: Paging) -> Result[Page[Operator]]:
    page, following = slice_of(call, query, await context.registry.operators(), lambda operator: operator.name)
    tokens = await context.registry.count_open_tokens(call.now)
    return paged(call, query, [await _shown(context, each, tokens) for each in page], following)


@get("/v1/operators/{operator}", Permission.OPERATOR_READ, "One operator.")
async def get_operator(context: Context, call: Call) -> Result[Operator]:
    return Result(
        await _shown(context, await _found(context, call), await context.registry.count_open_tokens(call.now))
    )


async def _shown(context: Context, operator: access.Operator, tokens: Mapping[str, int], **more: object) -> Operator:
    held = await newest_of(context, operator.name, CredentialKind.OPERATOR)
    return Operator.of(operator, **{**held, "open_tokens": tokens.get(operator_actor(operator.name), 0), **more})


@post(
    "/v1/operators",
    Permission.OPERATOR_WRITE,
    "Add an operator, with a certificate for the key of its request; its permissions can't exceed the caller's.",
    status=201,
    may_not_find=True,
)
async def create_operator(context: Context, call: Call, body: NewOperator) -> Result[AddedOperator]:
    models = tuple(dict.fromkeys(body.models))
    demand_grantable(call.operator, body.role, models)
    csr = read_named_request(body.name, body.csr)

    def result_of(change: Change) -> Result[AddedOperator]:
        operator = inserted(change, access.Operator)
        return _created(context, operator, made_in(change))

    credential = await operators.enroll_operator(
        answering(context.registry, call.once, result_of),
        context.authorities().operators_issuer(call.now),
        operators.NewOperator(body.name, body.role, models, csr.spki_der, timedelta(seconds=body.lifetime_seconds)),
        act=call.act,
    )
    return _created(context, access.Operator(body.name, body.role, call.now, models), credential)


def _created(context: Context, operator: access.Operator, credential: Credential) -> Result[AddedOperator]:
    certificates = signed(context, credential, [context.authorities().operators()])
    location = {"Location": f"/v1/operators/{operator.name}"}
    return Result(AddedOperator.of(operator, **newest(credential), **certificates, open_tokens=0), 201, location)


@post(
    "/v1/operators/{operator}/revoke",
    Permission.OPERATOR_WRITE,
    "Revoke an operator's certificates, and its tokens if asked to; its event streams end.",
)
async def revoke_operator(
    context: Context, call: Call, body: OperatorRevocation = _NOTHING_MORE
) -> Result[RevokedOperator]:
    found, registry = await _found(context, call), context.registry
    tokens = {} if body.tokens else await registry.count_open_tokens(call.now)
    shown = RevokedOperator.of(
        await _shown(context, found, tokens, certificate=CredentialState.REVOKED), revoked_tokens=0
    )
    last = answering(registry, call.once, lambda _: Result(shown))
    why, crl_reason = body.reason, GIVEN_REASONS[body.crl_reason]
    if not body.tokens:
        await operators.revoke_operator(last, found.name, act=call.act, reason=why, crl_reason=crl_reason)
        return Result(shown)
    try:
        await operators.revoke_operator(registry, found.name, act=call.act, reason=why, crl_reason=crl_reason)
    except Conflict:  # revoked before, and tokens may have been left
        if not await registry.open_tokens(operator_actor(found.name), call.now, limit=1):
            raise
    revoked = await operators.revoke_open_tokens(registry, found.name, act=call.act, reason=why)
    shown = replace(shown, revoked_tokens=revoked)
    entry = made_by(call.act, "operator.revoke-tokens", f"operator {found.name}", tokens=str(revoked))
    await last.commit(Change(entry))
    return Result(shown)


async def _found(context: Context, call: Call) -> access.Operator:
    found = await context.registry.operator(call.path["operator"])
    if found is None:
        raise no_such("operator", call.path["operator"])
    return found
