"""What a served home has once, however many processes serve it: its lock, its broker, its ready file.

lock -> server certificate in order -> registry -> the audit's sealing, the log of revocations, retention -> broker
"""

import asyncio
import fcntl
import json
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fleet.config.settings import Address, Settings
from fleet.domain.errors import Conflict
from fleet.domain.ports import Registry
from fleet.home.layout import Home, open_registry, revocation_log
from fleet.runtime.jobs.audit_sealing import sealing
from fleet.runtime.jobs.retention import retaining_daily
from fleet.runtime.jobs.revocation_journal import journaling_revocations
from fleet.runtime.jobs.server_certificate import Clock, renew_if_due
from fleet.servers.gateway.brokers import start_upstream
from fleet.servers.gateway.upstream import Upstream

log = logging.getLogger("fleet")

ORPHANS_SECONDS_MAX = 8.0  # workers whose supervisor was killed end at once; their sockets with them
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a serving fleet is reached: what the ready file says."""

    est: str
    mqtt: str
    http: str
    ca_file: str
    pid: int

    @classmethod
    def of(cls, home: Home, settings: Settings) -> "Endpoints":
        """Those of this process; `settings` hold the ports that are really listened on."""
        return cls(
            est=_url("https", settings, settings.est),
            mqtt=_url("mqtts", settings, settings.mqtt),
            http=_url("https", settings, settings.http),
            ca_file=str(home.root_certificate),
            pid=os.getpid(),
        )


def _url(scheme: str, settings: Settings, address: Address) -> str:
    """How a client on this machine reaches a listener under a name that its certificate holds."""
    host = address.host if address.host in settings.hosts else settings.hosts[0]
    return f"{scheme}://{Address(host, address.port)}"


@dataclass(frozen=True, slots=True)
class Premises:
    """Everything that is there before anybody listens."""

    home: Home
    settings: Settings
    registry: Registry
    sealer: asyncio.Task[None]
    """Seals the audit for as long as the premises stand."""
    keepers: tuple[asyncio.Task[None], ...]
    """Note what is revoked, and let go of what is old, for as long as the premises stand."""
    upstream: Upstream
    workers_lock: int
    """A descriptor for worker processes to inherit: while one of them lives, no other server of this home starts."""


@asynccontextmanager
async def premises(home: Home, settings: Settings, *, clock: Clock) -> AsyncIterator[Premises]:
    """Everything up, in order; at the end everything down, in the reverse order.

    Raises: Conflict (`home-in-use`): another process serves this home. FleetError, OSError: a part could not start.
    """
    async with AsyncExitStack() as parts:
        workers_lock = parts.enter_context(_sole_server(home))
        renew_if_due(home, settings, clock)
        registry = await open_registry(home)
        parts.push_async_callback(registry.close)
        sealer = await parts.enter_async_context(sealing(home, registry, clock=clock))
        noting = await parts.enter_async_context(journaling_revocations(registry, revocation_log(home)))
        retaining = await parts.enter_async_context(retaining_daily(home, registry, settings, clock))
        upstream = await start_upstream(settings.upstream, home.run, await registry.models())
        parts.push_async_callback(upstream.close)
        log.info("event=broker is=%r", upstream.describe())
        yield Premises(home, settings, registry, sealer, (noting, retaining), upstream, workers_lock)


@contextmanager
def _sole_server(home: Home) -> Iterator[int]:
    """One server for a home: two would fight over the broker's socket. Yields the workers' lock, which we hold.

    Raises: Conflict (`home-in-use`).
    """
    home.run.mkdir(mode=0o700, exist_ok=True)
    with (home.run / "serve.lock").open("a") as lock, (home.run / "workers.lock").open("a") as workers:
        if not _locked(lock.fileno()):
            raise Conflict("home-in-use", f"Another `fleet serve` serves {home.path} already.", "Stop it first.")
        deadline = time.monotonic() + ORPHANS_SECONDS_MAX
        while not _locked(workers.fileno()):  # before there is an event loop's work to hold up
            if time.monotonic() > deadline:
                raise Conflict(
                    "home-in-use",
                    f"Workers of a `fleet serve` that was killed still serve {home.path}.",
                    f"Find them with: fuser -v {home.run / 'workers.lock'}",
                )
            time.sleep(POLL_SECONDS)
        yield workers.fileno()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
