"""The forward-auth server: one question of a reverse proxy, answered 200 with identity headers, 401 or 403.

It believes what the proxy forwards: delegated_auth.py says who may ask.
"""

from collections.abc import Callable, Mapping, Sequence

from fleet.domain.errors import FleetError
from fleet.domain.peer import Peer
from fleet.servers.delegated_auth import SECRET, AuthContext, check_secret
from fleet.servers.forward_auth.reverse_proxies import address_of, certificate_of, proxy_of, request_of
from fleet.servers.http import Exchange, HttpServer, plain_refusal
from fleet.servers.http_connection import HttpLimits
from fleet.servers.http_response import Response
from fleet.services.http_access import HTTP_REQUEST, NO_DEVICE, HttpAccess, admit_request
from fleet.services.refusals import audit_refusal
from fleet.wire.certificate_fields import certificate_fields

LIMITS = HttpLimits(
    line_size_max=16 * 1024,  # Envoy's has the client's own target, of which it takes 8 KB
    header_size_max=32 * 1024,  # a forwarded chain
    headers_max=200,  # proxies pass on what the client sends
    takes_bodies=False,  # nginx passes on its client's Content-Length without the body
    idle_seconds_max=300.0,  # longer than proxies keep a connection: it is theirs to end
)


def build_forward_auth_server(context: AuthContext, secrets: Callable[[], Sequence[bytes]] = tuple) -> HttpServer:
    """The server; a protocol factory. If there are `secrets`, asked for at each request, it must carry one of them."""
    return HttpServer("forward_auth", _Handler(context, secrets).handle, plain_refusal, LIMITS)


class _Handler:
    def __init__(self, context: AuthContext, secrets: Callable[[], Sequence[bytes]]) -> None:
        self._context = context
        self._secrets = secrets

    async def handle(self, exchange: Exchange) -> Response:
        message, context = exchange.request, self._context
        exchange.event = "http.forward-auth"
        given = message.headers.getall(SECRET, ())
        sent = given[0].encode("utf-8", "surrogateescape") if len(given) == 1 else b""
        check_secret(sent, self._secrets(), f"The header {SECRET}")
        exchange.connection.is_known = True
        proxy = proxy_of(message)
        exchange.peer = Peer(address_of(message, proxy))
        context.must_be_current()
        now = context.clock()
        try:
            der, request = certificate_of(message, proxy), request_of(message, proxy)
        except FleetError as refusal:
            await audit_refusal(context.registry, exchange.peer, now, HTTP_REQUEST, NO_DEVICE, refusal)
            raise
        exchange.peer = context.peer_with(exchange.peer, der)
        try:
            access = await admit_request(context.registry, exchange.peer, request, now)
        except FleetError:
            exchange.serial = f"{certificate_fields(der).serial_number:x}"  # for the log: whose it was
            raise
        exchange.holder, exchange.serial = access.device.id, access.credential.serial
        return Response(200, b"", identity_headers(access))


def identity_headers(access: HttpAccess) -> Mapping[str, str]:
    """All four, empty where there is nothing: a header that is not in the answer, a proxy may take from its client."""
    return {
        "X-Device-Id": access.device.id,
        "X-Device-Model": access.model.name,
        "X-Device-Tenant": access.model.rules.tenant,
        "X-Device-Serial": access.device.hardware_serial,
        "Cache-Control": "no-store",
    }
