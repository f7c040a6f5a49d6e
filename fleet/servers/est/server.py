"""Handlers of EST's operations: decode, call the service, encode. An operation not listed here is refused."""

import functools
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from cryptography import x509

from fleet.config.clock import Clock
from fleet.config.timestamps import rfc3339
from fleet.domain.changes import AuditEntry
from fleet.domain.credential import Credential
from fleet.domain.errors import Invalid, Unauthenticated, Unavailable
from fleet.domain.issuance_context import EnrollmentRequest, Names
from fleet.domain.model_rules import EXTENDED_KEY_USAGES
from fleet.domain.peer import Peer
from fleet.domain.ports import Tenants
from fleet.domain.rates import Rates
from fleet.domain.recent import Recent
from fleet.servers.est.device_reports import take_report
from fleet.servers.est.idevid_certificate import idevid_certificate
from fleet.servers.est.keygen import ServerKeyGenerator, multipart
from fleet.servers.est.paths import (
    DEVICE_REPORT,
    RENEWAL_INFO,
    SERVED,
    SERVER_TRUST_UPDATE,
    TRUST_UPDATE,
    Route,
    route,
)
from fleet.servers.est.proof import CHALLENGE, basic_credentials, rate_key_of, request_of
from fleet.servers.http import Exchange, HttpServer, plain_refusal
from fleet.servers.http_connection import HttpLimits
from fleet.servers.http_response import Response
from fleet.servers.refusals import HttpRefused, refusal_of
from fleet.services.credentials import Submission, accepts_unauthenticated, no_credentials
from fleet.services.csr_attributes import model_to_ask_for
from fleet.services.enrollment import NO_DEVICE, Attempt, RegistrationAuthority
from fleet.services.identity import audit_actor_of
from fleet.services.refusals import write_row
from fleet.services.renewal import fingerprint_of, renewal_window
from fleet.wire.csr import Csr, decode_csr
from fleet.wire.csrattrs import CsrAttributes, encode_csrattrs
from fleet.wire.errors import WireError
from fleet.wire.est import BODY_SIZE_MAX, CERTS_ONLY, CSRATTRS, decode_body, encode_body, is_pkcs10
from fleet.wire.key_package import Sealer
from fleet.wire.key_types import RSA
from fleet.wire.names import names_of_certificate
from fleet.wire.pkcs7 import join_signed_data
from fleet.wire.trust_update import CONTENT_TYPE

ACTIONS = {
    "simpleenroll": "device.enroll",
    "simplereenroll": "device.reenroll",
    "serverkeygen": "device.serverkeygen",
}
"""Name in the audit of each operation that issues a certificate."""
THROTTLED, TOO_MANY = "est.request", "too-many-requests"
ACTORS_MAX = 4096  # certificates of clients that asked too often; the first go first
RENEWAL_INFO_SECONDS = 6 * 3600  # between two requests of one client: a campaign takes effect within that time
# RFC 8951 receivers ignore Content-Transfer-Encoding; BouncyCastle takes the body for DER without it.
CERTS_HEADERS = {"Content-Type": CERTS_ONLY, "Content-Transfer-Encoding": "base64"}
CSRATTRS_HEADERS = {"Content-Type": CSRATTRS, "Content-Transfer-Encoding": "base64"}


def build_est_server(
    authority: RegistrationAuthority,
    tenants: Tenants,
    *,
    sealer: Callable[[], Sealer],
    clock: Clock,
    limits: HttpLimits | None = None,
    rates: Rates | None = None,
) -> HttpServer:
    """An EST server, the protocol factory of `fleet.tls.listener.listen`.

    `tenants`: whose CAs cacerts returns (RFC 7030, 4.1.3). `sealer`: signs keys that are generated here and encrypted
    for a device (4.4.2).
    """
    handlers = _Handlers(replace(authority, read_idevid=idevid_certificate), tenants, sealer, clock)
    return HttpServer(
        "est",
        handlers.handle,
        refusal,
        limits or HttpLimits(),
        rates,
        rate_key_of,
        on_throttled=handlers.throttled,
        adapted=without_text,
    )


class _Handlers:
    def __init__(
        self, authority: RegistrationAuthority, tenants: Tenants, sealer: Callable[[], Sealer], clock: Clock
    ) -> None:
        self._authority, self._tenants, self._sealer, self._clock = authority, tenants, sealer, clock
        self._registry = authority.registry
        # By certificate, of clients that asked too often
        self._actors: Recent[bytes, tuple[str, dict[str, str]]] = Recent(ACTORS_MAX)
        self._others: dict[str, Callable[[Exchange, Route], Awaitable[Response]]] = {
            "cacerts": self.cacerts,
            "csrattrs": self.csrattrs,
            RENEWAL_INFO: self.renewal_info,
            TRUST_UPDATE: self.trust_update,
            SERVER_TRUST_UPDATE: self.trust_update,
            DEVICE_REPORT: self.device_report,
        }
        self._issuing: dict[str, Callable[[Exchange, Route, Attempt], Awaitable[Response]]] = {
            "simpleenroll": self.simpleenroll,
            "simplereenroll": self.simplereenroll,
            "serverkeygen": self.serverkeygen,
        }

    async def handle(self, exchange: Exchange) -> Response:
        asked = route(exchange.request.method, exchange.request.url.raw_path)
        operation = asked.operation
        exchange.event, exchange.is_open = f"est.{operation}", SERVED[operation].is_open
        if operation in self._others:
            return await self._others[operation](exchange, asked)
        # Whatever is refused below, unreadable requests included, is in the audit when the block is left.
        async with self._authority.attempt(ACTIONS[operation], exchange.peer, self._clock()) as attempt:
            return await self._issuing[operation](exchange, asked, attempt)

    async def cacerts(self, exchange: Exchange, asked: Route) -> Response:
        """RFC 7030, 4.1: a tenant's CAs under its label or one of its models', the fleet's own under any other. Without
        a label: those of the device whose certificate is presented, or the fleet's own.

        An unknown label is answered like one of a model of the fleet's own: the answer reveals no model but those of a
        tenant, whose CA is no secret.
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

    async def simpleenroll(self, exchange: Exchange, asked: Route, attempt: Attempt) -> Response:
        """RFC 7030, 4.2.1."""
        credentials = basic_credentials(exchange)
        has_none = credentials is None and exchange.peer.fingerprint is None
        if has_none and not await accepts_unauthenticated(self._registry, asked.label, attempt.now):
            raise no_credentials()
        request = read_request(exchange, await read_csr(exchange))
        submission = Submission(request, credentials, asked.label, waits_for_challenge=waits_for_challenge(exchange))
        return issued(exchange, await attempt.enroll(submission))

    async def simplereenroll(self, exchange: Exchange, asked: Route, attempt: Attempt) -> Response:
        """RFC 7030, 4.2.2."""
        current = names_presented(exchange)
        if current is None:
            raise Unauthenticated("no-certificate", "Renewal needs the device's current certificate.")
        request = read_request(exchange, await read_csr(exchange))
        return issued(exchange, await attempt.reenroll(Submission(request, None, asked.label, current)))

    async def serverkeygen(self, exchange: Exchange, asked: Route, attempt: Attempt) -> Response:
        """RFC 7030, 4.4: as simpleenroll and simplereenroll, for a key of the CSR's type that is generated here."""
        credentials = basic_credentials(exchange)
        if credentials is None and exchange.peer.fingerprint is None:
            raise Unauthenticated("no-credentials", "A token or a certificate is needed.")
        csr = await read_csr(exchange)
        generator = ServerKeyGenerator(csr, exchange.peer, self._sealer)
        request = read_request(exchange, csr)
        if wants_lines(exchange) and request.key_type != RSA.name:
            raise Invalid(
                "key-too-short",
                f"libest cannot read a generated key of type {request.key_type}: its answer is too short for it.",
                "Send a CSR with an RSA key.",
            )
        submission = Submission(request, credentials, asked.label, names_presented(exchange))
        credential = await attempt.enroll_with_new_key(submission, generator)
        exchange.serial = credential.serial
        wrap = wants_lines(exchange)
        certificates = encode_body(join_signed_data((credential.der,)), wrap=wrap)
        content_type, body = multipart(*generator.key_part(wrap=wrap), certificates)
        return Response(200, body, {"Content-Type": content_type, "Cache-Control": "no-store"})

    async def throttled(self, exchange: Exchange) -> None:
        """At most one audit row a minute for each client that sends too many requests; no registry access otherwise."""
        peer, now = exchange.peer, self._clock()
        with suppress(Unavailable):  # a later row counts it
            actor, detail = await self._actor_of(peer)
            entry = AuditEntry(now, actor, THROTTLED, NO_DEVICE, TOO_MANY, peer.address, detail)
            await write_row(self._registry, entry)

    async def _actor_of(self, peer: Peer) -> tuple[str, dict[str, str]]:
        known = self._actors.get(peer.fingerprint) if peer.fingerprint else None
        if known is not None:
            return known
        found = await audit_actor_of(self._registry, peer)
        if peer.fingerprint:
            self._actors.put(peer.fingerprint, found)
        return found

    async def csrattrs(self, exchange: Exchange, asked: Route) -> Response:
        """RFC 7030, 4.5, and RFC 9908: CSR attributes of the model; 204 when the model is not known."""
        credentials = basic_credentials(exchange)  # none are needed, but wrong ones are refused
        model = await model_to_ask_for(self._registry, exchange.peer, credentials, asked.label, self._clock())
        if model is None:
            return Response(204, b"", {})
        profile = model.rules.profile
        wanted = CsrAttributes(
            key_types=model.key_types,
            extended_key_usages=tuple(EXTENDED_KEY_USAGES[name] for name in profile.extended_key_usages),
            organisation=profile.organisation,
            binding=profile.binding,
        )
        is_libest = wants_lines(exchange)
        attributes = encode_csrattrs(wanted, ends_in_oid=is_libest)
        return Response(200, encode_body(attributes, wrap=is_libest), CSRATTRS_HEADERS)

    async def trust_update(self, exchange: Exchange, asked: Route) -> Response:
        """The roots that are retired: of the tenant of the device that presents its certificate, or the fleet's own,
        below which the server's certificate is."""
        tenant = await self._tenant_of(exchange, None) if asked.operation == TRUST_UPDATE else ""
        update = self._tenants.trust_update(tenant)
        return Response(200, update, {"Content-Type": CONTENT_TYPE}) if update else Response(204, b"", {})

    async def device_report(self, exchange: Exchange, asked: Route) -> Response:
        """The device's report, in place of the one before."""
        return await take_report(self._registry, exchange, self._clock())

    async def renewal_info(self, exchange: Exchange, asked: Route) -> Response:
        """Suggested renewal window (RFC 9773, 4.2), for any client that can name the certificate."""
        fingerprint = asked.fingerprint
        if asked.certificate_id is not None:
            fingerprint = await fingerprint_of(self._registry, *asked.certificate_id)
        window = await renewal_window(self._registry, fingerprint or b"")
        shown = {"suggestedWindow": {"start": rfc3339(window.start, "seconds"), "end": rfc3339(window.end, "seconds")}}
        headers = {"Content-Type": "application/json", "Retry-After": str(RENEWAL_INFO_SECONDS)}
        return Response(200, json.dumps(shown).encode(), headers)


@functools.lru_cache(maxsize=256)
def _cacerts(chain_der: tuple[bytes, ...]) -> bytes:
    return join_signed_data(chain_der)


async def read_csr(exchange: Exchange) -> Csr:
    """The CSR in the body, its signature verified. Raises: HttpRefused."""
    if not is_pkcs10(exchange.request.headers.get("Content-Type")):
        raise HttpRefused(415, "bad-content-type", "The body must be application/pkcs10.")
    body = await exchange.body(BODY_SIZE_MAX)
    try:
        return decode_csr(decode_body(body))
    except WireError as error:
        refused = refusal_of(error)
        raise HttpRefused(refused.status, refused.code, refused.message) from error


def read_request(exchange: Exchange, csr: Csr) -> EnrollmentRequest:
    """`csr` as the services take it; its device id goes into the log line, if it has one."""
    request = request_of(csr, exchange.peer)
    with suppress(Invalid):  # raised again, and audited, by the attempt
        exchange.holder = request.device_id
    return request


def names_presented(exchange: Exchange) -> Names | None:
    """Subject and SAN of the client certificate; None without one."""
    if exchange.peer.certificate_der is None:
        return None
    return Names(*names_of_certificate(x509.load_der_x509_certificate(exchange.peer.certificate_der)))


def issued(exchange: Exchange, credential: Credential) -> Response:
    """RFC 7030, 4.2.3: the issued certificate alone."""
    exchange.serial = credential.serial
    return certs_only(exchange, join_signed_data((credential.der,)))


def certs_only(exchange: Exchange, message: bytes) -> Response:
    return Response(200, encode_body(message, wrap=wants_lines(exchange)), CERTS_HEADERS)


def wants_lines(exchange: Exchange) -> bool:
    """libest reads lines of up to about 1 KB; strongSwan reads one line only, and sends no User-Agent."""
    return exchange.request.headers.get("User-Agent", "").startswith("libest")


def waits_for_challenge(exchange: Exchange) -> bool:
    """Whether the client may have credentials that it sends in answer to a 401 only: libest and BouncyCastle do so."""
    return wants_lines(exchange) or "User-Agent" not in exchange.request.headers


def refusal(status: int, code: str, message: str, headers: Mapping[str, str]) -> Response:
    return plain_refusal(status, code, message, {**(CHALLENGE if status == 401 else {}), **headers})


def without_text(exchange: Exchange, response: Response) -> Response:
    """BouncyCastle's client, which sends no User-Agent, reads no text of a challenge or of a 202, and takes the rest of
    the connection for lost when there is one.
    """
    is_plain = exchange.code == "no-credentials" or response.status == 202
    if not is_plain or "User-Agent" in exchange.request.headers:
        return response
    headers = {name: value for name, value in response.headers.items() if name != "Content-Type"}
    return Response(response.status, b"", headers)
