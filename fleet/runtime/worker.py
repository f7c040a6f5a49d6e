"""Composition of one worker: starts its parts in order and stops them in reverse.

    TLS contexts -> gateway, following events before it listens -> EST and API -> listeners

Nothing listens before everything that decides on admission runs. With --workers 1 this is all of `fleet serve`; with
more, each worker is a process (worker_main.py).
"""

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial

from msgspec import structs

from fleet.config.clock import Clock
from fleet.config.settings import Settings
from fleet.domain.ports import Registry
from fleet.domain.rates import RateLimits, Rates
from fleet.domain.revoked_cache import ENTRIES_MAX
from fleet.home.ca_listing import authorities_for_admin
from fleet.home.layout import Home, waiting_limits
from fleet.home.leaf_issuers import LeafIssuers
from fleet.home.pki import cursor_key, key_sealer, load_webhook_signer
from fleet.home.proxy_secrets import ProxySecrets
from fleet.home.reloading_ca import LiveAuthorities
from fleet.runtime.background import background
from fleet.runtime.host import Endpoints
from fleet.runtime.jobs.crls import issue_crls
from fleet.runtime.jobs.refusal_counts import counting_refusals
from fleet.runtime.jobs.retention import policy_of
from fleet.runtime.jobs.server_certificate import Contexts
from fleet.runtime.jobs.trust_anchors import follow_trust_anchors, trust_anchors
from fleet.runtime.listeners import Listeners, addresses
from fleet.runtime.mqtt_limits import mqtt_limits, of_worker
from fleet.runtime.publishing import Publishing
from fleet.runtime.signals import Signals
from fleet.runtime.stop_deadline import BROKER_SECONDS_MIN, StopDeadline
from fleet.servers.admin.app import AdminApp
from fleet.servers.admin.context import Context
from fleet.servers.admin.http_adapter import admin_server
from fleet.servers.est import build_est_server
from fleet.servers.forward_auth import ForwardAuthContext, build_forward_auth_server
from fleet.servers.gateway.broker.mosquitto import DATABASE
from fleet.servers.gateway.broker.probed_upstream import ProbedUpstream
from fleet.servers.gateway.broker.upstream import Upstream
from fleet.servers.gateway.gateway import Gateway, GatewayOptions
from fleet.servers.gateway.limits.kept_filters import KeptFilters
from fleet.servers.gateway.session.holders import HeldElsewhere
from fleet.servers.http import HttpServer
from fleet.services.enrollment import RegistrationAuthority
from fleet.storage.journals.revocations import revocations_in
from fleet.tls.listener import ProtocolFactory
from fleet.webhook.caller import CallLimits, Webhooks, client_context

DRAIN_SECONDS_MAX = 2.0  # for requests in progress: less than the gateway has at the same time


@dataclass(frozen=True, slots=True)
class WorkerSlot:
    """Position of a worker among those of its home."""

    number: int = 1
    is_shared: bool = False
    """Whether other processes serve the same home: they share the ports, and the supervisor manages the broker."""
    workers: Callable[[], Mapping[str, object]] = dict
    """What the supervisor says of all workers; nothing when there is none."""
    not_saved: Callable[[], str] = str
    """Why a broker of ours can't save what it holds; "" while it can."""
    held_elsewhere: HeldElsewhere | None = None
    """Whether another worker holds a session of the device; None: not known."""
    broker_stops: Callable[[], bool] = lambda: True
    """Whether a broker of ours is stopped after this worker, and not just the worker."""
    deadline: StopDeadline = field(default_factory=StopDeadline)
    """Of its own stop, and of a broker that is stopped after it."""
    forward_auth: socket.socket | None = None
    """The bound socket of that listener; None: it is off."""


def worker_count(settings: Settings) -> int:
    """Number of workers of a home with these settings."""
    return settings.workers or len(os.sched_getaffinity(0))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop where it is installed."""
    try:
        import uvloop
    except ImportError:  # unsupported platform
        return None
    return uvloop.new_event_loop


@dataclass(frozen=True, slots=True)
class Worker:
    """One serving process. Made by `run_worker`."""

    endpoints: Endpoints
    home: Home
    contexts: Contexts
    authorities: LiveAuthorities
    gateway: Gateway
    permanent: tuple[asyncio.Task[None], ...]
    """Tasks that must run until shutdown."""
    secrets: ProxySecrets
    """By which reverse proxies prove themselves."""

    async def until(self, signals: Signals, watched: Sequence[asyncio.Task[None]] = ()) -> None:
        """Return at a stop signal; a reload applies the server certificate and the CAs on disk to new connections.

        Raises: the exception of a permanent task.
        """
        await signals.until_stop(self._reload, (*self.permanent, *watched))

    def _reload(self) -> None:
        self.authorities.reread()
        self.contexts.reload(self.home)
        self.secrets.reload()


@asynccontextmanager
async def run_worker(
    home: Home, settings: Settings, registry: Registry, upstream: Upstream, *, clock: Clock, slot: WorkerSlot
) -> AsyncIterator[Worker]:
    """Gateway, EST and API over `registry` and `upstream`; they listen when the block begins.

    Raises: FleetError, OSError: a part could not start.
    """
    async with AsyncExitStack() as parts:
        registry.revoked.on_distrusts(await registry.distrusts())
        registry.revoked.on_events(await asyncio.to_thread(list, revocations_in(home.revocations, ENTRIES_MAX)))
        authorities = LiveAuthorities(home)
        publishing = Publishing.of(home, settings, authorities, clock)
        makers = await trust_anchors(registry)
        contexts = Contexts.of(home, clock, manufacturers=makers, stapler=publishing.stapler())
        contexts.follow(authorities, home)
        await parts.enter_async_context(counting_refusals(registry, clock=clock))
        live = ProbedUpstream(upstream, clock=clock)
        listeners = Listeners(settings, shared=slot.is_shared)
        options = _gateway_options(home, settings, slot, listeners.admitted)
        gateway = Gateway(registry, live, clock=clock, options=options)
        await parts.enter_async_context(background(live.run(gateway.on_broker_silent), "the broker's probe"))
        feed = await parts.enter_async_context(_following(gateway, slot.deadline))
        following = follow_trust_anchors(registry, partial(contexts.trust, home))
        anchors = await parts.enter_async_context(background(following, "the trust anchor follower"))
        webhooks = _webhooks(home, settings)
        parts.push_async_callback(webhooks.close)
        servers = _HttpServers(home, settings, registry, authorities, clock, _secrets(home, settings))
        est = servers.est(webhooks)
        est.on_admitted = listeners.admitted

        def status() -> dict[str, object]:
            return {
                "worker": slot.number,
                "pid": os.getpid(),
                "tls": listeners.status(),
                "descriptors": listeners.descriptors(),
                "est": est.counters,
                "http": admin.counters,
                **({"publish": publish.counters} if settings.publish is not None else {}),
                "mqtt": dict(gateway.stats),
                **({"forward_auth": forward.counters} if settings.forward_auth is not None else {}),
                "sessions": gateway.sessions,
                **({"workers": slot.workers()} if slot.is_shared else {}),
                "upstream": {**live.status(), **({"not_saved": reason} if (reason := slot.not_saved()) else {})},
            }

        admin, forward = servers.admin(status, live.answers, slot.not_saved), servers.forward_auth(gateway)
        publish = await publishing.server(registry, rates_of(settings), parts)
        parts.push_async_callback(_drain, gateway, slot.deadline, est, admin, publish, forward)
        parts.callback(listeners.close)
        factories: dict[str, ProtocolFactory] = {
            "est": est, "http": admin, "mqtt": gateway.protocol, "publish": publish
        }  # fmt: skip
        for name in addresses(settings):
            await listeners.open(name, getattr(contexts, name, None), factories[name])
        await listeners.open_local(slot.forward_auth, forward)
        endpoints = Endpoints.of(home, listeners.with_ports(), slot.forward_auth)
        gc.collect()
        gc.freeze()  # objects of start-up live until shutdown, and are not traversed at each collection
        yield Worker(endpoints, home, contexts, authorities, gateway, (feed, anchors), servers.secrets)


async def _drain(gateway: Gateway, deadline: StopDeadline, *servers: HttpServer) -> None:
    """At the same time: the broker that we run is stopped soon, and what has not reached it by then is lost."""
    closing = gateway.close(deadline.left(BROKER_SECONDS_MIN))
    await asyncio.gather(closing, *(server.shutdown(DRAIN_SECONDS_MAX) for server in servers))


@dataclass(frozen=True, slots=True)
class _HttpServers:
    """The HTTP servers of a worker."""

    home: Home
    settings: Settings
    registry: Registry
    authorities: LiveAuthorities
    clock: Clock
    secrets: ProxySecrets

    def est(self, authorizer: Webhooks) -> HttpServer:
        return build_est_server(
            RegistrationAuthority(self.registry, self.authorities, waiting_limits(self.settings), authorizer),
            self.authorities,
            sealer=lambda: key_sealer(self.home),
            clock=self.clock,
            rates=rates_of(self.settings),
        )

    def admin(
        self,
        status: Callable[[], dict[str, object]],
        broker_answers: Callable[[], bool],
        not_saved: Callable[[], str],
    ) -> HttpServer:
        own = replace(authorities_for_admin(self.home, self.clock()), issuer=lambda: self.authorities)
        own.operators()  # a home without an operators' CA gets one now
        context = Context(
            self.registry,
            lambda: own,
            lambda: policy_of(self.settings),
            self.clock,
            status=status,
            broker_answers=broker_answers,
            broker_saves=lambda: not not_saved(),
            tenants=self.authorities.names,
            waiting=lambda: waiting_limits(self.settings),
            cursor_key=cache(lambda: cursor_key(self.home)),
            issue_crls=partial(issue_crls, self.home, self.registry),
            started=self.clock(),
        )
        # Operators page through long lists; their certificates are few and known by name.
        rates = rates_of(structs.replace(self.settings, requests_per_credential_per_second=0))
        return admin_server(AdminApp(context), rates=rates)

    def forward_auth(self, gateway: Gateway) -> HttpServer:
        context = ForwardAuthContext(
            self.registry, LeafIssuers(self.authorities).tenant_of, gateway.feed_is_up, self.clock
        )
        return build_forward_auth_server(context, lambda: self.secrets.current)


def _secrets(home: Home, settings: Settings) -> ProxySecrets:
    """Raises: Invalid (`bad-secret-file`)."""
    file = settings.forward_auth_secret_file
    return ProxySecrets(home.path / file if file else None)


def rates_of(settings: Settings) -> Rates:
    """Request rates for each address and credential, for one server of this process."""
    return Rates(
        RateLimits(
            address_per_second=settings.requests_per_address_per_second,
            credential_per_second=settings.requests_per_credential_per_second,
            failures_max=settings.failures_per_credential_max,
            backoff_seconds_max=settings.failure_backoff_seconds_max,
        )
    )


def _webhooks(home: Home, settings: Settings) -> Webhooks:
    """The client of the models' webhooks. Raises: Invalid (`bad-webhook-ca`, `bad-key`, `key-exposed`). OSError."""
    ca_file = None if settings.webhook_ca == "system" else home.path / settings.webhook_ca
    limits = CallLimits(settings.webhook_seconds_max, settings.webhook_at_once_max, settings.webhook_local)
    return Webhooks(load_webhook_signer(home), client_context(ca_file), limits=limits)


def _gateway_options(
    home: Home, settings: Settings, slot: WorkerSlot, on_admitted: Callable[[str], None]
) -> GatewayOptions:
    limits = of_worker(mqtt_limits(settings), worker_count(settings))
    return GatewayOptions(
        limits=limits,
        kept_filters=KeptFilters(limits, home.run / "kept-filters"),
        database=home.run / DATABASE if settings.durable else None,
        purges=not slot.is_shared,
        held_elsewhere=slot.held_elsewhere,
        broker_stops=slot.broker_stops,
        on_admitted=on_admitted,
    )


@asynccontextmanager
async def _following(gateway: Gateway, deadline: StopDeadline) -> AsyncIterator[asyncio.Task[None]]:
    """`gateway` follows the events from before it listens, so that it misses no revocation."""
    async with background(gateway.run(), "the gateway's event feed") as feed:
        try:
            await gateway.following()
            yield feed
        finally:
            await gateway.close(deadline.left(BROKER_SECONDS_MIN))
