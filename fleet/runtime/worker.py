"""Composition of one worker: starts its parts in order and stops them in reverse.

    TLS contexts -> gateway, following events before it listens -> EST and API -> listeners

Nothing listens before everything that decides on admission runs. With --workers 1 this is all of `fleet serve`; with
more, each worker is a process (worker_main.py).
"""

import asyncio
import gc
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from msgspec import Struct, field

from fleet.config.clock import Clock
from fleet.config.listeners import MQTT_NAMES
from fleet.config.logs import log_event
from fleet.config.settings import Settings
from fleet.domain.ports import Registry
from fleet.domain.revoked_cache import ENTRIES_MAX
from fleet.home.layout import Home
from fleet.home.node_name import node_name
from fleet.home.pki import load_webhook_signer
from fleet.home.proxy_secrets import ProxySecrets
from fleet.home.reloading_ca import LiveAuthorities
from fleet.runtime.background import background
from fleet.runtime.host import Endpoints
from fleet.runtime.http_servers import BrokerView, HttpServers
from fleet.runtime.jobs.presence import recording_presence
from fleet.runtime.jobs.presence_topic import publishing_presence
from fleet.runtime.jobs.refusal_counts import counting_refusals
from fleet.runtime.jobs.server_certificate import Contexts
from fleet.runtime.jobs.trust_anchors import follow_trust_anchors, trust_anchors
from fleet.runtime.listeners import Listeners, addresses
from fleet.runtime.mqtt_limits import mqtt_limits, of_worker
from fleet.runtime.reloading import Reloading
from fleet.runtime.signals import BROKER_SECONDS_MIN, REST_SECONDS_MAX, Signals, StopDeadline
from fleet.runtime.supervision import Supervision
from fleet.servers.gateway.broker.mosquitto import DATABASE
from fleet.servers.gateway.broker.probed_upstream import ProbedUpstream
from fleet.servers.gateway.broker.publisher import BrokerPublisher
from fleet.servers.gateway.broker.upstream import Upstream
from fleet.servers.gateway.gateway import Gateway, GatewayOptions
from fleet.servers.gateway.limits.kept_filters import KEPT_FILTERS, KeptFilters
from fleet.servers.http import HttpServer
from fleet.services.notifying import Notifier
from fleet.services.presence import Presence
from fleet.storage.journals.revocation_reading import revocations_in
from fleet.tls.listener import ProtocolFactory
from fleet.webhook.caller import CallLimits, Webhooks, client_context

log = logging.getLogger("fleet")

YOUNG_OBJECTS = 10_000  # between two collections: with the usual 700, they were a seventh of what a connection costs
DRAIN_SECONDS_MAX = 2.0  # for requests in progress: less than the gateway has at the same time
QUIET_SECONDS = 0.05


class WorkerPlace(Struct, frozen=True):
    """Of a worker among those of its home."""

    supervision: Supervision
    number: int = 1
    is_shared: bool = False
    """Whether other processes serve the same home: they share the ports, and the supervisor manages the broker."""
    deadline: StopDeadline = field(default_factory=StopDeadline)
    """Of its own stop, and of a broker that is stopped after it."""
    local: Mapping[str, socket.socket] = field(default_factory=dict)
    """The bound sockets of listeners without TLS that are on, by name."""
    sockets: Mapping[str, Sequence[socket.socket]] = field(default_factory=dict)
    """Bound sockets of the others, by name; they are bound where there are none."""


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


class Worker(Struct, frozen=True):
    """One serving process. Made by `run_worker`."""

    endpoints: Endpoints
    home: Home
    contexts: Contexts
    authorities: LiveAuthorities
    gateway: Gateway
    permanent: tuple[asyncio.Task[None], ...]
    """Tasks that must run until shutdown."""
    secrets: Mapping[str, ProxySecrets]
    """By which reverse proxies and brokers prove themselves, by listener."""
    listeners: Listeners
    http: Sequence[HttpServer]
    reloading: Reloading
    settings: Callable[[], Settings]
    """Those in force."""
    drains: asyncio.Event
    """Set when the whole server is about to stop."""
    counters: Callable[[], Mapping[str, Any]]
    """What it counts, for the metrics of all workers."""

    def drain_for_stop(self, seconds: float) -> None:
        """The server stops in `seconds`: no new MQTT connections, sessions end spread over that time, and the health
        check fails.
        """
        self.drains.set()
        self.listeners.stop_accepting(MQTT_NAMES)
        self.gateway.begin_drain(seconds, restarts=False)

    async def drain_for_restart(self, seconds: float) -> None:
        """A successor listens: accept nothing more, end the sessions spread over `seconds`, finish what was begun.

        Returns REST_SECONDS_MAX after that at the latest.
        """
        self.listeners.stop_accepting()
        for server in self.http:
            server.drain()
        self.gateway.begin_drain(seconds, restarts=True)
        ends_at = asyncio.get_running_loop().time() + seconds + REST_SECONDS_MAX
        while asyncio.get_running_loop().time() < ends_at:
            if not self.gateway.sessions and not self.listeners.handshaking and not any(s.is_busy for s in self.http):
                return
            await asyncio.sleep(QUIET_SECONDS)

    async def until(self, signals: Signals, watched: Sequence[asyncio.Task[None]] = ()) -> None:
        """Return at a stop signal; a reload puts the settings in force, and the certificates and CAs on disk.

        Raises: the exception of a permanent task.
        """
        await signals.until_stop(self._reload, (*self.permanent, *watched), restart=_not_replaced)

    def _reload(self) -> None:
        self.reloading.take_up(self.settings())
        self.authorities.reread()
        self.contexts.reload(self.home)
        for secrets in self.secrets.values():
            secrets.reload()


def _not_replaced() -> None:
    reason = "a single worker has a supervisor that could replace it with supervised = true alone"
    log_event(log, logging.WARNING, "workers.replaced", outcome="failed", kept="old", reason=reason)


@asynccontextmanager
async def run_worker(
    home: Home, settings: Settings, registry: Registry, upstream: Upstream, *, clock: Clock, place: WorkerPlace
) -> AsyncIterator[Worker]:
    """Gateway, EST and API over `registry` and `upstream`; they listen when the block begins.

    Raises: FleetError, OSError: a part could not start.
    """
    given = _Given(home, settings, registry, upstream, clock, place)
    async with AsyncExitStack() as parts:
        registry.revoked.on_distrusts(await registry.distrusts())
        registry.revoked.on_events(await asyncio.to_thread(list, revocations_in(home.revocations, ENTRIES_MAX)))
        authorities = LiveAuthorities(home)
        servers = HttpServers.of(home, settings, registry, authorities, clock)
        makers = await trust_anchors(registry)
        contexts = Contexts.of(home, clock, manufacturers=makers, stapler=servers.stapler())
        contexts.follow(authorities, home)
        await parts.enter_async_context(counting_refusals(registry, clock=clock))
        listeners, drains = Listeners(settings, shared=place.is_shared, sockets=place.sockets), asyncio.Event()
        mqtt = await _mqtt(parts, given, listeners.admitted)
        following = follow_trust_anchors(registry, partial(contexts.trust, home))
        anchors = await parts.enter_async_context(background(following, "the trust anchor follower"))
        http = await _http(parts, given, servers, mqtt, listeners, drains)
        parts.push_async_callback(_drain, mqtt.gateway, place.deadline, *http.all)
        parts.callback(listeners.close)
        await _listen(listeners, given, contexts, mqtt.gateway, http)
        _collect_rarely()
        yield Worker(
            endpoints=Endpoints.of(home, listeners.with_ports(), place.local),
            home=home,
            contexts=contexts,
            authorities=authorities,
            gateway=mqtt.gateway,
            permanent=(*mqtt.tasks, anchors),
            secrets=servers.secrets,
            listeners=listeners,
            http=http.all,
            reloading=Reloading(
                home, worker_count(settings), listeners, servers, mqtt.gateway, mqtt.presence, upstream
            ),
            settings=place.supervision.settings,
            drains=drains,
            counters=http.counted,
        )


class _Given(Struct, frozen=True):
    """What a worker is started with."""

    home: Home
    settings: Settings
    registry: Registry
    upstream: Upstream
    clock: Clock
    place: WorkerPlace


class _Mqtt(Struct, frozen=True):
    gateway: Gateway
    upstream: ProbedUpstream
    presence: Presence
    publisher: BrokerPublisher
    tasks: tuple[asyncio.Task[None], ...]


async def _mqtt(parts: AsyncExitStack, given: _Given, on_admitted: Callable[[str], None]) -> _Mqtt:
    """The gateway follows the events, and listens nowhere yet."""
    home, settings, registry, clock, place = given.home, given.settings, given.registry, given.clock, given.place
    live = ProbedUpstream(given.upstream, clock=clock)
    stop_seconds = partial(place.deadline.left, BROKER_SECONDS_MIN)
    recording = recording_presence(home, settings, registry, place.number, clock, stop_seconds)
    presence = await parts.enter_async_context(recording)
    publisher = BrokerPublisher(live)
    parts.push_async_callback(publisher.close)
    await parts.enter_async_context(publishing_presence(settings, presence, publisher, stop_seconds))
    options = _gateway_options(home, settings, place, on_admitted, presence)
    gateway = Gateway(registry, live, clock=clock, options=options)
    await parts.enter_async_context(background(live.run(gateway.on_broker_silent), "the broker's probe"))
    tasks = await parts.enter_async_context(_following(gateway, presence, place.deadline))
    return _Mqtt(gateway, live, presence, publisher, tasks)


class _Http(Struct, frozen=True):
    est: HttpServer
    admin: HttpServer
    publish: HttpServer
    local: Mapping[str, HttpServer]
    wss_counters: Counter[str]
    counted: Callable[[], Mapping[str, Any]]

    @property
    def all(self) -> tuple[HttpServer, ...]:
        return (self.est, self.admin, self.publish, *self.local.values())


async def _http(
    parts: AsyncExitStack, given: _Given, servers: HttpServers, mqtt: _Mqtt, listeners: Listeners, drains: asyncio.Event
) -> _Http:
    """EST, the API, and the rest; they listen nowhere yet."""
    settings, place = given.settings, given.place
    webhooks = await parts.enter_async_context(_webhooks(given.home, settings))
    est = servers.est(webhooks)
    est.on_admitted = listeners.admitted
    counters: dict[str, Mapping[str, int]] = {}
    counted = partial(_counted, listeners, mqtt.gateway, mqtt.upstream, counters)
    status = partial(_status, place, counted, mqtt.upstream)
    notifier = Notifier(mqtt.publisher, node_name(given.home.path) if given.upstream.is_ours else "")
    admin = servers.admin(
        BrokerView(
            status,
            partial(_counted_by_all, place, counted),
            mqtt.upstream.answers,
            place.supervision,
            drains.is_set,
            notifier,
        )
    )
    local = servers.local(mqtt.gateway)
    http = _Http(est, admin, await servers.publish(parts), local, Counter[str](), counted)
    counters |= {"est": est.counters, "http": admin.counters}
    counters |= {"publish": http.publish.counters} if settings.publish is not None else {}
    counters |= {"wss": http.wss_counters} if settings.wss is not None else {}
    counters |= {"mqtt": mqtt.gateway.stats, "publisher": mqtt.publisher.counters}
    counters |= {name: local[name].counters for name in place.local}
    return http


async def _listen(listeners: Listeners, given: _Given, contexts: Contexts, gateway: Gateway, http: _Http) -> None:
    over_websocket = _over_websocket(gateway.protocol, given.settings, http.wss_counters)
    factories: dict[str, ProtocolFactory] = {"est": http.est, "http": http.admin, "publish": http.publish}
    factories |= {"mqtt": gateway.protocol, "wss": over_websocket}
    for name in addresses(given.settings):
        await listeners.open(name, contexts.by_listener(name), factories[name])
    await listeners.open_local(given.place.local, http.local)


def _counted(
    listeners: Listeners, gateway: Gateway, upstream: ProbedUpstream, counters: Mapping[str, Mapping[str, int]]
) -> Mapping[str, Any]:
    """What a worker counts, ready for JSON."""
    return {
        "tls": listeners.status(),
        "descriptors": listeners.descriptors(),
        "outcomes": {name: dict(counted) for name, counted in counters.items()},
        "sessions": gateway.sessions,
        "broker_answers": upstream.answers(),
    }


def _counted_by_all(place: WorkerPlace, counted: Callable[[], Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Number -> what each worker counts: this one now, the others as they last said."""
    return {**place.supervision.counters, str(place.number): counted()}


def _status(
    place: WorkerPlace, counted: Callable[[], Mapping[str, Any]], upstream: ProbedUpstream
) -> dict[str, object]:
    """JSON value for `GET /v1/status`."""
    not_saved, now = place.supervision.not_saved, counted()
    return {
        "worker": place.number,
        "pid": os.getpid(),
        "tls": now["tls"],
        "descriptors": now["descriptors"],
        **now["outcomes"],
        "sessions": now["sessions"],
        **({"workers": place.supervision.workers} if place.is_shared else {}),
        "upstream": {**upstream.status(), **({"not_saved": not_saved} if not_saved else {})},
    }


def _collect_rarely() -> None:
    gc.collect()
    gc.set_threshold(YOUNG_OBJECTS)
    gc.freeze()  # objects of start-up live until shutdown, and are not traversed at each collection


def _over_websocket(protocol: ProtocolFactory, settings: Settings, counters: Counter[str]) -> ProtocolFactory:
    if settings.wss is None:
        return protocol  # not used
    from fleet.servers.websocket.server import over_websocket  # for that listener alone

    return over_websocket(protocol, settings.wss_origins, counters)


async def _drain(gateway: Gateway, deadline: StopDeadline, *servers: HttpServer) -> None:
    """At the same time: the broker that we run is stopped soon, and what has not reached it by then is lost."""
    closing = gateway.close(deadline.left(BROKER_SECONDS_MIN))
    await asyncio.gather(closing, *(server.shutdown(DRAIN_SECONDS_MAX) for server in servers))


@asynccontextmanager
async def _webhooks(home: Home, settings: Settings) -> AsyncIterator[Webhooks]:
    """The client of the models' webhooks. Raises: Invalid (`bad-webhook-ca`, `bad-key`, `key-exposed`). OSError."""
    ca_file = None if settings.webhook_ca == "system" else home.path / settings.webhook_ca
    limits = CallLimits(settings.webhook_seconds_max, settings.webhook_at_once_max, settings.webhook_local)
    webhooks = Webhooks(load_webhook_signer(home), client_context(ca_file), limits=limits)
    try:
        yield webhooks
    finally:
        await webhooks.close()


def _gateway_options(
    home: Home, settings: Settings, place: WorkerPlace, on_admitted: Callable[[str], None], presence: Presence
) -> GatewayOptions:
    limits = of_worker(mqtt_limits(settings), worker_count(settings))
    return GatewayOptions(
        limits=limits,
        kept_filters=KeptFilters(limits, home.run / KEPT_FILTERS),
        database=home.run / DATABASE if settings.durable else None,
        saved=home.run / DATABASE,
        purges=not place.is_shared,
        held_elsewhere=place.supervision.held_elsewhere,
        broker_stops=lambda: place.supervision.broker_stops,
        presence=presence,
        server_reference=settings.server_reference,
        on_admitted=on_admitted,
    )


@asynccontextmanager
async def _following(
    gateway: Gateway, presence: Presence, deadline: StopDeadline
) -> AsyncIterator[tuple[asyncio.Task[None], ...]]:
    """`gateway` follows the events from before it listens, so that it misses no revocation."""
    async with (
        background(gateway.run(), "the gateway's event feed") as feed,
        background(presence.run(gateway.heard), "presence") as noting,
    ):
        try:
            await gateway.following()
            yield feed, noting
        finally:
            await gateway.close(deadline.left(BROKER_SECONDS_MIN))
