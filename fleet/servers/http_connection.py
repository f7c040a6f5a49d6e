"""One HTTP connection: aiohttp's parser, and an answer for each request in the order of their arrival.

aiohttp's own protocol keeps two tasks, a timer, a writer and a mapping for each request; here a connection has one task
while it answers, and all idle ones share a timer.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import EMPTY_PAYLOAD, HttpVersion10, HttpVersion11, StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web import RequestPayloadError

from fleet.domain.peer import Peer
from fleet.servers.http_response import Response, encoded_head
from fleet.servers.refusals import HttpRefused

if TYPE_CHECKING:
    from fleet.servers.http import HttpServer

VERSIONS = (HttpVersion10, HttpVersion11)
REQUESTS_WAITING_MAX = 8  # of one client, parsed ahead while an answer is being made
PART_SIZE = 64 * 1024  # of an answer: a larger one is written as fast as its client reads, and is copied for none
BODY_BUFFER_SIZE = 256 * 1024  # of a body that is not read yet; the client is not read from above twice that


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
    takes_bodies: bool = True
    """Otherwise a request that declares a body is the last on its connection: what follows may be no body at all."""


def _must_close(message: RawRequestMessage) -> bool:
    """Whether what follows `message` cannot be read safely: the parser would take the last trailer of a chunked body
    for a header of the next request, and loses what comes behind a request to switch to a protocol it does not know.
    """
    switches = message.upgrade and message.method != "CONNECT"
    unknown = switches and message.headers.get("Upgrade", "").lower() != "websocket"
    return message.should_close or message.chunked or unknown


def _no_http() -> HttpRefused:
    return HttpRefused(400, "bad-http", "This is not a request in HTTP/1.1 or HTTP/1.0.")


def _why_none(error: HttpProcessingError, data: bytes, limits: HttpLimits) -> HttpRefused:
    """The refusal of `data`, in which the parser has found no request."""
    if isinstance(error, LineTooLong):
        if len(data.partition(b"\n")[0]) > limits.line_size_max:
            return HttpRefused(414, "uri-too-long", f"The request line is longer than {limits.line_size_max} bytes.")
        return HttpRefused(431, "headers-too-large", f"A header is longer than {limits.header_size_max} bytes.")
    # The parser has one class for these.
    if "Too many headers" in error.message:
        return HttpRefused(431, "headers-too-large", f"There are more than {limits.headers_max} headers.")
    if "'Host'" in error.message:
        return HttpRefused(400, "bad-http", "A request in HTTP/1.1 needs one Host header (RFC 9112, 3.2).")
    return _no_http()


def _unwatched(is_idle: bool) -> None:
    """No listener makes room."""


class Connection(BaseProtocol):
    """One client's connection."""

    __slots__ = (
        "_is_closed",
        "_is_full",
        "_on_idle",
        "_payload",
        "_server",
        "_streams",
        "_stuck",
        "_waiting",
        "busy",
        "is_known",
        "peer",
        "task",
    )

    def __init__(self, server: "HttpServer", peer: Peer) -> None:
        limits, loop = server.limits, asyncio.get_running_loop()
        parser = HttpRequestParser(
            self,
            loop,
            BODY_BUFFER_SIZE,
            max_line_size=limits.line_size_max,
            max_field_size=limits.header_size_max,
            max_headers=limits.headers_max,
            payload_exception=RequestPayloadError,
            auto_decompress=False,  # a compressed CSR has no purpose but to fill our memory
            max_msg_queue_size=REQUESTS_WAITING_MAX,
        )
        super().__init__(loop, parser)
        self.peer = peer
        self.busy = False
        """Whether a request is in progress: a shutdown waits for it."""
        self.is_known = False
        """Whether the server's handler knows who asks, as by a secret: on a full listener, others give way first."""
        self.task: asyncio.Task[None] | None = None
        """While requests are answered."""
        self._server = server
        self._on_idle: Callable[[bool], None] = _unwatched
        self._waiting: deque[tuple[RawRequestMessage, StreamReader] | HttpRefused] = deque()
        """Requests, and why what came behind them is none."""
        self._is_full = False
        """Whether the parser may have held back what came behind them."""
        self._payload: StreamReader | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._streams = False
        """Whether a body is being written piece by piece."""

    # Event loops set TCP_NODELAY on every socket they accept; aiohttp's method would make a socket object to set it
    # again.
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's
        self._server.connections.add(self)
        if self._server.is_closed:
            self.close()  # its handshake was in progress when the shutdown began
        else:
            self._set_idle(True)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._is_closed = True
        self._server.connections.discard(self)
        self._set_idle(False)
        self._on_idle = _unwatched  # it refers to the transport, which is freed while an answer is still being made
        self._unstick()
        super().connection_lost(exc)
        if self._streams and self.task is not None:
            self.task.cancel()  # it may be waiting for the next piece
        if self._payload is not None:
            self._payload.set_exception(exc or ConnectionResetError("Connection lost"))
        self._parser = None  # they refer to each other: both are freed at once, not at the next collection

    def watch_idle(self, on_idle: Callable[[bool], None]) -> None:
        """`on_idle` is called when it begins to wait for a request, of which parts may arrive meanwhile, and when it no
        longer does.
        """
        self._on_idle = on_idle

    def _set_idle(self, is_idle: bool) -> None:
        if is_idle:
            self._server.idle.enter(self)
        else:
            self._server.idle.leave(self)
        self._on_idle(is_idle)

    def close(self) -> None:
        """Send what was written, then close. What arrives from now on is ignored."""
        self._is_closed = True
        self._set_idle(False)
        if self.transport is not None:
            self.transport.close()

    # Reading

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if self._is_closed or parser is None:
            return
        try:
            messages, asks_to_switch, rest = parser.feed_data(data)
            self._waiting.extend(messages)
            while asks_to_switch:  # RFC 9110, 7.8: an Upgrade may be ignored
                parser.set_upgraded(False)
                if not rest:
                    break
                messages, asks_to_switch, rest = parser.feed_data(rest)
                self._waiting.extend(messages)
        except HttpProcessingError as error:
            last = self._waiting[-1] if self._waiting else None
            payload = last[1] if isinstance(last, tuple) else self._payload
            if payload is not None and not payload.is_eof():
                payload.set_exception(RequestPayloadError("The body is malformed."))
            self._waiting.append(_why_none(error, data, self._server.limits))
        if not self._waiting:
            return
        self._is_full = len(self._waiting) >= REQUESTS_WAITING_MAX
        if self.task is None:
            self._set_idle(False)
            self.task = self._loop.create_task(self._answer_all())
        elif not self._buffer_paused:
            self._pause_reading_for_buffer()  # it sends requests faster than it gets answers

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Called for each part of a body that is read: the parser is asked for more only if it was paused."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    async def _answer_all(self) -> None:
        try:
            while self._waiting and not self._is_closed:
                if not await self._answer_next():
                    self.close()
        except ConnectionError:
            self.close()  # the client has gone
        except Exception as error:
            self._server.failed(error)
            self.close()
        finally:
            self.task = self._payload = None
        if not self._is_closed:
            self._set_idle(True)

    def _take_next(self) -> tuple[RawRequestMessage, StreamReader] | HttpRefused:
        following = self._waiting.popleft()
        if self._parser is not None and isinstance(following, tuple):
            self._parser.message_consumed()
        if not self._waiting:
            if self._is_full:
                self._is_full = False
                self.data_received(b"")  # what the parser has held back
            if self._buffer_paused and not self._waiting:
                self._resume_reading_for_buffer()
        return following

    async def _answer_next(self) -> bool:
        """Whether the connection may stay open."""
        following = self._take_next()
        # The parser takes 2.0, and a line without a version for 0.9. RFC 9110, 2.5: an answer bears a version of ours.
        if isinstance(following, tuple) and following[0].version not in VERSIONS:
            following = _no_http()
        if isinstance(following, HttpRefused):
            self.write(self._server.not_http(self.peer, following).encoded("", HttpVersion11, closes=True))
            return False
        message, self._payload = following
        payload = self._payload
        response = await self._server.answer(self, message, payload)
        closes = response.closes or _must_close(message)
        closes = closes or not (payload is EMPTY_PAYLOAD or self._server.limits.takes_bodies)
        if not response.is_written:
            await self._write_response(*response.parts(message.method, message.version, closes=closes))
        if self._paused:
            await self._drain_helper()
        return (payload.is_eof() or await self._discard(payload)) and not closes

    async def _discard(self, payload: StreamReader) -> bool:
        """Whether the rest of the body came in time. Where none are taken, a stranger's is not waited for."""
        if not (self._server.limits.takes_bodies or self.is_known):
            return False
        with suppress(TimeoutError, RequestPayloadError):
            async with asyncio.timeout(self._server.limits.linger_seconds_max):
                while not payload.is_eof():
                    await payload.readany()
        return payload.is_eof()

    # Writing

    def write(self, data: bytes | memoryview) -> None:
        """Raises: ConnectionResetError: the client has gone."""
        if self.transport is None or self.transport.is_closing():
            raise ConnectionResetError("The connection was lost.")
        self.transport.write(data)

    async def _write_response(self, head: bytes, body: bytes) -> None:
        if len(body) <= PART_SIZE:
            self.write(head + body)
            return
        self.write(head)
        whole = memoryview(body)
        for at in range(0, len(body), PART_SIZE):
            self.write(whole[at : at + PART_SIZE])
            if self._paused:
                await self._drain_helper()

    async def write_stream(
        self, message: RawRequestMessage, status: int, headers: Mapping[str, str], pieces: AsyncIterator[bytes]
    ) -> Response:
        """Write a body piece by piece as the client reads it, in chunks where it knows them; the response when done.

        Raises: ConnectionError: the client has gone.
        """
        chunked = message.version == HttpVersion11
        response = Response(status, b"", headers, is_written=True)
        response.closes = response.closes or _must_close(message) or not chunked
        framing = "Transfer-Encoding: chunked\r\n" if chunked else ""
        self.write(encoded_head(status, headers, framing, message.version, closes=response.closes))
        self._streams = True
        try:
            async for piece in pieces:
                if piece:  # an empty chunk is the last
                    self.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                if self._paused:
                    await self._drain_helper()
        except asyncio.CancelledError:
            if self.task is None or self.transport is not None:
                raise
            self.task.uncancel()
            raise ConnectionResetError("The client has gone.") from None
        except ConnectionError:
            raise
        except Exception as error:  # within a body there is no place for the response of an error
            self._server.failed(error)
            if self.transport is not None:
                self.transport.abort()
            raise ConnectionAbortedError("A stream has failed.") from error
        finally:
            self._streams = False
        if chunked:
            self.write(b"0\r\n\r\n")
        return response

    def pause_writing(self) -> None:
        super().pause_writing()
        transport = self.transport
        if transport is not None and self._stuck is None:
            self._stuck = self._loop.call_later(self._server.limits.write_seconds_max, transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unstick()

    def _unstick(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
