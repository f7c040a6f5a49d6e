"""The API's description (OpenAPI 3.1), generated from the routes and from the types that they decode into."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from fleet.domain.access import PERMISSIONS, Permission
from fleet.domain.idempotency import ANSWER_KEPT
from fleet.servers.admin.idempotency import HEADER as IDEMPOTENCY_KEY
from fleet.servers.admin.idempotency import KEY_SIZE_MAX
from fleet.servers.admin.records.base import SEQUENCE_MAX, Problem
from fleet.servers.admin.routing import EVENT_STREAM, JSON, PATH_PARAMETERS, PROBLEM, AccessLevel, Condition, Route

Json = dict[str, Any]
Schema = dict[str, Any]


def description(routes: Sequence[Route]) -> Json:
    """The whole document."""
    schemas, components = _schemas(routes)
    queries = {route.query.__name__ for route in routes if route.query is not None}  # published as parameters
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, schemas, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Fleet admin API",
            "version": "1",
            "description": "Refusals are problem+json (RFC 9457) with a stable `code`. Lists come in pages: follow "
            "`next` until it is null. What an operator who is restricted to models may not see does not exist for it.",
        },
        "security": [{"certificate": []}],
        "paths": paths,
        "components": {
            "schemas": {name: schema for name, schema in components.items() if name not in queries},
            "securitySchemes": {
                "certificate": {"type": "mutualTLS", "description": "A certificate of the operators' CA."}
            },
        },
    }


def _schemas(routes: Sequence[Route]) -> tuple[dict[Any, Schema], dict[str, Schema]]:
    """The schema of every type that a route takes or gives, and the components that they refer to."""
    kinds = list(dict.fromkeys([Problem, *(kind for route in routes for kind in _kinds(route))]))
    found, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    for kind in kinds:
        if issubclass(origin := getattr(kind, "__origin__", kind), msgspec.Struct) and origin is kind:
            components[kind.__name__] |= getattr(kind, "SCHEMA", {})
    return (
        {kind: _published(schema) for kind, schema in zip(kinds, found, strict=True)},
        {_component(name): _published(schema) for name, schema in components.items()},
    )


def _kinds(route: Route) -> list[Any]:
    return [kind for kind in (route.takes, route.query, route.gives) if kind is not None]


def _component(name: str) -> str:
    """A generic Page[Device] is published as DevicePage."""
    return f"{name.removeprefix('Page_').removesuffix('_')}Page" if name.startswith("Page_") else name


def _published(value: Any) -> Any:
    """A generated schema as it is published: patterns as ECMAScript has them, no titles that repeat a name."""
    if isinstance(value, list):
        return [_published(each) for each in value]
    if not isinstance(value, dict):
        return value
    shown = {name: _published(each) for name, each in value.items() if name != "title" or not isinstance(each, str)}
    if isinstance(pattern := shown.get("pattern"), str):
        shown["pattern"] = pattern.replace("\\Z", "$")
        if "format" in shown or "enum" in shown:
            del shown["pattern"]  # the same, said twice
    if isinstance(reference := shown.get("$ref"), str):
        path, _, name = reference.rpartition("/")
        shown["$ref"] = f"{path}/{_component(name)}"
    return shown


def _operation(route: Route, schemas: dict[Any, Schema], components: dict[str, Schema]) -> Json:
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "description": _who_may(route),
        "parameters": _parameters(route, components),
        "responses": _responses(route, schemas),
    }
    if route.access is AccessLevel.ANYBODY:
        operation["security"] = []
    if route.takes is not None:
        content = {media_type: {"schema": schemas[route.takes]} for media_type in route.takes_types}
        operation["requestBody"] = {"required": route.needs_body, "content": content}
    return operation


def _who_may(route: Route) -> str:
    if isinstance(route.access, AccessLevel):
        return f"Open to {route.access.value}."
    roles = sorted(role.value for role, permitted in PERMISSIONS.items() if route.access in permitted)
    stations = " Factory stations may, too." if route.for_stations else ""
    return f"Takes the permission {Permission(route.access)}: {', '.join(roles)}.{stations}"


def _parameters(route: Route, components: dict[str, Schema]) -> list[Json]:
    found = [
        _parameter("path", name, _published({"type": "string", "pattern": PATH_PARAMETERS[name]}), required=True)
        for name in route.path_parameters
    ]
    if route.query is not None:
        properties = components[route.query.__name__]["properties"]
        found += [_parameter("query", name, _given(schema)) for name, schema in properties.items()]
    if route.has_etag and route.method == "GET":
        etag: Schema = {"type": "string", "pattern": '^(W/)?"[!#-~]*"$', "examples": ['"1"']}
        found.append(_parameter("header", "If-None-Match", etag))
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
        sequence: Schema = {"type": "integer", "minimum": 0, "maximum": SEQUENCE_MAX}
        found.append(_parameter("header", "Last-Event-ID", sequence))
    return found


def _parameter(place: str, name: str, schema: Schema, *, required: bool = False) -> Json:
    return {"name": name, "in": place, "required": required, "schema": schema}


def _given(schema: Schema) -> Schema:
    """That of a parameter which is left out or has a value, and is never null."""
    if schema.get("default", "") is not None:
        return schema
    described = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    (kind,) = (each for each in schema["anyOf"] if each != {"type": "null"})
    return {**kind, **described}


def _responses(route: Route, schemas: dict[Any, Schema]) -> Json:
    responses = {str(route.status): _success(route, schemas[route.gives])}
    if route.has_etag and route.method == "GET":
        responses["304"] = {"description": "It is as you know it.", "headers": {"ETag": {"schema": {"type": "string"}}}}
    for status in sorted(_refusals(route)):
        content = {PROBLEM: {"schema": schemas[Problem]}}
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
    return responses


def _success(route: Route, schema: Schema) -> Json:
    headers: Json = {}
    if route.has_etag:
        headers["ETag"] = {"schema": {"type": "string"}, "required": True}
    if route.status == HTTPStatus.CREATED and route.has_etag:
        headers["Location"] = {"schema": {"type": "string"}, "required": True}
    content = {kind: {"schema": schema if kind == JSON else {"type": "string"}} for kind in route.media_types}
    if EVENT_STREAM in content:
        content[EVENT_STREAM] = {"schema": {"type": "string", "description": "Events: id, event, data."}}
    return {"description": HTTPStatus(route.status).phrase, "content": content, "headers": headers}


def _refusals(route: Route) -> set[int]:
    """Every status, other than success, that the route can answer with."""
    found = {400, 406, 408, 413, 414, 429, 431, 500, 503}
    if route.access is not AccessLevel.ANYBODY:
        found |= {401, 403}
    if route.path_parameters or route.may_not_find:
        found.add(404)
    if route.may_conflict:
        found.add(409)
    if route.condition is not Condition.NONE:
        found.add(412)
    if route.condition is Condition.REQUIRED:
        found.add(428)
    if route.takes is not None:
        found.add(415)
    if route.is_idempotent_by_key:
        found.add(422)
    if route.streams:
        found |= {410, 429}
    return found
