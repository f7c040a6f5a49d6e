"""The API's description (OpenAPI 3.1), made from the routes themselves: what it says is what is checked."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fleet.domain.access import PERMISSIONS, Permission
from fleet.domain.idempotency import ANSWER_KEPT
from fleet.servers.admin.idempotency import HEADER as IDEMPOTENCY_KEY
from fleet.servers.admin.idempotency import KEY_SIZE_MAX
from fleet.servers.admin.routes import EVENT_STREAM, JSON, PATH_PARAMETERS, AccessLevel, Condition, Route
from fleet.servers.admin.schemas import COMPONENTS, SEQ_MAX, Schema, ref

PROBLEM = "application/problem+json"

Json = dict[str, Any]


def description(routes: Sequence[Route]) -> Json:
    """The whole document."""
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Fleet admin API",
            "version": "1",
            "description": "Refusals are problem+json (RFC 9457) with a stable `code`. Lists come in pages: follow "
            "`next` until it is null. What an operator who is held to models may not see is not there for it.",
        },
        "security": [{"certificate": []}],
        "paths": paths,
        "components": {
            "schemas": COMPONENTS,
            "securitySchemes": {
                "certificate": {"type": "mutualTLS", "description": "A certificate of the operators' CA."}
            },
        },
    }


def _operation(route: Route) -> Json:
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "description": _who_may(route),
        "parameters": _parameters(route),
        "responses": _responses(route),
    }
    if route.access is AccessLevel.ANYBODY:
        operation["security"] = []
    if route.takes is not None:
        content = {media_type: {"schema": route.takes} for media_type in route.takes_types}
        operation["requestBody"] = {"required": route.needs_body, "content": content}
    return operation


def _who_may(route: Route) -> str:
    if isinstance(route.access, AccessLevel):
        return f"Open to {route.access.value}."
    roles = sorted(role.value for role, permitted in PERMISSIONS.items() if route.access in permitted)
    stations = " Factory stations may, too." if route.for_stations else ""
    return f"Takes the permission {Permission(route.access)}: {', '.join(roles)}.{stations}"


def _parameters(route: Route) -> list[Json]:
    found = [
        _parameter("path", name, {"type": "string", "pattern": PATH_PARAMETERS[name]}, required=True)
        for name in route.path_parameters
    ]
    found += [_parameter("query", name, schema) for name, schema in route.query.items()]
    if route.has_etag and route.method == "GET":
        found.append(
            _parameter(
                "header", "If-None-Match", {"type": "string", "pattern": '^(W/)?"[!#-~]*"$', "examples": ['"1"']}
            )
        )
    if route.condition is not Condition.NONE:
        schema = {
            "type": "string",
            "pattern": '^([*]|"[0-9]{1,9}")$',
            "description": 'The ETag read, or "*" for any.',
            "examples": ["*"],
        }
        found.append(_parameter("header", "If-Match", schema, required=route.condition is Condition.REQUIRED))
    if route.is_idempotent_by_key:
        hours = int(ANSWER_KEPT.total_seconds() // 3600)
        schema = {
            "type": "string",
            "pattern": f"^[!-~]{{1,{KEY_SIZE_MAX}}}$",
            "description": "Makes a retry safe: "
            f"the same request sent again within {hours} hours gets the same answer and is not done again.",
        }
        found.append(_parameter("header", IDEMPOTENCY_KEY, schema))
    if route.streams:
        sequence: Schema = {"type": "integer", "minimum": 0, "maximum": SEQ_MAX}
        found.append(_parameter("header", "Last-Event-ID", sequence))
    return found


def _parameter(place: str, name: str, schema: Schema, *, required: bool = False) -> Json:
    return {"name": name, "in": place, "required": required, "schema": schema}


def _responses(route: Route) -> Json:
    responses = {str(route.status): _success(route)}
    if route.has_etag and route.method == "GET":
        responses["304"] = {"description": "It is as you know it.", "headers": {"ETag": {"schema": {"type": "string"}}}}
    for status in sorted(_refusals(route)):
        content = {PROBLEM: {"schema": ref("Problem")}}
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
    return responses


def _success(route: Route) -> Json:
    headers: Json = {}
    if route.has_etag:
        headers["ETag"] = {"schema": {"type": "string"}, "required": True}
    if route.status == HTTPStatus.CREATED and route.has_etag:
        headers["Location"] = {"schema": {"type": "string"}, "required": True}
    content = {kind: {"schema": route.gives if kind == JSON else {"type": "string"}} for kind in route.media_types}
    if EVENT_STREAM in content:
        content[EVENT_STREAM] = {"schema": {"type": "string", "description": "Events: id, event, data."}}
    return {"description": HTTPStatus(route.status).phrase, "content": content, "headers": headers}


def _refusals(route: Route) -> set[int]:
    """Every status, other than success, that the route can answer with."""
    found = {400, 406, 408, 413, 429, 500, 503}
    if route.access is not AccessLevel.ANYBODY:
        found |= {401, 403}
    if route.path_parameters or route.finds:
        found.add(404)
    if route.may_conflict:
        found.add(409)
    if route.condition is not Condition.NONE:
        found |= {409, 412}
    if route.condition is Condition.REQUIRED:
        found.add(428)
    if route.takes is not None:
        found.add(415)
    if route.is_idempotent_by_key:
        found.add(422)
    if route.streams:
        found |= {410, 429}
    return found
