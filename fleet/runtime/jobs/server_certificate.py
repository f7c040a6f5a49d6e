"""The server certificate while it serves: shown by every listener, read again when told to, renewed in time."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.x509 import Certificate

from fleet.config.settings import Settings
from fleet.domain.errors import FleetError
from fleet.home.layout import Home
from fleet.home.pki import operators_authority, renew_server_certificate, server_identity
from fleet.home.reloading_ca import LiveAuthorities, client_anchors
from fleet.home.tenants import Authorities, read_authorities
from fleet.tls.contexts import ContextSource, server_context

log = logging.getLogger("fleet")

RENEWAL_CHECK_SECONDS = 86_400.0

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The clock, read at the roof."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Contexts:
    """The TLS contexts of the three listeners: a certificate is required for MQTT, optional where a token may do; the
    operators' CA is believed by the HTTP API alone, and makers' CAs by EST alone. EST alone lets an expired one in: its
    models may grant a grace.
    """

    mqtt: ContextSource
    est: ContextSource
    http: ContextSource
    clock: Clock
    makers: list[Certificate] = field(default_factory=list)

    @classmethod
    def of(
        cls, home: Home, clock: Clock, authorities: Authorities | None = None, makers: Sequence[Certificate] = ()
    ) -> "Contexts":
        """`authorities`: whom they believe, when that has been read already."""
        anchors, tenants = client_anchors(authorities or read_authorities(home, wait=False))
        identity = server_identity(home)

        def source(
            *more_anchors: Certificate,
            require_client: bool = False,
            expired_leaf: bool = False,
            makers: Sequence[Certificate] = (),
        ) -> ContextSource:
            return ContextSource(
                server_context(
                    identity,
                    (*anchors, *more_anchors),
                    require_client=require_client,
                    clock=clock,
                    expired_leaf=expired_leaf,
                    tenants=tenants,
                    makers=makers,
                )
            )

        operators = operators_authority(home, clock())
        est = source(expired_leaf=True, makers=makers)
        return cls(source(require_client=True), est, source(operators), clock, list(makers))

    def believe_makers(self, home: Home, makers: Sequence[Certificate]) -> None:
        """EST believes these makers' CAs and no others, from the next connection on."""
        if list(makers) != self.makers:
            self.makers[:] = makers
            self.reload(home)

    def follow(self, authorities: LiveAuthorities, home: Home) -> None:
        """Whom they believe is as `authorities` stand when a connection begins."""
        authorities.changed = lambda: self.reload(home, authorities.current)
        for source in (self.mqtt, self.est, self.http):
            source.look = authorities.look

    def reload(self, home: Home, authorities: Authorities | None = None) -> None:
        """All or none: a certificate that cannot be used leaves the old one in place."""
        try:
            fresh = Contexts.of(home, self.clock, authorities, self.makers)
        except (FleetError, OSError, ValueError) as error:
            log.error("event=reload outcome=failed kept=old reason=%s", error)
            return
        self.mqtt.swap(fresh.mqtt.current)
        self.est.swap(fresh.est.current)
        self.http.swap(fresh.http.current)
        log.info("event=reload outcome=ok")


def renew_if_due(home: Home, settings: Settings, clock: Clock) -> bool:
    """Whether it was renewed. What stands in the way is logged: the certificate there is may still serve."""
    try:
        why = renew_server_certificate(home, settings, clock())
    except (FleetError, OSError, ValueError) as error:
        log.error("event=server-certificate outcome=not-renewed reason=%s", error)
        return False
    if why:
        log.info("event=server-certificate outcome=renewed reason=%r", why)
    return bool(why)


async def renew_daily(home: Home, settings: Settings, clock: Clock, renewed: Callable[[], None]) -> None:
    """Never let it expire under a server that runs for years. `renewed` is called each time it has been replaced."""
    while True:
        await asyncio.sleep(RENEWAL_CHECK_SECONDS)
        if renew_if_due(home, settings, clock):
            renewed()
