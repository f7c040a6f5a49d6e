"""The composition root: builds every part of a serving fleet, in order, and takes it down in the reverse order.

    registry -> broker -> gateway, its feed before its door -> listeners -> ready file

Nothing listens before everything that decides is there; the ready file is written when every listener is up.
"""

import asyncio
import fcntl
import gc
import json
import logging
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.x509 import Certificate

from fleet.domain.errors import Conflict, FleetError, Unavailable
from fleet.domain.ports import Registry
from fleet.home import (
    Home,
    authority_chain,
    load_issuer,
    open_registry,
    operators_authority,
    renew_server_certificate,
    revocation_log,
    server_identity,
)
from fleet.retaining import retain_daily
from fleet.sealer import sealing
from fleet.servers.admin import build_admin_server
from fleet.servers.est import build_est_server
from fleet.servers.gateway.brokers import start_upstream
from fleet.servers.gateway.gateway import Gateway
from fleet.servers.gateway.limits import Limits
from fleet.servers.gateway.upstream import Upstream
from fleet.servers.line_limit import LineLimit
from fleet.services.remembering import noting_revocations
from fleet.settings import Address, Settings
from fleet.tls.contexts import ContextSource, server_context
from fleet.tls.listener import HandshakeLimits, Listener, ProtocolFactory, listen

log = logging.getLogger("fleet")

RENEWAL_CHECK_SECONDS = 86_400.0
DRAIN_SECONDS_MAX = 2.0  # for requests under way, and again for sessions: SIGTERM to exit stays within 5 s

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a serving fleet is reached: what the ready file says."""

    est: str
    mqtt: str
    http: str
    ca_file: str
    pid: int


def serve_until_told(home: Home, settings: Settings, ready_file: Path | None) -> None:
    """Serve `home` until SIGTERM or SIGINT. SIGHUP reads the server certificate again.

    Raises: FleetError, OSError: it could not start; nothing is left running.
    """

    if ready_file is not None:
        ready_file.unlink(missing_ok=True)  # of a server that was killed: who waits for it must wait for ours

    async def work() -> None:
        stop, reload = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        async with serving(home, settings, clock=_utc_now) as service:
            with announced(ready_file, service.endpoints):
                log.info("event=ready %s", " ".join(f"{k}={v}" for k, v in asdict(service.endpoints).items()))
                await service.until(stop, reload)
            log.info("event=stopping")
        log.info("event=stopped")

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(work())


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # a platform that it does not support
        return None
    return uvloop.new_event_loop


class Service:
    """A serving fleet. Made by `serving`."""

    def __init__(
        self, home: Home, contexts: "Contexts", endpoints: Endpoints, watched: list[asyncio.Task[None]]
    ) -> None:
        self.endpoints = endpoints
        self._home = home
        self._contexts = contexts
        self._watched = watched

    async def until(self, stop: asyncio.Event, reload: asyncio.Event) -> None:
        """Return when `stop` is set; on each `reload`, show new connections the server certificate as it is on disk.

        Raises: what a part that must live for ever died of.
        """
        stopping = asyncio.create_task(stop.wait())
        reloading = asyncio.create_task(reload.wait())
        try:
            while True:
                await asyncio.wait((stopping, reloading, *self._watched), return_when=asyncio.FIRST_COMPLETED)
                for task in self._watched:
                    if task.done():
                        task.result()
                        raise Unavailable("part-ended", f"{task.get_name()} has ended.")
                if stopping.done():
                    return
                if reloading.done():
                    reload.clear()
                    self._contexts.reload(self._home)
                    reloading = asyncio.create_task(reload.wait())
        finally:
            stopping.cancel()
            reloading.cancel()


@dataclass(frozen=True, slots=True)
class Contexts:
    """The TLS contexts of the three listeners: a certificate is required for MQTT, optional where a token may do; the
    operators' CA is believed by the HTTP API alone.
    """

    required: ContextSource
    optional: ContextSource
    http: ContextSource
    clock: Clock

    @classmethod
    def of(cls, home: Home, clock: Clock) -> "Contexts":
        def source(*more_anchors: Certificate, require_client: bool = False) -> ContextSource:
            anchors = (*authority_chain(home), *more_anchors)
            return ContextSource(
                server_context(server_identity(home), anchors, require_client=require_client, clock=clock)
            )

        operators = operators_authority(home, clock())
        return cls(source(require_client=True), source(), source(operators), clock)

    def reload(self, home: Home) -> None:
        """All or none: a certificate that cannot be used leaves the old one in place."""
        try:
            fresh = Contexts.of(home, self.clock)
        except (FleetError, OSError, ValueError) as error:
            log.error("event=reload outcome=failed kept=old reason=%s", error)
            return
        self.required.swap(fresh.required.current)
        self.optional.swap(fresh.optional.current)
        self.http.swap(fresh.http.current)
        log.info("event=reload outcome=ok")

    async def renew_daily(self, home: Home, settings: Settings) -> None:
        """Never let the server certificate expire under a server that runs for years."""
        while True:
            await asyncio.sleep(RENEWAL_CHECK_SECONDS)
            if _renew_server_certificate(home, settings, self.clock):
                self.reload(home)


def _renew_server_certificate(home: Home, settings: Settings, clock: Clock) -> bool:
    """Whether it was renewed. What stands in the way is logged: the certificate there is may still serve."""
    try:
        why = renew_server_certificate(home, settings, clock())
    except (FleetError, OSError, ValueError) as error:
        log.error("event=server-certificate outcome=not-renewed reason=%s", error)
        return False
    if why:
        log.info("event=server-certificate outcome=renewed reason=%r", why)
    return bool(why)


@asynccontextmanager
async def serving(home: Home, settings: Settings, *, clock: Clock) -> AsyncIterator[Service]:
    """Everything up, in order; at the end everything down, in the reverse order.

    Raises: Conflict (`home-in-use`): another process serves this home. FleetError, OSError: a part could not start.
    """
    async with AsyncExitStack() as parts:
        parts.enter_context(_sole_server(home))
        _renew_server_certificate(home, settings, clock)
        contexts = Contexts.of(home, clock)
        registry = await open_registry(home)
        parts.push_async_callback(registry.close)
        noting = await parts.enter_async_context(noting_revocations(registry, revocation_log(home)))
        sealer = await parts.enter_async_context(sealing(home, registry, clock=clock))
        upstream = await start_upstream(settings.upstream, home.run, await registry.models())
        parts.push_async_callback(upstream.close)
        log.info("event=broker is=%r", upstream.describe())
        gateway = await parts.enter_async_context(_following_gateway(registry, upstream, settings, clock))
        listeners: dict[str, Listener] = {}
        est = build_est_server(registry, load_issuer(home), authority_chain(home), clock=clock)

        def status() -> dict[str, object]:
            tls = {name: asdict(listener.stats) for name, listener in listeners.items()}
            return {
                "tls": tls,
                "est": est.counters,
                "mqtt": dict(gateway.server.stats),
                "sessions": gateway.server.sessions,
            }

        admin = build_admin_server(registry, status, operators=operators_authority(home, clock()), clock=clock)

        async def drain() -> None:
            await asyncio.gather(est.shutdown(DRAIN_SECONDS_MAX), admin.shutdown(DRAIN_SECONDS_MAX))

        parts.push_async_callback(drain)
        for name, address, source, factory in (
            ("est", settings.est, contexts.optional, est),
            ("http", settings.http, contexts.http, admin),
            ("mqtt", settings.mqtt, contexts.required, gateway.server.protocol),
        ):
            listeners[name] = await _listen(name, address, source, factory, settings)
            parts.callback(listeners[name].close)
        endpoints = Endpoints(
            est=_url("https", settings, settings.est, listeners["est"].port),
            mqtt=_url("mqtts", settings, settings.mqtt, listeners["mqtt"].port),
            http=_url("https", settings, settings.http, listeners["http"].port),
            ca_file=str(home.root_certificate),
            pid=os.getpid(),
        )
        # What stands now stands for good: the collector need not walk it again with every generation.
        gc.collect()
        gc.freeze()
        daily = asyncio.create_task(contexts.renew_daily(home, settings), name="the daily look at the certificate")
        parts.callback(daily.cancel)
        retaining = asyncio.create_task(retain_daily(home, registry, settings, clock), name="retention")
        parts.callback(retaining.cancel)
        yield Service(home, contexts, endpoints, [gateway.feed, daily, sealer, noting, retaining])


@dataclass(frozen=True, slots=True)
class _Following:
    server: Gateway
    feed: asyncio.Task[None]


@asynccontextmanager
async def _following_gateway(
    registry: Registry, upstream: Upstream, settings: Settings, clock: Clock
) -> AsyncIterator[_Following]:
    """The gateway, already hearing every event: no revocation can slip in before its door opens."""
    gateway = Gateway(registry, upstream, clock=clock, limits=Limits(sessions_max=settings.sessions_max))
    feed = asyncio.create_task(gateway.run(), name="the gateway's feed")
    try:
        await gateway.following()
        yield _Following(gateway, feed)
    finally:
        await gateway.close()
        feed.cancel()
        with suppress(asyncio.CancelledError):
            await feed


async def _listen(
    name: str, address: Address, source: ContextSource, factory: ProtocolFactory, settings: Settings
) -> Listener:
    limits = HandshakeLimits(
        total_max=settings.half_open_max,
        per_address_max=settings.half_open_per_address_max,
        deadline_s=settings.handshake_seconds_max,
        # A gateway session ends within seconds of its connection, so twice as many leaves room for comings and goings.
        connected_max=settings.sessions_max * 2 if name == "mqtt" else settings.http_connections_max,
        connected_per_address_max=None if name == "mqtt" else settings.http_connections_per_address_max,
    )
    refusals = logging.getLogger(f"fleet.{name}.tls")
    lines = LineLimit(refusals)

    def refused(peer_address: str, reason: str) -> None:
        if lines.allows(time.monotonic()):
            refusals.info("event=tls.refused address=%s code=%s", peer_address, reason)

    try:
        return await listen(factory, address.host, address.port, contexts=source, limits=limits, on_refused=refused)
    except OSError as error:
        raise Unavailable(
            "cannot-listen",
            f"The {name} listener cannot bind {address}: {_reason(error)}.",
            f"Free it, or choose another with --{name} or in fleet.toml.",
        ) from error


def _reason(error: OSError) -> str:
    """The system's own short words; event loops add the address, which stands in our sentence already."""
    return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)


def _url(scheme: str, settings: Settings, address: Address, port: int) -> str:
    """How a client on this machine reaches a listener under a name that its certificate holds."""
    host = address.host if address.host in settings.hosts else settings.hosts[0]
    return f"{scheme}://{Address(host, port)}"


@contextmanager
def _sole_server(home: Home) -> Iterator[None]:
    """One server for a home: two would fight over the broker's socket.

    Raises: Conflict (`home-in-use`).
    """
    home.run.mkdir(mode=0o700, exist_ok=True)
    with (home.run / "serve.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                "home-in-use", f"Another `fleet serve` serves {home.path} already.", "Stop it first."
            ) from error
        yield


@contextmanager
def announced(ready_file: Path | None, endpoints: Endpoints) -> Iterator[None]:
    """The ready file is there, whole, for as long as the block runs."""
    if ready_file is None:
        yield
        return
    handle, name = tempfile.mkstemp(prefix=f".{ready_file.name}.", dir=ready_file.parent)
    with os.fdopen(handle, "w") as file:
        json.dump(asdict(endpoints), file)
        file.write("\n")
    Path(name).chmod(0o644)
    Path(name).rename(ready_file)
    try:
        yield
    finally:
        ready_file.unlink(missing_ok=True)
