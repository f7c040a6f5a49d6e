"""The feed of changes as Server-Sent Events (WHATWG HTML, 9.2): live, in order, and resumable by sequence.

Nothing is queued for a reader: one that does not read is disconnected after `write_seconds_max`, and resumes with the
last id that it has.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Literal

import msgspec

from fleet.domain.access import Operator, Permission
from fleet.domain.changes import Event, EventKind
from fleet.domain.errors import FleetError
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.records import reports
from fleet.servers.admin.records.base import SEQUENCE_MAX
from fleet.servers.admin.records.reports import EventQuery, KeptEvents, KeptEventsQuery
from fleet.servers.admin.routing import EVENT_STREAM, Result, get
from fleet.servers.admin.visible_events import concerns, is_about, visible
from fleet.servers.refusals import HttpRefused
from fleet.services.identity import identify_operator

STREAMS_MAX = 8  # of one operator: a dashboard has one, a program another
RETRY_AFTER_SECONDS = 15
LAST_EVENT_ID = "Last-Event-ID"
READ_MAX = 5_000
"""Events that one request for those that are kept reads, at most."""
READ_AT_ONCE = 1_000


@get(
    "/v1/events",
    Permission.EVENT_READ,
    "Changes as they happen, as Server-Sent Events.",
    media_types=(EVENT_STREAM,),
    streams=True,
)
async def follow_events(context: Context, call: Call, query: EventQuery) -> Result[str]:
    after = await _start(context, call, query)
    return Result(media_type=EVENT_STREAM, stream=EventStream(context, call, after))


async def _start(context: Context, call: Call, query: EventQuery) -> int:
    """The sequence behind which the stream begins.

    Raises: HttpRefused: 400; 410 when what follows it is not kept any more, or never was.
    """
    last, first = await context.registry.last_event(), await context.registry.first_event()
    text = call.request.headers.get(LAST_EVENT_ID)
    if text is not None:
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(SEQUENCE_MAX))):
            raise HttpRefused(400, "bad-last-event-id", f"{LAST_EVENT_ID} is the sequence of an event.")
        after = int(text)
    else:
        after = last if query.after is None else query.after
    if after > last or after < first - 1:
        message = f"Events behind {after} are not kept. Read anew what you follow, then follow without a sequence."
        raise HttpRefused(410, "feed-gap", message)
    return after


@get("/v1/events/kept", Permission.EVENT_READ, "Changes that are kept, oldest first; some at a time.")
async def list_events(context: Context, call: Call, query: KeptEventsQuery) -> Result[KeptEvents]:
    registry, device = context.registry, query.device
    first, last = await registry.first_event(), await registry.last_event()
    read = begin = min(max(query.after, first - 1), last)

    def asked(event: Event) -> bool:
        return query.kind in (None, event.kind) and (device is None or concerns(device, event))

    found: list[Event] = []
    while len(found) < query.limit and read < last and read - begin < READ_MAX:
        if not (page := await registry.events(after=read, limit=READ_AT_ONCE)):
            break
        for event in page:
            some = await visible(registry, call.operator, event, asked)
            found += [each for each in some if device is None or await is_about(registry, device, each)]
            read = event.seq
            if len(found) >= query.limit:
                break
    items = [reports.Event.shown(each) for each in found]
    return Result(KeptEvents(items=items, read=read, first=first, last=last))


class EventStream:
    """One reader's stream. It ends at shutdown, when the feed breaks, and when the operator's certificate ends."""

    def __init__(self, context: Context, call: Call, after: int) -> None:
        """Raises: HttpRefused: 429: the operator has as many streams as it may."""
        assert call.caller is not None  # noqa: S101  the route asks for an operator
        self._context, self._call = context, call
        self._operator: Operator = call.operator
        self._own = call.caller.credential
        self._seq = after
        self._looked_at = asyncio.get_running_loop().time()
        if context.streams[self._operator.name] >= STREAMS_MAX:
            message = f"An operator follows the events at most {STREAMS_MAX} times at once."
            raise HttpRefused(429, "too-many-streams", message, {"Retry-After": str(RETRY_AFTER_SECONDS)})
        context.streams[self._operator.name] += 1
        self._is_counted = True
        self._pieces = self._written()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def aclose(self) -> None:
        await self._pieces.aclose()
        if self._is_counted:
            self._is_counted = False
            self._context.streams[self._operator.name] -= 1
            if not self._context.streams[self._operator.name]:
                del self._context.streams[self._operator.name]

    async def _written(self) -> AsyncGenerator[bytes, None]:
        yield self._position()
        shutdown = asyncio.create_task(self._call.request.shutdown.wait())
        try:
            async with (
                aclosing(self._context.registry.follow(self._seq)) as events,
                aclosing(self._relayed(events, shutdown)) as pieces,
            ):
                async for piece in pieces:
                    yield piece
        finally:
            shutdown.cancel()

    async def _relayed(
        self, events: AsyncIterator[Event], shutdown: asyncio.Task[Literal[True]]
    ) -> AsyncGenerator[bytes]:
        coming = asyncio.ensure_future(anext(events))
        try:
            while await self._may_go_on():
                await asyncio.wait(
                    (coming, shutdown), timeout=self._context.heartbeat_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                if shutdown.done():
                    return
                if not coming.done():
                    yield self._position()
                    continue
                event = coming.result()
                coming = asyncio.ensure_future(anext(events))
                own = self._own.fingerprint.hex() if self._own is not None else None
                if event.kind == EventKind.CREDENTIAL_ENDED and event.detail == own:
                    return
                self._seq = event.seq
                if shown := await self._shown(event):
                    yield shown
        except FleetError:
            return  # the feed is broken: the reader reconnects, and learns why
        finally:
            coming.cancel()
            with suppress(asyncio.CancelledError, FleetError, StopAsyncIteration):
                await coming

    async def _may_go_on(self) -> bool:
        """Whether the certificate that opened the stream would still open it; asked of the registry now and then, since
        what ends it comes along as an event.
        """
        now, monotonic = self._context.clock(), asyncio.get_running_loop().time()
        if self._own is None:
            return True
        if now >= self._own.not_after:
            return False
        if monotonic - self._looked_at < self._context.heartbeat_seconds:
            return True
        self._looked_at = monotonic
        try:
            await identify_operator(self._context.registry, self._call.request.peer, now)
        except FleetError:
            return False
        return True

    def _position(self) -> bytes:
        """A heartbeat. An id without data is remembered by the reader and shown to nobody."""
        return f": still here\nid: {self._seq}\n\n".encode()

    async def _shown(self, event: Event) -> bytes:
        """What the reader sees of it: many sessions in one event are an event for each, and the last has the id."""
        seen = await visible(self._context.registry, self._operator, event)
        return b"".join(_framed(each, event.seq if each is seen[-1] else None) for each in seen)


def _framed(event: Event, id_: int | None) -> bytes:
    data = msgspec.json.encode(reports.Event.shown(event))
    head = f"id: {id_}\n" if id_ is not None else ""
    return f"{head}event: {event.kind}\ndata: ".encode() + data + b"\n\n"
