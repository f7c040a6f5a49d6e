"""Whom the EST door believes beside the fleet's own CAs: makers' CAs, as the registry has them now.

They change while servers run, by a command in another process or on another node: the feed tells every one of them.
Should the feed break, a look every few seconds makes up for it; and whoever enrolls is held to the registry anyhow.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from cryptography import x509

from fleet.domain.changes import EventKind
from fleet.domain.errors import FleetError
from fleet.domain.idevid import Anchor
from fleet.domain.ports import Registry

log = logging.getLogger("fleet")

RETRY_SECONDS = 5.0


async def makers_of(registry: Registry) -> tuple[x509.Certificate, ...]:
    """Every anchor's certificate; one that can't be read any more is left out and logged.

    Raises: Unavailable.
    """
    return tuple(found for anchor in await registry.anchors() if (found := _certificate(anchor)) is not None)


def _certificate(anchor: Anchor) -> x509.Certificate | None:
    try:
        return x509.load_der_x509_certificate(anchor.der)
    except ValueError as error:
        log.error("event=anchor outcome=left-out name=%s reason=%s", anchor.name, error)
        return None


async def follow_makers(registry: Registry, believe: Callable[[Sequence[x509.Certificate]], None]) -> None:
    """Call `believe` with the makers' CAs, now and whenever they change; for ever."""
    while True:
        with suppress(FleetError):  # the gateway's feed logs an outage; we look again when it is over
            newest = await registry.last_event()  # before the look: what comes during it is heard behind
            believe(await makers_of(registry))
            async for event in registry.follow(newest):
                if event.kind == EventKind.ANCHOR_CHANGED:
                    believe(await makers_of(registry))
        await asyncio.sleep(RETRY_SECONDS)
