"""EST's handlers: decode, ask, encode. Whatever is not named here is refused."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

from aiohttp import web
from cryptography import x509

from fleet.domain.application import Names
from fleet.domain.credential import Credential
from fleet.domain.device import device_id
from fleet.domain.errors import Invalid, Unauthenticated
from fleet.domain.model_rules import EXTENDED_KEY_USAGES
from fleet.domain.ports import Issuer, Registry
from fleet.servers.est.keygen import ServerKeyMaker, multipart
from fleet.servers.est.maker_certificate import maker_certificate
from fleet.servers.est.paths import Route, route
from fleet.servers.est.proof import CHALLENGE, basic_credentials, request_of
from fleet.servers.http import Exchange, HttpLimits, HttpRefused, HttpServer, answer
from fleet.services.csr_attributes import model_to_ask_for
from fleet.services.enrollment import enroll, enroll_with_new_key, reenroll
from fleet.services.evidence import strangers_may_ask
from fleet.wire.csr import Csr, decode_csr, names_of_certificate
from fleet.wire.csrattrs import CsrAttributes, encode_csrattrs
from fleet.wire.est import BODY_SIZE_MAX, CERTS_ONLY, CSRATTRS, decode_body, encode_body, encode_certs_only, is_pkcs10
from fleet.wire.key_package import Sealer

Clock = Callable[[], datetime]

EstServer = HttpServer

PLAIN = "text/plain; charset=utf-8"
# RFC 8951 receivers ignore Content-Transfer-Encoding; BouncyCastle takes the body for DER without it.
CERTS_HEADERS = {"Content-Type": CERTS_ONLY, "Content-Transfer-Encoding": "base64"}
CSRATTRS_HEADERS = {"Content-Type": CSRATTRS, "Content-Transfer-Encoding": "base64"}


def build_est_server(
    registry: Registry,
    issuer: Issuer,
    authority: Sequence[x509.Certificate],
    *,
    sealer: Callable[[], Sealer],
    clock: Clock,
    limits: HttpLimits | None = None,
) -> EstServer:
    """An EST server, to be given to `fleet.tls.listener.listen` as its protocol factory.

    `authority`: what cacerts answers, root first, then every certificate below it (RFC 7030, 4.1.3).
    `sealer`: who signs for keys that are made here and sealed for a device (4.4.2).
    """
    handlers = _Handlers(registry, issuer, authority, sealer, clock)
    return HttpServer("est", handlers.handle, refusal, limits or HttpLimits())


class _Handlers:
    def __init__(
        self,
        registry: Registry,
        issuer: Issuer,
        authority: Sequence[x509.Certificate],
        sealer: Callable[[], Sealer],
        clock: Clock,
    ) -> None:
        self._registry, self._issuer, self._sealer, self._clock = registry, issuer, sealer, clock
        self._cacerts = encode_certs_only(authority)
        self._operations: dict[str, Callable[[Exchange, Route], Awaitable[web.Response]]] = {
            "cacerts": self.cacerts,
            "simpleenroll": self.simpleenroll,
            "simplereenroll": self.simplereenroll,
            "serverkeygen": self.serverkeygen,
            "csrattrs": self.csrattrs,
        }

    async def handle(self, exchange: Exchange) -> web.Response:
        asked = route(exchange.request.method, exchange.request.rel_url.raw_path)
        exchange.event = f"est.{asked.operation}"
        return await self._operations[asked.operation](exchange, asked)

    async def cacerts(self, exchange: Exchange, asked: Route) -> web.Response:
        """RFC 7030, 4.1. One CA serves every label, and nobody learns from this which models exist."""
        return certs_only(exchange, self._cacerts)

    async def simpleenroll(self, exchange: Exchange, asked: Route) -> web.Response:
        """RFC 7030, 4.2.1."""
        credentials = basic_credentials(exchange.request.headers.get("Authorization"))
        shows_nothing = credentials is None and exchange.peer.fingerprint is None
        if shows_nothing and not await strangers_may_ask(self._registry, asked.label):
            raise Unauthenticated("no-credentials", "A token or a station's certificate is needed.")
        request = request_of(await read_csr(exchange), exchange.peer)
        credential = await enroll(
            self._registry,
            self._issuer,
            exchange.peer,
            credentials,
            request,
            asked.label,
            self._clock(),
            read_maker=maker_certificate,
        )
        return issued(exchange, credential)

    async def simplereenroll(self, exchange: Exchange, asked: Route) -> web.Response:
        """RFC 7030, 4.2.2."""
        current = names_presented(exchange)
        if current is None:
            raise Unauthenticated("no-certificate", "Renewing takes the device's current certificate.")
        request = request_of(await read_csr(exchange), exchange.peer)
        credential = await reenroll(
            self._registry, self._issuer, exchange.peer, request, asked.label, current, self._clock()
        )
        return issued(exchange, credential)

    async def serverkeygen(self, exchange: Exchange, asked: Route) -> web.Response:
        """RFC 7030, 4.4: as simpleenroll and simplereenroll, for a key of the kind of the CSR's own, made here."""
        credentials = basic_credentials(exchange.request.headers.get("Authorization"))
        if credentials is None and exchange.peer.fingerprint is None:
            raise Unauthenticated("no-credentials", "A token or a certificate is needed.")
        csr = await read_csr(exchange)
        maker = ServerKeyMaker(csr, exchange.peer, self._sealer)
        request = request_of(csr, exchange.peer)
        current = names_presented(exchange)
        now = self._clock()
        credential = await enroll_with_new_key(
            self._registry,
            self._issuer,
            exchange.peer,
            credentials,
            request,
            asked.label,
            current,
            maker,
            now,
            read_maker=maker_certificate,
        )
        exchange.serial = credential.serial
        wrap = wants_lines(exchange)
        certificates = encode_certs_only([x509.load_der_x509_certificate(credential.der)])
        content_type, body = multipart(*maker.key_part(wrap=wrap), encode_body(certificates, wrap=wrap))
        return answer(200, body, {"Content-Type": content_type, "Cache-Control": "no-store"})

    async def csrattrs(self, exchange: Exchange, asked: Route) -> web.Response:
        """RFC 7030, 4.5, and RFC 9908: what the model wants to see in a CSR; 204 when we do not know the model."""
        try:
            credentials = basic_credentials(exchange.request.headers.get("Authorization"))
        except Unauthenticated:
            credentials = None  # nobody needs any here
        model = await model_to_ask_for(self._registry, exchange.peer, credentials, asked.label, self._clock())
        if model is None:
            return answer(204, b"", {})
        profile = model.rules.profile
        wanted = CsrAttributes(
            key_types=model.key_types,
            extended_key_usages=tuple(EXTENDED_KEY_USAGES[name] for name in profile.extended_key_usages),
            organisation=profile.organisation,
            binding=profile.binding,
        )
        return answer(200, encode_body(encode_csrattrs(wanted), wrap=wants_lines(exchange)), CSRATTRS_HEADERS)


async def read_csr(exchange: Exchange) -> Csr:
    """The CSR in the body, verified.

    Raises: HttpRefused, WireError, Refused.
    """
    if not is_pkcs10(exchange.request.headers.get("Content-Type")):
        raise HttpRefused(415, "bad-content-type", "The body must be application/pkcs10.")
    csr = decode_csr(decode_body(await exchange.body(BODY_SIZE_MAX)))
    exchange.device = _loggable(csr)
    return csr


def _loggable(csr: Csr) -> str:
    try:
        return device_id(Names(csr.subject, csr.alt_names).common_name())
    except Invalid:
        return "-"


def names_presented(exchange: Exchange) -> Names | None:
    """Those in the certificate that the client presented; None when it presented none."""
    if exchange.peer.certificate_der is None:
        return None
    return Names(*names_of_certificate(x509.load_der_x509_certificate(exchange.peer.certificate_der)))


def issued(exchange: Exchange, credential: Credential) -> web.Response:
    """RFC 7030, 4.2.3: only the certificate issued."""
    exchange.serial = credential.serial
    return certs_only(exchange, encode_certs_only([x509.load_der_x509_certificate(credential.der)]))


def certs_only(exchange: Exchange, message: bytes) -> web.Response:
    return answer(200, encode_body(message, wrap=wants_lines(exchange)), CERTS_HEADERS)


def wants_lines(exchange: Exchange) -> bool:
    """libest reads lines of up to about 1 KB; strongSwan reads one line only, and sends no User-Agent."""
    return exchange.request.headers.get("User-Agent", "").startswith("libest")


def refusal(status: int, code: str, message: str, headers: Mapping[str, str]) -> web.Response:
    """One sentence for people, and the code for programs."""
    challenge = CHALLENGE if status == 401 else {}
    return answer(status, f"{message} ({code})\n".encode(), {"Content-Type": PLAIN, **challenge, **headers})
