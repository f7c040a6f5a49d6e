"""The admin API's handlers. A route names who may use it; what has no route is refused.

    GET /healthz      anybody                            200 when the registry answers, 503 when not
    GET /v1/whoami    a device or a station in service   who the presented certificate says it is
    GET /v1/status    a station in service               uptime and counters

Answers are JSON; refusals are problem+json (RFC 9457) with the stable code beside them.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from http import HTTPStatus

from aiohttp import web

from fleet.domain.credential import CredentialKind
from fleet.domain.errors import Refused
from fleet.domain.ports import HolderFacts, Registry
from fleet.servers.http import Exchange, HttpLimits, HttpRefused, HttpServer, answer
from fleet.services.identity import identify

Clock = Callable[[], datetime]
Json = Mapping[str, object]

AdminServer = HttpServer

ANY_HOLDER = frozenset(CredentialKind)
STATIONS = frozenset({CredentialKind.STATION})


def build_admin_server(
    registry: Registry,
    status: Callable[[], Json],
    *,
    clock: Clock,
    limits: HttpLimits | None = None,
) -> AdminServer:
    """An admin server, to be given to `fleet.tls.listener.listen` as its protocol factory.

    `status`: the counters of every part, ready for JSON, read anew at each request.
    """
    handlers = _Handlers(registry, status, clock)
    return HttpServer("admin", handlers.handle, problem, limits or HttpLimits())


class _Handlers:
    def __init__(self, registry: Registry, status: Callable[[], Json], clock: Clock) -> None:
        self._registry, self._status, self._clock = registry, status, clock
        self._started = clock()
        self._open = {"/healthz": self.health}
        self._guarded = {"/v1/whoami": (ANY_HOLDER, self.whoami), "/v1/status": (STATIONS, self.status)}

    async def handle(self, exchange: Exchange) -> web.Response:
        path = exchange.request.rel_url.raw_path
        if path not in self._open and path not in self._guarded:
            raise HttpRefused(404, "no-such-path", "There is nothing at this path.")
        exchange.event = f"admin{path.replace('/', '.')}"
        if exchange.request.method != "GET":
            raise HttpRefused(405, "bad-method", "This path takes GET only.", {"Allow": "GET"})
        if path in self._open:
            return _json(200, "application/json", await self._open[path]())
        holders, ask = self._guarded[path]
        return _json(200, "application/json", await ask(await self._admitted(exchange, holders)))

    async def _admitted(self, exchange: Exchange, holders: frozenset[CredentialKind]) -> HolderFacts:
        facts = await identify(self._registry, exchange.peer, self._clock())
        exchange.device = facts.credential.holder
        if facts.credential.kind not in holders:
            raise Refused("not-for-you", f"A {facts.credential.kind}'s certificate does not open this path.")
        return facts

    async def health(self) -> Json:
        await self._registry.last_event()
        return {"status": "ok"}

    async def whoami(self, holder: HolderFacts) -> Json:
        credential = holder.credential
        return {
            "holder": credential.holder,
            "kind": credential.kind,
            "serial": credential.serial,
            "not_after": credential.not_after.isoformat(),
            "state": credential.state,
        }

    async def status(self, holder: HolderFacts) -> Json:
        return {"uptime_seconds": (self._clock() - self._started).total_seconds(), **self._status()}


def problem(status: int, code: str, message: str, headers: Mapping[str, str]) -> web.Response:
    """A refusal as problem details (RFC 9457); `type` is left out, which means about:blank."""
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": message, "code": code}
    # RFC 9110, 11.6.1 wants a challenge with every 401; there is no scheme for "present a certificate".
    challenge = {"WWW-Authenticate": "Certificate"} if status == 401 else {}
    return _json(status, "application/problem+json", body, {**challenge, **headers})


def _json(status: int, media_type: str, body: Json, headers: Mapping[str, str] | None = None) -> web.Response:
    text = json.dumps(body, default=str) + "\n"
    return answer(status, text.encode(), {"Content-Type": media_type, **(headers or {})})
