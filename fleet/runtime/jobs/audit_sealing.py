"""Job: seals the audit log every second while a fleet is served.

async with sealing_audit(home, registry, clock=clock) as task: ...
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fleet.config.clock import Clock
from fleet.config.logs import log_event
from fleet.domain.errors import FleetError
from fleet.domain.ports import HeadSigner, Registry
from fleet.home.layout import Home
from fleet.home.pki import audit_signer
from fleet.runtime.background import background
from fleet.services.sealing import seal

log = logging.getLogger("fleet.audit")

SEAL_SECONDS = 1.0
END_SECONDS_MAX = 1.0  # enough for a backlog of hundreds of thousands of rows; shutdown must not wait longer
FAILURES_A_LINE = 60  # a disk that is full for hours produces a line a minute


@asynccontextmanager
async def sealing_audit(home: Home, registry: Registry, *, clock: Clock) -> AsyncIterator[asyncio.Task[None]]:
    """Run the job while the block runs, and seal once more at its end. Several processes may do so concurrently.

    Raises: FleetError, OSError: the signing key cannot be read.
    """
    signer = audit_signer(home)
    try:
        async with background(seal_periodically(registry, signer, clock), "audit sealing") as task:
            yield task
    finally:
        with suppress(FleetError, TimeoutError):  # the next server, or `fleet audit seal`, does it
            async with asyncio.timeout(END_SECONDS_MAX):
                await seal(registry, signer, clock())


async def seal_periodically(
    registry: Registry, signer: HeadSigner, clock: Clock, *, every_seconds: float = SEAL_SECONDS
) -> None:
    """Seal until cancelled. A failure is retried, and logged once in FAILURES_A_LINE times."""
    failures = 0
    while True:
        try:
            await seal(registry, signer, clock())
            failures = 0
        except FleetError as error:
            if failures % FAILURES_A_LINE == 0:
                log_event(log, logging.ERROR, "audit.seal", outcome="failed", code=error.code, reason=error.message)
            failures += 1
        await asyncio.sleep(every_seconds)
