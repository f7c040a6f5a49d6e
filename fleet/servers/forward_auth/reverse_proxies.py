"""How each reverse proxy asks: the header with the certificate, and where its client's method and target are.

Only the headers of the protocol in the path are read, each at most once. What the proxy does not set or clear itself,
its client may have sent: the configurations in README.md say which those are.
"""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp.http import RawRequestMessage

from fleet.domain.errors import Refused, Unauthenticated
from fleet.servers.refusals import HttpRefused, no_such_path
from fleet.services.http_access import HttpRequest
from fleet.wire.errors import WireError
from fleet.wire.forwarded_certificate import from_base64, from_escaped_pem, from_traefik, from_xfcc


@dataclass(frozen=True, slots=True)
class ReverseProxy:
    """How one kind of proxy asks."""

    path: str
    certificate: str
    """Header with the certificate."""
    read: Callable[[str], bytes]
    """Its value -> DER. Raises: WireError."""
    address: str
    """Header with the address of the client; the last one there counts."""
    method: str = ""
    """Header with the method of the client's request; "" where it is the request's own, and its path follows ours."""
    target: str = ""


REVERSE_PROXIES = (
    ReverseProxy("/nginx", "X-Client-Cert", from_escaped_pem, "X-Real-IP", "X-Original-Method", "X-Original-URI"),
    ReverseProxy("/haproxy", "X-Client-Cert", from_base64, "X-Real-IP", "X-Original-Method", "X-Original-URI"),
    ReverseProxy(
        "/traefik",
        "X-Forwarded-Tls-Client-Cert",
        from_traefik,
        "X-Forwarded-For",
        "X-Forwarded-Method",
        "X-Forwarded-Uri",
    ),
    ReverseProxy("/envoy", "X-Forwarded-Client-Cert", from_xfcc, "X-Forwarded-For"),
)


def proxy_of(message: RawRequestMessage) -> ReverseProxy:
    """Raises: HttpRefused: 404, 405."""
    path = message.path.partition("?")[0]
    for proxy in REVERSE_PROXIES:
        if proxy.method and path == proxy.path:
            if message.method != "GET":
                raise HttpRefused(405, "bad-method", "A proxy asks with GET.", {"Allow": "GET"})
            return proxy
        if not proxy.method and path.startswith(f"{proxy.path}/"):
            return proxy
    raise no_such_path()


def certificate_of(message: RawRequestMessage, proxy: ReverseProxy) -> bytes:
    """DER of the client's certificate.

    Raises: Unauthenticated (`no-certificate`). Refused (`bad-client-certificate`, `repeated-header`).
    """
    value = single(message, proxy.certificate)
    if not value:
        raise Unauthenticated("no-certificate", "The client presented no certificate to the proxy.")
    try:
        return proxy.read(value)
    except WireError as error:
        raise Refused("bad-client-certificate", f"{proxy.certificate}: {error}") from error


def request_of(message: RawRequestMessage, proxy: ReverseProxy) -> HttpRequest | None:
    """What the proxy's client asks for; None: the proxy does not say. Raises: Refused (`repeated-header`)."""
    if not proxy.method:
        return HttpRequest(message.method, message.path.removeprefix(proxy.path))
    method, target = single(message, proxy.method), single(message, proxy.target)
    return HttpRequest(method, target) if method and target else None


def address_of(message: RawRequestMessage, proxy: ReverseProxy) -> str:
    """The client's address as the proxy saw it, for log and audit; "-": it does not say."""
    given = message.headers.getall(proxy.address, ())
    last = given[-1].rpartition(",")[2].strip() if given else ""
    try:
        return str(ipaddress.ip_address(last))
    except ValueError:
        return "-"


def single(message: RawRequestMessage, name: str) -> str:
    """The value of the header `name`, "" without one. Raises: Refused (`repeated-header`)."""
    given = message.headers.getall(name, ())
    if len(given) > 1:
        raise Refused("repeated-header", f"The header {name} is there more than once: one may be the client's own.")
    return given[0] if given else ""
