"""The registry on PostgreSQL: several nodes, one truth.

A pool of sessions answers reads, which never wait for writes. One session takes every waiting Change of this process in
one transaction (group commit). The feed is woken by NOTIFY. Whatever is lost with the network or the server is opened
again when it is next needed.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any, Self

import asyncpg

from fleet.config.database_url import DatabaseUrl
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
from fleet.storage import admission_rows, mapping, request_rows
from fleet.storage.batching import Batches, Take
from fleet.storage.postgres import admission, logs, reads
from fleet.storage.postgres import listings as lists
from fleet.storage.postgres.listener import Listener
from fleet.storage.postgres.migrations import migrate
from fleet.storage.postgres.session import (
    DRIVER_ERRORS,
    WAIT_SECONDS_MAX,
    Session,
    cannot_open,
    closed,
    connection_lost,
    prepare,
    session_arguments,
    unavailable,
)
from fleet.storage.postgres.writer import CLOSE_SECONDS_MAX, Writer

COMMIT_BATCH_MAX = 256  # Changes in one transaction; each takes some two locks, of 6,400 in a server as it is installed
COMMITS_UNDER_WAY_MAX = 4096  # beyond that, those who commit wait before they take up memory
READERS_MAX = 8
READER_IDLE_SECONDS_MAX = 300.0
READ_TRIES_MAX = 3  # a session that turns out to be dead says nothing about the database
EVENTS_MAX = 1000  # taken from the feed at once: a follower far behind must not fill the memory
FEED_POLL_SECONDS = 0.5  # how late an event is heard when its notification was lost


async def _keep(session: Session) -> None:
    """Between two uses of a reader there is nothing to undo: a read changes nothing in its session."""


class PostgresRegistry:
    """A domain.ports.Registry. Make one with `await PostgresRegistry.open(url)`, end it with `await close()`."""

    def __init__(self, url: DatabaseUrl) -> None:
        self.url = url
        self._writer = Writer(url)
        self._listener = Listener(url, self._ring)
        self._bells: set[asyncio.Event] = set()
        self._closed = False

    @classmethod
    async def open(cls, url: DatabaseUrl, *, create: bool = True) -> Self:
        """Open the registry in the database at `url`, on the newest schema, or make it there unless `create` is False.

        Several processes and nodes may have one open.

        Raises: NotFound (`no-database`, `no-registry`); Invalid (`registry-newer`, `not-a-registry`,
        `registry-permissions`, `postgres-too-old`, `postgres-encoding`); Unavailable.
        """
        registry = cls(url)
        await registry._connect(create)
        return registry

    async def _connect(self, create: bool) -> None:
        # It would warn with a traceback every second of an outage, of which whoever asks us hears anyway.
        logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
        pool = asyncpg.create_pool(
            **session_arguments(self.url, "reader"),
            min_size=1,
            max_size=READERS_MAX,
            max_inactive_connection_lifetime=READER_IDLE_SECONDS_MAX,
            init=prepare,
            reset=_keep,
        )
        try:
            self._pool = await pool
        except Exception as error:
            raise cannot_open(self.url, error) from error
        try:
            async with self._pool.acquire() as session:
                await migrate(session, self.url, create=create)
        except Exception as error:
            self._pool.terminate()
            raise unavailable(error) from error
        self._commits = Batches(self._write, COMMIT_BATCH_MAX, COMMITS_UNDER_WAY_MAX)

    async def close(self) -> None:
        """Commit what has been handed over, end every `follow`, and close every session. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._writer.hurry(CLOSE_SECONDS_MAX)
        await self._commits.close()
        self._ring()
        await self._listener.close()
        await self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await self._pool.close()
        except Exception:  # a server that does not answer: there is nothing left to lose
            self._pool.terminate()

    async def _write(self, take: Take[Change]) -> Sequence[object]:
        changes = take()
        if not changes:  # their callers have given up meanwhile
            return ()
        outcomes = await self._writer.write(changes)
        if any(change.events for change in changes):
            self._ring()
        return outcomes

    async def _fetch(self, statement: str, *parameters: Any) -> list[Any]:
        """The rows that `statement` gives, at one moment: that of this call or later.

        Raises: Unavailable. Invalid (`bad-value`).
        """
        for left in reversed(range(READ_TRIES_MAX)):
            try:
                async with self._session() as session:
                    found: list[Any] = await session.fetch(statement, *parameters)
                    return found
            except Exception as error:
                if self._closed:
                    raise closed() from error
                if left == 0 or not connection_lost(error) or isinstance(error, TimeoutError):
                    raise unavailable(error) from error
                await self._pool.expire_connections()  # the others are as old as the one that was dead
        raise AssertionError("the last try returns or raises")

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        """One of the pool's sessions. Raises: Unavailable (`registry-closed`), and what the driver raises."""
        if self._closed:
            raise closed()
        async with self._pool.acquire(timeout=WAIT_SECONDS_MAX) as session:
            yield session

    async def _number(self, statement: str, *parameters: Any) -> int:
        number: int = (await self._fetch_one(statement, *parameters))[0]
        return number

    async def _fetch_one(self, statement: str, *parameters: Any) -> Any:
        found = await self._fetch(statement, *parameters)
        return found[0] if found else None

    async def model(self, name: str) -> Model | None:
        row = await self._fetch_one(reads.MODEL, name)
        return mapping.model_of(*row) if row else None

    async def models(self) -> list[Model]:
        return [mapping.model_of(*row) for row in await self._fetch(reads.MODELS)]

    async def device(self, device_id: str) -> Device | None:
        row = await self._fetch_one(reads.DEVICE, device_id)
        return mapping.device_of(row) if row else None

    async def devices(
        self, where: DeviceFilter = EVERY_DEVICE, *, after: Place = FIRST_PLACE, limit: int = 1000
    ) -> list[Device]:
        """As the contract says, and never more than listings.LIST_MAX."""
        statement, parameters = lists.devices(where, after, limit)
        return [mapping.device_of(row) for row in await self._fetch(statement, *parameters)]

    async def count_devices(self, where: DeviceFilter = EVERY_DEVICE) -> int:
        statement, parameters = lists.count_devices(where)
        return await self._number(statement, *parameters)

    async def credentials(self, holder: str) -> list[Credential]:
        return [mapping.credential_of(row) for row in await self._fetch(reads.CREDENTIALS, holder)]

    async def credential(self, serial: str) -> Credential | None:
        try:
            octets = mapping.serial_octets(serial)
        except ValueError:
            return None  # no certificate has such a serial
        row = await self._fetch_one(reads.CREDENTIAL, octets)
        return mapping.credential_of(row) if row else None

    async def expired_credentials(
        self, before: datetime, limit: int = 1000, *, after: Credential | None = None
    ) -> list[Credential]:
        place = (mapping.micros(after.not_after), after.fingerprint) if after is not None else (0, b"")
        found = await self._fetch(lists.EXPIRED, mapping.micros(before), *place, lists.bounded(limit))
        return [mapping.credential_of(row) for row in found]

    async def expiries(self, until: datetime) -> list[tuple[datetime, int]]:
        found = await self._fetch(lists.EXPIRIES, mapping.micros(until))
        return [(lists.monday(week), count) for week, count in found]

    async def count_renewals(self, model: str, since: datetime) -> tuple[int, int]:
        [row] = await self._fetch(lists.RENEWALS, model, mapping.micros(since))
        return row[0], row[1]

    async def token(self, token_id: str) -> Token | None:
        row = await self._fetch_one(reads.TOKEN, token_id)
        return mapping.token_of(row) if row else None

    async def tokens(self) -> list[Token]:
        return [mapping.token_of(row) for row in await self._fetch(reads.TOKENS)]

    async def station(self, name: str) -> Station | None:
        row = await self._fetch_one(reads.STATION, name)
        return mapping.station_of(row) if row else None

    async def stations(self) -> list[Station]:
        return [mapping.station_of(row) for row in await self._fetch(reads.STATIONS)]

    async def operator(self, name: str) -> Operator | None:
        row = await self._fetch_one(reads.OPERATOR, name)
        return mapping.operator_of(row) if row else None

    async def operators(self) -> list[Operator]:
        return [mapping.operator_of(row) for row in await self._fetch(reads.OPERATORS)]

    async def request(self, request_id: str) -> ApprovalRequest | None:
        row = await self._fetch_one(reads.REQUEST, request_id)
        return request_rows.request_of(row) if row else None

    async def requests(
        self, where: RequestFilter = EVERY_REQUEST, *, now: datetime, after: str = "", limit: int = 1000
    ) -> list[ApprovalRequest]:
        statement, parameters = request_rows.listing_of(where, now, after, lists.bounded(limit), "$")
        return [request_rows.request_of(row) for row in await self._fetch(statement, *parameters)]

    async def count_pending(self, now: datetime, model: str = "", network: str = "") -> tuple[int, int, int]:
        in_all, for_model, from_network = await self._fetch_one(reads.PENDING, mapping.micros(now), model, network)
        return in_all, for_model, from_network

    async def claim(self, name: str) -> Claim | None:
        row = await self._fetch_one(admission.CLAIM, name)
        return admission_rows.claim_of(row) if row else None

    async def claims(self) -> list[Claim]:
        return [admission_rows.claim_of(row) for row in await self._fetch(admission.CLAIMS)]

    async def anchors(self) -> list[Anchor]:
        return [admission_rows.anchor_of(row) for row in await self._fetch(admission.ANCHORS)]

    async def manifest_facts(
        self, device_ids: Sequence[str], serials: Sequence[tuple[str, str]], keys: Sequence[bytes]
    ) -> ManifestFacts:
        parameters = admission.manifest_parameters(device_ids, serials, keys)
        entries = await self._fetch(admission.ENTRIES, *parameters)
        known = await self._fetch(admission.DEVICES, parameters[0])
        return ManifestFacts(tuple(map(admission_rows.manifest_of, entries)), frozenset(row[0] for row in known))

    async def idevid_bindings(self, key_sha256: bytes, device_id: str) -> list[IdevidBinding]:
        found = await self._fetch(admission.BINDINGS, key_sha256, device_id)
        return [admission_rows.idevid_of(row) for row in found]

    async def lease(self, name: str) -> Lease | None:
        row = await self._fetch_one(reads.LEASE, name)
        return mapping.lease_of(row) if row else None

    async def answer(self, actor: str, key: str) -> Answer | None:
        row = await self._fetch_one(reads.ANSWER, actor, key)
        return mapping.answer_of(row) if row else None

    async def enrollment_facts(self, device_id: str, token_id: str | None, key_sha256: bytes) -> EnrollmentFacts:
        return reads.enrollment_facts(await self._fetch_one(reads.ENROLLMENT, device_id, token_id, key_sha256))

    async def holder_facts(self, fingerprint: bytes) -> HolderFacts | None:
        row = await self._fetch_one(reads.HOLDER, fingerprint)
        return reads.holder_facts(row) if row else None

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        """Rows in order, those with a sequence greater than `after`; never more than listings.LIST_MAX."""
        return [mapping.audit_of(row) for row in await self._fetch(logs.AUDIT, after, lists.bounded(limit))]

    async def last_audit(self) -> int:
        return await self._number(logs.LAST_AUDIT)

    async def audit_heads(self, *, after: int = 0, limit: int = 1000) -> list[TreeHead]:
        return [mapping.head_of(row) for row in await self._fetch(logs.HEADS, after, lists.bounded(limit))]

    async def last_sealed(self) -> Sealed | None:
        return logs.sealed_of(await self._fetch_one(logs.LAST_SEALED))

    async def audit_hashes(self, level: int, first: int, count: int) -> list[bytes]:
        if level == 0:
            found = await self._fetch(logs.LEAVES, first, lists.bounded(count))
        else:
            found = await self._fetch(logs.NODES, level, first, lists.bounded(count))
        return logs.unbroken(found, first)

    async def seal(self, sealed: Sealed, nodes: tuple[AuditNode, ...]) -> None:
        try:
            async with self._session() as session:
                await logs.add_head(session, sealed, nodes)
        except Exception as error:
            if not connection_lost(error) or self._closed or not await self._is_sealed(sealed):
                raise unavailable(error) from error

    async def _is_sealed(self, sealed: Sealed) -> bool:
        """Whether a head whose session was lost is there all the same; no, when nobody can be asked."""
        try:
            async with self._session() as session:
                return await logs.has_head(session, sealed)
        except (FleetError, *DRIVER_ERRORS):
            return False

    async def commit(self, change: Change) -> None:
        """Make `change` durable; returns only after the fsync. When the caller is cancelled, it may still happen.

        Raises: Conflict: a write found otherwise, nothing happened. Unavailable: the database said no or was gone,
        nothing happened; but with the code `registry-unsettled`, nobody could find out.
        """
        await self._commits.put(change)

    async def events(self, *, after: int = 0, limit: int = 1000) -> list[Event]:
        return [mapping.event_of(row) for row in await self._fetch(logs.EVENTS, after, lists.bounded(limit))]

    async def first_event(self) -> int:
        return await self._number(logs.FIRST_EVENT)

    async def last_event(self) -> int:
        return await self._number(logs.LAST_EVENT)

    async def follow(self, after: int) -> AsyncGenerator[Event, None]:
        """Every event with a sequence greater than `after`, in order, for ever: those of other nodes too.

        Wakes at once for a commit of any node, and within FEED_POLL_SECONDS if the notification was lost.

        Raises: Unavailable: the feed could not be read, events after `after` are not kept any more (`feed-gap`), or
        the registry has been closed. Whoever relies on the feed must then assume that anything may have changed.
        """
        bell = asyncio.Event()
        self._bells.add(bell)
        if not self._closed:
            self._listener.start()
        try:
            while True:
                bell.clear()  # before the look, so that what comes during it rings again
                seen = after
                for event in await self.events(after=after, limit=EVENTS_MAX):
                    if event.seq != after + 1:
                        raise Unavailable("feed-gap", f"Events {after + 1} to {event.seq - 1} are not kept any more.")
                    yield event
                    after = event.seq
                if after == seen:
                    # Not wait_for: before Python 3.12 it may swallow the cancelling of whoever follows.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(FEED_POLL_SECONDS):
                            await bell.wait()
        finally:
            self._bells.discard(bell)

    def _ring(self) -> None:
        for bell in self._bells:
            bell.set()
