"""The admin API without an HTTP library: from a Request to its Reply, by the table of routes.

    route -> authorize -> negotiate -> read -> replay, if answered before -> handle -> 304, if unchanged

Answers are JSON; refusals are problem+json (RFC 9457) with the stable code beside them.
"""

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from fleet.config.logs import log_event
from fleet.domain.access import NotPermitted
from fleet.domain.errors import FleetError
from fleet.servers.admin import conditions
from fleet.servers.admin.auth import authenticate, authorize, refusals_audited
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.idempotency import Once, once_of
from fleet.servers.admin.messages import Caller, Reply, Request
from fleet.servers.admin.reading import acceptable, read_body, read_query
from fleet.servers.admin.records.base import Problem
from fleet.servers.admin.routing import PROBLEM, Condition, Result, Route, find
from fleet.servers.admin.sections import routes_at
from fleet.servers.refusals import HttpRefused, Outcome, refusal_of

_log = logging.getLogger("fleet.servers.admin")


class AdminApp:
    """The admin API over one registry. A transport gives it requests, and writes its replies."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def dispatch(self, request: Request, outcome: Outcome | None = None) -> Reply:
        """The reply to `request`; a refusal is one, too. `outcome` is filled in as it becomes known, for the log."""
        outcome = outcome or Outcome()
        outcome.kind = "operator"
        try:
            return await self._answered(request, outcome)
        except Exception as error:
            refusal = refusal_of(error)
            outcome.code = refusal.code
            if refusal.is_internal:
                log_event(_log, logging.ERROR, outcome.event, code="internal", exc_info=error)
            body, headers = problem(refusal.status, refusal.code, refusal.message, refusal.headers)
            return Reply(refusal.status, headers, body)

    async def _answered(self, request: Request, outcome: Outcome) -> Reply:
        route, path = find(routes_at(request.path), request.method, request.path)
        outcome.event = f"admin.{route.name}"
        outcome.is_routine = route.name in ("health", "metrics")
        caller = await authenticate(self._context, request, route)
        if caller is not None:
            if caller.credential is not None:
                outcome.kind, outcome.holder = str(caller.credential.kind), caller.credential.holder
            await authorize(self._context, request, route, caller)
        media_type = acceptable(request.headers.getall("Accept"), route.media_types)
        now = self._context.clock()
        query = read_query(request.target, route.query)
        raw, body = await read_body(request, route)
        once = _once(route, request, caller, raw, now)
        if once is not None and (replayed := await once.replay(self._context.registry)) is not None:
            return _reply(route, request, replayed)
        call = Call(request, now, caller, path, media_type, _if_match(route, request), once, raw)
        return _reply(route, request, await self._handled(route, call, query, body))

    async def _handled(self, route: Route, call: Call, query: Any, body: Any) -> Result[Any]:
        given = {name: value for name, value in (("query", query), ("body", body)) if value is not None}
        try:
            async with refusals_audited(self._context, call.request, route, NotPermitted):
                return await route.handle(self._context, call, **given)
        except FleetError as error:
            # What was refused now may have been done a moment ago, for the same request sent twice at once.
            replayed = await call.once.replay(self._context.registry) if call.once is not None else None
            if replayed is not None:
                return replayed
            if (
                conditions.is_stale(error)
                and not isinstance(error, HttpRefused)
                and route.condition is not Condition.NONE
            ):
                raise conditions.stale(error.message) from error
            raise


def _once(route: Route, request: Request, caller: Caller | None, raw: bytes, now: datetime) -> Once | None:
    if not route.is_idempotent_by_key or caller is None or caller.operator is None:
        return None
    return once_of(request.headers, caller.actor, f"{request.method} {request.target}", raw, now)


def _if_match(route: Route, request: Request) -> frozenset[str] | None:
    headers = request.headers
    if route.condition is Condition.NONE or (route.condition is Condition.OPTIONAL and "If-Match" not in headers):
        return None
    return conditions.if_match(headers)


def _reply(route: Route, request: Request, result: Result[Any]) -> Reply:
    content = _text(result.body) if result.raw is None else result.raw
    headers = {"Content-Type": result.media_type, **result.headers}
    if result.stream is not None:
        headers["Cache-Control"] = "no-store"
        return Reply(result.status, headers, stream=result.stream)
    headers["Cache-Control"] = "private, no-cache" if route.method == "GET" else "no-store"
    status = result.status
    if route.has_etag:
        etag = result.etag or conditions.content_etag(content)
        headers["ETag"] = f'"{etag}"'
        if route.method == "GET" and conditions.none_match(request.headers, etag):
            del headers["Content-Type"]
            status, content = 304, b""
    if len(route.media_types) > 1 and status != 304:
        headers["Vary"] = "Accept"
    return Reply(status, headers, content)


def problem(status: int, code: str, message: str, headers: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """A refusal as problem details (RFC 9457), and its headers; `type` is left out, which means about:blank."""
    from http import HTTPStatus  # a listing needs none of its phrases

    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=message, code=code)
    # RFC 9110, 11.6.1 wants a challenge with every 401; there is no scheme for "present a certificate".
    challenge = {"WWW-Authenticate": "Certificate"} if status == 401 else {}
    return _text(body), {"Content-Type": PROBLEM, **challenge, **headers}


def _text(body: Any) -> bytes:
    return msgspec.json.encode(body, enc_hook=str) + b"\n"
