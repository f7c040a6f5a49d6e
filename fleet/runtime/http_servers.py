"""The HTTP servers of a worker: EST, the admin API, forward and broker authentication, what relying parties fetch."""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import cache, partial
from typing import Any

from msgspec import Struct, field

from fleet.config.clock import Clock
from fleet.config.listeners import LOCAL_NAMES
from fleet.config.settings import Settings
from fleet.domain.ports import Registry
from fleet.domain.published_file import PublishedFile
from fleet.domain.rates import RateLimits, Rates
from fleet.home.crl_issuing import crl_policy, crl_reporter, issue_crls
from fleet.home.home_cas import authorities_for_admin
from fleet.home.layout import Home, waiting_limits
from fleet.home.leaf_issuers import LeafIssuers
from fleet.home.pki import cursor_key, key_sealer
from fleet.home.proxy_secrets import ProxySecrets
from fleet.home.reloading_ca import LiveAuthorities
from fleet.home.relying_parties import OcspResponders, PublishedCertificates, ServerStaple
from fleet.home.retention_policy import retention_policy
from fleet.runtime.background import background
from fleet.runtime.jobs.server_certificate import Stapler
from fleet.runtime.supervision import Supervision
from fleet.servers.admin.app import AdminApp
from fleet.servers.admin.context import Context
from fleet.servers.admin.http_adapter import admin_server
from fleet.servers.broker_auth.server import build_broker_auth_server
from fleet.servers.delegated_auth import AuthContext
from fleet.servers.est.server import build_est_server
from fleet.servers.forward_auth.server import build_forward_auth_server
from fleet.servers.gateway.gateway import Gateway
from fleet.servers.http import HttpServer
from fleet.servers.publish.ocsp import OcspHandler
from fleet.servers.publish.server import build_publish_server
from fleet.services.enrollment import RegistrationAuthority
from fleet.services.event_follower import EventFollower
from fleet.services.notifying import Notifier
from fleet.services.published_crls import PublishedCrls
from fleet.webhook.caller import Webhooks

ADMIN = "admin"
SILENCE_SECONDS_MAX = 5.0  # of the event feed: OCSP answers that were kept are given for so long


class BrokerView(Struct, frozen=True):
    """What the API has of the broker, and of the process."""

    status: Callable[[], dict[str, object]]
    counters: Callable[[], Mapping[str, Mapping[str, Any]]]
    """Of every worker, by its number."""
    answers: Callable[[], bool]
    supervision: Supervision
    drains: Callable[[], bool]
    notifier: Notifier


class HttpServers(Struct):
    """The HTTP servers of a worker, and what it staples."""

    home: Home
    settings: Settings
    registry: Registry
    authorities: LiveAuthorities
    clock: Clock
    secrets: Mapping[str, ProxySecrets]
    responders: OcspResponders
    _enrollment: RegistrationAuthority | None = None
    _rates: dict[str, Rates] = field(default_factory=dict)

    def take_up(self, settings: Settings) -> None:
        """Rates and limits of `settings`, from the next request on."""
        self.settings = settings
        if self._enrollment is not None:
            self._enrollment.waiting = waiting_limits(settings)
        for name, rates in self._rates.items():
            rates.set_limits(_rate_limits(settings, name))

    def _rates_of(self, name: str) -> Rates:
        self._rates[name] = rates = Rates(_rate_limits(self.settings, name))
        return rates

    @classmethod
    def of(
        cls, home: Home, settings: Settings, registry: Registry, authorities: LiveAuthorities, clock: Clock
    ) -> "HttpServers":
        """Raises: Invalid (`bad-secret-file`)."""
        files = {name: getattr(settings, f"{name}_secret_file") for name in LOCAL_NAMES}
        secrets = {name: ProxySecrets(home.path / file if file else None) for name, file in files.items()}
        responders = OcspResponders(home, lambda: authorities.recent, clock)
        return cls(home, settings, registry, authorities, clock, secrets, responders)

    def est(self, authorizer: Webhooks) -> HttpServer:
        waiting = waiting_limits(self.settings)
        self._enrollment = RegistrationAuthority(self.registry, self.authorities, waiting, authorizer)
        return build_est_server(
            self._enrollment,
            self.authorities,
            sealer=lambda: key_sealer(self.home),
            clock=self.clock,
            rates=self._rates_of("est"),
        )

    def admin(self, broker: BrokerView) -> HttpServer:
        own = replace(authorities_for_admin(self.home, self.clock()), issuer=lambda: self.authorities)
        own.operators()  # a home without an operators' CA gets one now
        context = Context(
            self.registry,
            lambda: own,
            lambda: retention_policy(self.settings),
            self.clock,
            status=broker.status,
            counters=broker.counters,
            workers=lambda: broker.supervision.workers,
            broker_answers=broker.answers,
            broker_saves=lambda: not broker.supervision.not_saved,
            notifier=lambda: broker.notifier,
            drains=broker.drains,
            tenants=self.authorities.names,
            waiting=lambda: waiting_limits(self.settings),
            cursor_key=cache(lambda: cursor_key(self.home)),
            issue_crls=partial(issue_crls, self.home, self.registry),
            crl_report=crl_reporter(self.home, self.registry, self.settings, lambda: self.authorities.recent).at,
            packet_size_max=lambda: self.settings.packet_size_max,
            refuses_dots=lambda: self.settings.upstream_refuse_dots,
            started=self.clock(),
        )
        return admin_server(AdminApp(context), rates=self._rates_of(ADMIN))

    def local(self, gateway: Gateway) -> dict[str, HttpServer]:
        """Those of programs of this machine that have ended TLS with devices, by listener."""
        tenant_of = LeafIssuers(self.authorities).tenant_of
        context = AuthContext(self.registry, tenant_of, gateway.feed_is_up, self.clock)
        proxies, brokers = self.secrets["forward_auth"], self.secrets["broker_auth"]
        return {
            "forward_auth": build_forward_auth_server(context, lambda: proxies.current),
            "broker_auth": build_broker_auth_server(context, lambda: brokers.current, self.settings.rabbitmq_vhost),
        }

    def stapler(self) -> Stapler | None:
        """Staples on the TLS listeners, where the publish listener is on."""
        if self.settings.publish is None:
            return None
        return lambda certificate: ServerStaple(certificate, self.responders, self.clock)

    async def publish(self, parts: AsyncExitStack) -> HttpServer:
        """That of relying parties: CA certificates, CRLs, OCSP. Where its listener is on, it follows the registry's
        events until `parts` end.
        """
        crls = PublishedCrls(self.registry, fresh_for=crl_policy(self.settings).max_delay)
        certificates = PublishedCertificates(self.home, self.authorities)
        ocsp = OcspHandler(self.registry, self.responders, self.clock)

        async def find(path: str) -> PublishedFile | None:
            return await certificates.find(path) or await crls.find(path)

        if self.settings.publish is not None:
            follower = EventFollower(self.registry, ocsp.cache.on_event, SILENCE_SECONDS_MAX, ocsp.cache.clear)
            ocsp.feed_is_up = follower.reliable
            await parts.enter_async_context(background(follower.run(), "the OCSP answers' event feed"))
        # By address alone: relying parties show no credential.
        return build_publish_server(find, ocsp.handle, clock=self.clock, rates=self._rates_of("publish"))


def _rate_limits(settings: Settings, name: str) -> RateLimits:
    """Request rates for each address and credential, for one server of this process."""
    return RateLimits(
        address_per_second=settings.requests_per_address_per_second,
        # Operators page through long lists; their certificates are few and known by name.
        credential_per_second=0 if name == ADMIN else settings.requests_per_credential_per_second,
        failures_max=settings.failures_per_credential_max,
        backoff_seconds_max=settings.failure_backoff_seconds_max,
    )
