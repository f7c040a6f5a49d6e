"""AdminApp behind the HTTP server: the one module of this package that needs aiohttp."""

from collections.abc import Mapping
from contextlib import suppress

from aiohttp import web
from multidict import CIMultiDict

from fleet.domain.rates import Rates
from fleet.servers.admin import routes  # noqa: F401  loads all handlers before the first request
from fleet.servers.admin.app import AdminApp, problem
from fleet.servers.admin.messages import Headers, Request, Stream
from fleet.servers.http import Exchange, HttpLimits, HttpServer, answer

AdminServer = HttpServer


def admin_server(app: AdminApp, limits: HttpLimits | None = None, rates: Rates | None = None) -> AdminServer:
    """An HTTP server for `app`, to be given to `fleet.tls.listener.listen` as its protocol factory."""

    async def handle(exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        reply = await app.dispatch(
            Request(
                request.method,
                request.rel_url.raw_path_qs,
                Headers(request.headers.items()),
                exchange.body,
                exchange.peer,
                shutdown=exchange.ending,
            )
        )
        exchange.event, exchange.code = reply.event, reply.code
        exchange.kind, exchange.device = reply.kind, reply.holder
        if reply.stream is not None:
            return await _streamed(request, reply.status, reply.headers, reply.stream)
        return answer(reply.status, reply.body, reply.headers)

    return HttpServer("admin", handle, _problem, limits or HttpLimits(), rates)


async def _streamed(
    request: web.BaseRequest, status: int, headers: Mapping[str, str], stream: Stream
) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers=CIMultiDict(headers, Server="fleet"))
    try:
        await response.prepare(request)
        with suppress(ConnectionError):  # the reader has gone
            async for piece in stream:
                await response.write(piece)
            await response.write_eof()
    finally:
        await stream.aclose()
    return response


def _problem(status: int, code: str, message: str, headers: Mapping[str, str]) -> web.Response:
    body, all_headers = problem(status, code, message, headers)
    return answer(status, body, all_headers)
