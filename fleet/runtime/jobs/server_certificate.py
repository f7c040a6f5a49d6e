"""Job: the server certificate of the listeners, renewed in time and reloaded on request."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cryptography.x509 import Certificate

from fleet.config.clock import Clock
from fleet.config.logs import log_event
from fleet.config.settings import Settings
from fleet.domain.errors import FleetError
from fleet.home.authorities import Authorities, complete_cross_certificates, read_authorities
from fleet.home.layout import Home, settings_of
from fleet.home.pki import operators_authority, renew_server_certificate, server_identity
from fleet.home.reloading_ca import LiveAuthorities, client_anchors
from fleet.home.server_check import must_verify, server_warning
from fleet.tls.contexts import ClientTrust, ContextSource, server_context

log = logging.getLogger("fleet")

Stapler = Callable[[Certificate], Callable[[], bytes]]
"""Makes what gives the OCSP answer about the server's certificate."""

RENEWAL_CHECK_SECONDS = 86_400.0
RETRY_SECONDS = 5.0  # until connections bring another attempt after a failed reload


@dataclass(slots=True)
class Contexts:
    """TLS contexts of the three listeners. MQTT requires a client certificate, EST and the API accept none as well. The
    operators' CA is trusted by the API only, manufacturers' CAs by EST only. EST alone completes the handshake with an
    expired certificate, as a model may grant a grace period.
    """

    mqtt: ContextSource
    est: ContextSource
    http: ContextSource
    clock: Clock
    manufacturers: Sequence[Certificate] = ()
    """To be trusted by EST from the next successful reload on."""
    stapler: Stapler | None = None
    """None: nothing is stapled."""
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
        anchors, tenants = client_anchors(authorities)
        identity = server_identity(home)
        must_verify(home, identity, authorities.own)
        if stapler is not None:
            identity = replace(identity, staple=stapler(identity.certificate_chain[0]))

        def source(trust: ClientTrust, *, require_client: bool = False, expired_leaf: bool = False) -> ContextSource:
            rules = {"require_client": require_client, "expired_leaf": expired_leaf}
            return ContextSource(server_context(identity, trust, clock=clock, **rules))

        devices = ClientTrust(anchors, tenants)
        mqtt = source(devices, require_client=True)
        est = source(replace(devices, manufacturers=manufacturers), expired_leaf=True)
        http = source(replace(devices, anchors=(*anchors, operators_authority(home, clock()))))
        return cls(mqtt, est, http, clock, tuple(manufacturers), stapler)

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
        for source in (self.mqtt, self.est, self.http):
            source.look = look

    def reload(self, home: Home, authorities: Authorities | None = None) -> None:
        """All contexts or none: an unusable certificate leaves the old ones in place, and the connections that come
        later try again: a CA that was removed must not stay trusted.
        """
        try:
            fresh = Contexts.of(home, self.clock, authorities, self.manufacturers, self.stapler)
        except (FleetError, OSError, ValueError) as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            log_event(log, logging.ERROR, "reload", outcome="failed", kept="old", reason=error)
            return
        self._retry_at = None
        for old, new in ((self.mqtt, fresh.mqtt), (self.est, fresh.est), (self.http, fresh.http)):
            old.swap(new.current)
        log_event(log, logging.INFO, "reload", outcome="ok")
        _warn(home, self.clock)


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
        warning = str(error)
    if warning:
        log_event(log, logging.WARNING, "server-certificate", outcome="needs-attention", reason=warning)


async def renew_daily(home: Home, settings: Settings, clock: Clock, renewed: Callable[[], None]) -> None:
    """Check daily until cancelled, and call `renewed` each time the certificate has been replaced."""
    while True:
        await asyncio.sleep(RENEWAL_CHECK_SECONDS)
        if renew_if_due(home, settings, clock):
            renewed()
