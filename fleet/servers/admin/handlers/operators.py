"""Operators. Keys are generated where they are used: the body has a certificate request."""

from datetime import timedelta

from fleet.domain import access
from fleet.domain.access import Permission, demand_grantable
from fleet.domain.changes import Change
from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.errors import no_such
from fleet.domain.writes import AddOperator
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import paged, slice_of
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.records.base import NO_REASON, Page, Paging, Reason
from fleet.servers.admin.records.holders import AddedOperator, NewOperator, Operator, newest
from fleet.servers.admin.result import Result
from fleet.servers.admin.routing import get, post
from fleet.servers.admin.signing import made_in, newest_of, read_named_request, signed
from fleet.services import operators


@get("/v1/operators", Permission.OPERATOR_READ, "Operators, by name.")
async def list_operators(context: Context, call: Call, query: Paging) -> Result[Page[Operator]]:
    page, following = slice_of(call, query, await context.registry.operators(), lambda operator: operator.name)
    items = [Operator.of(o, **await newest_of(context, o.name, CredentialKind.OPERATOR)) for o in page]
    return paged(call, query, items, following)


@get("/v1/operators/{operator}", Permission.OPERATOR_READ, "One operator.")
async def get_operator(context: Context, call: Call) -> Result[Operator]:
    found = await _found(context, call)
    return Result(Operator.of(found, **await newest_of(context, found.name, CredentialKind.OPERATOR)))


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
        operator = next(write.operator for write in change.writes if isinstance(write, AddOperator))
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
    return Result(AddedOperator.of(operator, **newest(credential), **certificates), 201, location)


@post(
    "/v1/operators/{operator}/revoke",
    Permission.OPERATOR_WRITE,
    "Revoke an operator's certificates; its event streams end.",
)
async def revoke_operator(context: Context, call: Call, body: Reason = NO_REASON) -> Result[Operator]:
    found = await _found(context, call)
    held = await newest_of(context, found.name, CredentialKind.OPERATOR)
    result: Result[Operator] = Result(Operator.of(found, **{**held, "certificate": CredentialState.REVOKED}))
    registry = answering(context.registry, call.once, lambda _: result)
    await operators.revoke_operator(registry, found.name, act=call.act, reason=body.reason)
    return result


async def _found(context: Context, call: Call) -> access.Operator:
    found = await context.registry.operator(call.path["operator"])
    if found is None:
        raise no_such("operator", call.path["operator"])
    return found
