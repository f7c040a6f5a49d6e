"""The composition root: `fleet serve` from its premises to its last breath, in one process or in several.

    premises -> one worker in this process       --workers 1
    premises -> supervisor -> worker processes   --workers N

The ready file is written when every listener of every worker is up.
"""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from fleet.config.settings import Settings
from fleet.home.layout import Home
from fleet.runtime.background import background
from fleet.runtime.host import Endpoints, Premises, announced, premises
from fleet.runtime.jobs.server_certificate import Clock, renew_daily, utc_now
from fleet.runtime.supervisor import supervised
from fleet.runtime.worker import Told, loop_factory, working

log = logging.getLogger("fleet")


class Service(Protocol):
    """A serving fleet, however many processes it is."""

    @property
    def endpoints(self) -> Endpoints: ...

    async def until(self, told: Told, watched: Sequence[asyncio.Task[None]] = ()) -> None:
        """Return when told to stop, having reloaded whenever told to.

        Raises: what a part that must live for ever, or one of `watched`, died of.
        """
        ...


def serve_until_told(home: Home, settings: Settings, ready_file: Path | None) -> None:
    """Serve `home` until SIGTERM or SIGINT. SIGHUP reads the server certificate again.

    Raises: FleetError, OSError: it could not start; nothing is left running.
    """

    if ready_file is not None:
        ready_file.unlink(missing_ok=True)  # of a server that was killed: who waits for it must wait for ours

    async def work() -> None:
        told = Told.by_signals((signal.SIGTERM, signal.SIGINT), (signal.SIGHUP,))
        async with serving(home, settings, clock=utc_now) as (service, once):
            # One process looks at the certificate, and has every process show the new one.
            renewing = renew_daily(home, settings, utc_now, told.reload.set)
            async with background(renewing, "the daily look at the certificate") as daily:
                with announced(ready_file, service.endpoints):
                    log.info("event=ready %s", " ".join(f"{k}={v}" for k, v in asdict(service.endpoints).items()))
                    await service.until(told, (daily, once.sealer, *once.keepers))
            log.info("event=stopping")
        log.info("event=stopped")

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(work())


@asynccontextmanager
async def serving(home: Home, settings: Settings, *, clock: Clock) -> AsyncIterator[tuple[Service, Premises]]:
    """Everything up, in order, and what there is once; at the end everything down, in the reverse order.

    Raises: Conflict (`home-in-use`): another process serves this home. FleetError, OSError: a part could not start.
    """
    count = settings.workers or len(os.sched_getaffinity(0))
    async with premises(home, settings, clock=clock) as ground:
        if count == 1:
            async with working(home, settings, ground.registry, ground.upstream, clock=clock) as worker:
                yield worker, ground
        else:
            async with supervised(ground, count) as supervisor:
                yield supervisor, ground
