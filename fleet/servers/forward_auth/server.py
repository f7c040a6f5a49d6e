"""The forward-auth server: one question of a reverse proxy, answered 200 with identity headers, 401 or 403.

It has no TLS and believes what the proxy forwards. It therefore listens on a Unix socket or a loopback port only, and
on a port every request must carry the proxy's secret.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from fleet.config.clock import Clock
from fleet.domain.errors import FleetError
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.servers.forward_auth.proxy_protocols import address_of, certificate_of, protocol_of, request_of
from fleet.servers.http import Exchange, HttpServer, plain_refusal
from fleet.servers.http_connection import HttpLimits, Response
from fleet.servers.refusals import HttpRefused
from fleet.services.http_access import HTTP_REQUEST, NO_DEVICE, HttpAccess, admit_request
from fleet.services.refusals import audit_refusal
from fleet.wire.certificate_fields import certificate_fields

SECRET = "X-Proxy-Secret"  # noqa: S105  the name of a header

LIMITS = HttpLimits(
    line_size_max=16 * 1024,  # Envoy's has the client's own target, of which it takes 8 KB
    header_size_max=32 * 1024,  # a forwarded chain
    headers_max=200,  # proxies pass on what the client sends
    takes_bodies=False,  # nginx passes on its client's Content-Length without the body
    idle_seconds_max=300.0,  # longer than proxies keep a connection: it is theirs to end
)


@dataclass(frozen=True, slots=True)
class ForwardAuthContext:
    """What the server decides with."""

    registry: Registry
    tenant_of: Callable[[bytes], str | None]
    """DER of a certificate -> tenant of our issuing CA that signed it, "" for the fleet's own; None: none did."""
    feed_is_up: Callable[[], bool]
    """Whether this process learns of revocations."""
    clock: Clock


def build_forward_auth_server(
    context: ForwardAuthContext, secrets: Callable[[], Sequence[bytes]] = tuple
) -> HttpServer:
    """The server; a protocol factory. If there are `secrets`, asked for at each request, it must carry one of them."""
    return HttpServer("forward_auth", _Handler(context, secrets).handle, plain_refusal, LIMITS)


class _Handler:
    def __init__(self, context: ForwardAuthContext, secrets: Callable[[], Sequence[bytes]]) -> None:
        self._context = context
        self._secrets = secrets

    async def handle(self, exchange: Exchange) -> Response:
        message, context = exchange.request, self._context
        exchange.event = "http.forward-auth"
        self._check_secret(exchange)
        exchange.connection.is_known = True
        proxy = protocol_of(message)
        exchange.peer = Peer(address_of(message, proxy))
        if not context.feed_is_up():
            raise HttpRefused(503, "registry-unavailable", "The registry's events do not arrive.")
        now = context.clock()
        try:
            der, request = certificate_of(message, proxy), request_of(message, proxy)
        except FleetError as refusal:
            await audit_refusal(context.registry, exchange.peer, now, HTTP_REQUEST, NO_DEVICE, refusal)
            raise
        fingerprint, tenant = hashlib.sha256(der).digest(), context.tenant_of(der)
        exchange.peer = structs.replace(exchange.peer, certificate_der=der, fingerprint=fingerprint, tenant=tenant)
        try:
            access = await admit_request(context.registry, exchange.peer, request, now)
        except FleetError:
            exchange.serial = f"{certificate_fields(der).serial_number:x}"  # for the log: whose it was
            raise
        exchange.holder, exchange.serial = access.device.id, access.credential.serial
        return Response(200, b"", identity_headers(access))

    def _check_secret(self, exchange: Exchange) -> None:
        """Raises: HttpRefused (`bad-proxy-secret`): at once, and to no audit row: no proxy of ours asks."""
        secrets = self._secrets()
        if not secrets:
            return
        given = exchange.request.headers.getall(SECRET, ())
        sent = given[0].encode("utf-8", "surrogateescape") if len(given) == 1 else b""
        # Each is compared, in a time that says nothing of where they differ.
        if not sum(hmac.compare_digest(sent, secret) for secret in secrets):
            message = f"The header {SECRET} does not hold the proxy's secret."
            raise HttpRefused(403, "bad-proxy-secret", message, {"Connection": "close"})


def identity_headers(access: HttpAccess) -> Mapping[str, str]:
    """All four, empty where there is nothing: a header that is not in the answer, a proxy may take from its client."""
    return {
        "X-Device-Id": access.device.id,
        "X-Device-Model": access.model.name,
        "X-Device-Tenant": access.model.rules.tenant,
        "X-Device-Serial": access.device.hardware_serial,
        "Cache-Control": "no-store",
    }
