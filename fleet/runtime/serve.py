"""Composition root of `fleet serve`, from start-up to shutdown, with one worker or several.

    host -> one worker in this process       --workers 1
    host -> supervisor -> worker processes   --workers N, and one that is to be supervised

The ready file is written when every listener of every worker accepts connections.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from fleet.config.clock import Clock, utc_now
from fleet.config.logs import log_event, use_log_format
from fleet.config.settings import Settings
from fleet.home.layout import Home
from fleet.runtime.background import background
from fleet.runtime.descriptors import fitted, raise_limit
from fleet.runtime.host import Host, ready_file_with, remove_former, run_host
from fleet.runtime.jobs.server_certificate import renew_daily, renew_if_due
from fleet.runtime.listeners import check_distinct
from fleet.runtime.service_manager import READY, STOPPING, keep_alive, notify
from fleet.runtime.signals import STOP_SECONDS_MAX, Signals
from fleet.runtime.supervision import Alone
from fleet.runtime.supervisor import Supervisor, run_supervisor
from fleet.runtime.worker import Worker, WorkerPlace, loop_factory, run_worker, worker_count
from fleet.servers.gateway.broker.start import not_saved as broker_not_saved

log = logging.getLogger("fleet")


Service = Worker | Supervisor
"""A running fleet."""


def serve_until_stopped(home: Home, settings: Settings, ready_file: Path | None) -> None:
    """Serve `home` until SIGTERM or SIGINT, of which a second cuts the drain short. SIGHUP reloads the server
    certificate, the CAs and settings, and reports those that need a restart; SIGUSR2 replaces the workers.

    Raises: FleetError, OSError: start-up failed; nothing is left running.
    """

    if ready_file is not None:
        remove_former(ready_file)  # left by a killed server: a client that waits must wait for this one

    async def work() -> None:
        signals = Signals.install((signal.SIGTERM, signal.SIGINT), (signal.SIGHUP,), (signal.SIGUSR2,))
        async with run_service(home, settings, clock=utc_now) as (service, host):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, partial(reload, host, signals))
            # One process checks the certificate and makes every process reload it.
            renewing = renew_daily(home, lambda: host.live.current, utc_now, signals.reload.set)
            async with (
                background(renewing, "the daily certificate check") as daily,
                background(keep_alive(), "the service manager's watchdog"),
            ):
                with ready_file_with(service.endpoints, ready_file):
                    log_event(log, logging.INFO, "ready", **service.endpoints.shown())
                    notify(READY)
                    await service.until(signals, (daily, *host.jobs))
                    await drained(service, host.live.current.stop_drain_seconds, signals.stop)
            log_event(log, logging.INFO, "stopping")
            notify(STOPPING)
        log_event(log, logging.INFO, "stopped")

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(work())


async def drained(service: Service, seconds: float, stop: asyncio.Event) -> None:
    """`service` drains for `seconds`, or until a second stop request."""
    if seconds:
        stop.clear()
        notify(f"{STOPPING}\nEXTEND_TIMEOUT_USEC={round((seconds + STOP_SECONDS_MAX) * 1_000_000)}")
        log_event(log, logging.INFO, "draining", seconds=seconds)
        service.drain_for_stop(seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stop.wait()


def reload(host: Host, signals: Signals) -> None:
    """Put changed settings in force, with a server certificate for changed `hosts`, and make every process reload."""
    hosts = host.live.current.hosts
    host.live.reread()
    use_log_format(host.live.current.log_format)
    if host.live.current.hosts != hosts:
        renew_if_due(host.home, host.live.current, utc_now)
    signals.reload.set()


@asynccontextmanager
async def run_service(home: Home, settings: Settings, *, clock: Clock) -> AsyncIterator[tuple[Service, Host]]:
    """Start everything in order; stop it in reverse order at the end of the block.

    Raises: Conflict (`home-in-use`): another process serves this home. FleetError, OSError: a part could not start.
    """
    check_distinct(settings)
    count = worker_count(settings)
    settings = fitted(settings, raise_limit(), count)
    async with run_host(home, settings, clock=clock) as host:
        if count == 1 and not settings.supervised:
            alone = Alone(lambda: host.live.current, partial(broker_not_saved, host.upstream))
            place = WorkerPlace(alone, deadline=host.deadline, local=host.local)
            async with run_worker(home, settings, host.registry, host.upstream, clock=clock, place=place) as worker:
                yield worker, host
        else:
            async with run_supervisor(host, count) as supervisor:
                yield supervisor, host
