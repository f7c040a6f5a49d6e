"""The route of acts on many devices: by a filter, once their number has been confirmed, in steps that end.

    dry_run                       how many there are
    expected                      the first step, unless there are more or fewer
    cursor, from the step before  the next step, until `next` is null

Between steps the server keeps nothing: the cursor says where the next begins, and holds no right of its own. Each
device is changed by itself, and only as it was seen; a step that is sent again finds nothing to do. With an idempotency
key it is told once more how the step went, too.
"""

import asyncio
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from fleet.domain.changes import AuditEntry
from fleet.domain.device import DeviceFilter, Place
from fleet.domain.device_filter import parse_filter
from fleet.domain.errors import Conflict, Invalid
from fleet.domain.tags import Retag
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import bad_cursor, packed, unpacked
from fleet.servers.admin.result import Result
from fleet.servers.admin.schema_check import instant
from fleet.servers.admin.schemas import DEVICE_ID_PATTERN
from fleet.servers.admin.shapes import moment
from fleet.services.bulk import DONE, Move, Outcome, Tagging, new_bulk_id
from fleet.services.bulk_steps import FIRST, StepPlace, one_step

STEP_SECONDS_MAX = 10.0  # nothing new is begun then: clients and balancers give up after 30

_BULK = re.compile(r"[0-9a-f]{12}")
_LABELS = ("tags", "join", "leave")


@dataclass(frozen=True, slots=True)
class Going:
    """An act that has come so far."""

    bulk: str
    at: datetime
    """From when on durations in the filter count: the same in every step."""
    matched: int
    left: int
    place: StepPlace


async def act_in_bulk(context: Context, call: Call) -> Result:
    reply = await _step(context, call)
    if call.once is not None and not call.body.get("dry_run", False):
        done, act = {"act": call.body["act"], "done": str(reply.body["done"])}, call.act
        entry = AuditEntry(act.now, act.actor, "bulk.step", f"bulk {reply.body['bulk']}", "ok", act.address, done)
        await call.once.keep(context.registry, reply, entry)
    return reply


async def _step(context: Context, call: Call) -> Result:
    body = call.body
    going = _resumed(call)
    at = going.at if going is not None else call.now
    filters = _filters(call, parse_filter(body["filter"], at))
    if going is None:
        matched = sum([await context.registry.count_devices(where) for where in filters])
        going = Going(new_bulk_id(), at, matched, matched, FIRST)
        deed = _deed(context, call, going.bulk)
        if body.get("dry_run", False):
            return _reply(going, (), None)
        _must_be_confirmed(body.get("expected"), matched)
    else:
        deed = _deed(context, call, going.bulk)
    stop = asyncio.Event()
    timer = asyncio.get_running_loop().call_later(STEP_SECONDS_MAX, stop.set)
    try:
        step = await one_step(context.registry, filters, deed, going.place, at_most=going.left, stop=stop)
    finally:
        timer.cancel()
    left = going.left - len(step.outcomes)
    if step.following is None or left == 0:
        return _reply(going, step.outcomes, None)
    following = replace(going, left=left, place=step.following)
    return _reply(going, step.outcomes, _cursor(call, following))


def _filters(call: Call, where: DeviceFilter) -> tuple[DeviceFilter, ...]:
    """Of an operator's models, each by itself: what belongs to others is never looked at."""
    if where.model is not None:
        return (where,) if call.operator.sees(where.model) else ()
    return tuple(replace(where, model=model) for model in call.operator.models) or (where,)


def _deed(context: Context, call: Call, bulk: str) -> Move | Tagging:
    """Raises: Invalid: `bad-reason`, `bad-bulk`; what a Retag raises."""
    body, act = call.body, call.act
    reason = body.get("reason", "")
    if body["act"] != "tag":
        if any(name in body for name in _LABELS):
            raise Invalid("bad-bulk", f"tags, join and leave go with the act tag, and not with {body['act']}.")
        return Move(body["act"], act.actor, reason, bulk, context.clock, act.address)
    tags = body.get("tags", {})
    retag = Retag(
        tuple((key, value) for key, value in tags.items() if value is not None),
        tuple(key for key, value in tags.items() if value is None),
        tuple(body.get("join", ())),
        tuple(body.get("leave", ())),
    )
    return Tagging(retag, act.actor, reason, bulk, context.clock, act.address)


def _must_be_confirmed(expected: int | None, matched: int) -> None:
    if expected is None:
        advice = "Ask for it with dry_run, and give it as expected."
        raise Invalid("count-needed", "An act on many devices is confirmed by their number.", advice)
    if expected != matched:
        raise Conflict("count-differs", f"{matched} match, not {int(expected)}; nothing was changed.")


def _reply(going: Going, outcomes: tuple[Outcome, ...], following: str | None) -> Result:
    skipped = Counter(o.code for o in outcomes if o.code != DONE and not o.is_failure)
    return Result(
        {
            "bulk": going.bulk,
            "matched": going.matched,
            "done": sum(o.code == DONE for o in outcomes),
            "skipped": dict(sorted(skipped.items())),
            "failed": [{"id": o.device_id, "code": o.code, "why": o.why} for o in outcomes if o.is_failure],
            "next": following,
        }
    )


def _cursor(call: Call, going: Going) -> str:
    after = going.place.after
    expires_at = moment(after.expires_at) if after.expires_at is not None else None
    values = (going.bulk, moment(going.at), going.matched, going.left, going.place.number, after.id, expires_at)
    return packed([_digest(call), *values])


def _resumed(call: Call) -> Going | None:
    """Raises: HttpRefused: 400 `bad-cursor`: it was made up, or comes from another act."""
    text = call.body.get("cursor")
    if text is None:
        return None
    try:
        digest, bulk, at_text, matched, left, number, device, expires = unpacked(text)
        at, expires_at = instant(at_text), instant(expires) if expires is not None else None
        counts = all(isinstance(count, int) for count in (matched, left, number))  # Infinity is none
        is_ours = digest == _digest(call) and counts and _BULK.fullmatch(bulk) and 0 < left <= matched < 2**53
        if at is None or not is_ours or number < 0 or (expires is None) != (expires_at is None):
            raise ValueError("another act's")
        if not isinstance(device, str) or (device and not re.fullmatch(DEVICE_ID_PATTERN, device)):
            raise ValueError("no device")
        by_expiry = parse_filter(call.body["filter"], at).expires_before is not None
        if device and by_expiry is not (expires_at is not None):
            raise ValueError("the other order")
        return Going(bulk, at, matched, left, StepPlace(number, Place(device, expires_at)))
    except (ValueError, TypeError):
        raise bad_cursor() from None


def _digest(call: Call) -> str:
    """What tells this act from any other: all of the body that stays the same from step to step."""
    same: dict[str, Any] = {
        name: value for name, value in call.body.items() if name not in ("cursor", "expected", "dry_run")
    }
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]
