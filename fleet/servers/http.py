"""HTTP/1.1 and 1.0 server for EST and the admin API: aiohttp's protocol with limits, exact headers and one log line.

Every answer leaves in one piece with a Content-Length: stock EST clients read no chunks, and some read no second
record. The one exception is a stream that a handler writes itself. Each request ends in one line of log.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.base_protocol import BaseProtocol
from multidict import CIMultiDict

from fleet.config.logs import log_event
from fleet.domain.peer import Peer, network_of
from fleet.domain.rates import Rates
from fleet.servers.line_limit import LineLimit
from fleet.servers.refusals import HttpRefused, refusal_of

VERSIONS = (HttpVersion10, HttpVersion11)
NO_HTTP = "This is not a request in HTTP/1.1 or HTTP/1.0."
LAST_WRITE_SECONDS = 0.1  # for a response that is being written when the drain time is over


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits for one client. Sizes in bytes, times in seconds."""

    line_size_max: int = 4096  # our longest path has 160 bytes
    header_size_max: int = 4096  # of one field; an Authorization with the longest token has 500
    headers_max: int = 48
    idle_seconds_max: float = 15.0
    """From the end of the handshake, or of the last answer, until all headers of the next request are here."""
    body_seconds_max: float = 15.0
    write_seconds_max: float = 15.0
    """For a client to read what was written to it, once the write buffer is full."""
    linger_seconds_max: float = 2.0
    """For reading the rest of a body that is discarded, so that the client sees the answer and no reset."""


@dataclass(slots=True)
class Exchange:
    """One request with what its log line will say."""

    request: web.BaseRequest
    peer: Peer
    limits: HttpLimits
    ending: asyncio.Event
    """Set when the server shuts down: a streaming handler must end."""
    event: str = "http"
    kind: str = "device"
    """Of the certificate's holder: device, station, claim, operator."""
    device: str = "-"
    """The holder's name."""
    serial: str = "-"
    code: str = "ok"
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
        if (request.content_length or 0) > size_max:
            raise too_large(size_max)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            body = bytearray()
            if request.content.is_eof():  # it came with the headers, as most do
                body += request.content.read_nowait()
            else:
                async with asyncio.timeout(self.limits.body_seconds_max):
                    while len(body) <= size_max and (part := await request.content.readany()):
                        body += part
        except TimeoutError:
            raise HttpRefused(408, "too-slow", "The body did not arrive in time.", {"Connection": "close"}) from None
        except web.RequestPayloadError:
            raise HttpRefused(400, "bad-http", "The body is malformed.", {"Connection": "close"}) from None
        if len(body) > size_max:
            raise too_large(size_max)
        return bytes(body)


def too_large(size_max: int) -> HttpRefused:
    return HttpRefused(413, "too-large", f"The body is larger than {size_max} bytes.", {"Connection": "close"})


def check_rate(rates: Rates, address: str, credential: Hashable | None) -> None:
    """Raises: HttpRefused (429), with Retry-After: the rate limit is exceeded."""
    wait_s = rates.wait_s(network_of(address), credential, time.monotonic())
    if wait_s:
        seconds = str(math.ceil(wait_s))
        message = f"Too many requests, or too many refused ones. Retry after {seconds} s."
        raise HttpRefused(429, "too-many-requests", message, {"Retry-After": seconds})


def answer(status: int, body: bytes, headers: Mapping[str, str]) -> web.Response:
    """A response with exactly these headers, Content-Length, Date, and a Server that reveals no version."""
    return web.Response(status=status, body=body, headers=CIMultiDict(headers, Server="fleet"))


Handle = Callable[[Exchange], Awaitable[web.StreamResponse]]
Render = Callable[[int, str, str, Mapping[str, str]], web.Response]
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
    counters: Counter[str] = field(default_factory=Counter)
    """Requests by status and code: "200", "403 device-suspended"."""
    draining: bool = False
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    _server: web.Server = field(init=False)
    _log: logging.Logger = field(init=False)
    _lines: LineLimit = field(init=False)
    _busy: int = 0
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._log = logging.getLogger(f"fleet.servers.{self.name}")
        self._lines = LineLimit(self._log)
        self._server = web.Server(self._answer)
        self._quiet.set()

    def __call__(self, peer: Peer) -> asyncio.Protocol:
        return _Connection(self, self._server, peer)

    async def shutdown(self, seconds: float) -> None:
        """Close idle connections, give requests in progress at most `seconds`, then close every connection."""
        self.draining = True
        self.ending.set()
        for connection in self._server.connections:
            if isinstance(connection, _Connection) and not connection.busy:
                connection.force_close()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._quiet.wait()
        await self._server.shutdown(LAST_WRITE_SECONDS)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, _Connection)  # noqa: S101  we make no other
        connection.busy = True
        self._busy += 1
        self._quiet.clear()
        try:
            return await self._answered(Exchange(request, connection.peer, self.limits, self.ending))
        finally:
            connection.busy = False
            self._busy -= 1
            if not self._busy:
                self._quiet.set()

    async def _answered(self, exchange: Exchange) -> web.StreamResponse:
        started = time.perf_counter()
        credential = self.credential_of(exchange) if self.rates is not None else None
        try:
            if self.rates is not None:
                await self._check_rate(self.rates, exchange, credential)
            if exchange.request.version not in VERSIONS:  # the parser takes a line without a version for 0.9, and 2.0
                raise HttpRefused(400, "bad-http", NO_HTTP, {"Connection": "close"})
            response: web.StreamResponse = await self.handle(exchange)
        except Exception as error:
            response = self._refusal(exchange, error)
        if self.rates is not None and not exchange.is_open:
            self.rates.answered(credential, response.status, time.monotonic())
        if self.draining:
            response.force_close()
        self._note(exchange, response.status, started)
        return response

    async def _check_rate(self, rates: Rates, exchange: Exchange, credential: Hashable | None) -> None:
        try:
            check_rate(rates, exchange.peer.address, credential)
        except HttpRefused:
            if self.on_throttled is not None:
                await self.on_throttled(exchange)
            raise

    def _refusal(self, exchange: Exchange, error: Exception) -> web.Response:
        refusal = refusal_of(error)
        exchange.code = refusal.code
        if refusal.is_internal:
            log_event(self._log, logging.ERROR, exchange.event, code="internal", exc_info=error)
        return self.render(refusal.status, refusal.code, refusal.message, refusal.headers)

    def _note(self, exchange: Exchange, status: int, started: float) -> None:
        self.counters[str(status) if exchange.code == "ok" else f"{status} {exchange.code}"] += 1
        if self._log.isEnabledFor(logging.INFO) and self._lines.allows(time.monotonic()):
            log_event(
                self._log,
                logging.INFO,
                exchange.event,
                **{exchange.kind: exchange.device},
                serial=exchange.serial,
                code=exchange.code,
                status=status,
                ms=round((time.perf_counter() - started) * 1000, 1),
                address=exchange.peer.address,
            )

    def not_http(self, peer: Peer) -> web.Response:
        """The response to bytes that are no HTTP request."""
        self.counters["400 bad-http"] += 1
        if self._lines.allows(time.monotonic()):
            log_event(
                self._log, logging.INFO, "http", device="", serial="", code="bad-http", status=400, address=peer.address
            )
        response = self.render(400, "bad-http", NO_HTTP, {})
        response.force_close()
        return response


class _NodelayIsSet(BaseProtocol):
    """Event loops set TCP_NODELAY on every socket they accept; aiohttp would make a socket object to set it again."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)


class _Connection(web.RequestHandler, _NodelayIsSet):
    """aiohttp's HTTP protocol with our limits and its TLS peer."""

    __slots__ = ("_owner", "_stuck", "busy", "peer")

    def __init__(self, owner: HttpServer, server: web.Server, peer: Peer) -> None:
        limits = owner.limits
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.idle_seconds_max,
            tcp_keepalive=False,  # idle_seconds_max ends a dead connection sooner
            access_log=None,  # type: ignore[arg-type]  # the way to say none: ours is one line with what matters
            max_line_size=limits.line_size_max,
            max_field_size=limits.header_size_max,
            max_headers=limits.headers_max,
            lingering_time=limits.linger_seconds_max,
            auto_decompress=False,  # a compressed CSR has no purpose but to fill our memory
        )
        self._owner = owner
        self._stuck: asyncio.TimerHandle | None = None
        self.peer = peer
        self.busy = False
        """Whether a request is in progress: a shutdown waits for it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._owner.draining:
            self.force_close()  # its handshake was in progress when the shutdown began

    def pause_writing(self) -> None:
        super().pause_writing()
        transport = self.transport
        if transport is not None and self._stuck is None:
            self._stuck = asyncio.get_running_loop().call_later(self._owner.limits.write_seconds_max, transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unstick()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._unstick()
        super().connection_lost(exc)

    def _unstick(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        # Called for bytes that the parser refuses; aiohttp would name itself and quote them.
        return self._owner.not_http(self.peer)
