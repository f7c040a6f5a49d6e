"""What a served home has exactly once, with any number of workers: lock, background jobs, broker, ready file.

lock -> server certificate -> registry -> audit sealing, revocation journal, retention, CRLs -> broker
"""

import asyncio
import fcntl
import json
import logging
import os
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fleet.config.addresses import Address
from fleet.config.clock import Clock
from fleet.config.database_url import DatabaseUrl
from fleet.config.listeners import LISTENERS, LOCAL_NAMES
from fleet.config.logs import log_event
from fleet.config.settings import Settings
from fleet.domain.errors import Conflict
from fleet.domain.ports import Registry
from fleet.home.home_cas import root_keys_here
from fleet.home.layout import Home, open_registry, place_for, revocation_journal
from fleet.home.node_name import node_name
from fleet.runtime.background import background
from fleet.runtime.jobs.audit_sealing import sealing_audit
from fleet.runtime.jobs.broker_sessions import broker_api, end_refused_sessions
from fleet.runtime.jobs.crls import publish_crls
from fleet.runtime.jobs.dynamic_security import controlled_broker, mirror_devices
from fleet.runtime.jobs.retention import retain_daily
from fleet.runtime.jobs.revocation_journal import journaling_revocations
from fleet.runtime.jobs.server_certificate import renew_if_due
from fleet.runtime.live_settings import LiveSettings
from fleet.runtime.local_listener import bound
from fleet.runtime.mqtt_limits import mqtt_limits
from fleet.runtime.signals import StopDeadline
from fleet.runtime.upstream_access import upstream_access
from fleet.runtime.upstream_in_force import recorded
from fleet.servers.gateway.broker.process import OwnBroker
from fleet.servers.gateway.broker.publisher import BrokerPublisher
from fleet.servers.gateway.broker.restart import restart_when_hung
from fleet.servers.gateway.broker.start import start_upstream
from fleet.servers.gateway.broker.upstream import Upstream
from fleet.servers.websocket import MQTT_PATH
from fleet.services.node_messages import publish_for_others

log = logging.getLogger("fleet")

ORPHANS_SECONDS_MAX = 8.0  # workers of a killed supervisor end at once, and their sockets close
READY_SIZE_MAX = 64 * 1024  # four addresses and paths
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses of a running fleet, as in the ready file."""

    est: str
    mqtt: str
    http: str
    ca_file: str
    pid: int
    publish: str = ""
    wss: str = ""
    forward_auth: str = ""
    """unix:PATH or a URL, as the next."""
    broker_auth: str = ""
    """Of these four, "": off."""

    @classmethod
    def of(cls, home: Home, settings: Settings, local: Mapping[str, socket.socket]) -> "Endpoints":
        """Those of this process; `settings` hold the bound ports, but for those of the bound `local`."""
        urls = {name: _local_url(taken) for name, taken in local.items()}
        for each in LISTENERS:
            if not each.is_local and (address := getattr(settings, each.name)) is not None:
                path = MQTT_PATH if each.scheme == "wss" else ""
                urls[each.name] = _url(each.scheme, settings, address) + path
        return cls(ca_file=str(home.root_certificate), pid=os.getpid(), **urls)

    def shown(self) -> dict[str, str | int]:
        """Without what is off."""
        return {name: value for name, value in asdict(self).items() if value != ""}


def _local_url(taken: socket.socket) -> str:
    name = taken.getsockname()
    return f"unix:{name}" if taken.family == socket.AF_UNIX else f"http://{Address(*name[:2])}"


def _url(scheme: str, settings: Settings, address: Address) -> str:
    """URL for a client on this machine, with a host name that is in the server certificate."""
    host = address.host if address.host in settings.hosts else settings.hosts[0]
    return f"{scheme}://{Address(host, address.port)}"


@dataclass(frozen=True, slots=True)
class Host:
    """Everything that is up before a worker listens."""

    home: Home
    live: LiveSettings
    registry: Registry
    jobs: tuple[asyncio.Task[None], ...]
    """Audit sealing, revocation journal, retention, CRLs, dynamic security, broker sessions, messages of other nodes:
    until shutdown.
    """
    upstream: Upstream
    workers_lock: int
    """A descriptor that worker processes inherit: while one of them lives, no other server of this home starts."""
    deadline: StopDeadline
    """Of workers and broker."""
    local: Mapping[str, socket.socket]
    """Bound, by name: the listeners without TLS that are on."""


@asynccontextmanager
async def run_host(home: Home, settings: Settings, *, clock: Clock) -> AsyncIterator[Host]:
    """Start everything in order; stop it in reverse order at the end of the block.

    Raises: Conflict (`home-in-use`): another process serves this home. FleetError, OSError: a part could not start.
    """
    async with AsyncExitStack() as parts:
        workers_lock = parts.enter_context(_sole_server(home))
        live = LiveSettings(home, settings)
        renew_if_due(home, settings, clock)
        for key in root_keys_here(home):
            log_event(log, logging.WARNING, "root-key", outcome="here", file=key, reason="serving needs none")
        local = _bound_local(home, settings, parts)
        registry = await open_registry(home)
        parts.push_async_callback(registry.close)
        await registry.end_runs(node_name(home.path))  # of workers that were killed, with all of their sessions
        jobs: tuple[asyncio.Task[None], ...] = (
            await parts.enter_async_context(sealing_audit(home, registry, clock=clock)),
            await parts.enter_async_context(journaling_revocations(registry, revocation_journal(home), clock=clock)),
            await parts.enter_async_context(
                background(retain_daily(home, registry, lambda: live.current, clock), "retention")
            ),
            await parts.enter_async_context(background(publish_crls(home, registry, settings, clock), "the CRLs")),
        )
        for name, work in _of_other_brokers(home, settings, registry, clock):
            jobs = (*jobs, await parts.enter_async_context(background(work, name)))
        models = await registry.models()
        limits, access = mqtt_limits(settings), upstream_access(home, settings)
        upstream = await start_upstream(
            settings.upstream, home.run, models, limits, durable=settings.durable, access=access
        )
        deadline = StopDeadline()
        parts.push_async_callback(_stop_broker, upstream, deadline)
        if isinstance(upstream, OwnBroker):
            restarting = restart_when_hung(upstream, upstream.process)
            await parts.enter_async_context(background(restarting, "the broker's restarts"))
        if upstream.is_ours and isinstance(place_for(home, settings.database), DatabaseUrl):
            publisher = BrokerPublisher(upstream)
            parts.push_async_callback(publisher.close)
            work = publish_for_others(registry, node_name(home.path), publisher, clock)
            jobs = (*jobs, await parts.enter_async_context(background(work, "messages of other nodes")))
        parts.enter_context(recorded(home, upstream))
        log_event(log, logging.INFO, "broker", broker=upstream.describe())
        yield Host(home, live, registry, jobs, upstream, workers_lock, deadline, local)


def _of_other_brokers(
    home: Home, settings: Settings, registry: Registry, clock: Clock
) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
    """Jobs that keep external brokers up to date, by name. Raises: Invalid: a setting or file cannot be used."""
    if (controlled := settings.dynsec_broker) is not None:
        yield "dynamic security", mirror_devices(registry, controlled_broker(home, settings, controlled))
    if (api := settings.broker_sessions) is not None:
        yield "broker sessions", end_refused_sessions(registry, broker_api(home, settings, api), clock)


def _bound_local(home: Home, settings: Settings, parts: AsyncExitStack) -> dict[str, socket.socket]:
    """Listeners for programs of this machine that are on. Raises: Unavailable (`cannot-listen`). Invalid."""
    taken = {}
    for name in LOCAL_NAMES:
        address, group = getattr(settings, name), getattr(settings, f"{name}_group")
        if (one := parts.enter_context(bound(name, address, home.path, group))) is not None:
            taken[name] = one
            log_event(log, logging.INFO, name.replace("_", "-"), address=address)
    return taken


async def _stop_broker(upstream: Upstream, deadline: StopDeadline) -> None:
    if isinstance(upstream, OwnBroker):
        await upstream.close(deadline.left())
    else:
        await upstream.close()


@contextmanager
def _sole_server(home: Home) -> Iterator[int]:
    """Lock the home against a second server, which would take over the broker's socket. Yields the workers' lock.

    Raises: Conflict (`home-in-use`).
    """
    home.run.mkdir(mode=0o700, exist_ok=True)
    with (home.run / "serve.lock").open("a") as lock, (home.run / "workers.lock").open("a") as workers:
        if not _locked(lock.fileno()):
            raise Conflict("home-in-use", f"Another `fleet serve` is serving {home.path} already.", "Stop it first.")
        deadline = time.monotonic() + ORPHANS_SECONDS_MAX
        while not _locked(workers.fileno()):  # blocking is fine: the event loop has no work yet
            if time.monotonic() > deadline:
                message = f"Workers of a `fleet serve` that was killed still serve {home.path}."
                raise Conflict("home-in-use", message, f"Find them with: fuser -v {home.run / 'workers.lock'}")
            time.sleep(POLL_SECONDS)
        yield workers.fileno()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def ready_file_with(endpoints: Endpoints, ready_file: Path | None) -> Iterator[None]:
    """The ready file exists, complete, while the block runs."""
    if ready_file is None:
        yield
        return
    try:
        handle, name = tempfile.mkstemp(prefix=f".{ready_file.name}.", dir=ready_file.parent)
    except OSError as error:
        error.filename = str(ready_file)  # as it was asked for
        raise
    made = os.fstat(handle)
    with os.fdopen(handle, "w") as file:
        json.dump(endpoints.shown(), file)
        file.write("\n")
        os.fchmod(handle, 0o644)
    Path(name).rename(ready_file)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            if os.path.samestat(ready_file.lstat(), made):  # and not another's
                ready_file.unlink()


def remove_former(ready_file: Path) -> None:
    """Remove an earlier server's ready file. Raises: Conflict (`file-exists`): something else is there. OSError."""
    try:
        mode = ready_file.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) or not _holds_endpoints(ready_file):
        raise Conflict(
            "file-exists",
            f"{ready_file} exists, and is not a ready file; nothing was changed.",
            "Name another file with --ready-file, or remove that one.",
        )
    ready_file.unlink()


def _holds_endpoints(file: Path) -> bool:
    with file.open("rb") as opened:
        content = opened.read(READY_SIZE_MAX)
    if not content:  # as mktemp makes it
        return True
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() <= {each.name for each in fields(Endpoints)}
