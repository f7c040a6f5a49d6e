"""Job: retention of a home's records, daily while it is served, or once by a command."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from msgspec import Struct

from fleet.config.clock import Clock
from fleet.config.logs import log_event
from fleet.config.settings import Settings
from fleet.domain.errors import Conflict, FleetError
from fleet.domain.ports import Registry
from fleet.home.layout import Home, revocation_journal
from fleet.home.node_name import node_name
from fleet.home.retention_policy import retention_policy
from fleet.services.retention import Mode, Report, Retention, take_lease
from fleet.services.revocation_journal import catch_up, trim_spent
from fleet.storage.journals.archive import Archive
from fleet.storage.journals.event_marks import EventMarks

logger = logging.getLogger("fleet.retention")

FIRST_SECONDS = 600.0  # after start-up, so that a server that is restarted every day runs it too
EVERY_SECONDS = 86_400.0


class RetentionRun(Struct, frozen=True):
    """Who runs retention, and how."""

    actor: str
    now: datetime
    is_dry: bool = False
    by_force: bool = False
    """Take over the lease of another node."""


async def retain(home: Home, registry: Registry, settings: Settings, run: RetentionRun) -> Report:
    """Archive and delete records that are due by `settings`, unless another node does. The revocation journal drops
    entries whose events were deleted or, where this node deletes none, that are spent.

    Raises: Conflict: `archive-in-use`; `retention-elsewhere`, unless `by_force`; what Retention.run raises.
    """
    policy, now = retention_policy(settings), run.now
    journal = revocation_journal(home)
    noted = await catch_up(registry, journal)
    marks = EventMarks(home.event_marks)
    with Archive(home.archive).held() as archive:
        lease = None
        if not run.is_dry and not policy.is_none:  # a node that never archives must not keep the others from it
            try:
                owner = node_name(home.path)
                lease = await take_lease(registry, owner, actor=run.actor, now=now, by_force=run.by_force)
            except Conflict:
                marks.add(now, noted)  # if this node takes over, it knows how old the events are
                await trim_spent(registry, journal, marks, noted=noted, now=now)
                raise
        retention = Retention(registry, archive, marks, policy, Mode(run.actor, run.is_dry, lease))
        done = await retention.run(noted=noted, now=now)
    if done.events and not run.is_dry:
        await asyncio.to_thread(journal.trim, await registry.first_event() - 1)
    elif not policy.events_days and not run.is_dry:
        await trim_spent(registry, journal, marks, noted=noted, now=now)
    return done


async def retain_daily(home: Home, registry: Registry, settings: Callable[[], Settings], clock: Clock) -> None:
    """Run retention by the settings in force daily until cancelled; a failure is logged and retried the next day."""
    await asyncio.sleep(FIRST_SECONDS)
    while True:
        try:
            done = await retain(home, registry, settings(), RetentionRun("retention", clock()))
        except Conflict as error:  # a command at this home runs it, or another node
            log_event(logger, logging.INFO, "retention", outcome="left", reason=error)
        except (FleetError, OSError) as error:
            log_event(logger, logging.ERROR, "retention", outcome="failed", reason=error)
        else:
            counts = {"events": done.events, "audit": done.audit, "certificates": done.credentials}
            log_event(logger, logging.INFO, "retention", outcome="ok", **counts)
        await asyncio.sleep(EVERY_SECONDS)
