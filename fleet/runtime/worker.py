"""Composes one serving process on its premises, in order, and takes it down in the reverse order.

    contexts -> gateway, its feed before its door -> listeners

Nothing listens before everything that decides is there. With one worker this is the whole of `fleet serve`; with
several, each is a process of its own (worker_main.py).
"""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial

from fleet.config.settings import Address, Settings
from fleet.domain.errors import Unavailable
from fleet.domain.ports import Registry
from fleet.domain.rates import RateLimits, Rates
from fleet.home.ca_listing import authorities_for_admin
from fleet.home.layout import Home, waiting_limits
from fleet.home.pki import key_sealer, load_webhook_signer
from fleet.home.reloading_ca import LiveAuthorities
from fleet.runtime.background import background
from fleet.runtime.host import Endpoints
from fleet.runtime.jobs.retention import policy_of
from fleet.runtime.jobs.server_certificate import Clock, Contexts
from fleet.runtime.jobs.trust_anchors import follow_makers, makers_of
from fleet.runtime.listeners import NAMES, at, open_door
from fleet.servers.admin.app import AdminApp
from fleet.servers.admin.context import Context
from fleet.servers.admin.http_adapter import admin_server
from fleet.servers.est import build_est_server
from fleet.servers.gateway.gateway import Gateway
from fleet.servers.gateway.limits import Limits
from fleet.servers.gateway.monitored_upstream import MonitoredUpstream, is_external
from fleet.servers.gateway.upstream import Upstream
from fleet.tls.contexts import ContextSource
from fleet.tls.listener import Listener, ProtocolFactory
from fleet.webhook.caller import CallLimits, Webhooks, client_context

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
DRAIN_SECONDS_MAX = 2.0  # for requests under way: with workers and broker, SIGTERM to exit stays within 5 s


@dataclass(frozen=True, slots=True)
class Place:
    """Which worker this is."""

    number: int = 1
    shares: bool = False
    """Whether others serve the same home: doors are shared then, and whoever started us looks after the broker."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a process is told from outside."""

    stop: asyncio.Event
    reload: asyncio.Event

    @classmethod
    def by_signals(cls, stop: Sequence[int], reload: Sequence[int] = ()) -> "Told":
        told, loop = cls(asyncio.Event(), asyncio.Event()), asyncio.get_running_loop()
        for number in stop:
            loop.add_signal_handler(number, told.stop.set)
        for number in reload:
            loop.add_signal_handler(number, told.reload.set)
        return told

    async def until_stop(self, reload: Callable[[], None], watched: Sequence[asyncio.Task[None]]) -> None:
        """Return when told to stop; call `reload` each time that is asked for.

        Raises: what one of `watched`, parts that must live for ever, died of.
        """
        stopping = asyncio.create_task(self.stop.wait())
        reloading = asyncio.create_task(self.reload.wait())
        try:
            while True:
                await asyncio.wait((stopping, reloading, *watched), return_when=asyncio.FIRST_COMPLETED)
                for task in watched:
                    if task.done():
                        task.result()
                        raise Unavailable("part-ended", f"{task.get_name()} has ended.")
                if stopping.done():
                    return
                if reloading.done():
                    self.reload.clear()
                    reload()
                    reloading = asyncio.create_task(self.reload.wait())
        finally:
            stopping.cancel()
            reloading.cancel()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where there is one."""
    try:
        import uvloop
    except ImportError:  # a platform that it does not support
        return None
    return uvloop.new_event_loop


@dataclass(frozen=True, slots=True)
class Worker:
    """One serving process. Made by `working`."""

    endpoints: Endpoints
    home: Home
    contexts: Contexts
    authorities: LiveAuthorities
    living: tuple[asyncio.Task[None], ...]
    """Parts that must live for ever."""

    async def until(self, told: Told, watched: Sequence[asyncio.Task[None]] = ()) -> None:
        """Return when told to stop; a reload shows new connections the server certificate, and believes the CAs, as
        they are on disk.

        Raises: what a part that must live for ever died of.
        """
        await told.until_stop(self._reload, (*self.living, *watched))

    def _reload(self) -> None:
        self.authorities.reread()
        self.contexts.reload(self.home)


@asynccontextmanager
async def working(
    home: Home,
    settings: Settings,
    registry: Registry,
    upstream: Upstream,
    *,
    clock: Clock,
    place: Place | None = None,
) -> AsyncIterator[Worker]:
    """Gateway, EST and API over `registry` and `upstream`, listening when the block begins.

    Raises: FleetError, OSError: a part could not start.
    """
    place = place or Place()
    async with AsyncExitStack() as parts:
        authorities = LiveAuthorities(home)
        contexts = Contexts.of(home, clock, makers=await makers_of(registry))
        contexts.follow(authorities, home)
        watched = MonitoredUpstream(upstream, clock=clock) if is_external(upstream) else None
        if watched is not None:
            upstream = watched
            await parts.enter_async_context(background(watched.run(), "the watch on the broker"))
        gateway = Gateway(
            registry,
            upstream,
            clock=clock,
            limits=Limits(sessions_max=settings.sessions_max),
            purges=not place.shares,
        )
        feed = await parts.enter_async_context(_following(gateway))
        following = follow_makers(registry, partial(contexts.believe_makers, home))
        makers = await parts.enter_async_context(background(following, "the look at makers' CAs"))
        listeners: dict[str, Listener] = {}
        waiting = waiting_limits(settings)
        webhooks = _webhooks(home, settings)
        parts.push_async_callback(webhooks.close)
        est = build_est_server(
            registry,
            authorities,
            authorities,
            sealer=lambda: key_sealer(home),
            clock=clock,
            rates=rates_of(settings),
            waiting=waiting,
            authoriser=webhooks,
        )

        def status() -> dict[str, object]:
            tls = {name: asdict(listener.stats) for name, listener in listeners.items()}
            return {
                "worker": place.number,
                "pid": os.getpid(),
                "tls": tls,
                "est": est.counters,
                "mqtt": dict(gateway.stats),
                "sessions": gateway.sessions,
                "upstream": {"broker": upstream.describe()} if watched is None else watched.status(),
            }

        own_authorities = replace(authorities_for_admin(home, clock()), stations_issuer=lambda: authorities)
        own_authorities.operators()  # a home that was made without one gets it now
        context = Context(
            registry,
            lambda: own_authorities,
            lambda: policy_of(settings),
            clock,
            status=status,
            tenants=authorities.names,
            waiting=lambda: waiting,
            started=clock(),
        )
        # Operators page through long lists; their certificates are few and named.
        unlimited = rates_of(replace(settings, requests_per_credential_per_second=0))
        admin = admin_server(AdminApp(context), rates=unlimited)

        async def drain() -> None:
            await asyncio.gather(est.shutdown(DRAIN_SECONDS_MAX), admin.shutdown(DRAIN_SECONDS_MAX))

        parts.push_async_callback(drain)
        behind: dict[str, tuple[ContextSource, ProtocolFactory]] = {
            "est": (contexts.est, est),
            "http": (contexts.http, admin),
            "mqtt": (contexts.mqtt, gateway.protocol),
        }
        for name in NAMES:
            source, factory = behind[name]
            listeners[name] = await open_door(name, source, factory, settings, shared=place.shares)
            parts.callback(listeners[name].close)
        bound: dict[str, Address] = {
            name: Address(getattr(settings, name).host, listeners[name].port) for name in NAMES
        }
        # What stands now stands for good: the collector need not walk it again with every generation.
        gc.collect()
        gc.freeze()
        yield Worker(Endpoints.of(home, at(settings, bound)), home, contexts, authorities, (feed, makers))


def rates_of(settings: Settings) -> Rates:
    """How often one address or credential may ask, of one server in this process."""
    return Rates(
        RateLimits(
            address_per_second=settings.requests_per_address_per_second,
            credential_per_second=settings.requests_per_credential_per_second,
            failures_max=settings.failures_per_credential_max,
            backoff_seconds_max=settings.failure_backoff_seconds_max,
        )
    )


def _webhooks(home: Home, settings: Settings) -> Webhooks:
    """Asks the models' webhooks.

    Raises: Invalid (`bad-webhook-ca`, `bad-key`, `key-exposed`). OSError.
    """
    ca_file = None if settings.webhook_ca == "system" else home.path / settings.webhook_ca
    limits = CallLimits(settings.webhook_seconds_max, settings.webhook_at_once_max)
    return Webhooks(load_webhook_signer(home), client_context(ca_file), limits=limits)


@asynccontextmanager
async def _following(gateway: Gateway) -> AsyncIterator[asyncio.Task[None]]:
    """`gateway` already hears every event: no revocation can slip in before its door opens."""
    async with background(gateway.run(), "the gateway's feed") as feed:
        try:
            await gateway.following()
            yield feed
        finally:
            await gateway.close()
