"""Job: publishes CRLs while a fleet is served. Every node runs it, and one of them at a time publishes."""

import asyncio
import logging
from datetime import timedelta

from fleet.ca.crl import make_entries
from fleet.config.clock import Clock
from fleet.config.logs import log_event
from fleet.config.settings import Settings
from fleet.domain.errors import FleetError
from fleet.domain.ports import Registry
from fleet.home.crl_authorities import crl_authorities
from fleet.home.layout import Home
from fleet.runtime.jobs.retention import node_name
from fleet.services.crl_publishing import CrlPolicy, CrlPublisher

logger = logging.getLogger("fleet.crl")

ROUNDS = 4
"""In `crl.max_delay`: a round that fails is done again in time."""
FAILURES_A_LINE = 60


def crl_policy(settings: Settings) -> CrlPolicy:
    """Which CRLs are published."""
    return CrlPolicy(
        settings.publish_url,
        settings.crl_shards,
        settings.crl_delta,
        timedelta(hours=settings.crl_hours),
        timedelta(seconds=settings.crl_max_delay),
    )


async def publish_crls(home: Home, registry: Registry, settings: Settings, clock: Clock) -> None:
    """Publish what is due until cancelled. A failure is retried, and logged once in FAILURES_A_LINE times."""
    policy = crl_policy(settings)
    publisher = CrlPublisher(registry, policy, node_name(home), make_entries)
    failures = 0
    while True:
        try:
            cas = await asyncio.to_thread(crl_authorities, home)
            for head in await publisher.publish_due(cas, clock()):
                log_event(logger, logging.INFO, "crl", path=head.path, number=head.number, entries=head.entries)
            failures = 0
        except (FleetError, OSError) as error:
            if failures % FAILURES_A_LINE == 0:
                log_event(logger, logging.ERROR, "crl", outcome="failed", reason=error)
            failures += 1
        await asyncio.sleep(policy.max_delay.total_seconds() / ROUNDS)
