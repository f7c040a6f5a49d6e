"""The registry on SQLite: one file, several processes, nothing lost.

One writing connection takes every waiting Change in one transaction (group commit: one fsync for all of them); two
reading connections never wait for it. Each connection has a thread of its own, so the event loop never touches the
disk. A change made by another process is noticed by `PRAGMA data_version`.
"""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from fleet.domain.access import Operator
from fleet.domain.approval import EVERY_REQUEST, ApprovalRequest, RequestFilter
from fleet.domain.audit_log import AuditNode, Sealed, TreeHead
from fleet.domain.changes import Answer, AuditRow, Change, Event
from fleet.domain.claim import Claim
from fleet.domain.credential import Credential, Station, Token
from fleet.domain.device import EVERY_DEVICE, FIRST_PLACE, Device, DeviceFilter, Model, Place
from fleet.domain.errors import FleetError, Unavailable
from fleet.domain.idevid import Anchor, IdevidBinding
from fleet.domain.lease import Lease
from fleet.domain.manifest import ManifestFacts
from fleet.domain.ports import EnrollmentFacts, HolderFacts
from fleet.storage.batching import Batches, Take, Thread
from fleet.storage.sqlite import admission, logs, reads
from fleet.storage.sqlite import listings as lists
from fleet.storage.sqlite import requests as waiting
from fleet.storage.sqlite.connection import WriteLock, close_writer, connect_reader, connect_writer, unavailable
from fleet.storage.sqlite.reads import Query
from fleet.storage.sqlite.transaction import write_batch
from fleet.storage.sqlite.writes import add_head

T = TypeVar("T")

COMMIT_BATCH_MAX = 512  # Changes in one transaction: about 50 ms of work, which the first of them waits for
COMMITS_UNDER_WAY_MAX = 4096  # beyond that, those who commit wait before they take up memory
CONTENDED_PAUSE_SECONDS = 0.005  # when others want the lock too: fewer turns, which more Changes share
READ_BATCH_MAX = 64
EVENTS_MAX = 1000  # taken from the feed at once: a follower far behind must not fill the memory
READS_UNDER_WAY_MAX = 8192
FOREIGN_COMMIT_POLL_SECONDS = 0.025
FOLLOW_PAUSE_SECONDS = 0.01  # of a follower who has just heard something: in a storm, one look for many commits


class SqliteRegistry:
    """A domain.ports.Registry. Make one with `await SqliteRegistry.open(path)`, end it with `await close()`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = WriteLock(path.with_suffix(".lock"))
        self._bells: set[asyncio.Event] = set()
        self._poll: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path, *, create: bool = True) -> Self:
        """Open the registry at `path`, or make it there unless `create` is False.

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
        self._lister = Thread(partial(connect_reader, self.path))
        try:
            await self._writer.start()
        except BaseException:
            self._lock.close()
            raise
        try:
            await self._reader.start()
            await self._lister.start()
        except BaseException:
            await self._close_threads()
            raise
        self._commits = Batches(self._write, COMMIT_BATCH_MAX, COMMITS_UNDER_WAY_MAX)
        self._reads: Batches[Query[Any]] = Batches(self._read, READ_BATCH_MAX, READS_UNDER_WAY_MAX)
        self._lists: Batches[Query[Any]] = Batches(self._list, 1, READS_UNDER_WAY_MAX)

    async def close(self) -> None:
        """Commit what has been handed over, end every `follow`, and close the file. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._poll is not None:
            self._poll.cancel()
            with suppress(asyncio.CancelledError):
                await self._poll
        for batches in (self._commits, self._reads, self._lists):
            await batches.close()
        self._ring()
        await self._close_threads()

    async def _close_threads(self) -> None:
        for reader in (self._reader, self._lister):
            await reader.close()
        await self._writer.run(close_writer, self._lock)
        await self._writer.close()

    async def _write(self, take: Take[Change]) -> Sequence[object]:
        if self._lock.contended:
            await asyncio.sleep(CONTENDED_PAUSE_SECONDS)
        try:
            outcomes, told = await self._writer.run(self._write_locked, take)
        except Exception as error:
            raise unavailable(error) from error
        if told:
            self._ring()
        return outcomes

    def _write_locked(self, db: sqlite3.Connection, take: Take[Change]) -> tuple[Sequence[object], bool]:
        """The outcomes of whatever waits once the lock is ours, and whether followers have something to hear."""
        with self._lock:
            changes = take()
            if not changes:  # their callers have given up meanwhile
                return (), False
            try:
                outcomes = write_batch(db, changes)
            except Exception as error:
                return [unavailable(error) for _ in changes], False
        return outcomes, any(change.events for change in changes)

    async def _read(self, take: Take[Query[Any]]) -> Sequence[object]:
        return await self._answers(self._reader, take)

    async def _list(self, take: Take[Query[Any]]) -> Sequence[object]:
        return await self._answers(self._lister, take)

    async def _answers(self, thread: Thread, take: Take[Query[Any]]) -> Sequence[object]:
        try:
            answers = await thread.run(_read_what_waits, take)
        except Exception as error:
            raise unavailable(error) from error
        return [unavailable(answer) if isinstance(answer, sqlite3.Error) else answer for answer in answers]

    async def _ask(self, query: Query[T]) -> T:
        answer: T = await self._reads.put(query)
        return answer

    async def _ask_list(self, query: Query[T]) -> T:
        answer: T = await self._lists.put(query)
        return answer

    async def model(self, name: str) -> Model | None:
        return await self._ask(lambda db: reads.model(db, name))

    async def models(self) -> list[Model]:
        return await self._ask_list(reads.models)

    async def device(self, device_id: str) -> Device | None:
        return await self._ask(lambda db: reads.device(db, device_id))

    async def devices(
        self, where: DeviceFilter = EVERY_DEVICE, *, after: Place = FIRST_PLACE, limit: int = 1000
    ) -> list[Device]:
        """As the contract says, and never more than listings.LIST_MAX."""
        return await self._ask_list(lambda db: lists.devices(db, where, after, limit))

    async def count_devices(self, where: DeviceFilter = EVERY_DEVICE) -> int:
        return await self._ask_list(lambda db: lists.count_devices(db, where))

    async def credentials(self, holder: str) -> list[Credential]:
        return await self._ask_list(lambda db: reads.credentials(db, holder))

    async def credential(self, serial: str) -> Credential | None:
        return await self._ask(lambda db: reads.credential(db, serial))

    async def expired_credentials(
        self, before: datetime, limit: int = 1000, *, after: Credential | None = None
    ) -> list[Credential]:
        return await self._ask_list(lambda db: lists.expired_credentials(db, before, limit, after))

    async def expiries(self, until: datetime) -> list[tuple[datetime, int]]:
        return await self._ask_list(lambda db: lists.expiries(db, until))

    async def count_renewals(self, model: str, since: datetime) -> tuple[int, int]:
        return await self._ask_list(lambda db: lists.count_renewals(db, model, since))

    async def token(self, token_id: str) -> Token | None:
        return await self._ask(lambda db: reads.token(db, token_id))

    async def tokens(self) -> list[Token]:
        return await self._ask_list(reads.tokens)

    async def station(self, name: str) -> Station | None:
        return await self._ask(lambda db: reads.station(db, name))

    async def stations(self) -> list[Station]:
        return await self._ask_list(reads.stations)

    async def operator(self, name: str) -> Operator | None:
        return await self._ask(lambda db: reads.operator(db, name))

    async def operators(self) -> list[Operator]:
        return await self._ask_list(reads.operators)

    async def request(self, request_id: str) -> ApprovalRequest | None:
        return await self._ask(lambda db: waiting.request(db, request_id))

    async def requests(
        self, where: RequestFilter = EVERY_REQUEST, *, now: datetime, after: str = "", limit: int = 1000
    ) -> list[ApprovalRequest]:
        return await self._ask_list(lambda db: waiting.requests(db, where, now, after, limit))

    async def count_pending(self, now: datetime, model: str = "", network: str = "") -> tuple[int, int, int]:
        return await self._ask(lambda db: waiting.count_pending(db, now, model, network))

    async def claim(self, name: str) -> Claim | None:
        return await self._ask(lambda db: admission.claim(db, name))

    async def claims(self) -> list[Claim]:
        return await self._ask_list(admission.claims)

    async def anchors(self) -> list[Anchor]:
        return await self._ask(admission.anchors)

    async def manifest_facts(
        self, device_ids: Sequence[str], serials: Sequence[tuple[str, str]], keys: Sequence[bytes]
    ) -> ManifestFacts:
        def look(db: sqlite3.Connection) -> ManifestFacts:
            return admission.manifest_facts(db, device_ids, serials, keys)

        # An import asks about hundreds: enrollments don't wait for that.
        return await (self._ask(look) if len(device_ids) <= 1 else self._ask_list(look))

    async def idevid_bindings(self, key_sha256: bytes, device_id: str) -> list[IdevidBinding]:
        return await self._ask(lambda db: admission.idevid_bindings(db, key_sha256, device_id))

    async def lease(self, name: str) -> Lease | None:
        return await self._ask(lambda db: reads.lease(db, name))

    async def answer(self, actor: str, key: str) -> Answer | None:
        return await self._ask(lambda db: reads.answer(db, actor, key))

    async def enrollment_facts(self, device_id: str, token_id: str | None, key_sha256: bytes) -> EnrollmentFacts:
        return await self._ask(lambda db: reads.enrollment_facts(db, device_id, token_id, key_sha256))

    async def holder_facts(self, fingerprint: bytes) -> HolderFacts | None:
        return await self._ask(lambda db: reads.holder_facts(db, fingerprint))

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        """Rows in order, those with a sequence greater than `after`; never more than listings.LIST_MAX at once."""
        return await self._ask_list(lambda db: logs.audit(db, after, limit))

    async def last_audit(self) -> int:
        return await self._ask(logs.last_audit)

    async def audit_heads(self, *, after: int = 0, limit: int = 1000) -> list[TreeHead]:
        return await self._ask_list(lambda db: logs.audit_heads(db, after, limit))

    async def last_sealed(self) -> Sealed | None:
        return await self._ask(logs.last_sealed)

    async def audit_hashes(self, level: int, first: int, count: int) -> list[bytes]:
        return await self._ask_list(lambda db: logs.audit_hashes(db, level, first, count))

    async def seal(self, sealed: Sealed, nodes: tuple[AuditNode, ...]) -> None:
        try:
            await self._writer.run(self._seal_locked, sealed, nodes)
        except Exception as error:
            raise unavailable(error) from error

    def _seal_locked(self, db: sqlite3.Connection, sealed: Sealed, nodes: tuple[AuditNode, ...]) -> None:
        with self._lock:
            add_head(db, sealed, nodes)

    async def commit(self, change: Change) -> None:
        """Make `change` durable; returns only after the fsync. When the caller is cancelled, it may still happen.

        Raises: Conflict: a write found otherwise, nothing happened. Unavailable: the disk or the database said no,
        nothing happened.
        """
        await self._commits.put(change)

    async def events(self, *, after: int = 0, limit: int = 1000) -> list[Event]:
        return await self._ask_list(lambda db: logs.events(db, after, limit))

    async def first_event(self) -> int:
        return await self._ask(logs.first_event)

    async def last_event(self) -> int:
        return await self._ask(logs.last_event)

    async def follow(self, after: int) -> AsyncGenerator[Event, None]:
        """Every event with a sequence greater than `after`, in order, for ever: those of other processes too.

        Wakes at once for a commit of this process, and within FOREIGN_COMMIT_POLL_SECONDS for one of another; when it
        has just heard something, FOLLOW_PAUSE_SECONDS later.

        Raises: Unavailable: the feed could not be read, events after `after` are not kept any more (`feed-gap`), or
        the registry has been closed. Whoever relies on the feed must then assume that anything may have changed.
        """
        bell = asyncio.Event()
        self._bells.add(bell)
        if self._poll is None and not self._closed:
            self._poll = asyncio.create_task(self._watch_other_processes())
        try:
            while True:
                bell.clear()  # before the look, so that what comes during it rings again
                seen = after
                for event in await self._ask(partial(logs.events, after=after, limit=EVENTS_MAX)):
                    if event.seq != after + 1:
                        raise Unavailable("feed-gap", f"Events {after + 1} to {event.seq - 1} are not kept any more.")
                    yield event
                    after = event.seq
                if after == seen:
                    await bell.wait()
                elif after - seen < EVENTS_MAX:
                    await asyncio.sleep(FOLLOW_PAUSE_SECONDS)
        finally:
            self._bells.discard(bell)

    def _ring(self) -> None:
        for bell in self._bells:
            bell.set()

    async def _watch_other_processes(self) -> None:
        version = None
        while True:
            try:
                found = await self._ask(reads.data_version)
            except FleetError:
                found = None  # the followers look for themselves, and hear why
            if found is None or found != version:
                self._ring()
            version = found
            await asyncio.sleep(FOREIGN_COMMIT_POLL_SECONDS)


def _read_what_waits(db: sqlite3.Connection, take: Take[Query[Any]]) -> Sequence[object]:
    return reads.read_batch(db, take())
