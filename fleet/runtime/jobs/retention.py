"""Retention of a home: what a command runs once and a serving process every day."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

from fleet.config.settings import Settings
from fleet.domain.errors import Conflict, FleetError
from fleet.domain.ports import Registry
from fleet.home.layout import Home, revocation_log
from fleet.runtime.background import background
from fleet.services.retention import Policy, Report, Retention, take_lease
from fleet.services.revocation_journal import catch_up
from fleet.services.spent_revocations import trim_spent
from fleet.storage.journals.archive import Archive
from fleet.storage.journals.event_marks import EventMarks

logger = logging.getLogger("fleet.retention")

FIRST_SECONDS = 600.0  # after the start: a server that is restarted every day gets round to it too
EVERY_SECONDS = 86_400.0
NODE_NAME_MAX = 512  # octets of a host name and most of any path


def policy_of(settings: Settings) -> Policy:
    """For how long things are kept."""
    return Policy(settings.events_days, settings.audit_days, settings.expired_credentials_days)


async def retain(
    home: Home,
    registry: Registry,
    settings: Settings,
    *,
    actor: str,
    now: datetime,
    is_dry: bool = False,
    by_force: bool = False,
) -> Report:
    """Archive and drop what `settings` say is due, if no other node does. The revocation log forgets what the events
    have been dropped of or, where this node drops none, what is spent.

    Raises: Conflict: `archive-in-use`; `retention-elsewhere`, unless taken over `by_force`; what Retention.run raises.
    """
    policy = policy_of(settings)
    log = revocation_log(home)
    noted = await catch_up(registry, log)
    marks = EventMarks(home.event_marks)
    with Archive(home.archive).held() as archive:
        lease = None
        if not is_dry and not policy.is_none:  # a node that never archives must not keep the others from it
            try:
                lease = await take_lease(registry, node_name(home), actor=actor, now=now, by_force=by_force)
            except Conflict:
                marks.add(now, noted)  # should this node take over, it knows how old the events are
                await trim_spent(registry, log, marks, noted=noted, now=now)
                raise
        retention = Retention(registry, archive, marks, policy, actor=actor, is_dry=is_dry, lease=lease)
        done = await retention.run(noted=noted, now=now)
    if done.events and not is_dry:
        await asyncio.to_thread(log.trim, await registry.first_event() - 1)
    elif not policy.events_days and not is_dry:
        await trim_spent(registry, log, marks, noted=noted, now=now)
    return done


def node_name(home: Home) -> str:
    """What a node is called in a lease: its host and its home, for a copy of the home on another host is another."""
    return f"{socket.gethostname()}:{home.path.absolute()}"[:NODE_NAME_MAX]


@asynccontextmanager
async def retaining_daily(
    home: Home, registry: Registry, settings: Settings, clock: Callable[[], datetime]
) -> AsyncIterator[asyncio.Task[None]]:
    """While the block runs, the task that retains every day."""
    async with background(retain_daily(home, registry, settings, clock), "retention") as task:
        yield task


async def retain_daily(home: Home, registry: Registry, settings: Settings, clock: Callable[[], datetime]) -> None:
    """Retain until cancelled; what stands in the way is logged, and tried again the next day."""
    await asyncio.sleep(FIRST_SECONDS)
    while True:
        try:
            done = await retain(home, registry, settings, actor="retention", now=clock())
        except Conflict as error:  # a command at this home is at it, or another node
            logger.info("event=retention outcome=left reason=%s", error)
        except (FleetError, OSError) as error:
            logger.error("event=retention outcome=failed reason=%s", error)
        else:
            logger.info(
                "event=retention outcome=ok events=%d audit=%d certificates=%d",
                done.events,
                done.audit,
                done.credentials,
            )
        await asyncio.sleep(EVERY_SECONDS)
