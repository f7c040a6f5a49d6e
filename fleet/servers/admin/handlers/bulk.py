"""Operations on many devices: by a filter, once their number has been confirmed, in bounded steps.

    dry_run                         how many there are
    expected                        the first step, unless there are more or fewer
    cursor, from the previous step  the next step, until `next` is null

Between steps the server keeps nothing: the cursor says where the next one starts, and holds no right. It is
authenticated: its holder chooses neither the operation's id in the audit nor the number confirmed. It is for the
operator who began the operation, for OPERATION_LASTS, and for the devices that were there then. Each device is
changed by itself, and only as it was seen; a step that is sent again finds nothing to do. With an idempotency key its
result is sent again, too.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import msgspec
from msgspec import UNSET, structs

from fleet.config.timestamps import instant, rfc3339
from fleet.domain.access import NotPermitted, Permission, demand_model
from fleet.domain.changes import AuditEntry
from fleet.domain.crl import GIVEN_REASONS
from fleet.domain.device import DeviceFilter, Place
from fleet.domain.device_filter import parse_filter
from fleet.domain.errors import Invalid
from fleet.domain.tags import Retag
from fleet.servers.admin.auth import audit_partial_refusal, must_be_in_service
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import authentic, authenticated, bad_cursor
from fleet.servers.admin.records.devices import BulkAct, BulkFailure, BulkStep, message_as_written
from fleet.servers.admin.routing import Result, post
from fleet.services.bulk import (
    DONE,
    Move,
    Notify,
    Outcome,
    Revoke,
    StepPlace,
    Tagging,
    must_be_confirmed,
    new_bulk_id,
    one_step,
)

STEP_SECONDS_MAX = 10.0  # nothing new is begun then: clients and balancers give up after 30
OPERATION_LASTS = timedelta(hours=6)  # a million devices take less than one


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an operation has come."""

    bulk: str
    at: datetime
    """What durations in the filter are relative to: the same in every step."""
    matched: int
    left: int
    place: StepPlace


@post(
    "/v1/bulk",
    Permission.DEVICE_WRITE,
    "Operate on every device of a filter: dry run, then step by step, the first confirmed by their number.",
)
async def act_in_bulk(context: Context, call: Call, body: BulkAct) -> Result[BulkStep]:
    step = await _step(context, call, body)
    result: Result[BulkStep] = Result(step)
    if call.once is not None and not body.dry_run:
        done, act = {"act": body.act, "done": str(step.done)}, call.act
        entry = AuditEntry(act.now, act.actor, "bulk.step", f"bulk {step.bulk}", "ok", act.address, done)
        await call.once.keep(context.registry, result, entry)
    return result


async def _step(context: Context, call: Call, body: BulkAct) -> BulkStep:
    models = await _models(context, call, parse_filter(body.filter, call.now))
    progress = _resumed(call, body, models, context.cursor_key())
    at = progress.at if progress is not None else call.now
    where = parse_filter(body.filter, at)
    if where.model is not None and not body.dry_run:
        await _audit_unless_permitted(context, call, where.model)
    filters = tuple(structs.replace(where, model=model, kind=None) for model in models)
    if progress is None:
        matched = sum([await context.registry.count_devices(where) for where in filters])
        progress = Progress(new_bulk_id(), at, matched, matched, StepPlace(began=at))
        operation = _operation(context, call, body, progress.bulk)
        if body.dry_run:
            return _shown(progress, (), None)
        must_be_confirmed(body.expected, matched)
    else:
        operation = _operation(context, call, body, progress.bulk)
    stop = asyncio.Event()
    timer = asyncio.get_running_loop().call_later(STEP_SECONDS_MAX, stop.set)
    try:
        step = await one_step(context.registry, filters, operation, progress.place, at_most=progress.left, stop=stop)
    finally:
        timer.cancel()
    left = progress.left - len(step.outcomes)
    if step.following is None or left == 0:
        return _shown(progress, step.outcomes, None)
    following = replace(progress, left=left, place=step.following)
    return _shown(progress, step.outcomes, _cursor(_digest(call, body, models), following, context.cursor_key()))


async def _audit_unless_permitted(context: Context, call: Call, model: str) -> None:
    """To an operator that does not see `model` it has no devices; that this one asked is audited."""
    try:
        demand_model(call.operator, model)
    except NotPermitted as refusal:
        await audit_partial_refusal(context, call, refusal)


async def _models(context: Context, call: Call, where: DeviceFilter) -> Sequence[str | None]:
    """Those to act on, one after the other: of a restricted operator, and of the filter's kind. None: all at once."""
    if where.model is not None:
        asked: Sequence[str | None] = (where.model,) if call.operator.sees(where.model) else ()
    else:
        asked = tuple(call.operator.models) or (None,)
    if where.kind is None:
        return asked
    of_kind = sorted(each.name for each in await context.registry.models() if each.rules.kind is where.kind)
    return [name for name in of_kind if asked == (None,) or name in asked]


def _operation(context: Context, call: Call, body: BulkAct, bulk: str) -> Move | Revoke | Tagging | Notify:
    """Raises: Invalid: `bad-reason`, `bad-bulk`, `payload-too-large`; what a Retag raises. Conflict (`no-broker`)."""
    if (body.message is UNSET) is (body.act == "notify"):
        raise Invalid("bad-bulk", f"message goes with the act notify alone, which needs it; the act is {body.act}.")
    if body.crl_reason is not UNSET and body.act != "revoke":
        raise Invalid("bad-bulk", f"crl_reason goes with the act revoke, and not with {body.act}.")
    act, permitted = call.act, partial(must_be_in_service, context, call)
    labels = (body.tags, body.join, body.leave)
    if body.act != "tag":
        if any(each is not UNSET for each in labels):
            raise Invalid("bad-bulk", f"tags, join and leave go with the act tag, and not with {body.act}.")
        if body.act == "revoke":
            why = GIVEN_REASONS[body.crl_reason or "unspecified"]
            return Revoke(why, act.actor, body.reason, bulk, context.clock, act.address, permitted)
        if body.message is not UNSET:
            return Notify(
                notifier=context.must_notify(),
                what=body.message.message(message_as_written(call.text)),
                actor=act.actor,
                reason=body.reason,
                bulk=bulk,
                clock=context.clock,
                address=act.address,
                permitted=permitted,
            )
        return Move(body.act, act.actor, body.reason, bulk, context.clock, act.address, permitted)
    tags = body.tags or {}
    retag = Retag(
        tuple((key, value) for key, value in tags.items() if value is not None),
        tuple(key for key, value in tags.items() if value is None),
        tuple(body.join or ()),
        tuple(body.leave or ()),
    )
    return Tagging(retag, act.actor, body.reason, bulk, context.clock, act.address, permitted)


def _shown(progress: Progress, outcomes: tuple[Outcome, ...], following: str | None) -> BulkStep:
    skipped = Counter(o.code for o in outcomes if o.code != DONE and not o.is_failure)
    return BulkStep(
        bulk=progress.bulk,
        matched=progress.matched,
        done=sum(o.code == DONE for o in outcomes),
        skipped=dict(sorted(skipped.items())),
        failed=[BulkFailure(id=o.device_id, code=o.code, why=o.why) for o in outcomes if o.is_failure],
        next=following,
    )


def _cursor(digest: str, progress: Progress, key: bytes) -> str:
    after = progress.place.after
    expires_at = rfc3339(after.expires_at) if after.expires_at is not None else None
    counts = (progress.matched, progress.left, progress.place.number)
    values = [digest, progress.bulk, rfc3339(progress.at), *counts, after.id, expires_at]
    return authenticated(values, key)


def _resumed(call: Call, body: BulkAct, models: Sequence[str | None], key: bytes) -> Progress | None:
    """Raises: HttpRefused: 400 `bad-cursor`: made up, another operation's or operator's, or too old."""
    if body.cursor is UNSET:
        return None
    try:
        digest, bulk, at_text, matched, left, number, device, expires = authentic(body.cursor, key)
        at, expires_at = instant(at_text), instant(expires) if expires is not None else None
        if at is None or digest != _digest(call, body, models):
            raise ValueError("another operation's")
        if call.now - at > OPERATION_LASTS:
            raise ValueError("too old")
        return Progress(bulk, at, matched, left, StepPlace(number, Place(device, expires_at), at))
    except (ValueError, TypeError):
        raise bad_cursor() from None


def _digest(call: Call, body: BulkAct, models: Sequence[str | None]) -> str:
    """Tells this operation from any other: who began it, on which models, which a cursor counts, and all of the body
    that stays the same from step to step.
    """
    same = {
        name: value
        for name, value in msgspec.to_builtins(body).items()
        if name not in ("cursor", "expected", "dry_run")
    }
    return hashlib.sha256(json.dumps([call.act.actor, list(models), same], sort_keys=True).encode()).hexdigest()[:16]
