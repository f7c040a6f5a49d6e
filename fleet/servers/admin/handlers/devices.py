"""Devices, and their certificates."""

from typing import Any
from urllib.parse import quote

from msgspec import UNSET
from msgspec.structs import replace

from fleet.config.timestamps import rfc3339
from fleet.domain import device as domain
from fleet.domain.access import Operator, Permission, demand_model
from fleet.domain.changes import Change
from fleet.domain.credential import CredentialKind
from fleet.domain.crl import GIVEN_REASONS
from fleet.domain.device import IN_SERVICE, DeviceFilter, Place, place_of
from fleet.domain.device_filter import parse_place
from fleet.domain.errors import no_such
from fleet.domain.writes import MoveDevice
from fleet.servers.admin.conditions import demand_match
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import bad_cursor, page_of_all, paged, position
from fleet.servers.admin.idempotency import answering, inserted
from fleet.servers.admin.records.base import NO_REASON, NO_REVOCATION_REASON, Page, Paging, Reason, RevocationReason
from fleet.servers.admin.records.credentials import Credential
from fleet.servers.admin.records.devices import Device, DeviceChanges, DeviceQuery, NewDevice
from fleet.servers.admin.result import Result
from fleet.servers.admin.rfc3339 import instant
from fleet.servers.admin.routing import Condition, Route, get, patch, post
from fleet.services import inventory, revocation, tagging


@get("/v1/devices", Permission.DEVICE_READ, "Devices that match everything given, by id.")
async def list_devices(context: Context, call: Call, query: DeviceQuery) -> Result[Page[Device]]:
    where = _filter(query)
    after = _after(call, query, where)
    found: list[domain.Device] = []
    for model in call.models(query.model):
        found += await context.registry.devices(replace(where, model=model), after=after, limit=query.limit + 1)
    if where.expires_before is not None:
        found.sort(key=lambda device: (device.expires_at or where.expires_before, device.id))
    else:
        found.sort(key=lambda device: device.id)
    page = found[: query.limit]
    following = _position_of(place_of(page[-1], where)) if len(found) > query.limit else None
    return paged(call, query, [Device.shown(device) for device in page], following)


def _filter(query: DeviceQuery) -> DeviceFilter:
    """All of the query but the model."""
    before = query.expires_before
    return DeviceFilter(
        state=query.state,
        tags=tuple(sorted(_tag(text) for text in query.tag)),
        group=query.group,
        expires_before=instant(before) if before is not None else None,
    )


def _tag(text: str) -> tuple[str, str]:
    key, _, value = text.partition(":")
    return key, value


def _after(call: Call, query: DeviceQuery, where: DeviceFilter) -> Place:
    values = position(call, query, str, (str, type(None)))
    if values is None:
        return parse_place(query.after or "", where)
    expires_at = instant(values[1] or "")
    if (values[1] is None) != (where.expires_before is None) or (values[1] is None) != (expires_at is None):
        raise bad_cursor()
    return Place(values[0], expires_at)


def _position_of(after: Place) -> list[Any]:
    return [after.id, rfc3339(after.expires_at) if after.expires_at is not None else None]


@post("/v1/devices", Permission.DEVICE_CREATE, "Register a device.", status=201, has_etag=True, may_not_find=True)
async def create_device(context: Context, call: Call, body: NewDevice) -> Result[Device]:
    demand_model(call.operator, body.model)

    def result_of(change: Change) -> Result[Device]:
        return _created(inserted(change, domain.Device))

    added = await inventory.add_device(
        answering(context.registry, call.once, result_of),
        body.id,
        body.model,
        hardware_serial=body.hardware_serial,
        labels=inventory.Labels(tuple(body.tags.items()), body.groups),
        act=call.act,
    )
    return _created(added)


@get("/v1/devices/{id}", Permission.DEVICE_READ, "One device.", has_etag=True)
async def get_device(context: Context, call: Call) -> Result[Device]:
    from fleet.services import distrust  # a listing at a home does without what it loads

    device = await found_device(context, call.operator, call.path["id"])
    change = await context.registry.state_change(device.id) if device.state not in IN_SERVICE else None
    shown = Device.shown(device, change, await distrust.rules_over(context.registry, device))
    return Result(shown, etag=str(device.revision))


@patch(
    "/v1/devices/{id}",
    Permission.DEVICE_WRITE,
    "Change a device's tags and groups.",
    has_etag=True,
    condition=Condition.REQUIRED,
)
async def patch_device(context: Context, call: Call, body: DeviceChanges) -> Result[Device]:
    """RFC 7396; groups are replaced as a whole. `reason` is for the audit, and no part of the device."""
    device = await found_device(context, call.operator, call.path["id"])
    demand_match(call, device.revision, f"Device {device.id}")
    tags: dict[str, str | None] = {**dict(device.tags), **(body.tags or {})}
    left = [(key, value) for key, value in tags.items() if value is not None]
    groups = device.groups if body.groups is UNSET else body.groups
    changed = await tagging.label_device(context.registry, device, left, groups, act=call.act, reason=body.reason or "")
    return _result(changed)


def _moving(verb: str, summary: str) -> Route:
    async def handle(context: Context, call: Call, body: Reason = NO_REASON) -> Result[Device]:
        device = await found_device(context, call.operator, call.path["id"])
        demand_match(call, device.revision, f"Device {device.id}")

        def result_of(change: Change) -> Result[Device]:
            to = next(write.to for write in change.writes if isinstance(write, MoveDevice))
            return _result(replace(device, state=to, revision=device.revision + 1))

        registry = answering(context.registry, call.once, result_of)
        revision = None if call.if_match is None else device.revision
        return _result(
            await revocation.move(verb, registry, device.id, act=call.act, reason=body.reason, revision=revision)
        )

    path, name = f"/v1/devices/{{id}}/{verb}", f"{verb}_device"
    return post(path, Permission.DEVICE_WRITE, summary, has_etag=True, condition=Condition.OPTIONAL, name=name)(handle)


suspend_device = _moving("suspend", "Refuse a device everywhere until it is resumed.")
resume_device = _moving("resume", "Readmit a suspended device.")


@post(
    "/v1/devices/{id}/revoke",
    Permission.DEVICE_WRITE,
    "Revoke a device permanently, with its certificates.",
    has_etag=True,
    condition=Condition.OPTIONAL,
)
async def revoke_device(context: Context, call: Call, body: RevocationReason = NO_REVOCATION_REASON) -> Result[Device]:
    device = await found_device(context, call.operator, call.path["id"])
    demand_match(call, device.revision, f"Device {device.id}")
    changed = revocation.revoked(device)
    revision = None if call.if_match is None else device.revision
    await revocation.revoke(
        answering(context.registry, call.once, lambda _: _result(changed)),
        device.id,
        act=call.act,
        reason=body.reason,
        revision=revision,
        crl_reason=GIVEN_REASONS[body.crl_reason],
    )
    return _result(changed)


retire_device = _moving("retire", "Take a device out of service permanently, in good order.")


@get("/v1/devices/{id}/credentials", Permission.CREDENTIAL_READ, "A device's certificates, oldest first.")
async def list_device_credentials(context: Context, call: Call, query: Paging) -> Result[Page[Credential]]:
    device = await found_device(context, call.operator, call.path["id"])
    held = [c for c in await context.registry.credentials(device.id) if c.kind is CredentialKind.DEVICE]
    return page_of_all(call, query, held, lambda credential: credential.serial, Credential.shown)


async def found_device(context: Context, operator: Operator, device_id: str) -> domain.Device:
    """The device, if the operator may see it. Raises: NotFound (`no-such-device`)."""
    device = await context.registry.device(device_id)
    if device is None or not operator.sees(device.model):
        raise no_such("device", device_id)
    return device


def _result(device: domain.Device) -> Result[Device]:
    return Result(Device.shown(device), etag=str(device.revision))


def _created(device: domain.Device) -> Result[Device]:
    location = {"Location": f"/v1/devices/{quote(device.id, safe='')}"}
    return Result(Device.shown(device), 201, location, str(device.revision))
