"""Composition of the publish listener's server: CA certificates, CRLs, OCSP."""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from cryptography.x509 import Certificate

from fleet.config.clock import Clock
from fleet.config.settings import Settings
from fleet.domain.ports import Registry
from fleet.domain.published_file import PublishedFile
from fleet.domain.rates import Rates
from fleet.home.layout import Home
from fleet.home.ocsp_responders import OcspResponders
from fleet.home.published_certificates import PublishedCertificates
from fleet.home.reloading_ca import LiveAuthorities
from fleet.home.server_staple import ServerStaple
from fleet.runtime.background import background
from fleet.runtime.jobs.crls import crl_policy
from fleet.runtime.jobs.server_certificate import Stapler
from fleet.servers.http import HttpServer
from fleet.servers.publish import build_publish_server
from fleet.servers.publish.ocsp import OcspHandler
from fleet.services.event_follower import EventFollower
from fleet.services.published_crls import PublishedCrls

SILENCE_SECONDS_MAX = 5.0  # of the event feed: OCSP answers that were kept are given for so long


@dataclass(frozen=True, slots=True)
class Publishing:
    """What a worker tells relying parties."""

    settings: Settings
    certificates: PublishedCertificates
    responders: OcspResponders
    clock: Clock

    @classmethod
    def of(cls, home: Home, settings: Settings, authorities: LiveAuthorities, clock: Clock) -> "Publishing":
        responders = OcspResponders(home, lambda: authorities.recent, clock)
        return cls(settings, PublishedCertificates(home, authorities), responders, clock)

    def stapler(self) -> Stapler | None:
        """Staples on the TLS listeners, where the publish listener is on."""
        return self._staple if self.settings.publish is not None else None

    def _staple(self, certificate: Certificate) -> ServerStaple:
        return ServerStaple(certificate, self.responders, self.clock)

    async def server(self, registry: Registry, rates: Rates, parts: AsyncExitStack) -> HttpServer:
        """The listener's server; where that is on, it follows the registry's events until `parts` end."""
        crls = PublishedCrls(registry, fresh_for=crl_policy(self.settings).max_delay)
        ocsp = OcspHandler(registry, self.responders, self.clock)

        async def find(path: str) -> PublishedFile | None:
            return await self.certificates.find(path) or await crls.find(path)

        if self.settings.publish is not None:
            follower = EventFollower(registry, ocsp.cache.on_event, SILENCE_SECONDS_MAX, ocsp.cache.clear)
            ocsp.feed_is_up = follower.reliable
            await parts.enter_async_context(background(follower.run(), "the OCSP answers' event feed"))
        # By address alone: relying parties show no credential.
        return build_publish_server(find, ocsp.handle, clock=self.clock, rates=rates)
