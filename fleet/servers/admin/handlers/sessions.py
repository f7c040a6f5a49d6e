"""MQTT sessions: who is connected; ending of sessions."""

from msgspec.structs import replace

from fleet.domain.access import Permission
from fleet.domain.errors import no_such
from fleet.domain.presence import SessionFilter, SessionFound
from fleet.domain.registry_events import SessionKicked
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import paged, position
from fleet.servers.admin.handlers.devices import found_device, models_of
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.records.base import Page
from fleet.servers.admin.records.sessions import EVERY_ONE, DeviceSessions, Kick, Kicked, Session, SessionQuery
from fleet.servers.admin.routing import Result, get, post
from fleet.services import presence


def _place(found: SessionFound) -> tuple[str, str]:
    return found.session.device_id, found.session.client_id


@get("/v1/sessions", Permission.DEVICE_READ, "MQTT sessions that match everything given, by device id and client id.")
async def list_sessions(context: Context, call: Call, query: SessionQuery) -> Result[Page[Session]]:
    is_open = None if query.connected is None else query.connected == "true"
    where = SessionFilter(query.device, None, query.node, is_open)
    values = position(call, query, str, str)
    after = (values[0], values[1]) if values is not None else ("", "")
    found: list[SessionFound] = []
    kinds = {model.name: model.rules.kind for model in await context.registry.models()} if query.kind else {}
    for model in models_of(call, query.model, query.kind, kinds):
        found += await context.registry.sessions(replace(where, model=model), after=after, limit=query.limit + 1)
    found.sort(key=_place)
    page = found[: query.limit]
    following = _place(page[-1]) if len(found) > query.limit else None
    return paged(call, query, [Session.shown(each, call.now) for each in page], following)


@get("/v1/sessions/{id}", Permission.DEVICE_READ, "A device's MQTT sessions, by client id.")
async def get_sessions(context: Context, call: Call) -> Result[DeviceSessions]:
    device = await found_device(context, call.operator, call.path["id"])
    found = await context.registry.sessions(SessionFilter(device.id))
    return Result(DeviceSessions(device_id=device.id, sessions=[Session.shown(each, call.now) for each in found]))


@post("/v1/sessions/{id}/kick", Permission.DEVICE_WRITE, "End a device's MQTT sessions; it may connect again.")
async def kick_sessions(context: Context, call: Call, body: Kick = EVERY_ONE) -> Result[Kicked]:
    device = await found_device(context, call.operator, call.path["id"])
    found = await context.registry.sessions(SessionFilter(device.id))
    named = [each for each in found if body.client_id in (None, each.session.client_id)]
    if body.client_id is not None and not named:
        raise no_such("session", body.client_id)
    ids = [each.session.client_id for each in named if each.ended_at is None]
    result: Result[Kicked] = Result(Kicked(device_id=device.id, client_ids=ids, will=body.will))
    await presence.kick(
        answering(context.registry, call.once, lambda _: result),
        SessionKicked(device.id, body.client_id, body.will, body.client_id is not None and not ids and not body.will),
        act=call.act,
        reason=body.reason,
    )
    return result
