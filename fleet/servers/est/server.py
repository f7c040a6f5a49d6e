"""EST's handlers: decode, ask, encode. Whatever is not named here is refused."""

import functools
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime

from aiohttp import web
from cryptography import x509

from fleet.domain.application import EnrollmentRequest, Names
from fleet.domain.credential import Credential
from fleet.domain.device import device_id
from fleet.domain.errors import Invalid, Unauthenticated
from fleet.domain.ports import Issuer, Registry, Tenants
from fleet.servers.est.paths import Route, route
from fleet.servers.est.proof import CHALLENGE, basic_credentials, request_of
from fleet.servers.http import Exchange, HttpLimits, HttpRefused, HttpServer, answer
from fleet.services.enrollment import enroll, reenroll
from fleet.wire.csr import decode_csr, names_of_certificate
from fleet.wire.est import BODY_SIZE_MAX, CERTS_ONLY, decode_body, encode_body, encode_certs_only, is_pkcs10

Clock = Callable[[], datetime]

EstServer = HttpServer

PLAIN = "text/plain; charset=utf-8"
# RFC 8951 receivers ignore Content-Transfer-Encoding; BouncyCastle takes the body for DER without it.
CERTS_HEADERS = {"Content-Type": CERTS_ONLY, "Content-Transfer-Encoding": "base64"}


def build_est_server(
    registry: Registry,
    issuer: Issuer,
    tenants: Tenants,
    *,
    clock: Clock,
    limits: HttpLimits | None = None,
) -> EstServer:
    """An EST server, to be given to `fleet.tls.listener.listen` as its protocol factory.

    `tenants`: whose CAs cacerts hands out (RFC 7030, 4.1.3).
    """
    handlers = _Handlers(registry, issuer, tenants, clock)
    return HttpServer("est", handlers.handle, refusal, limits or HttpLimits())


class _Handlers:
    def __init__(self, registry: Registry, issuer: Issuer, tenants: Tenants, clock: Clock) -> None:
        self._registry, self._issuer, self._tenants, self._clock = registry, issuer, tenants, clock
        self._operations: dict[str, Callable[[Exchange, Route], Awaitable[web.Response]]] = {
            "cacerts": self.cacerts,
            "simpleenroll": self.simpleenroll,
            "simplereenroll": self.simplereenroll,
        }

    async def handle(self, exchange: Exchange) -> web.Response:
        asked = route(exchange.request.method, exchange.request.rel_url.raw_path)
        exchange.event = f"est.{asked.operation}"
        return await self._operations[asked.operation](exchange, asked)

    async def cacerts(self, exchange: Exchange, asked: Route) -> web.Response:
        """RFC 7030, 4.1: a tenant's CAs under its label or a label of its models, the fleet's own under any other.
        Without a label: those of the device whose certificate is presented, or the fleet's own.

        A label that leads nowhere is answered like one that leads to a model of the fleet's own: asking tells nobody
        which models exist, but those of a tenant, whose CA is no secret.
        """
        chain = self._tenants.chain_der(await self._tenant_of(exchange, asked.label))
        return certs_only(exchange, _cacerts(chain or self._tenants.chain_der("") or ()))

    async def _tenant_of(self, exchange: Exchange, label: str | None) -> str:
        names = self._tenants.names()
        if not names:
            return ""
        if label is None:
            # A device whose model has moved to a tenant asks as it always did, and renews under another CA.
            peer = exchange.peer
            facts = await self._registry.holder_facts(peer.fingerprint) if peer.fingerprint else None
            return facts.model.rules.tenant if facts is not None and facts.model is not None else ""
        if label in names:
            return label
        model = await self._registry.model(label)
        return model.rules.tenant if model is not None else ""

    async def simpleenroll(self, exchange: Exchange, asked: Route) -> web.Response:
        """RFC 7030, 4.2.1."""
        credentials = basic_credentials(exchange.request.headers.get("Authorization"))
        if credentials is None and exchange.peer.fingerprint is None:
            raise Unauthenticated("no-credentials", "A token or a station's certificate is needed.")
        request = await read_request(exchange)
        credential = await enroll(
            self._registry, self._issuer, exchange.peer, credentials, request, asked.label, self._clock()
        )
        return issued(exchange, credential)

    async def simplereenroll(self, exchange: Exchange, asked: Route) -> web.Response:
        """RFC 7030, 4.2.2."""
        if exchange.peer.certificate_der is None:
            raise Unauthenticated("no-certificate", "Renewing takes the device's current certificate.")
        request = await read_request(exchange)
        current = Names(*names_of_certificate(x509.load_der_x509_certificate(exchange.peer.certificate_der)))
        credential = await reenroll(
            self._registry, self._issuer, exchange.peer, request, asked.label, current, self._clock()
        )
        return issued(exchange, credential)


@functools.lru_cache(maxsize=256)
def _cacerts(chain_der: tuple[bytes, ...]) -> bytes:
    return encode_certs_only([x509.load_der_x509_certificate(each) for each in chain_der])


async def read_request(exchange: Exchange) -> EnrollmentRequest:
    """The CSR in the body, verified.

    Raises: HttpRefused, WireError, Refused.
    """
    if not is_pkcs10(exchange.request.headers.get("Content-Type")):
        raise HttpRefused(415, "bad-content-type", "The body must be application/pkcs10.")
    csr = decode_csr(decode_body(await exchange.body(BODY_SIZE_MAX)))
    request = request_of(csr, exchange.peer)
    exchange.device = _loggable(request)
    return request


def _loggable(request: EnrollmentRequest) -> str:
    try:
        return device_id(request.names.common_name())
    except Invalid:
        return "-"


def issued(exchange: Exchange, credential: Credential) -> web.Response:
    """RFC 7030, 4.2.3: only the certificate issued."""
    exchange.serial = credential.serial
    return certs_only(exchange, encode_certs_only([x509.load_der_x509_certificate(credential.der)]))


def certs_only(exchange: Exchange, message: bytes) -> web.Response:
    # libest reads lines of up to about 1 KB; strongSwan reads one line only, and sends no User-Agent.
    wrap = exchange.request.headers.get("User-Agent", "").startswith("libest")
    return answer(200, encode_body(message, wrap=wrap), CERTS_HEADERS)


def refusal(status: int, code: str, message: str, headers: Mapping[str, str]) -> web.Response:
    """One sentence for people, and the code for programs."""
    challenge = CHALLENGE if status == 401 else {}
    return answer(status, f"{message} ({code})\n".encode(), {"Content-Type": PLAIN, **challenge, **headers})
