"""The serving process seals the audit each second, for as long as it serves.

async with sealing(home, registry, clock=clock) as task: …
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from fleet.domain.errors import FleetError
from fleet.domain.ports import HeadSigner, Registry
from fleet.home.layout import Home
from fleet.home.pki import audit_signer
from fleet.runtime.background import background
from fleet.services.sealing import seal

log = logging.getLogger("fleet.audit")

SEAL_SECONDS = 1.0
END_SECONDS_MAX = 1.0  # a backlog of hundreds of thousands of rows; a server that is told to end ends
FAILURES_A_LINE = 60  # a disk that is full for hours takes a line a minute

Clock = Callable[[], datetime]


@asynccontextmanager
async def sealing(home: Home, registry: Registry, *, clock: Clock) -> AsyncIterator[asyncio.Task[None]]:
    """While the block runs, the task that it gets seals what has come in; at its end, once more. Several processes may
    do so at once.

    Raises: FleetError, OSError: the signing key cannot be had.
    """
    signer = audit_signer(home)
    try:
        async with background(keep_sealed(registry, signer, clock), "the audit's sealing") as task:
            yield task
    finally:
        with suppress(FleetError, TimeoutError):  # the next server, or `fleet audit seal`, will
            async with asyncio.timeout(END_SECONDS_MAX):
                await seal(registry, signer, clock())


async def keep_sealed(
    registry: Registry, signer: HeadSigner, clock: Clock, *, every_seconds: float = SEAL_SECONDS
) -> None:
    """Seal, wait, and so on for ever. What goes wrong is logged, seldom, and tried again."""
    failures = 0
    while True:
        try:
            await seal(registry, signer, clock())
            failures = 0
        except FleetError as error:
            if failures % FAILURES_A_LINE == 0:
                log.error("event=audit.seal outcome=failed code=%s reason=%s", error.code, error.message)
            failures += 1
        await asyncio.sleep(every_seconds)
