"""The reads and the change feed of a registry, the same on every engine; an engine provides `_read` and its writes."""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from datetime import datetime

from fleet.domain.access import Operator
from fleet.domain.approval import EVERY_REQUEST, ApprovalRequest, RequestFilter
from fleet.domain.changes import Change, Committed, Event, Notice
from fleet.domain.claim import Claim
from fleet.domain.credential import Credential, Station, Token
from fleet.domain.device import EVERY_DEVICE, FIRST_PLACE, Device, DeviceFilter, Model, Place, StateChange
from fleet.domain.distrust import Distrust
from fleet.domain.errors import Unavailable
from fleet.domain.idempotency import Answer
from fleet.domain.idevid import Anchor, IdevidBinding
from fleet.domain.lease import Lease
from fleet.domain.revoked_cache import RevokedCache
from fleet.storage import queries
from fleet.storage.batching import Batches
from fleet.storage.device_refusals import SqlRefusalStore
from fleet.storage.mapping import micros
from fleet.storage.queries import bounded
from fleet.storage.recent_events import RecentEvents

EVENTS_MAX = 1000  # read from the feed at once: bounds the memory of a follower far behind


class SqlRegistry(SqlRefusalStore):
    """Base of every engine's domain.ports.Registry."""

    _commits: Batches[Committed]
    feed_poll_seconds: float | None = None
    """A follower polls the feed at this interval even when not woken; None: never."""
    feed_pause_seconds = 0.0
    """Pause of a follower between two reads that returned events: under load, one read serves many commits."""

    def __init__(self) -> None:
        self.revoked = RevokedCache()
        self._followers: set[asyncio.Event] = set()
        self._closed = False
        self._recent = RecentEvents()
        """Where an engine fills it: those that this process has committed, in the order of their numbers."""

    @abstractmethod
    def _start_listening(self) -> None:
        """From now on, wake the followers for commits of other processes. Safe to call again."""

    def _wake_followers(self) -> None:
        for follower in self._followers:
            follower.set()

    async def commit(self, change: Change) -> None:
        """As the contract says. When the caller is cancelled, the commit may still happen."""
        await self._commits.put(change)

    async def tell(self, notice: Notice) -> None:
        await self._commits.put(notice)

    async def follow(self, after: int) -> AsyncGenerator[Event, None]:
        """Every event with a sequence greater than `after`, in order, without end: those of other processes too.

        A commit of this process wakes it at once.

        Raises: Unavailable: the feed could not be read, events after `after` are not kept any more (`feed-gap`), or
        the registry has been closed. The follower must then assume that anything may have changed.
        """
        woken = asyncio.Event()
        self._followers.add(woken)
        if not self._closed:
            self._start_listening()
        recent: Sequence[Event] = ()
        try:
            while True:
                woken.clear()  # before the read, so that a commit during it wakes us again
                seen = after
                for event in recent or await self._read(queries.EVENTS, after, EVENTS_MAX):
                    if event.seq != after + 1:
                        self.revoked.on_distrusts(await self.distrusts())  # one may have been undone
                        raise Unavailable("feed-gap", f"Events {after + 1} to {event.seq - 1} are not kept any more.")
                    if not recent:  # an engine has noted its own already
                        self.revoked.on_event(event)
                    yield event
                    after = event.seq
                if after == seen:
                    # Not wait_for: before Python 3.12 it may swallow the cancelling of the follower.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self.feed_poll_seconds):
                            await woken.wait()
                elif after - seen < EVENTS_MAX and self.feed_pause_seconds:
                    await asyncio.sleep(self.feed_pause_seconds)
                recent = self._recent.after(after)
        finally:
            self._followers.discard(woken)

    async def model(self, name: str) -> Model | None:
        return await self._one(queries.MODEL, name)

    async def models(self) -> list[Model]:
        return await self._scan(queries.MODELS)

    async def device(self, device_id: str) -> Device | None:
        return await self._one(queries.DEVICE, device_id)

    async def devices(
        self, where: DeviceFilter = EVERY_DEVICE, *, after: Place = FIRST_PLACE, limit: int = 1000
    ) -> list[Device]:
        query, parameters = queries.list_devices(where, after, limit)
        return await self._scan(query, *parameters)

    async def count_devices(self, where: DeviceFilter = EVERY_DEVICE) -> int:
        query, parameters = queries.count_devices(where)
        [count] = await self._scan(query, *parameters)
        return count

    async def credentials(self, holder: str) -> list[Credential]:
        return await self._scan(queries.CREDENTIALS, holder)

    async def usable_until(
        self, device_ids: Sequence[str], rules: Iterable[Distrust], now: datetime
    ) -> dict[str, datetime]:
        if not device_ids:
            return {}
        query, parameters = queries.usable_until(device_ids, rules, now)
        return dict(await self._scan(query, *parameters))

    async def credential(self, serial: str) -> Credential | None:
        return await self._by_serial(queries.CREDENTIAL, serial)

    async def credentials_by_expiry(
        self, before: datetime, limit: int = 1000, *, after: tuple[datetime, bytes] | None = None
    ) -> list[Credential]:
        place = (micros(after[0]), after[1]) if after is not None else (0, b"")
        return await self._scan(queries.CREDENTIALS_BY_EXPIRY, micros(before), *place, bounded(limit))

    async def expiries(self, until: datetime) -> list[tuple[datetime, int]]:
        return await self._scan(queries.EXPIRIES, micros(until))

    async def count_renewals(self, model: str, since: datetime) -> tuple[int, int]:
        [(devices, renewed)] = await self._scan(queries.RENEWALS, model, micros(since))
        return devices, renewed

    async def token(self, token_id: str) -> Token | None:
        return await self._one(queries.TOKEN, token_id)

    async def tokens(self) -> list[Token]:
        return await self._scan(queries.TOKENS)

    async def open_tokens(self, made_by: str, now: datetime, limit: int = 1000) -> list[Token]:
        return await self._read(queries.OPEN_TOKENS, made_by, micros(now), bounded(limit))

    async def count_open_tokens(self, now: datetime) -> dict[str, int]:
        return dict(await self._scan(queries.OPEN_TOKEN_COUNTS, micros(now)))

    async def state_change(self, device_id: str) -> StateChange | None:
        return await self._one(queries.STATE_CHANGE, device_id)

    async def station(self, name: str) -> Station | None:
        return await self._one(queries.STATION, name)

    async def stations(self) -> list[Station]:
        return await self._scan(queries.STATIONS)

    async def operator(self, name: str) -> Operator | None:
        return await self._one(queries.OPERATOR, name)

    async def operators(self) -> list[Operator]:
        return await self._scan(queries.OPERATORS)

    async def request(self, request_id: str) -> ApprovalRequest | None:
        return await self._one(queries.REQUEST, request_id)

    async def requests(
        self, where: RequestFilter = EVERY_REQUEST, *, now: datetime, after: str = "", limit: int = 1000
    ) -> list[ApprovalRequest]:
        query, parameters = queries.list_requests(where, now, after, limit)
        return await self._scan(query, *parameters)

    async def count_pending(self, now: datetime, model: str = "", network: str = "") -> tuple[int, int, int]:
        [(in_all, for_model, from_network)] = await self._read(queries.PENDING, micros(now), model, network)
        return in_all, for_model, from_network

    async def distrusts(self) -> list[Distrust]:
        return await self._read(queries.DISTRUSTS)

    async def count_distrusted(self, rule: Distrust) -> list[tuple[str, int]]:
        query, parameters = queries.count_distrusted(rule)
        return await self._scan(query, *parameters)

    async def distrusted(self, rule: Distrust, limit: int) -> list[str]:
        query, parameters = queries.list_distrusted(rule, limit)
        return await self._scan(query, *parameters)

    async def count_distrusted_certificates(self, rule: Distrust, now: datetime) -> int:
        query, parameters = queries.count_distrusted_certificates(rule, now)
        [count] = await self._scan(query, *parameters)
        return count

    async def distrusted_certificates(self, rule: Distrust, now: datetime, limit: int) -> list[Credential]:
        query, parameters = queries.list_distrusted_certificates(rule, now, limit)
        return await self._scan(query, *parameters)

    async def claim(self, name: str) -> Claim | None:
        return await self._one(queries.CLAIM, name)

    async def claims(self) -> list[Claim]:
        return await self._scan(queries.CLAIMS)

    async def anchors(self) -> list[Anchor]:
        return await self._read(queries.ANCHORS)

    async def idevid_bindings(self, key_sha256: bytes, device_id: str) -> list[IdevidBinding]:
        return await self._read(queries.BINDINGS, key_sha256, device_id)

    async def lease(self, name: str) -> Lease | None:
        return await self._one(queries.LEASE, name)

    async def answer(self, actor: str, key: str) -> Answer | None:
        return await self._one(queries.ANSWER, actor, key)

    async def events(self, *, after: int = 0, limit: int = 1000) -> list[Event]:
        return await self._scan(queries.EVENTS, after, bounded(limit))

    async def first_event(self) -> int:
        return await self._number(queries.FIRST_EVENT)

    async def last_event(self) -> int:
        return await self._number(queries.LAST_EVENT)
