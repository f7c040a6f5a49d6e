"""Routes of the publish listener: files at their paths, and OCSP. An unknown path or method is refused."""

from collections.abc import Awaitable, Callable

from aiohttp import HttpVersion11

from fleet.config.clock import Clock
from fleet.domain.distribution import OCSP_PATH
from fleet.domain.published_file import PublishedFile
from fleet.domain.rates import Rates
from fleet.servers.http import Exchange, Handle, HttpServer, plain_refusal
from fleet.servers.http_connection import HttpLimits
from fleet.servers.http_response import Response
from fleet.servers.publish.conditional import answer_file
from fleet.servers.refusals import HttpRefused, no_such_path

_FULL = HttpRefused(503, "too-many-connections", "Too many connections are open.", {"Retry-After": "10"})

Find = Callable[[str], Awaitable[PublishedFile | None]]
"""The file at a path."""


def build_publish_server(
    find: Find, ocsp: Handle, *, clock: Clock, limits: HttpLimits | None = None, rates: Rates | None = None
) -> HttpServer:
    """An HTTP server, the protocol factory of `fleet.tls.listener.listen`. Its clients show no certificate. `ocsp`
    answers what is at or below OCSP_PATH.
    """

    async def handle(exchange: Exchange) -> Response:
        exchange.is_open = True
        path = exchange.request.url.raw_path_qs
        if path == OCSP_PATH or path.startswith(f"{OCSP_PATH}/"):
            exchange.event = "publish.ocsp"
            return await ocsp(exchange)
        exchange.event = f"publish.{path.split('/')[1]}" if path.startswith(("/ca/", "/crl/")) else "publish"
        file = await find(path)
        if file is None:
            raise no_such_path()
        method = exchange.request.method
        if method not in ("GET", "HEAD"):
            raise HttpRefused(405, "bad-method", f"{path} takes GET only.", {"Allow": "GET, HEAD"})
        return answer_file(file, exchange.request.headers, clock())

    return HttpServer("publish", handle, plain_refusal, limits or HttpLimits(), rates)


def no_room() -> bytes:
    """The answer to a client for whose connection there is no room, before it has asked."""
    refusal = plain_refusal(_FULL.status, _FULL.code, _FULL.message, _FULL.headers)
    return refusal.encoded("GET", HttpVersion11, closes=True)
