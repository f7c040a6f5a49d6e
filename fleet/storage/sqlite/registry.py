"""The registry on SQLite: one file, shared by several processes.

One writing connection commits every waiting Change in one transaction (group commit: one fsync for all of them); two
reading connections never wait for it. Each connection has its own thread, so the event loop never touches the disk.
A commit of another process is noticed by inotify, and by polling `PRAGMA data_version` where that fails: often where
there is no inotify, and rarely where there is, since each poll costs as much as a relayed message.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from fleet.domain.audit_log import AuditNode, Sealed
from fleet.domain.changes import AuditRow, Committed, Event
from fleet.domain.errors import FleetError
from fleet.domain.manifest import ManifestFacts
from fleet.domain.ports import EnrollmentFacts, HolderFacts
from fleet.storage.batching import Batches, Take, Thread
from fleet.storage.crls import Step
from fleet.storage.errors import reported
from fleet.storage.queries import Query
from fleet.storage.registry import SqlRegistry
from fleet.storage.sqlite import reads
from fleet.storage.sqlite.commit_watch import CommitWatch
from fleet.storage.sqlite.connection import WriteLock, close_writer, connect_reader, connect_writer, unavailable
from fleet.storage.sqlite.reads import Read, Snapshot
from fleet.storage.sqlite.transaction import write_batch
from fleet.storage.sqlite.writes import add_head, run_steps

T = TypeVar("T")

COMMIT_BATCH_MAX = 512  # Changes in one transaction: about 50 ms of work, the longest delay of the first
COMMITS_UNDER_WAY_MAX = 4096  # beyond that, callers wait before they take up memory
CONTENDED_PAUSE_SECONDS = 0.005  # while other processes want the lock: fewer, larger batches
READ_BATCH_MAX = 64
READS_UNDER_WAY_MAX = 8192
FOREIGN_COMMIT_POLL_SECONDS = 0.025
WATCHED_POLL_SECONDS = 1.0  # for a commit that was not announced: of a program that writes without our lock


class SqliteRegistry(SqlRegistry):
    """A domain.ports.Registry; see `open` and `close`."""

    feed_pause_seconds = 0.005

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._lock = WriteLock(path.with_suffix(".lock"))
        self._poll: asyncio.Task[None] | None = None
        self._watch: CommitWatch | None = None

    @classmethod
    async def open(cls, path: Path, *, create: bool = True) -> Self:
        """Open the registry at `path`; create it unless `create` is False.

        The file is made 0600. Several processes may have one open.

        Raises: NotFound (`no-registry`); Invalid (`registry-permissions`, `not-a-registry`, `registry-newer`);
        Unavailable.
        """
        registry = cls(path)
        await registry._connect(create)
        return registry

    async def _connect(self, create: bool) -> None:
        self._writer = Thread(partial(connect_writer, self.path, self._lock, create))
        self._reader = Thread(partial(connect_reader, self.path))
        self._scanner = Thread(partial(connect_reader, self.path))
        try:
            await self._writer.start()
        except BaseException:
            self._lock.close()
            raise
        try:
            await self._reader.start()
            await self._scanner.start()
        except BaseException:
            await self._close_threads()
            raise
        self._commits = Batches(self._write, COMMIT_BATCH_MAX, COMMITS_UNDER_WAY_MAX)
        answer_reads, answer_scans = (partial(self._answers, thread) for thread in (self._reader, self._scanner))
        self._reads: Batches[Read[Any]] = Batches(answer_reads, READ_BATCH_MAX, READS_UNDER_WAY_MAX)
        self._scans: Batches[Read[Any]] = Batches(answer_scans, 1, READS_UNDER_WAY_MAX)

    async def close(self) -> None:
        """Commit what is queued, end every `follow`, and close the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._watch is not None:
            self._watch.close()
        if self._poll is not None:
            self._poll.cancel()
            with suppress(asyncio.CancelledError):
                await self._poll
        for batches in (self._commits, self._reads, self._scans):
            await batches.close()
        self._wake_followers()
        await self._close_threads()

    async def _close_threads(self) -> None:
        for reader in (self._reader, self._scanner):
            await reader.close()
        await self._writer.run(close_writer, self._lock)
        await self._writer.close()

    async def _write(self, take: Take[Committed]) -> Sequence[object]:
        if self._lock.contended:
            await asyncio.sleep(CONTENDED_PAUSE_SECONDS)
        with reported(unavailable):
            outcomes, events = await self._writer.run(self._write_locked, take)
        if events:
            self.revoked.on_events(events)
            self._recent.add(events)
            self._wake_followers()
        return outcomes

    def _write_locked(self, db: sqlite3.Connection, take: Take[Committed]) -> tuple[Sequence[object], Sequence[Event]]:
        """The outcomes of the Changes that wait once the lock is ours, and the events that were committed."""
        with self._lock:
            changes = take()
            if not changes:  # their callers were cancelled
                return (), ()
            try:
                outcomes, event_seq = write_batch(db, changes)
            except Exception as error:
                return [unavailable(error) for _ in changes], ()
            new = (e for change, one in zip(changes, outcomes, strict=True) if one is None for e in change.events)
            events = [Event(e.kind, e.subject, e.detail, seq) for seq, e in enumerate(new, event_seq + 1)]
            if events:
                self._lock.announce(events[-1].seq)
        return outcomes, events

    async def _answers(self, thread: Thread, take: Take[Read[Any]]) -> Sequence[object]:
        with reported(unavailable):
            answers = await thread.run(lambda db: reads.read_batch(db, take()))
        return [unavailable(answer) if isinstance(answer, sqlite3.Error) else answer for answer in answers]

    async def _ask(self, read: Read[T]) -> T:
        answer: T = await self._reads.put(read)
        return answer

    async def _ask_scan(self, read: Read[T]) -> T:
        answer: T = await self._scans.put(read)
        return answer

    async def _read(self, query: Query[T], *parameters: Any) -> list[T]:
        return await self._ask(lambda at: reads.rows_of(at.db, query, *parameters))

    async def _scan(self, query: Query[T], *parameters: Any) -> list[T]:
        """On a separate connection: an enrollment does not wait for it."""
        return await self._ask_scan(lambda at: reads.rows_of(at.db, query, *parameters))

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        return await self._ask_scan(lambda at: reads.audit(at.db, after, limit))

    async def manifest_facts(
        self, device_ids: Sequence[str], serials: Sequence[tuple[str, str]], keys: Sequence[bytes]
    ) -> ManifestFacts:
        def look(at: Snapshot) -> ManifestFacts:
            return reads.manifest_facts(at.db, device_ids, serials, keys)

        # An import asks for hundreds: enrollments don't wait for that.
        return await (self._ask(look) if len(device_ids) <= 1 else self._ask_scan(look))

    async def serial_holders(self, serials: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
        return await self._ask_scan(lambda at: reads.serial_holders(at.db, serials))

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
        def look(at: Snapshot) -> EnrollmentFacts:
            facts = reads.enrollment_facts(at.db, device_id, token_id, key_sha256, presented, earned_by)
            return facts if certificate is None else reads.with_holder(at, facts, certificate)

        return await self._ask(look)

    async def holder_facts(self, fingerprint: bytes) -> HolderFacts | None:
        return await self._ask(lambda at: reads.holder_facts(at.db, fingerprint))

    async def seal(self, sealed: Sealed, nodes: tuple[AuditNode, ...]) -> None:
        await self._run_locked(lambda db: add_head(db, sealed, nodes))

    async def _run_steps(self, steps: Sequence[Step]) -> None:
        await self._run_locked(lambda db: run_steps(db, steps))

    async def _run_locked(self, work: Callable[[sqlite3.Connection], None]) -> None:
        def locked(db: sqlite3.Connection) -> None:
            with self._lock:
                work(db)

        with reported(unavailable):
            await self._writer.run(locked)

    def _start_listening(self) -> None:
        if self._poll is None:
            self._poll = asyncio.create_task(self._poll_other_processes())
            with suppress(OSError):
                self._watch = CommitWatch(self._lock, self._wake_followers)

    async def _poll_other_processes(self) -> None:
        version = None
        while True:
            try:
                found = await self._ask(reads.data_version)
            except FleetError:
                found = None  # the followers read the feed themselves, and raise the error
            if found is None or found != version:
                self._wake_followers()
            version = found
            await asyncio.sleep(FOREIGN_COMMIT_POLL_SECONDS if self._watch is None else WATCHED_POLL_SECONDS)
