"""HTTP/1.1 and 1.0 server of EST, the API, publish and forward auth: limits, exact headers, one log line a request.

Every answer leaves in one piece with a Content-Length: stock EST clients read no chunks, and some read no second
record. The one exception is a stream that a handler writes itself.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from aiohttp import HttpVersion11, StreamReader
from aiohttp.http import RawRequestMessage
from aiohttp.web import RequestPayloadError

from fleet.config.deadlines import Deadlines
from fleet.config.logs import log_event
from fleet.domain.peer import Peer, network_of
from fleet.domain.rates import Rates
from fleet.servers.http_connection import Connection, HttpLimits
from fleet.servers.http_response import Response
from fleet.servers.line_limit import LineLimit
from fleet.servers.refusals import HttpRefused, Outcome, refusal_of

LAST_WRITE_SECONDS = 0.1  # for a response that is being written when the drain time is over


@dataclass(slots=True)
class Exchange(Outcome):
    """One request with what its log line will say."""

    request: RawRequestMessage
    payload: StreamReader
    connection: Connection
    peer: Peer
    limits: HttpLimits
    ending: asyncio.Event
    """Set when the server shuts down: a streaming handler must end."""
    credentials: object = None
    """The request's credentials, once they have been parsed."""
    is_open: bool = False
    """Whether the operation needs no credentials: its success does not reset the client's failure count."""

    async def body(self, size_max: int) -> bytes:
        """The whole body, at most `size_max` bytes.

        Raises: HttpRefused: 413 before anything is read when its declared length is over the cap, and as soon as one
        without a declared length grows over it; 408; 415 for a body that is compressed.
        """
        request = self.request
        if "Content-Encoding" in request.headers:
            raise HttpRefused(415, "content-encoding", "A compressed body is not accepted.")
        if int(request.headers.get("Content-Length", 0)) > size_max:
            raise too_large(size_max)
        # RFC 9110, 10.1.1: an HTTP/1.0 client's is ignored
        if request.version >= HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
            self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            if self.payload.is_eof():  # it came with the headers, as most do
                body = self.payload.read_nowait()
            else:
                received = bytearray()
                async with asyncio.timeout(self.limits.body_seconds_max):
                    while len(received) <= size_max and (part := await self.payload.readany()):
                        received += part
                body = bytes(received)
        except TimeoutError:
            raise HttpRefused(408, "too-slow", "The body did not arrive in time.", {"Connection": "close"}) from None
        except RequestPayloadError:
            raise HttpRefused(400, "bad-http", "The body is malformed.", {"Connection": "close"}) from None
        if len(body) > size_max:
            raise too_large(size_max)
        return body

    async def stream(self, status: int, headers: Mapping[str, str], pieces: AsyncIterator[bytes]) -> Response:
        """Write a body piece by piece; the response when the last is written. Raises: ConnectionError."""
        return await self.connection.write_stream(self.request, status, headers, pieces)


ROUTINE_MAX = 256  # addresses of balancers and monitors, whose health checks are compared


def too_large(size_max: int) -> HttpRefused:
    return HttpRefused(413, "too-large", f"The body is larger than {size_max} bytes.", {"Connection": "close"})


def check_rate(rates: Rates, address: str, credential: Hashable | None) -> None:
    """Raises: HttpRefused (429), with Retry-After: the rate limit is exceeded."""
    wait_s = rates.wait_s(network_of(address), credential, time.monotonic())
    if wait_s:
        seconds = str(math.ceil(wait_s))
        message = f"Too many requests, or too many refused ones. Retry after {seconds} s."
        raise HttpRefused(429, "too-many-requests", message, {"Retry-After": seconds})


Handle = Callable[[Exchange], Awaitable[Response]]
Render = Callable[[int, str, str, Mapping[str, str]], Response]
PLAIN = "text/plain; charset=utf-8"


def plain_refusal(status: int, code: str, message: str, headers: Mapping[str, str]) -> Response:
    """A Render: one sentence for people, and the code for programs in a header too, since proxies drop the body."""
    shown = {"Content-Type": PLAIN, "Cache-Control": "no-store", "X-Error-Code": code}
    return Response(status, f"{message} ({code})\n".encode(), {**shown, **headers})


"""Makes the response of a refusal: status, code, sentence, headers."""


CredentialOf = Callable[[Exchange], Hashable | None]
"""The credential that a request presents, not verified yet, as a key for rate limits; None without one."""


OnThrottled = Callable[[Exchange], Awaitable[None]]


def certificate_shown(exchange: Exchange) -> Hashable | None:
    """The fingerprint of the client's certificate."""
    return exchange.peer.fingerprint


@dataclass(slots=True)
class HttpServer:
    """A protocol factory for `fleet.tls.listener.listen`: one HTTP connection for each Peer.

    Made inside a running event loop.
    """

    name: str
    handle: Handle
    render: Render
    limits: HttpLimits = field(default_factory=HttpLimits)
    rates: Rates | None = None
    """None: requests are not rate-limited."""
    credential_of: CredentialOf = certificate_shown
    on_throttled: OnThrottled | None = None
    """Called for each request over its rate limit, before it is answered."""
    adapted: Callable[[Exchange, Response], Response] | None = None
    """What a refusal becomes for the client that sent this request."""
    on_admitted: Callable[[str], None] | None = None
    """Called with the address of each client whose request that needs credentials was granted."""
    counters: Counter[str] = field(default_factory=Counter)
    """Requests by status and code: "200", "403 device-suspended"."""
    draining: bool = False
    """Whether each answer is the last on its connection."""
    is_closed: bool = False
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    connections: set[Connection] = field(default_factory=set)
    idle: Deadlines[Connection] = field(init=False)
    """Connections that wait for a request."""
    _log: logging.Logger = field(init=False)
    _lines: LineLimit = field(init=False)
    _routine: dict[str, str] = field(default_factory=dict)
    """Code of the last health check, by address."""
    _busy: int = 0
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._log = logging.getLogger(f"fleet.servers.{self.name}")
        self._lines = LineLimit(self._log)
        self.idle = Deadlines(asyncio.get_running_loop(), self.limits.idle_seconds_max, Connection.close)
        self._quiet.set()

    def __call__(self, peer: Peer) -> asyncio.Protocol:
        return Connection(self, peer)

    def drain(self) -> None:
        """From now on each answer is the last on its connection; streams end."""
        self.draining = True
        self.ending.set()

    @property
    def is_busy(self) -> bool:
        """Whether a request is in progress."""
        return self._busy > 0

    async def shutdown(self, seconds: float) -> None:
        """Close idle connections, give requests in progress at most `seconds`, then close every connection."""
        self.drain()
        self.is_closed = True
        for connection in list(self.connections):
            if not connection.busy:
                connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._quiet.wait()
        if tasks := {connection.task for connection in self.connections if connection.task is not None}:
            _, late = await asyncio.wait(tasks, timeout=LAST_WRITE_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=LAST_WRITE_SECONDS)
        for connection in list(self.connections):
            connection.close()
        self.idle.stop()
        self._lines.report()

    async def answer(self, connection: Connection, message: RawRequestMessage, payload: StreamReader) -> Response:
        """The response to one request, whatever happens; called by `connection`."""
        connection.busy = True
        self._busy += 1
        self._quiet.clear()
        try:
            peer = connection.peer
            return await self._answered(Exchange(message, payload, connection, peer, self.limits, self.ending))
        finally:
            connection.busy = False
            self._busy -= 1
            if not self._busy:
                self._quiet.set()

    async def _answered(self, exchange: Exchange) -> Response:
        started = time.perf_counter()
        credential = self.credential_of(exchange) if self.rates is not None else None
        try:
            if self.rates is not None:
                await self._check_rate(self.rates, exchange, credential)
            response = await self.handle(exchange)
        except Exception as error:
            response = self._refusal(exchange, error)
        if self.rates is not None and not exchange.is_open:
            self.rates.answered(credential, response.status, time.monotonic())
        if self.on_admitted is not None and response.status == 200 and not exchange.is_open:
            self.on_admitted(exchange.peer.address)
        if self.draining:
            response.closes = True
        self._note(exchange, response.status, exchange.peer, started)
        return response

    async def _check_rate(self, rates: Rates, exchange: Exchange, credential: Hashable | None) -> None:
        try:
            check_rate(rates, exchange.peer.address, credential)
        except HttpRefused:
            if self.on_throttled is not None:
                await self.on_throttled(exchange)
            raise

    def _refusal(self, exchange: Exchange, error: Exception) -> Response:
        refusal = refusal_of(error)
        exchange.code = refusal.code
        if refusal.is_internal and self._allows_line(f"{exchange.event}.failure", exchange.peer):
            log_event(self._log, logging.ERROR, exchange.event, code="internal", exc_info=error)
        response = self.render(refusal.status, refusal.code, refusal.message, refusal.headers)
        return response if self.adapted is None else self.adapted(exchange, response)

    def _note(self, outcome: Outcome, status: int, peer: Peer, started: float) -> None:
        self.counters[str(status) if outcome.code == "ok" else f"{status} {outcome.code}"] += 1
        level = logging.INFO
        if outcome.is_routine:
            if len(self._routine) >= ROUTINE_MAX:
                self._routine.clear()
            level = logging.DEBUG if self._routine.get(peer.address) == outcome.code else logging.INFO
            self._routine[peer.address] = outcome.code
        if not self._log.isEnabledFor(level):
            return
        if self._allows_line(f"{outcome.event}.{outcome.code}", peer):
            log_event(
                self._log,
                level,
                outcome.event,
                **{outcome.kind: outcome.holder},
                serial=outcome.serial,
                code=outcome.code,
                status=status,
                ms=round((time.perf_counter() - started) * 1000, 1),
                address=peer.address,
                **({"reason": outcome.reason} if outcome.reason else {}),
            )

    def _allows_line(self, kind: str, peer: Peer) -> bool:
        return self._lines.allows(time.monotonic(), kind, peer.source, authenticated=peer.fingerprint is not None)

    def not_http(self, peer: Peer, refusal: HttpRefused) -> Response:
        """The response to bytes in which the parser has found no request, or one of a version that is not served."""
        self._note(Outcome(code=refusal.code), refusal.status, peer, time.perf_counter())
        return self.render(refusal.status, refusal.code, refusal.message, refusal.headers)

    def failed(self, error: Exception) -> None:
        """Called by a connection that could not write a response."""
        log_event(self._log, logging.ERROR, "http", code="internal", exc_info=error)
