"""The admin API's server: one request from its bytes to its answer, by the table of routes.

    found -> let in -> acceptable -> well-formed -> answered before? -> handled -> still news to the client?

Answers are JSON; refusals are problem+json (RFC 9457) with the stable code beside them.
"""

import json
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.domain.approval import DEFAULT_WAITING, WaitingLimits
from fleet.domain.errors import FleetError
from fleet.domain.ports import Registry
from fleet.domain.rates import Rates
from fleet.servers.admin import conditions
from fleet.servers.admin.authorities import Authorities
from fleet.servers.admin.callers import admit
from fleet.servers.admin.idempotency import Once, once_of
from fleet.servers.admin.parts import Call, Caller, Clock, Parts
from fleet.servers.admin.reply import Reply
from fleet.servers.admin.requests import acceptable, read_body, read_query
from fleet.servers.admin.routes import Condition, Route, find
from fleet.servers.admin.table import ROUTES
from fleet.servers.http import Exchange, HttpLimits, HttpServer, answer
from fleet.services.retention import Policy

Json = Mapping[str, object]

AdminServer = HttpServer

HEARTBEAT_SECONDS = 15.0  # half of what balancers give a silent connection at the least
PROBLEM = "application/problem+json"


def build_admin_server(
    registry: Registry,
    status: Callable[[], Json],
    *,
    authorities: Authorities,
    retention: Policy,
    clock: Clock,
    tenants: Callable[[], Collection[str]] = frozenset,
    limits: HttpLimits | None = None,
    rates: Rates | None = None,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    waiting: WaitingLimits = DEFAULT_WAITING,
) -> AdminServer:
    """An admin server, to be given to `fleet.tls.listener.listen` as its protocol factory.

    `status`: the counters of every part, ready for JSON, read anew at each request. `tenants`: names of those that have
    an issuing CA, likewise. `retention`: for how long things are kept. `waiting`: how long a decided request is
    remembered.
    """
    anchor = authorities.operators.public_bytes(Encoding.DER)
    parts = Parts(
        registry, status, clock, tenants, authorities, retention, anchor, heartbeat_seconds, clock(), waiting=waiting
    )
    return HttpServer("admin", _Handlers(parts).handle, problem, limits or HttpLimits(), rates)


class _Handlers:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def handle(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        route, path = find(ROUTES, request.method, request.rel_url.raw_path)
        exchange.event = f"admin.{route.name}"
        caller = await admit(self._parts, exchange, route)
        media_type = acceptable(request.headers.getall("Accept", []), route.media_types)
        now = self._parts.clock()
        query = read_query(request.rel_url.query, route.query)
        raw, body = await read_body(exchange, route)
        once = _once(route, exchange, caller, raw, now)
        if once is not None and (replayed := await once.replay(self._parts.registry)) is not None:
            return _response(route, exchange, replayed)
        call = Call(exchange, now, caller, path, query, body, media_type, _if_match(route, exchange), once)
        return _response(route, exchange, await self._handled(route, call))

    async def _handled(self, route: Route, call: Call) -> Reply | web.StreamResponse:
        try:
            return await route.handle(self._parts, call)
        except FleetError as error:
            # What was refused now may have been done a moment ago, for the same request sent twice at once.
            replayed = await call.once.replay(self._parts.registry) if call.once is not None else None
            if replayed is not None:
                return replayed
            if conditions.is_stale(error) and route.condition is not Condition.NONE:
                raise conditions.stale(error.message) from error
            raise


def _once(route: Route, exchange: Exchange, caller: Caller | None, raw: bytes, now: datetime) -> Once | None:
    if not route.is_idempotent_by_key or caller is None or caller.operator is None:
        return None
    request = exchange.request
    target = f"{request.method} {request.rel_url.raw_path_qs}"
    return once_of(request.headers, f"operator {caller.operator.name}", target, raw, now)


def _if_match(route: Route, exchange: Exchange) -> frozenset[str] | None:
    headers = exchange.request.headers
    if route.condition is Condition.NONE or (route.condition is Condition.OPTIONAL and "If-Match" not in headers):
        return None
    return conditions.if_match(headers)


def _response(route: Route, exchange: Exchange, reply: Reply | web.StreamResponse) -> web.StreamResponse:
    if isinstance(reply, web.StreamResponse):
        return reply
    content = _text(reply.body) if reply.raw is None else reply.raw
    headers = {"Content-Type": reply.media_type, **reply.headers}
    headers["Cache-Control"] = "private, no-cache" if route.method == "GET" else "no-store"
    if route.has_etag:
        etag = reply.etag or conditions.content_etag(content)
        headers["ETag"] = f'"{etag}"'
        if route.method == "GET" and conditions.none_match(exchange.request.headers, etag):
            del headers["Content-Type"]
            return answer(304, b"", headers)
    if len(route.media_types) > 1:
        headers["Vary"] = "Accept"
    return answer(reply.status, content, headers)


def problem(status: int, code: str, message: str, headers: Mapping[str, str]) -> web.Response:
    """A refusal as problem details (RFC 9457); `type` is left out, which means about:blank."""
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": message, "code": code}
    # RFC 9110, 11.6.1 wants a challenge with every 401; there is no scheme for "present a certificate".
    challenge = {"WWW-Authenticate": "Certificate"} if status == 401 else {}
    return answer(status, _text(body), {"Content-Type": PROBLEM, **challenge, **headers})


def _text(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, default=str) + "\n").encode()
