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
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import msgspec
from msgspec import UNSET, structs

from fleet.config.timestamps import rfc3339
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
from fleet.servers.admin.records.devices import BulkAct, BulkFailure, BulkStep
from fleet.servers.admin.result import Result
from fleet.servers.admin.rfc3339 import instant
from fleet.servers.admin.routing import post
from fleet.services.bulk import (
    DONE,
    Move,
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
    progress = _resumed(call, body, context.cursor_key())
    at = progress.at if progress is not None else call.now
    where = parse_filter(body.filter, at)
    if where.model is not None and not body.dry_run:
        await _audit_unless_permitted(context, call, where.model)
    filters = _filters(call, where)
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
    return _shown(progress, step.outcomes, _cursor(call, body, following, context.cursor_key()))


async def _audit_unless_permitted(context: Context, call: Call, model: str) -> None:
    """To an operator that does not see `model` it has no devices; that this one asked is audited."""
    try:
        demand_model(call.operator, model)
    except NotPermitted as refusal:
        await audit_partial_refusal(context, call, refusal)


def _filters(call: Call, where: DeviceFilter) -> tuple[DeviceFilter, ...]:
    """Of a restricted operator's models, each by itself."""
    if where.model is not None:
        return (where,) if call.operator.sees(where.model) else ()
    return tuple(structs.replace(where, model=model) for model in call.operator.models) or (where,)


def _operation(context: Context, call: Call, body: BulkAct, bulk: str) -> Move | Revoke | Tagging:
    """Raises: Invalid: `bad-reason`, `bad-bulk`; what a Retag raises."""
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


def _cursor(call: Call, body: BulkAct, progress: Progress, key: bytes) -> str:
    after = progress.place.after
    expires_at = rfc3339(after.expires_at) if after.expires_at is not None else None
    counts = (progress.matched, progress.left, progress.place.number)
    values = [_digest(call, body), progress.bulk, rfc3339(progress.at), *counts, after.id, expires_at]
    return authenticated(values, key)


def _resumed(call: Call, body: BulkAct, key: bytes) -> Progress | None:
    """Raises: HttpRefused: 400 `bad-cursor`: made up, another operation's or operator's, or too old."""
    if body.cursor is UNSET:
        return None
    try:
        digest, bulk, at_text, matched, left, number, device, expires = authentic(body.cursor, key)
        at, expires_at = instant(at_text), instant(expires) if expires is not None else None
        if at is None or digest != _digest(call, body):
            raise ValueError("another operation's")
        if call.now - at > OPERATION_LASTS:
            raise ValueError("too old")
        return Progress(bulk, at, matched, left, StepPlace(number, Place(device, expires_at), at))
    except (ValueError, TypeError):
        raise bad_cursor() from None


def _digest(call: Call, body: BulkAct) -> str:
    """Tells this operation from any other: who began it, and all of the body that stays the same from step to step."""
    same = {
        name: value
        for name, value in msgspec.to_builtins(body).items()
        if name not in ("cursor", "expected", "dry_run")
    }
    return hashlib.sha256(json.dumps([call.act.actor, same], sort_keys=True).encode()).hexdigest()[:16]
