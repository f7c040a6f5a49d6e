"""The registry on PostgreSQL, shared by several nodes.

A pool of sessions answers reads, which never wait for writes. One session commits every waiting Change of this process
in one transaction (group commit). NOTIFY wakes the feed. Lost sessions are opened again when they are next needed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self, TypeVar

import asyncpg
from msgspec import structs

from fleet.config.database_url import DatabaseUrl
from fleet.domain.audit_log import AuditNode, Sealed
from fleet.domain.changes import Committed
from fleet.domain.errors import FleetError
from fleet.domain.manifest import ManifestFacts
from fleet.domain.ports import EnrollmentFacts, HolderFacts
from fleet.storage.batching import Batches, Take, closed
from fleet.storage.crls import Step
from fleet.storage.errors import reported
from fleet.storage.postgres import heads, reads
from fleet.storage.postgres.listener import Listener
from fleet.storage.postgres.migrations import migrate
from fleet.storage.postgres.session import (
    DRIVER_ERRORS,
    WAIT_SECONDS_MAX,
    Session,
    cannot_open,
    connection_lost,
    prepare,
    session_arguments,
    unavailable,
)
from fleet.storage.postgres.writer import CLOSE_SECONDS_MAX, Writer
from fleet.storage.queries import Query
from fleet.storage.registry import SqlRegistry
from fleet.wire.hardware_serial import comparable

T = TypeVar("T")

COMMIT_BATCH_MAX = 256  # Changes in one transaction; each takes some two locks, of 6,400 in a server as it is installed
COMMITS_UNDER_WAY_MAX = 4096  # beyond that, callers wait before they take up memory
READERS_MAX = 8
READER_IDLE_SECONDS_MAX = 300.0
READ_TRIES_MAX = 3  # a dead session says nothing about the database


async def _keep(session: Session) -> None:
    """A read leaves nothing to reset in its session."""


class PostgresRegistry(SqlRegistry):
    """A domain.ports.Registry; see `open` and `close`."""

    message_clock = "coalesce((extract(epoch FROM clock_timestamp()) * 1000000)::bigint, {now})"
    feed_poll_seconds = 0.5  # delay of an event whose notification was lost

    def __init__(self, url: DatabaseUrl) -> None:
        super().__init__()
        self.url = url
        self._writer = Writer(url)
        self._listener = Listener(url, self._wake_followers)

    @classmethod
    async def open(cls, url: DatabaseUrl, *, create: bool = True) -> Self:
        """Open the registry in the database at `url` and migrate it; create it unless `create` is False.

        Several processes and nodes may have one open.

        Raises: NotFound (`no-database`, `no-registry`); Invalid (`registry-newer`, `not-a-registry`,
        `registry-permissions`, `postgres-too-old`, `postgres-encoding`); Unavailable.
        """
        registry = cls(url)
        await registry._connect(create)
        return registry

    async def _connect(self, create: bool) -> None:
        # It would log a traceback every second of an outage, which our callers report anyway.
        logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
        pool = asyncpg.create_pool(
            **session_arguments(self.url, "reader"),
            min_size=1,
            max_size=READERS_MAX,
            max_inactive_connection_lifetime=READER_IDLE_SECONDS_MAX,
            init=prepare,
            reset=_keep,
        )
        with reported(partial(cannot_open, self.url)):
            self._pool = await pool
        try:
            with reported(unavailable):
                async with self._pool.acquire() as session:
                    await migrate(session, self.url, create=create)
        except FleetError:
            self._pool.terminate()
            raise
        self._commits = Batches(self._write, COMMIT_BATCH_MAX, COMMITS_UNDER_WAY_MAX)

    async def close(self) -> None:
        """Commit what is queued, end every `follow`, and close every session. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._writer.set_settle_deadline(CLOSE_SECONDS_MAX)
        await self._commits.close()
        self._wake_followers()
        await self._listener.close()
        await self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await self._pool.close()
        except Exception:  # a server that does not answer: there is nothing left to lose
            self._pool.terminate()

    async def _write(self, take: Take[Committed]) -> Sequence[object]:
        changes = take()
        if not changes:  # their callers were cancelled
            return ()
        outcomes = await self._writer.write(changes)
        events = [e for change, one in zip(changes, outcomes, strict=True) if one is None for e in change.events]
        if events:
            self.revoked.on_events(events)
            self._wake_followers()
        return outcomes

    async def _read(self, query: Query[T], *parameters: Any) -> list[T]:
        """Raises: Unavailable. Invalid (`bad-value`)."""
        for left in reversed(range(READ_TRIES_MAX)):
            try:
                async with self._session() as session:
                    found = await session.fetch(query.sql, *parameters)
                    break
            except FleetError:
                raise
            except Exception as error:
                if self._closed:
                    raise closed() from error
                if left == 0 or not connection_lost(error) or isinstance(error, TimeoutError):
                    raise unavailable(error) from error
                await self._pool.expire_connections()  # the other sessions are as old as the dead one
        return [query.of(row) for row in found]

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        """One of the pool's sessions. Raises: Unavailable (`registry-closed`), and what the driver raises."""
        if self._closed:
            raise closed()
        async with self._pool.acquire(timeout=WAIT_SECONDS_MAX) as session:
            yield session

    async def manifest_facts(
        self, device_ids: Sequence[str], serials: Sequence[tuple[str, str]], keys: Sequence[bytes]
    ) -> ManifestFacts:
        models, numbers = [model for model, _ in serials], [comparable(serial) for _, serial in serials]
        entries = await self._read(reads.ENTRIES, device_ids, models, numbers, keys)
        return ManifestFacts(tuple(entries), frozenset(await self._read(reads.KNOWN_DEVICES, device_ids)))

    async def serial_holders(self, serials: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
        models, numbers = [model for model, _ in serials], [comparable(serial) for _, serial in serials]
        return await self._read(reads.SERIAL_HOLDERS, models, numbers)

    async def enrollment_facts(
        self,
        device_id: str,
        token_id: str | None,
        key_sha256: bytes,
        *,
        presented: bytes | None = None,
        earned_by: str | None = None,
        certificate: bytes | None = None,
    ) -> EnrollmentFacts:
        holder = await self.holder_facts(certificate) if certificate is not None else None
        [facts] = await self._read(reads.ENROLLMENT, device_id, token_id, key_sha256, presented, earned_by)
        if holder is None:
            return facts
        model = facts.model
        if model is None and holder.only_model is not None:
            model = await self.model(holder.only_model)
        return structs.replace(facts, holder=holder, model=model)

    async def holder_facts(self, fingerprint: bytes) -> HolderFacts | None:
        return await self._one(reads.HOLDER, fingerprint)

    async def seal(self, sealed: Sealed, nodes: tuple[AuditNode, ...]) -> None:
        try:
            async with self._session() as session:
                await heads.add_head(session, sealed, nodes)
        except FleetError:
            raise
        except Exception as error:
            if not connection_lost(error) or self._closed or not await self._is_sealed(sealed):
                raise unavailable(error) from error

    async def _run_steps(self, steps: Sequence[Step]) -> None:
        with reported(unavailable):
            async with self._session() as session, session.transaction():
                for statement, rows in steps:
                    if statement.code:
                        for row in rows:
                            if (await session.execute(statement.sql, *row)).endswith(" 0"):
                                raise statement.conflict(row)
                    else:
                        await session.executemany(statement.sql, rows)

    async def _is_sealed(self, sealed: Sealed) -> bool:
        """Whether a head was stored although its session was lost; no, when the database does not answer."""
        try:
            async with self._session() as session:
                return await heads.has_head(session, sealed)
        except (FleetError, *DRIVER_ERRORS):
            return False

    def _start_listening(self) -> None:
        self._listener.start()
