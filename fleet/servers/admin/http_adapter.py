"""AdminApp behind the HTTP server: the one module of this package that needs an HTTP library."""

from collections.abc import Mapping
from contextlib import suppress

from yarl import URL

from fleet.domain.rates import Rates
from fleet.servers.admin.app import AdminApp, problem
from fleet.servers.admin.messages import Headers, Request, Stream
from fleet.servers.admin.sections import all_routes
from fleet.servers.http import Exchange, HttpServer
from fleet.servers.http_connection import HttpLimits
from fleet.servers.http_response import Response


def admin_server(app: AdminApp, limits: HttpLimits | None = None, rates: Rates | None = None) -> HttpServer:
    """An HTTP server for `app`, to be given to `fleet.tls.listener.listen` as its protocol factory."""

    all_routes()  # loads all handlers before the first request

    async def handle(exchange: Exchange) -> Response:
        request, peer = exchange.request, exchange.peer
        headers = Headers(request.headers.items())
        asked = Request(request.method, _target(request.url), headers, exchange.body, peer, shutdown=exchange.ending)
        reply = await app.dispatch(asked, exchange)
        if reply.stream is not None:
            return await _streamed(exchange, reply.status, reply.headers, reply.stream)
        return Response(reply.status, reply.body, reply.headers)

    return HttpServer("admin", handle, _problem, limits or HttpLimits(), rates)


def _target(url: URL) -> str:
    return (url.relative() if url.absolute else url).raw_path_qs


async def _streamed(exchange: Exchange, status: int, headers: Mapping[str, str], stream: Stream) -> Response:
    try:
        if exchange.request.method == "HEAD":  # RFC 9110, 9.3.2: no content
            return Response(status, b"", headers)
        with suppress(ConnectionError):  # the reader has gone
            return await exchange.stream(status, headers, aiter(stream))
        return Response(status, b"", headers, is_written=True)
    finally:
        await stream.aclose()


def _problem(status: int, code: str, message: str, headers: Mapping[str, str]) -> Response:
    body, all_headers = problem(status, code, message, headers)
    return Response(status, body, all_headers)
