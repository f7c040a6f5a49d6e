"""The feed of changes as Server-Sent Events (WHATWG HTML, 9.2): live, in order, and resumable by sequence.

Nothing is held for a reader but the event that is being written: one that does not read is put out after
`write_seconds_max`, and comes back with the last id that it has.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Literal

from aiohttp import web
from multidict import CIMultiDict

from fleet.domain.access import Operator
from fleet.domain.changes import Event, EventKind
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.errors import FleetError
from fleet.servers.admin.parts import Call, Parts
from fleet.servers.admin.routes import EVENT_STREAM
from fleet.servers.admin.schemas import SEQ_MAX
from fleet.servers.admin.shapes import event_json
from fleet.servers.refusals import HttpRefused
from fleet.services.identity import identify_operator

STREAMS_MAX = 8  # of one operator: a dashboard has one, a program another
RETRY_AFTER_SECONDS = 15
LAST_EVENT_ID = "Last-Event-ID"


async def follow_events(parts: Parts, call: Call) -> web.StreamResponse:
    """Events behind the one named; without a name, those from now on."""
    after = await _start(parts, call)
    with _counted(parts, call.operator.name):
        response = web.StreamResponse(
            headers=CIMultiDict({"Content-Type": EVENT_STREAM, "Cache-Control": "no-store", "Server": "fleet"})
        )
        await response.prepare(call.exchange.request)
        with suppress(ConnectionError):  # the reader has gone: there is nobody to tell
            await _Stream(parts, call, response, after).run()
            await response.write_eof()
    return response


async def _start(parts: Parts, call: Call) -> int:
    """The sequence behind which the stream begins.

    Raises: HttpRefused: 400; 410 when what follows it is not kept any more, or never was.
    """
    last, first = await parts.registry.last_event(), await parts.registry.first_event()
    text = call.exchange.request.headers.get(LAST_EVENT_ID)
    if text is not None:
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(SEQ_MAX))):
            raise HttpRefused(400, "bad-last-event-id", f"{LAST_EVENT_ID} is the sequence of an event.")
        after = int(text)
    else:
        after = call.query.get("after", last)
    if after > last or after < first - 1:
        message = f"Events behind {after} are not kept. Read anew what you follow, then follow without a sequence."
        raise HttpRefused(410, "feed-gap", message)
    return after


@contextmanager
def _counted(parts: Parts, name: str) -> Iterator[None]:
    """One more stream of the operator `name`, as long as the block runs.

    Raises: HttpRefused: 429.
    """
    if parts.streams[name] >= STREAMS_MAX:
        message = f"An operator follows the events at most {STREAMS_MAX} times at once."
        raise HttpRefused(429, "too-many-streams", message, {"Retry-After": str(RETRY_AFTER_SECONDS)})
    parts.streams[name] += 1
    try:
        yield
    finally:
        parts.streams[name] -= 1
        if not parts.streams[name]:
            del parts.streams[name]


class _Stream:
    """One reader's stream. It ends at shutdown, when the feed breaks, and when the operator's certificate ends."""

    def __init__(self, parts: Parts, call: Call, response: web.StreamResponse, after: int) -> None:
        assert call.caller is not None  # noqa: S101  the route asks for an operator
        self._parts, self._call, self._response = parts, call, response
        self._operator: Operator = call.operator
        self._own: Credential = call.caller.credential
        self._seq = after
        self._looked_at = asyncio.get_running_loop().time()

    async def run(self) -> None:
        await self._say_where_we_are()
        ending = asyncio.create_task(self._call.exchange.ending.wait())
        try:
            async with _following(self._parts, self._seq) as events:
                await self._relay(events, ending)
        finally:
            ending.cancel()

    async def _relay(self, events: AsyncIterator[Event], ending: asyncio.Task[Literal[True]]) -> None:
        coming = asyncio.ensure_future(anext(events))
        try:
            while await self._may_go_on():
                await asyncio.wait(
                    (coming, ending), timeout=self._parts.heartbeat_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                if ending.done():
                    return
                if not coming.done():
                    await self._say_where_we_are()
                    continue
                event = coming.result()
                coming = asyncio.ensure_future(anext(events))
                if event.kind == EventKind.CREDENTIAL_ENDED and event.detail == self._own.fingerprint.hex():
                    return
                await self._tell(event)
        except FleetError:
            return  # the feed is broken: the reader comes again, and hears why
        finally:
            coming.cancel()
            with suppress(asyncio.CancelledError, FleetError, StopAsyncIteration):
                await coming

    async def _may_go_on(self) -> bool:
        """Whether the certificate that opened the stream would still open it; asked of the registry now and then, since
        what ends it comes along as an event.
        """
        now, monotonic = self._parts.clock(), asyncio.get_running_loop().time()
        if now >= self._own.not_after:
            return False
        if monotonic - self._looked_at < self._parts.heartbeat_seconds:
            return True
        self._looked_at = monotonic
        try:
            await identify_operator(self._parts.registry, self._call.exchange.peer, now)
        except FleetError:
            return False
        return True

    async def _say_where_we_are(self) -> None:
        """A heartbeat. An id without data is remembered by the reader and shown to nobody."""
        await self._response.write(f": still here\nid: {self._seq}\n\n".encode())

    async def _tell(self, event: Event) -> None:
        self._seq = event.seq
        if await self._may_see(event):
            data = json.dumps(event_json(event), ensure_ascii=False)
            await self._response.write(f"id: {event.seq}\nevent: {event.kind}\ndata: {data}\n\n".encode())

    async def _may_see(self, event: Event) -> bool:
        operator, registry = self._operator, self._parts.registry
        if not operator.models:
            return True
        if event.kind == EventKind.MODEL_CHANGED:
            return operator.sees(event.subject)
        if event.kind in (EventKind.REQUEST_PENDING, EventKind.REQUEST_DECIDED):
            request = await registry.request(event.subject)
            return request is not None and operator.sees(request.model)
        if event.kind == EventKind.CLAIM_STATE:
            claim = await registry.claim(event.subject)
            return claim is not None and operator.sees(claim.model)
        if event.kind in (EventKind.ANCHOR_CHANGED, EventKind.DEVICES_IMPORTED):
            return False  # of many models at once
        if event.kind in (EventKind.CREDENTIAL_ISSUED, EventKind.CREDENTIAL_ENDED) and event.detail:
            facts = await registry.holder_facts(bytes.fromhex(event.detail))
            if facts is None or facts.credential.kind is not CredentialKind.DEVICE:
                return False
        device = await registry.device(event.subject)
        return device is not None and operator.sees(device.model)


@asynccontextmanager
async def _following(parts: Parts, after: int) -> AsyncIterator[AsyncIterator[Event]]:
    events = parts.registry.follow(after)
    try:
        yield events
    finally:
        await events.aclose()
