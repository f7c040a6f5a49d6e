"""EST's handlers: decode, ask, encode. Whatever is not named here is refused."""

import functools
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from aiohttp import web
from cryptography import x509

from fleet.domain.approval import DEFAULT_WAITING, WaitingLimits
from fleet.domain.changes import AuditEntry
from fleet.domain.credential import Credential
from fleet.domain.device import device_id
from fleet.domain.errors import Invalid, Unauthenticated
from fleet.domain.issuance_context import Names
from fleet.domain.model_rules import EXTENDED_KEY_USAGES
from fleet.domain.ports import Issuer, Registry, Tenants
from fleet.domain.rates import Rates
from fleet.servers.est.keygen import ServerKeyMaker, multipart
from fleet.servers.est.maker_certificate import maker_certificate
from fleet.servers.est.paths import OPEN, RENEWAL_INFO, Route, route
from fleet.servers.est.proof import CHALLENGE, basic_credentials, credential_of, request_of
from fleet.servers.http import Exchange, HttpLimits, HttpServer, answer
from fleet.servers.refusals import WIRE_CODES, HttpRefused
from fleet.services.audit_unreadable import record_unread
from fleet.services.authorization import Authoriser
from fleet.services.credentials import BasicCredentials, strangers_may_ask
from fleet.services.csr_attributes import model_to_ask_for
from fleet.services.enrollment import enroll, enroll_with_new_key, reenroll
from fleet.services.refusals import Refusals
from fleet.services.renewal import renewal_window
from fleet.wire.csr import Csr, decode_csr, names_of_certificate
from fleet.wire.csrattrs import CsrAttributes, encode_csrattrs
from fleet.wire.errors import WireError
from fleet.wire.est import BODY_SIZE_MAX, CERTS_ONLY, CSRATTRS, decode_body, encode_body, is_pkcs10
from fleet.wire.key_package import Sealer
from fleet.wire.pkcs7 import join_signed_data

Clock = Callable[[], datetime]

EstServer = HttpServer

HURRY, TOO_MANY = "est.request", "too-many-requests"
PLAIN = "text/plain; charset=utf-8"
# RFC 8951 receivers ignore Content-Transfer-Encoding; BouncyCastle takes the body for DER without it.
RENEWAL_INFO_SECONDS = 6 * 3600  # between two questions of one client: a campaign is heard of within that time
CERTS_HEADERS = {"Content-Type": CERTS_ONLY, "Content-Transfer-Encoding": "base64"}
CSRATTRS_HEADERS = {"Content-Type": CSRATTRS, "Content-Transfer-Encoding": "base64"}


def build_est_server(
    registry: Registry,
    issuer: Issuer,
    tenants: Tenants,
    *,
    sealer: Callable[[], Sealer],
    clock: Clock,
    limits: HttpLimits | None = None,
    rates: Rates | None = None,
    waiting: WaitingLimits = DEFAULT_WAITING,
    authoriser: Authoriser | None = None,
) -> EstServer:
    """An EST server, to be given to `fleet.tls.listener.listen` as its protocol factory.

    `tenants`: whose CAs cacerts hands out (RFC 7030, 4.1.3). `sealer`: who signs for keys that are made here and sealed
    for a device (4.4.2). `waiting`: how many requests may wait for an operator, and how long. `authoriser` asks the
    models' webhooks.
    """
    handlers = _Handlers(registry, issuer, tenants, sealer, clock, waiting, authoriser)
    return HttpServer(
        "est", handlers.handle, refusal, limits or HttpLimits(), rates, credential_of, note_hurry=handlers.hurried
    )


class _Handlers:
    def __init__(
        self,
        registry: Registry,
        issuer: Issuer,
        tenants: Tenants,
        sealer: Callable[[], Sealer],
        clock: Clock,
        waiting: WaitingLimits,
        authoriser: Authoriser | None,
    ) -> None:
        self._registry, self._issuer, self._sealer, self._clock = registry, issuer, sealer, clock
        self._tenants, self._waiting, self._authoriser = tenants, waiting, authoriser
        self._hurried = Refusals()
        self._operations: dict[str, Callable[[Exchange, Route], Awaitable[web.Response]]] = {
            "cacerts": self.cacerts,
            "simpleenroll": self.simpleenroll,
            "simplereenroll": self.simplereenroll,
            "serverkeygen": self.serverkeygen,
            "csrattrs": self.csrattrs,
            RENEWAL_INFO: self.renewal_info,
        }

    async def handle(self, exchange: Exchange) -> web.Response:
        asked = route(exchange.request.method, exchange.request.rel_url.raw_path)
        exchange.event, exchange.is_open = f"est.{asked.operation}", asked.operation in OPEN
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
        credentials = await self.basic(exchange, "device.enroll")
        shows_nothing = credentials is None and exchange.peer.fingerprint is None
        if shows_nothing and not await strangers_may_ask(self._registry, asked.label, self._clock()):
            message = "A token or a station's certificate is needed."
            raise await self.nothing(exchange, "device.enroll", "no-credentials", message)
        request = request_of(await self.csr(exchange, "device.enroll"), exchange.peer)
        credential = await enroll(
            self._registry,
            self._issuer,
            exchange.peer,
            credentials,
            request,
            asked.label,
            self._clock(),
            waiting=self._waiting,
            authoriser=self._authoriser,
            read_maker=maker_certificate,
        )
        return issued(exchange, credential)

    async def simplereenroll(self, exchange: Exchange, asked: Route) -> web.Response:
        """RFC 7030, 4.2.2."""
        current = names_presented(exchange)
        if current is None:
            message = "Renewing takes the device's current certificate."
            raise await self.nothing(exchange, "device.reenroll", "no-certificate", message)
        request = request_of(await self.csr(exchange, "device.reenroll"), exchange.peer)
        credential = await reenroll(
            self._registry, self._issuer, exchange.peer, request, asked.label, current, self._clock()
        )
        return issued(exchange, credential)

    async def serverkeygen(self, exchange: Exchange, asked: Route) -> web.Response:
        """RFC 7030, 4.4: as simpleenroll and simplereenroll, for a key of the kind of the CSR's own, made here."""
        credentials = await self.basic(exchange, "device.serverkeygen")
        if credentials is None and exchange.peer.fingerprint is None:
            message = "A token or a certificate is needed."
            raise await self.nothing(exchange, "device.serverkeygen", "no-credentials", message)
        csr = await self.csr(exchange, "device.serverkeygen")
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
            authoriser=self._authoriser,
            read_maker=maker_certificate,
        )
        exchange.serial = credential.serial
        wrap = wants_lines(exchange)
        certificates = join_signed_data((credential.der,))
        content_type, body = multipart(*maker.key_part(wrap=wrap), encode_body(certificates, wrap=wrap))
        return answer(200, body, {"Content-Type": content_type, "Cache-Control": "no-store"})

    async def csr(self, exchange: Exchange, action: str) -> Csr:
        """The CSR in the body, verified; one that is no good is in the audit when this raises."""
        try:
            return await read_csr(exchange)
        except WireError as error:
            await self.unread(exchange, action, WIRE_CODES[type(error)])
            raise
        except HttpRefused as error:  # too large, too slow, of another type
            await self.unread(exchange, action, error.code)
            raise

    async def basic(self, exchange: Exchange, action: str) -> BasicCredentials | None:
        """What HTTP Basic carries; a header that is no good is in the audit when this raises."""
        try:
            return basic_credentials(exchange.request.headers.get("Authorization"))
        except Unauthenticated as error:
            await self.unread(exchange, action, error.code)
            raise

    async def nothing(self, exchange: Exchange, action: str, code: str, message: str) -> Unauthenticated:
        """To be raised when nothing was shown that could be a right; it is in the audit then."""
        await self.unread(exchange, action, code)
        return Unauthenticated(code, message)

    async def unread(self, exchange: Exchange, action: str, code: str) -> None:
        await record_unread(self._registry, exchange.peer, action, code, self._clock())

    async def hurried(self, exchange: Exchange) -> None:
        """A row a minute for who asks too often; the others cost no look into the registry."""
        peer = exchange.peer
        who = peer.fingerprint.hex() if peer.fingerprint else "nobody"
        entry = AuditEntry(self._clock(), who, HURRY, "", TOO_MANY, peer.address)
        if self._hurried.row(entry) is not None:
            await record_unread(self._registry, peer, HURRY, TOO_MANY, entry.at)

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

    async def renewal_info(self, exchange: Exchange, asked: Route) -> web.Response:
        """When to renew, in the words of RFC 9773, 4.2. Open to anybody who knows the certificate: it tells no more."""
        window = await renewal_window(self._registry, asked.fingerprint or b"")
        shown = {"suggestedWindow": {"start": _rfc3339(window.start), "end": _rfc3339(window.end)}}
        headers = {"Content-Type": "application/json", "Retry-After": str(RENEWAL_INFO_SECONDS)}
        return answer(200, json.dumps(shown).encode(), headers)


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@functools.lru_cache(maxsize=256)
def _cacerts(chain_der: tuple[bytes, ...]) -> bytes:
    return join_signed_data(chain_der)


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
    return certs_only(exchange, join_signed_data((credential.der,)))


def certs_only(exchange: Exchange, message: bytes) -> web.Response:
    return answer(200, encode_body(message, wrap=wants_lines(exchange)), CERTS_HEADERS)


def wants_lines(exchange: Exchange) -> bool:
    """libest reads lines of up to about 1 KB; strongSwan reads one line only, and sends no User-Agent."""
    return exchange.request.headers.get("User-Agent", "").startswith("libest")


def refusal(status: int, code: str, message: str, headers: Mapping[str, str]) -> web.Response:
    """One sentence for people, and the code for programs."""
    challenge = CHALLENGE if status == 401 else {}
    return answer(status, f"{message} ({code})\n".encode(), {"Content-Type": PLAIN, **challenge, **headers})
