"""Job: the audit log is sealed every second while a fleet is served.

async with sealing_audit(home, registry, clock=clock) as task: ...
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fleet.config.clock import Clock
from fleet.config.logs import FailureLog
from fleet.domain.errors import FleetError
from fleet.domain.ports import HeadSigner, Registry
from fleet.home.audit_note import keep_note
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
        async with background(seal_periodically(registry, signer, clock, home=home), "audit sealing") as task:
            yield task
    finally:
        with suppress(FleetError, OSError, TimeoutError):  # the next server, or `fleet audit seal`, does it
            async with asyncio.timeout(END_SECONDS_MAX):
                await _seal_as_noted(registry, signer, clock, home)


async def seal_periodically(
    registry: Registry,
    signer: HeadSigner,
    clock: Clock,
    *,
    every_seconds: float = SEAL_SECONDS,
    home: Home | None = None,
) -> None:
    """Seal until cancelled, and check each head against the note of `home`. A failure is retried, and logged once in
    FAILURES_A_LINE times.
    """
    failures = FailureLog(log, "audit.seal", FAILURES_A_LINE)
    while True:
        try:
            await _seal_as_noted(registry, signer, clock, home)
            failures.succeeded()
        except (FleetError, OSError) as error:
            code = error.code if isinstance(error, FleetError) else "note-not-written"
            failures.failed(outcome="failed", code=code, reason=error)
        await asyncio.sleep(every_seconds)


async def _seal_as_noted(registry: Registry, signer: HeadSigner, clock: Clock, home: Home | None) -> None:
    head = await seal(registry, signer, clock())
    if head is not None and home is not None:
        await keep_note(home, registry, head)
