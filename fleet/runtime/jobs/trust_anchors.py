"""Job: keeps the manufacturers' CAs that the EST listener trusts equal to the registry's trust anchors.

They change while servers run, through commands in other processes or on other nodes: every server follows the events,
and reads the anchors anew every few seconds while the event feed is down. Enrollment checks the registry in any case.
"""

import logging
from collections.abc import Callable, Sequence

from cryptography import x509

from fleet.config.logs import log_event
from fleet.domain.changes import EventKind
from fleet.domain.idevid import Anchor
from fleet.domain.ports import Registry
from fleet.runtime.background import repeated

log = logging.getLogger("fleet")


async def trust_anchors(registry: Registry) -> tuple[x509.Certificate, ...]:
    """Every anchor's certificate; an unreadable one is skipped and logged. Raises: Unavailable."""
    return tuple(found for anchor in await registry.anchors() if (found := _certificate(anchor)) is not None)


def _certificate(anchor: Anchor) -> x509.Certificate | None:
    try:
        return x509.load_der_x509_certificate(anchor.der)
    except ValueError as error:
        log_event(log, logging.ERROR, "anchor", outcome="left-out", name=anchor.name, reason=error)
        return None


async def follow_trust_anchors(registry: Registry, apply: Callable[[Sequence[x509.Certificate]], None]) -> None:
    """Call `apply` with the anchors' certificates, at once and at each change, until cancelled."""

    async def follow() -> None:
        newest = await registry.last_event()  # before the read, so that a change during it is seen after it
        apply(await trust_anchors(registry))
        async for event in registry.follow(newest):
            if event.kind == EventKind.ANCHOR_CHANGED:
                apply(await trust_anchors(registry))

    await repeated(follow, lambda _: None)  # the gateway's event feed logs an outage
