"""Devices, and their certificates."""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from msgspec import UNSET
from msgspec.structs import replace

from fleet.config.timestamps import instant, rfc3339
from fleet.domain import device as domain
from fleet.domain.access import Operator, Permission, demand_model
from fleet.domain.changes import Change, made_by
from fleet.domain.credential import CredentialKind, CredentialState
from fleet.domain.crl import GIVEN_REASONS, CrlReason, Revocation
from fleet.domain.device import IN_SERVICE, DeviceFilter, Place, place_of
from fleet.domain.device_filter import parse_place
from fleet.domain.errors import Invalid, NotFound, no_such
from fleet.domain.model_rules import ModelKind
from fleet.domain.policy_explained import Action, Attempt, explained
from fleet.domain.writes import MoveDevice
from fleet.servers.admin.conditions import demand_match
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import bad_cursor, paged, position
from fleet.servers.admin.handlers.credentials import credentials_page
from fleet.servers.admin.idempotency import answering, inserted
from fleet.servers.admin.records.base import NO_REASON, NO_REVOCATION_REASON, Page, Paging, Reason, RevocationReason
from fleet.servers.admin.records.credentials import Credential
from fleet.servers.admin.records.devices import (
    Device,
    DeviceChanges,
    DeviceQuery,
    DeviceReport,
    LastRefusal,
    NewDevice,
    Notice,
    Notified,
)
from fleet.servers.admin.records.policy import PolicyQuery, PolicyTest
from fleet.servers.admin.routing import Condition, Result, Route, get, patch, post
from fleet.services import inventory, notifying, revocation, tagging
from fleet.wire.mqtt.fields import FIELD_SIZE_MAX, is_plain
from fleet.wire.mqtt.topics import is_topic_filter, is_topic_name


@get("/v1/devices", Permission.DEVICE_READ, "Devices that match everything given, by id.")
async def list_devices(context: Context, call: Call, query: DeviceQuery) -> Result[Page[Device]]:
    where = _filter(query)
    after = _after(call, query, where)
    found: list[domain.Device] = []
    kinds = {model.name: model.rules.kind for model in await context.registry.models()}
    for model in models_of(call, query.model, query.kind, kinds):
        found += await context.registry.devices(replace(where, model=model), after=after, limit=query.limit + 1)
    if where.expires_before is not None:
        found.sort(key=lambda device: (device.expires_at or where.expires_before, device.id))
    else:
        found.sort(key=lambda device: device.id)
    page = found[: query.limit]
    following = _position_of(place_of(page[-1], where)) if len(found) > query.limit else None
    ends = await _usable_until(context, call, page)
    shown = [
        Device.shown(
            device,
            kinds.get(device.model) or await _kind(context, device),  # of a model that was added meanwhile
            usable_until=ends.get(device.id, UNSET),
        )
        for device in page
    ]
    return paged(call, query, shown, following)


async def _usable_until(
    context: Context, call: Call, devices: Sequence[domain.Device]
) -> Mapping[str, datetime | None]:
    """When the last usable certificate ends of each that has had one; None: it has none any more."""
    enrolled = [device.id for device in devices if device.expires_at is not None]
    rules = await context.registry.distrusts() if enrolled else []
    return {**dict.fromkeys(enrolled), **await context.registry.usable_until(enrolled, rules, call.now)}


def models_of(
    call: Call, model: str | None, wanted: ModelKind | None, kinds: Mapping[str, ModelKind]
) -> Sequence[str | None]:
    """Those to look under, of a kind if that is wanted; None: all at once."""
    asked = call.models(model)
    if wanted is None or wanted not in kinds.values():
        return asked if wanted is None else ()
    if all(kind is wanted for kind in kinds.values()):
        return asked
    return [name for name, kind in kinds.items() if kind is wanted and (asked == (None,) or name in asked)]


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
    kind = (await inventory.known_model(context.registry, body.model)).rules.kind

    def result_of(change: Change) -> Result[Device]:
        return _created(inserted(change, domain.Device), kind)

    added = await inventory.add_device(
        answering(context.registry, call.once, result_of),
        body.id,
        body.model,
        hardware_serial=body.hardware_serial,
        labels=inventory.Labels(tuple(body.tags.items()), body.groups),
        act=call.act,
    )
    return _created(added, kind)


@get("/v1/devices/{id}", Permission.DEVICE_READ, "One device.", has_etag=True)
async def get_device(context: Context, call: Call) -> Result[Device]:
    from fleet.services import distrust  # a listing at a home does without what it loads

    device = await found_device(context, call.operator, call.path["id"])
    change = await context.registry.state_change(device.id) if device.state not in IN_SERVICE else None
    kind = await _kind(context, device)
    rules = await distrust.rules_over(context.registry, device)
    ends = await _usable_until(context, call, [device])
    shown = Device.shown(device, kind, change, rules, ends.get(device.id, UNSET))
    if (refusal := await context.registry.refusal_of(device.id)) is not None:
        shown = replace(shown, last_refusal=LastRefusal.of(refusal))
    return Result(shown, etag=str(device.revision))


@get(
    "/v1/devices/{id}/policy-test",
    Permission.DEVICE_READ,
    "Whether the gateway lets a device publish or subscribe now, by which rule, and what to change.",
)
async def get_policy_test(context: Context, call: Call, query: PolicyQuery) -> Result[PolicyTest]:
    device = await found_device(context, call.operator, call.path["id"])
    topic = query.topic
    is_topic = is_topic_name(topic) if query.action is Action.PUBLISH else is_topic_filter(topic)
    if not is_topic or not is_plain(topic) or len(topic.encode(errors="replace")) > FIELD_SIZE_MAX:
        raise _bad_topic(query.action, topic)
    attempt = Attempt(query.action, topic, query.qos, query.retain == "true", query.size)
    model = await inventory.known_model(context.registry, device.model)
    found = explained(device, model, attempt, context.packet_size_max(), dots=not context.refuses_dots())
    return Result(PolicyTest.of(found, device_id=device.id, model=model.name, action=query.action, topic=topic))


def _bad_topic(action: Action, topic: str) -> Invalid:
    if action is Action.PUBLISH and {"+", "#"} & set(topic):
        return Invalid("bad-topic", f"{topic[:80]!r} is no topic name: a topic name must not contain + or #.")
    if (
        action is Action.SUBSCRIBE
        and topic
        and is_plain(topic)
        and len(topic.encode(errors="replace")) <= FIELD_SIZE_MAX
    ):
        advice = "+ and # stand for whole levels, and # is allowed as the last level only."
        return Invalid("bad-topic", f"{topic[:80]!r} is no topic filter.", advice)
    return Invalid("bad-topic", f"{topic[:80]!r} is nothing that a device can {action} to.")


@post(
    "/v1/devices/{id}/notify",
    Permission.DEVICE_WRITE,
    "Publish a message of the fleet to a device, at the broker.",
)
async def notify_device(context: Context, call: Call, body: Notice) -> Result[Notified]:
    device, registry = await found_device(context, call.operator, call.path["id"]), context.registry
    notifier, message, given = context.must_notify(), body.message(call.text), revocation.given_reason(body.reason)
    notice = notifying.Notice(notifier, message, call.act, given)
    await registry.commit(await notice.change(registry, device))
    subscribed = await notice.deliver(registry, device)
    told = Notified(device_id=device.id, topic=message.topic(device.id), subscribed=subscribed)
    result: Result[Notified] = Result(told)
    if call.once is not None:
        await call.once.keep(registry, result, made_by(call.act, "device.notify-answer", f"device {device.id}"))
    return result


@get("/v1/devices/{id}/report", Permission.DEVICE_READ, "The last report of a device's agent.", may_not_find=True)
async def get_device_report(context: Context, call: Call) -> Result[DeviceReport]:
    device = await found_device(context, call.operator, call.path["id"])
    found = await context.registry.report_of(device.id)
    if found is None:
        advice = f"Ask for one: fleet device report {device.id}"
        raise NotFound("no-report", f"Device {device.id} has sent no report.", advice)
    given = {"report": json.loads(found.text), "signature": base64.b64encode(found.signature).decode()}
    return Result(DeviceReport.of(found, **given))


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
    kind = await _kind(context, device)
    changed = await tagging.label_device(context.registry, device, left, groups, act=call.act, reason=body.reason or "")
    return _result(changed, kind)


@post(
    "/v1/devices/{id}/credentials/{serial}/revoke",
    Permission.DEVICE_WRITE,
    "Revoke one certificate of a device, such as a superseded one; the device stays in service.",
)
async def revoke_device_credential(
    context: Context, call: Call, body: RevocationReason = NO_REVOCATION_REASON
) -> Result[Credential]:
    device, serial = await found_device(context, call.operator, call.path["id"]), call.path["serial"].lower()
    found = await context.registry.credential(serial)
    if found is None or (found.kind, found.holder) != (CredentialKind.DEVICE, device.id):
        advice = f"See: fleet device show {device.id}"
        raise NotFound("no-such-credential", f"Device {device.id} has no certificate with serial {serial}.", advice)
    listed = await context.registry.revocation(serial)
    is_listed = listed is not None and listed.reason != CrlReason.REMOVE_FROM_CRL  # since then, then
    at = listed.revoked_at if listed is not None and is_listed else call.now
    gone = replace(found, state=CredentialState.REVOKED)
    listing = Revocation(serial, found.not_after, at, GIVEN_REASONS[body.crl_reason])
    result: Result[Credential] = Result(Credential.shown(gone, listing))
    await revocation.revoke_certificate(
        answering(context.registry, call.once, lambda _: result),
        found,
        act=call.act,
        reason=body.reason,
        crl_reason=GIVEN_REASONS[body.crl_reason],
    )
    return result


def _moving(verb: str, summary: str) -> Route:
    async def handle(context: Context, call: Call, body: Reason = NO_REASON) -> Result[Device]:
        device = await found_device(context, call.operator, call.path["id"])
        demand_match(call, device.revision, f"Device {device.id}")
        kind = await _kind(context, device)

        def result_of(change: Change) -> Result[Device]:
            to = next(write.to for write in change.writes if isinstance(write, MoveDevice))
            return _result(replace(device, state=to, revision=device.revision + 1), kind)

        registry = answering(context.registry, call.once, result_of)
        revision = None if call.if_match is None else device.revision
        return _result(
            await revocation.move(verb, registry, device.id, act=call.act, reason=body.reason, revision=revision), kind
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
    result = _result(revocation.revoked(device), await _kind(context, device))
    revision = None if call.if_match is None else device.revision
    await revocation.revoke(
        answering(context.registry, call.once, lambda _: result),
        device.id,
        act=call.act,
        reason=body.reason,
        revision=revision,
        crl_reason=GIVEN_REASONS[body.crl_reason],
    )
    return result


retire_device = _moving("retire", "Take a device out of service permanently, in good order.")


@get("/v1/devices/{id}/credentials", Permission.CREDENTIAL_READ, "A device's certificates, oldest first.")
async def list_device_credentials(context: Context, call: Call, query: Paging) -> Result[Page[Credential]]:
    device = await found_device(context, call.operator, call.path["id"])
    held = [c for c in await context.registry.credentials(device.id) if c.kind is CredentialKind.DEVICE]
    return await credentials_page(context, call, query, held)


async def found_device(context: Context, operator: Operator, device_id: str) -> domain.Device:
    """The device, if the operator may see it. Raises: NotFound (`no-such-device`)."""
    device = await context.registry.device(device_id)
    if device is None or not operator.sees(device.model):
        raise no_such("device", device_id)
    return device


async def _kind(context: Context, device: domain.Device) -> ModelKind:
    return (await inventory.known_model(context.registry, device.model)).rules.kind


def _result(device: domain.Device, kind: ModelKind) -> Result[Device]:
    return Result(Device.shown(device, kind), etag=str(device.revision))


def _created(device: domain.Device, kind: ModelKind) -> Result[Device]:
    location = {"Location": f"/v1/devices/{quote(device.id, safe='')}"}
    return Result(Device.shown(device, kind), 201, location, str(device.revision))
