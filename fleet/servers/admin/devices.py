"""The routes of devices, and of the certificates that one holds."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from fleet.domain.access import Operator, demand_model
from fleet.domain.changes import Change
from fleet.domain.credential import CredentialKind
from fleet.domain.device import Device, DeviceFilter, DeviceState, Place, place_of
from fleet.domain.device_filter import parse_place
from fleet.domain.errors import NotFound
from fleet.domain.writes import AddDevice, MoveDevice
from fleet.servers.admin.conditions import demand_match
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import page_limit, page_of_all, paged, place
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.result import Result
from fleet.servers.admin.schema_check import instant
from fleet.servers.admin.shapes import credential_json, device_json, moment
from fleet.servers.refusals import HttpRefused
from fleet.services import inventory, revocation, tagging

Move = Callable[..., Awaitable[Device]]


async def list_devices(context: Context, call: Call) -> Result:
    """Of an operator's models, each is asked for by itself: what belongs to others is never looked at."""
    where, limit = _filter(call), page_limit(call)
    after = _after(call, where)
    found: list[Device] = []
    for model in _models(call):
        found += await context.registry.devices(replace(where, model=model), after=after, limit=limit + 1)
    if where.expires_before is not None:
        found.sort(key=lambda device: (device.expires_at or where.expires_before, device.id))
    else:
        found.sort(key=lambda device: device.id)
    page = found[:limit]
    following = _text_of(place_of(page[-1], where)) if len(found) > limit else None
    return paged(call, [device_json(device) for device in page], following)


def _models(call: Call) -> tuple[str | None, ...]:
    """The models to look under; None for all at once."""
    operator, asked = call.operator, call.query.get("model")
    if asked is not None:
        return (asked,) if operator.sees(asked) else ()
    return operator.models or (None,)


def _filter(call: Call) -> DeviceFilter:
    query = call.query
    state, before = query.get("state"), query.get("expires_before")
    return DeviceFilter(
        state=DeviceState(state) if state is not None else None,
        tags=tuple(sorted(_tag(text) for text in query.get("tag", ()))),
        group=query.get("group"),
        expires_before=instant(before) if before is not None else None,
    )


def _tag(text: str) -> tuple[str, str]:
    key, _, value = text.partition(":")
    return key, value


def _after(call: Call, where: DeviceFilter) -> Place:
    values = place(call, str, (str, type(None)))
    if values is None:
        return parse_place(call.query.get("after", ""), where)
    expires_at = instant(values[1] or "")
    if (values[1] is None) != (where.expires_before is None) or (values[1] is None) != (expires_at is None):
        raise HttpRefused(400, "bad-cursor", "The cursor is none of this list's. Start again without one.")
    return Place(values[0], expires_at)


def _text_of(after: Place) -> list[Any]:
    return [after.id, moment(after.expires_at) if after.expires_at is not None else None]


async def get_device(context: Context, call: Call) -> Result:
    return _reply(await found_device(context, call.operator, call.path["id"]))


async def create_device(context: Context, call: Call) -> Result:
    body = call.body
    demand_model(call.operator, body["model"])

    def reply_of(change: Change) -> Result:
        return next(_created(write.device) for write in change.writes if isinstance(write, AddDevice))

    registry = answering(context.registry, call.once, reply_of)
    added = await inventory.add_device(
        registry,
        body["id"],
        body["model"],
        hardware_serial=body.get("hardware_serial", ""),
        tags=tuple(body.get("tags", {}).items()),
        groups=body.get("groups", ()),
        act=call.act,
    )
    return _created(added)


async def patch_device(context: Context, call: Call) -> Result:
    """RFC 7396: a tag that is null goes, one that is not named stays; groups are replaced whole. `reason` is for the
    audit, and no part of the device.
    """
    device = await found_device(context, call.operator, call.path["id"])
    demand_match(call, device.revision, f"Device {device.id}")
    tags: dict[str, str | None] = {**dict(device.tags), **call.body.get("tags", {})}
    left = [(key, value) for key, value in tags.items() if value is not None]
    groups, reason = call.body.get("groups", device.groups), call.body.get("reason", "")
    return _reply(await tagging.label_device(context.registry, device, left, groups, act=call.act, reason=reason))


async def suspend_device(context: Context, call: Call) -> Result:
    return await _move(context, call, revocation.suspend)


async def resume_device(context: Context, call: Call) -> Result:
    return await _move(context, call, revocation.resume)


async def revoke_device(context: Context, call: Call) -> Result:
    return await _move(context, call, revocation.revoke)


async def retire_device(context: Context, call: Call) -> Result:
    return await _move(context, call, revocation.retire)


async def _move(context: Context, call: Call, move: Move) -> Result:
    device = await found_device(context, call.operator, call.path["id"])
    demand_match(call, device.revision, f"Device {device.id}")

    def reply_of(change: Change) -> Result:
        to = next(write.to for write in change.writes if isinstance(write, MoveDevice))
        return _reply(replace(device, state=to, revision=device.revision + 1))

    registry = answering(context.registry, call.once, reply_of)
    revision = None if call.if_match is None else device.revision
    reason = (call.body or {}).get("reason", "")
    return _reply(await move(registry, device.id, act=call.act, reason=reason, revision=revision))


async def list_device_credentials(context: Context, call: Call) -> Result:
    device = await found_device(context, call.operator, call.path["id"])
    held = [c for c in await context.registry.credentials(device.id) if c.kind is CredentialKind.DEVICE]
    page, more = page_of_all(call, held, lambda c: c.serial)
    return paged(call, [credential_json(c) for c in page], [page[-1].serial] if more else None)


async def found_device(context: Context, operator: Operator, device_id: str) -> Device:
    """One that the operator may see: any other is as good as none.

    Raises: NotFound (`no-such-device`).
    """
    device = await context.registry.device(device_id)
    if device is None or not operator.sees(device.model):
        raise NotFound("no-such-device", f"There is no device {device_id}.")
    return device


def _reply(device: Device) -> Result:
    return Result(device_json(device), etag=str(device.revision))


def _created(device: Device) -> Result:
    location = {"Location": f"/v1/devices/{quote(device.id, safe='')}"}
    return Result(device_json(device), 201, location, str(device.revision))
