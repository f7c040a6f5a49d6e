"""Restart of a broker that we run when it hangs: it listens, does not answer, and does not work either.

A broker that is busy, writing its database or waiting for the disk is slow and not hung: it gets longer. Each restart
in a row doubles the patience, so that a broker that is slow for a reason that a restart does not remove is not killed
in a loop.
"""

import asyncio
import logging
import signal

from fleet.config.logs import log_event
from fleet.servers.gateway.broker.probed_upstream import ProbedUpstream
from fleet.servers.gateway.broker.process import BrokerProcess
from fleet.servers.gateway.broker.upstream import Upstream

log = logging.getLogger("fleet.broker")

CHECK_SECONDS = 1.0
IDLE_CHECKS = 6  # in a row, silent and without work, after it was found silent
SILENT_CHECKS = 60  # in a row, whatever it does: it loops
FACTOR_MAX = 16
STEADY_CHECKS = 120  # of answering, before the patience is the first again


async def restart_when_hung(broker: Upstream, process: BrokerProcess, *, check_seconds: float = CHECK_SECONDS) -> None:
    """Ask `broker`, run as `process`, until cancelled; kill it when it hangs: its supervision starts it again."""
    live = ProbedUpstream(broker, probe_seconds=check_seconds, logs=False)
    probing = asyncio.create_task(live.run(), name="the supervised broker's probe")
    try:
        await _watch(live, process, check_seconds)
    finally:
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)


async def _watch(live: ProbedUpstream, process: BrokerProcess, check_seconds: float) -> None:
    silent = idle = answering = 0
    factor, worked = 1, None
    while True:
        await asyncio.sleep(check_seconds)
        if not live.is_silent() or not process.is_ready:
            silent, idle = 0, 0
            answering += live.answers()
            if answering >= STEADY_CHECKS:
                factor = 1
            continue
        before, worked = worked, process.work_done()
        silent, answering = silent + 1, 0
        idle = idle + 1 if worked is not None and worked == before else 0
        if idle >= IDLE_CHECKS * factor or silent >= SILENT_CHECKS * factor:
            log_event(log, logging.ERROR, "broker.killed", broker=live.address, reason="hangs", silent=silent)
            process.signal(signal.SIGKILL)
            process.is_ready = False
            factor = min(factor * 2, FACTOR_MAX)
            silent = idle = 0
