"""Distrusts: certificates that are refused by model, CA, kind of key or time of issue, by one rule for all of them."""

from datetime import timedelta
from functools import partial

from msgspec.structs import replace

from fleet.config.timestamps import instant
from fleet.domain import distrust as domain
from fleet.domain.access import NotPermitted, Operator, Permission, demand_model
from fleet.domain.ca_role import ISSUES_TO_DEVICES
from fleet.domain.crl import GIVEN_REASONS
from fleet.domain.errors import NotFound, no_such
from fleet.servers.admin.auth import must_be_in_service
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import page_of_all
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.records.base import NO_REASON, Page, Paging, Reason
from fleet.servers.admin.records.devices import BulkFailure
from fleet.servers.admin.records.distrusts import (
    Distrust,
    DistrustPlan,
    DistrustProgress,
    NewDistrust,
    RevokedDistrusted,
    RevokeDistrusted,
    UndoneDistrust,
)
from fleet.servers.admin.routing import Result, get, post
from fleet.services import distrust
from fleet.services.bulk import DONE, Revoke, must_be_confirmed, new_bulk_id


@get("/v1/distrusts", Permission.DEVICE_READ, "Distrusts in force, oldest first.")
async def list_distrusts(context: Context, call: Call, query: Paging) -> Result[Page[Distrust]]:
    """A restricted operator sees those of its models."""
    found = [rule for rule in await context.registry.distrusts() if _sees(call.operator, rule)]
    return page_of_all(call, query, found, lambda rule: rule.id, Distrust.shown)


@get("/v1/distrusts/{distrust}", Permission.DEVICE_READ, "A distrust in force, with its progress; reads each device.")
async def get_distrust(context: Context, call: Call) -> Result[DistrustProgress]:
    rule = await _known(context, call)
    scope = await distrust.counted(context.registry, rule)
    certificates = await context.registry.count_distrusted_certificates(rule, call.now)
    left = {"left": scope.matched, "left_by_model": scope.models, "first": scope.first}
    return Result(DistrustProgress.shown(rule, **left, certificates=certificates))


@post(
    "/v1/distrusts",
    Permission.DEVICE_WRITE,
    "Refuse certificates by what they are: dry run, then confirmed by the number of devices.",
    may_not_find=True,
)
async def begin_distrust(context: Context, call: Call, body: NewDistrust) -> Result[DistrustPlan]:
    registry = context.registry
    if call.operator.models:
        if body.model is None:
            raise NotPermitted("held-to-models", "This operator is restricted to models: name one of them.")
        demand_model(call.operator, body.model)
    rule = await distrust.checked(registry, _rule(context, call, body), call.now)
    scope = await distrust.counted(registry, rule)
    if body.dry_run:
        return Result(DistrustPlan.shown(scope, None))
    must_be_confirmed(body.expected, scope.matched)
    rule = replace(rule, matched=scope.matched)
    result: Result[DistrustPlan] = Result(DistrustPlan.shown(scope, rule))
    await distrust.begin(answering(registry, call.once, lambda _: result), rule, act=call.act)
    return result


@post(
    "/v1/distrusts/{distrust}/revoke",
    Permission.DEVICE_WRITE,
    "Revoke the devices under a distrust, 500 at a time, by their number, then certificates of those that have others.",
    is_one_change=False,
)
async def revoke_distrusted(context: Context, call: Call, body: RevokeDistrusted) -> Result[RevokedDistrusted]:
    rule, registry, act = await _known(context, call), context.registry, call.act
    matched = (await distrust.counted(registry, rule)).matched
    must_be_confirmed(body.expected, matched)
    permitted, why = partial(must_be_in_service, context, call), GIVEN_REASONS[body.crl_reason]
    operation = Revoke(why, act.actor, body.reason, new_bulk_id(), context.clock, act.address, permitted)
    outcomes = await distrust.revoke_some(registry, rule, operation)
    failed = [BulkFailure(id=o.device_id, code=o.code, why=o.why) for o in outcomes if o.is_failure]
    done, left = sum(o.code == DONE for o in outcomes), (await distrust.counted(registry, rule)).matched
    ended = 0 if left else await distrust.revoke_certificates(registry, rule, operation)
    others = await registry.count_distrusted_certificates(rule, call.now)
    step = RevokedDistrusted(operation.bulk, done, failed, left, certificates=ended, certificates_left=others)
    return Result(step)


@post(
    "/v1/distrusts/{distrust}/undo",
    Permission.DEVICE_WRITE,
    "End a distrust: certificates that it refused are accepted again.",
)
async def undo_distrust(context: Context, call: Call, body: Reason = NO_REASON) -> Result[UndoneDistrust]:
    rule = await _known(context, call)
    result: Result[UndoneDistrust] = Result(UndoneDistrust(id=rule.id))
    registry = answering(context.registry, call.once, lambda _: result)
    await distrust.undo(registry, rule, act=call.act, reason=body.reason)
    return result


def _sees(operator: Operator, rule: domain.Distrust) -> bool:
    return not operator.models or (bool(rule.model) and operator.sees(rule.model))


async def _known(context: Context, call: Call) -> domain.Distrust:
    """Raises: NotFound (`no-such-distrust`): there is none, or it is not the operator's to see."""
    rule = await distrust.known_distrust(context.registry, call.path["distrust"])
    if not _sees(call.operator, rule):
        raise no_such("distrust", rule.id)
    return rule


def _rule(context: Context, call: Call, body: NewDistrust) -> domain.Distrust:
    before = instant(body.issued_before) if body.issued_before is not None else None
    return domain.Distrust(
        id=distrust.new_id(),
        issued_before=before or call.now,
        created_at=call.now,
        model=body.model or "",
        issuer_key_id=_key_id(context, body.ca) if body.ca is not None else b"",
        key_type=body.key_type or "",
        issued_from=instant(body.issued_from) if body.issued_from is not None else None,
        refuses=body.refuses,
        may_renew=body.may_renew,
        spread=timedelta(seconds=body.spread_seconds),
        created_by=call.act.actor,
        reason=body.reason,
    )


def _key_id(context: Context, sha256: str) -> bytes:
    """The key identifier that the CA puts into what it signs. Raises: NotFound (`no-such-authority`)."""
    from cryptography.hazmat.primitives import hashes

    from fleet.ca.key_identifiers import identifier_of

    for each in context.authorities().shown():
        certificate = each.certificate
        if each.role in ISSUES_TO_DEVICES and certificate.fingerprint(hashes.SHA256()).hex() == sha256:
            return identifier_of(certificate)
    raise NotFound("no-such-authority", "There is no issuing CA with this fingerprint.", "See: fleet ca show")
