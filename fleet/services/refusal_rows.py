"""Audit rows of refusals, written in the background, many at once.

    rows = RefusalRows(registry)
    rows.put(entry)                       # at most one row a minute for each kind, written soon
    await write_due(registry, now)        # what was left out and has had no row for a minute

What cannot be written, or finds the queue full, is put back: the next row of its kind counts it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from datetime import datetime

from fleet.config.logs import log_event
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.errors import Unavailable
from fleet.domain.ports import Registry
from fleet.services.last_refusals import last_refusals_of
from fleet.services.refusals import refusals_of

log = logging.getLogger("fleet.audit")

QUEUE_ROWS_MAX = 4096  # as many as there are kinds: a first row of each
BATCH_ROWS = 256  # committed at once, which a registry does in one transaction or a few
END_SECONDS_MAX = 1.0


class RefusalRows:
    """A queue and the task that empties it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._rows: deque[AuditEntry] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._put_back = 0

    def put(self, entry: AuditEntry, others: int = 0) -> None:
        """Audit `entry`, unless one of its kind was audited within the last minute. Never waits. `others` of its kind
        came just before it, and count.
        """
        row = refusals_of(self._registry).row(entry, others=others)
        if row is None:
            return
        if len(self._rows) >= QUEUE_ROWS_MAX:
            refusals_of(self._registry).put_back(row, at_once=True)
            self._put_back += 1
            return
        self._rows.append(row)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def close(self) -> None:
        """Write what is queued, for a second at most."""
        if self._writing is not None:
            await asyncio.wait((self._writing,), timeout=END_SECONDS_MAX)
            self._writing.cancel()
        while self._rows:
            refusals_of(self._registry).put_back(self._rows.popleft(), at_once=True)

    async def _write(self) -> None:
        while self._rows:
            await _commit(self._registry, [self._rows.popleft() for _ in range(min(BATCH_ROWS, len(self._rows)))])
        if self._put_back:
            log_event(log, logging.WARNING, "audit.queue-full", rows=self._put_back)
            self._put_back = 0


async def write_due(registry: Registry, now: datetime, *, at_once: bool = False) -> None:
    """Write a row for each kind of refusal that is due, or `at_once` for each of which any were left out; and the last
    refusal of each device."""
    try:
        await last_refusals_of(registry).write(registry)
    except Unavailable as error:
        log_event(log, logging.WARNING, "refusals.not-written", code=error.code)
    rows = deque(refusals_of(registry).due(now, at_once=at_once))
    try:
        while rows:
            await _commit(registry, [rows.popleft() for _ in range(min(BATCH_ROWS, len(rows)))])
    finally:
        for row in rows:
            refusals_of(registry).put_back(row, at_once=True)


async def _commit(registry: Registry, rows: Sequence[AuditEntry]) -> None:
    """Commit each of `rows`; those that fail are put back."""
    outcomes = await asyncio.gather(*(registry.commit(Change(row)) for row in rows), return_exceptions=True)
    errors = []
    for row, outcome in zip(rows, outcomes, strict=True):
        if outcome is not None:
            refusals_of(registry).put_back(row, at_once=True)
            errors.append(outcome)
    if errors:
        unexpected = next((error for error in errors if not isinstance(error, Unavailable)), None)
        log_event(log, logging.ERROR, "audit.not-written", rows=len(errors), error=errors[0], exc_info=unexpected)
