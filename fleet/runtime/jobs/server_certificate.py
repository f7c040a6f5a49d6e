"""Job: the server certificate of the listeners, renewed in time and reloaded on request."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from cryptography.x509 import Certificate
from msgspec import Struct

from fleet.config.clock import Clock
from fleet.config.logs import log_event
from fleet.config.settings import Settings
from fleet.domain.errors import FleetError
from fleet.home.authorities import Authorities, complete_cross_certificates, read_authorities
from fleet.home.layout import Home, settings_of
from fleet.home.pki import operators_authority, renew_server_certificate, server_identity
from fleet.home.reloading_ca import LiveAuthorities, client_anchors
from fleet.home.server_check import must_verify, server_warning
from fleet.tls.contexts import ClientTrust, ContextSource, ServerIdentity, server_context

log = logging.getLogger("fleet")

Stapler = Callable[[Certificate], Callable[[], bytes]]
"""Makes what gives the OCSP answer about the server's certificate."""

MQTT_ALPN = (b"mqtt", b"x-amzn-mqtt-ca")
"""Names of MQTT in ALPN: IANA's, and AWS IoT's for clients with a certificate."""
WSS_ALPN = (b"http/1.1", *MQTT_ALPN)
"""A WebSocket begins as HTTP (RFC 6455, 1.2), which browsers offer."""
RENEWAL_CHECK_SECONDS = 86_400.0
_TROUBLE = (FleetError, OSError, ValueError)
RETRY_SECONDS = 5.0  # until connections bring another attempt after a failed reload


class Contexts(Struct):
    """TLS contexts of the listeners. MQTT, over WebSocket too, requires a client certificate, EST and the API accept
    none as well. The operators' CA is trusted by the API only, manufacturers' CAs by EST only. EST alone completes the
    handshake with an expired certificate, as a model may grant a grace period.
    """

    mqtt: ContextSource
    wss: ContextSource
    est: ContextSource
    http: ContextSource
    clock: Clock
    identity: ServerIdentity
    """The certificate that they present."""
    manufacturers: Sequence[Certificate] = ()
    """To be trusted by EST from the next successful reload on."""
    stapler: Stapler | None = None
    """None: nothing is stapled."""
    _trusted: tuple[Certificate, ...] = ()
    """Anchors of the contexts, but for the operators' CA."""
    _retry_at: float | None = None
    """When to reload again after a failure, by the monotonic clock."""

    @classmethod
    def of(
        cls,
        home: Home,
        clock: Clock,
        authorities: Authorities | None = None,
        manufacturers: Sequence[Certificate] = (),
        stapler: Stapler | None = None,
    ) -> "Contexts":
        """`authorities`: the CAs to trust, if they have been read already.

        Raises: Invalid (`bad-server-chain` and others), OSError, ValueError.
        """
        authorities = authorities or read_authorities(home, wait=False)
        identity = _verified(home, authorities, stapler)
        sources = _sources(home, clock, authorities, identity, manufacturers)
        trusted = _trusted(authorities, manufacturers)
        return cls(*sources, clock, identity, tuple(manufacturers), stapler, _trusted=trusted)

    def by_listener(self, name: str) -> ContextSource | None:
        """None: it has no TLS. Raises: KeyError: it is none of the listeners."""
        return {"mqtt": self.mqtt, "wss": self.wss, "est": self.est, "http": self.http, "publish": None}[name]

    @property
    def _sources(self) -> tuple[ContextSource, ...]:
        return self.mqtt, self.wss, self.est, self.http

    def trust(self, home: Home, manufacturers: Sequence[Certificate]) -> None:
        """EST trusts exactly these manufacturers' CAs, from the next connection on."""
        if tuple(manufacturers) != self.manufacturers:
            self.manufacturers = tuple(manufacturers)
            self.reload(home)

    def follow(self, authorities: LiveAuthorities, home: Home) -> None:
        """Trust what `authorities` hold when a connection begins."""

        def look() -> None:
            recent = authorities.recent
            if self._retry_at is not None and time.monotonic() >= self._retry_at:
                self.reload(home, recent)

        authorities.changed = lambda: self.reload(home, authorities.current)
        for source in self._sources:
            source.look = look

    def reload(self, home: Home, authorities: Authorities | None = None) -> None:
        """An unusable certificate leaves the one that is presented in place, and the connections that come later try
        again. The CAs are trusted all the same: what the present one issues must connect, what a removed one did not.
        """
        try:
            authorities = authorities or read_authorities(home, wait=False)
            trusted, unusable = _trusted(authorities, self.manufacturers), None
            try:
                identity = _verified(home, authorities, self.stapler)
            except _TROUBLE as error:
                if trusted == self._trusted:
                    raise
                identity, unusable = self.identity, error
            fresh = _sources(home, self.clock, authorities, identity, self.manufacturers)
        except _TROUBLE as error:
            self._failed(error)
            return
        self.identity, self._trusted, self._retry_at = identity, trusted, None
        for old, new in zip(self._sources, fresh, strict=True):
            old.swap(new.current)
        if unusable is not None:
            self._failed(unusable)
            return
        log_event(log, logging.INFO, "reload", outcome="ok", reloaded="certificates")
        _warn(home, self.clock)

    def _failed(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        is_missing = isinstance(error, FileNotFoundError)
        advice = {"advice": "put the file back from a backup, then send SIGHUP"} if is_missing else {}
        log_event(log, logging.ERROR, "reload", outcome="failed", kept="old", reason=error, **advice)


def _verified(home: Home, authorities: Authorities, stapler: Stapler | None) -> ServerIdentity:
    """What the listeners are to present, which clients accept.

    Raises: Invalid (`bad-server-chain` and others), OSError, ValueError.
    """
    identity = server_identity(home)
    must_verify(home, identity, authorities.own)
    return identity if stapler is None else replace(identity, staple=stapler(identity.certificate_chain[0]))


def _trusted(authorities: Authorities, manufacturers: Sequence[Certificate]) -> tuple[Certificate, ...]:
    anchors, _ = client_anchors(authorities)
    return (*anchors, *manufacturers)


def _sources(
    home: Home,
    clock: Clock,
    authorities: Authorities,
    identity: ServerIdentity,
    manufacturers: Sequence[Certificate],
) -> tuple[ContextSource, ContextSource, ContextSource, ContextSource]:
    """For MQTT, MQTT over WebSocket, EST and HTTP."""
    anchors, tenants = client_anchors(authorities)

    def source(
        trust: ClientTrust, *, require_client: bool = False, expired_leaf: bool = False, alpn: Sequence[bytes] = ()
    ) -> ContextSource:
        rules = {"require_client": require_client, "expired_leaf": expired_leaf}
        return ContextSource(server_context(identity, trust, clock=clock, alpn=alpn, **rules))

    devices = ClientTrust(anchors, tenants)
    mqtt = source(devices, require_client=True, alpn=MQTT_ALPN)
    wss = source(devices, require_client=True, alpn=WSS_ALPN)
    est = source(replace(devices, manufacturers=manufacturers), expired_leaf=True)
    http = source(replace(devices, anchors=(*anchors, operators_authority(home, clock()))))
    return mqtt, wss, est, http


def renew_if_due(home: Home, settings: Settings, clock: Clock) -> bool:
    """Whether it was renewed. A failure is logged: the present certificate may still be valid."""
    try:
        complete_cross_certificates(home, clock())
    except (FleetError, OSError, ValueError) as error:
        log_event(log, logging.ERROR, "cross-certificates", outcome="not-made", reason=error)
    try:
        why = renew_server_certificate(home, settings, clock())
    except (FleetError, OSError, ValueError) as error:
        log_event(log, logging.ERROR, "server-certificate", outcome="not-renewed", reason=error)
        return False
    if why:
        log_event(log, logging.INFO, "server-certificate", outcome="renewed", reason=why)
    _warn(home, clock, settings)
    return bool(why)


def _warn(home: Home, clock: Clock, settings: Settings | None = None) -> None:
    try:
        warning = server_warning(home, settings or settings_of(home), clock())
    except (FleetError, OSError, ValueError) as error:
        is_other = isinstance(error, FleetError) and error.code == "bad-settings"  # nothing about the certificate
        warning = "" if is_other else str(error)
    if warning:
        log_event(log, logging.WARNING, "server-certificate", outcome="needs-attention", reason=warning)


async def renew_daily(home: Home, settings: Callable[[], Settings], clock: Clock, renewed: Callable[[], None]) -> None:
    """Check daily until cancelled, and call `renewed` each time the certificate has been replaced."""
    while True:
        await asyncio.sleep(RENEWAL_CHECK_SECONDS)
        if renew_if_due(home, settings(), clock):
            renewed()
