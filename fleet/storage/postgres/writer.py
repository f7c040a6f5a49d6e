"""A batch of Changes as one transaction (group commit), and its recovery when the database fails in the middle.

Four round trips:

    1  the advisory locks of every name that the batch reads, in one order; every Change's writes
    2  the sequence lock: until COMMIT no other session numbers audit rows or events
    3  audit rows and events of the Changes without a conflict, numbered on; this writer's mark; NOTIFY
    4  COMMIT

Sequence order is therefore commit order, on every node, without gaps: a follower by sequence misses nothing. A session
that waits for the sequence lock holds name locks; one that holds it waits for none, so there is no deadlock.
"""

import asyncio
import math
import os
from collections.abc import Sequence
from typing import Any

import asyncpg

from fleet.config.database_url import DatabaseUrl
from fleet.domain.audit_log import leaf_of
from fleet.domain.changes import AuditRow, Committed
from fleet.domain.errors import Unavailable
from fleet.storage import mapping
from fleet.storage.mapping import Table
from fleet.storage.postgres.functions import FUNCTIONS
from fleet.storage.postgres.session import DRIVER_ERRORS, Session, connect, connection_lost, unavailable
from fleet.storage.postgres.writes import Prepared, prepared

TRIES_MAX = 3
BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX = 0.05, 2.0
CLOSE_SECONDS_MAX = 1.0
SETTLE_SECONDS_MAX = 30.0  # a database that restarts is back by then
MARKS_KEPT = "7 days"
CHANNEL = "fleet_event"


def _insert_all(table: Table[Any], first: int) -> str:
    """Many rows in one statement, an array for each column, from parameter `first` on."""
    arrays = ", ".join(f"${number}::{type_}[]" for number, type_ in enumerate(table.types, first))
    return f"INSERT INTO {table.name} ({table.listed()}) SELECT * FROM unnest({arrays})"


_EVENTS_AT = len(mapping.AUDIT.columns) + 1
_MARK_AT = _EVENTS_AT + len(mapping.EVENT.columns)
RECORD = f"""
    WITH audits AS (
        {_insert_all(mapping.AUDIT, 1)}
    ), events AS (
        {_insert_all(mapping.EVENT, _EVENTS_AT)}
    ), mark AS (
        INSERT INTO writer (id, batch) VALUES (${_MARK_AT}::bytea, ${_MARK_AT + 1}::bytea)
        ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, seen = now()
    )
    SELECT pg_notify('{CHANNEL}', '') WHERE cardinality(${_EVENTS_AT}::text[]) > 0"""
# Waits for a transaction of the lost session that is still open, and changes nothing but the time.
LAST_MARK = """
    INSERT INTO writer (id, batch) VALUES ($1::bytea, '') ON CONFLICT (id) DO UPDATE SET seen = now() RETURNING batch"""
FORGET_MARKS = f"DELETE FROM writer WHERE seen < now() - interval '{MARKS_KEPT}'"
FORGET_MARK = "DELETE FROM writer WHERE id = $1"

_CLASHES = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.OutOfMemoryError,  # of the server's lock table, among others: a smaller batch may fit
)


class Unsettled(Exception):
    """The session was lost after COMMIT was sent, and the database could not be asked for the outcome."""


class Writer:
    """The one writing session of a process, opened on demand and again after it was lost."""

    def __init__(self, url: DatabaseUrl) -> None:
        self._url = url
        self._id = os.urandom(16)
        self._session: Session = None
        self._failure: Exception | None = None
        self._failures = 0
        self._not_before = 0.0
        self._settle_by = math.inf

    async def open(self) -> Session:
        """The session, opened if there is none; with backoff while the database is down. Raises: FleetError."""
        if self._session is not None and not self._session.is_closed():
            return self._session
        clock = asyncio.get_running_loop().time
        if self._failure is not None and clock() < self._not_before:
            raise unavailable(self._failure)
        try:
            session = await self._new_session()
        except Exception as error:
            self._failure = error
            self._not_before = clock() + min(BACKOFF_SECONDS_MIN * 2**self._failures, BACKOFF_SECONDS_MAX)
            self._failures = min(self._failures + 1, 16)
            raise
        self._session, self._failure, self._failures = session, None, 0
        return session

    async def _new_session(self) -> Session:
        session = await connect(self._url, "writer")
        try:
            await session.execute(FUNCTIONS)
            await session.execute(FORGET_MARKS)
        except BaseException:
            session.terminate()
            raise
        return session

    def set_settle_deadline(self, seconds: float) -> None:
        """From now on, wait no longer than this for the outcome of a COMMIT whose answer was lost."""
        self._settle_by = asyncio.get_running_loop().time() + seconds

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is None or session.is_closed():
            return
        try:
            await session.execute(FORGET_MARK, self._id, timeout=CLOSE_SECONDS_MAX)
            await session.close(timeout=CLOSE_SECONDS_MAX)
        except DRIVER_ERRORS:
            session.terminate()

    async def write(self, changes: Sequence[Committed]) -> list[Exception | None]:
        """Commit `changes`; one outcome each, None for one that is durable.

        An exception means that nothing happened, but for Unavailable (`registry-unsettled`): the outcome of a COMMIT
        could not be learned.
        """
        outcomes: list[Exception | None] = []
        ready: list[Prepared] = []
        for change in changes:
            try:
                ready.append(prepared(change))
                outcomes.append(None)
            except Exception as error:  # one caller's bad value must not fail the others in the batch
                outcomes.append(error)
        answers = iter(await self._write(ready) if ready else ())
        return [next(answers) if outcome is None else outcome for outcome in outcomes]

    async def _write(self, batch: Sequence[Prepared]) -> list[Exception | None]:
        failure: Exception = Unavailable("registry-unavailable", "The registry could not be written.")
        for _ in range(TRIES_MAX):
            try:
                return await self._write_once(batch)
            except Unsettled:
                return [_unsettled() for _ in batch]
            except _CLASHES as error:
                if len(batch) > 1:
                    return [outcome for one in batch for outcome in await self._write((one,))]
                failure = error
            except Exception as error:
                failure = error
                if not connection_lost(error):
                    break
        return [unavailable(failure) for _ in batch]

    async def _write_once(self, batch: Sequence[Prepared]) -> list[Exception | None]:
        """Raises: what the driver raises, when nothing of it happened. Unsettled."""
        session = await self.open()
        mark = os.urandom(16)
        sent = False
        try:
            await session.execute("BEGIN")
            outcomes = await apply(session, batch)
            held = [one.change for one, outcome in zip(batch, outcomes, strict=True) if outcome is None]
            if held:
                await record(session, held, self._id, mark)
            sent = bool(held)
            if await session.execute("COMMIT" if held else "ROLLBACK") == "ROLLBACK" and held:
                raise asyncpg.TransactionRollbackError("the server rolled the transaction back")
        except Exception as error:
            if not connection_lost(error) and await self._rolled_back(session):
                raise
            session.terminate()
            if not sent or not await self._has_committed(mark):
                raise
        except BaseException:
            session.terminate()
            raise
        return outcomes

    async def _rolled_back(self, session: Session) -> bool:
        """Roll back after an error that the server reported; False: the session is unusable."""
        try:
            await session.execute("ROLLBACK")
        except DRIVER_ERRORS:
            return False
        return True

    async def _has_committed(self, mark: bytes) -> bool:
        """Whether the batch with this mark was committed before its session was lost. Retries until there is an answer.

        Raises: Unsettled: no answer for SETTLE_SECONDS_MAX.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + SETTLE_SECONDS_MAX
        delay = BACKOFF_SECONDS_MIN
        while True:
            try:
                session = await self.open()
                last: bytes = await session.fetchval(LAST_MARK, self._id)
            except Exception as error:
                if clock() > min(deadline, self._settle_by):
                    raise Unsettled from error
                await asyncio.sleep(delay)
                delay = min(delay * 2, BACKOFF_SECONDS_MAX)
            else:
                return last == mark


async def apply(session: Session, batch: Sequence[Prepared]) -> list[Exception | None]:
    """Execute the writes of `batch` in the open transaction; one outcome each, None without a conflict."""
    locks = sorted({lock for one in batch for lock in one.locks})
    answers = await session.fetchval("SELECT pg_temp.fleet_batch($1, $2)", locks, [one.text for one in batch])
    return [one.outcome(answer) for one, answer in zip(batch, answers, strict=True)]


async def record(session: Session, held: Sequence[Committed], writer: bytes, mark: bytes) -> None:
    """Take the sequence lock, then number and store the audit rows and events of `held`."""
    turn = await session.fetchrow("SELECT * FROM pg_temp.fleet_turn()")
    entries = enumerate((change.audit for change in held if change.audit is not None), turn["audit_seq"] + 1)
    audits = [mapping.AUDIT.row(AuditRow(seq, entry, leaf_of(entry, seq))) for seq, entry in entries]
    numbered = enumerate((event for change in held for event in change.events), turn["event_seq"] + 1)
    events = [(event.kind, event.subject, event.detail, seq) for seq, event in numbered]
    await session.fetch(RECORD, *_columns(mapping.AUDIT, audits), *_columns(mapping.EVENT, events), writer, mark)


def _columns(table: Table[Any], found: Sequence[mapping.Row]) -> list[list[Any]]:
    return [list(column) for column in zip(*found, strict=True)] if found else [[] for _ in table.columns]


def _unsettled() -> Unavailable:
    return Unavailable(
        "registry-unsettled",
        "The database failed in the middle of a commit: whether the change was made is not known.",
        "Check whether it was made before trying again.",
    )
