"""An HTTP connection on a transport in memory: order, reading ahead, framing, closing."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from fleet.domain.peer import Peer
from fleet.servers.http import Exchange, HttpServer
from fleet.servers.http_connection import BODY_BUFFER_SIZE, REQUESTS_WAITING_MAX, Connection, HttpLimits
from fleet.servers.http_response import Response
from fleet.servers.refusals import Outcome
from fleet.tls.idle import MayGiveWay

DEADLINE_SECONDS = 120.0
PLAIN = {"Content-Type": "text/plain"}


class Wire(asyncio.Transport):
    """Keeps what is written; the protocol loses the connection when it closes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_paused = False
        self.protocol: asyncio.Protocol | None = None
        self.changed = asyncio.Event()
        self._closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)
        self.changed.set()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self.lose)

    def abort(self) -> None:
        self.close()

    def lose(self, error: Exception | None = None) -> None:
        self._closing = True
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connection_lost(error)
        self.changed.set()

    def pause_reading(self) -> None:
        self.is_paused = True
        self.changed.set()

    def resume_reading(self) -> None:
        self.is_paused = False
        self.changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not holds():
                self.changed.clear()
                await self.changed.wait()

    async def closed(self) -> bytes:
        """All that was written, once it is closed."""
        await self.until(lambda: self.protocol is None)
        return self.written


class Site:
    """A server whose handler says which path was asked, once it may."""

    def __init__(self, limits: HttpLimits | None = None) -> None:
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.response: Callable[[Exchange], Response] | None = None
        self.stream: Callable[[], AsyncIterator[bytes]] | None = None
        self.server = HttpServer("test", self._handle, _refusal, limits or HttpLimits())

    async def _handle(self, exchange: Exchange) -> Response:
        self.asked.append(f"{exchange.request.method} {exchange.request.url.raw_path}")
        await self.may_answer.wait()
        if self.stream is not None:
            return await exchange.stream(200, PLAIN, self.stream())
        if self.response is not None:
            return self.response(exchange)
        body = await exchange.body(100)
        return Response(200, exchange.request.url.raw_path.encode() + body, PLAIN)

    def connect(self) -> tuple[Wire, asyncio.Protocol]:
        wire, connection = Wire(), self.server(Peer("192.0.2.7"))
        wire.protocol = connection
        connection.connection_made(wire)
        return wire, connection


def _refusal(status: int, code: str, message: str, headers: Mapping[str, str]) -> Response:
    return Response(status, code.encode(), {**PLAIN, **headers})


def request(line: str, *fields: str, body: bytes = b"") -> bytes:
    size = (f"Content-Length: {len(body)}",) if body else ()
    return "\r\n".join([line, "Host: a", *fields, *size, "", ""]).encode() + body


def bodies(written: bytes) -> list[bytes]:
    """The body of each answer, by its Content-Length."""
    found = []
    while written:
        head, _, written = written.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        found.append(written[:size])
        written = written[size:]
    return found


async def test_requests_that_come_at_once_are_answered_in_order_and_read_ahead_within_bounds() -> None:
    site = Site()
    site.may_answer.clear()
    wire, connection = site.connect()
    count = 5 * REQUESTS_WAITING_MAX
    connection.data_received(b"".join(request(f"GET /{number} HTTP/1.1") for number in range(count)))
    await asyncio.sleep(0)
    assert not wire.is_paused  # they came in one batch; the next one is one too many
    connection.data_received(request("GET /last HTTP/1.1", "Connection: close"))
    assert wire.is_paused
    assert isinstance(connection, Connection)
    assert len(connection._waiting) <= 2 * REQUESTS_WAITING_MAX
    site.may_answer.set()
    assert bodies(await wire.closed()) == [b"/%d" % number for number in range(count)] + [b"/last"]
    assert not site.server.connections


@pytest.mark.parametrize("count", [1, REQUESTS_WAITING_MAX, REQUESTS_WAITING_MAX + 1, 5 * REQUESTS_WAITING_MAX])
async def test_requests_that_come_in_one_piece_are_all_answered(count: int) -> None:
    site = Site()
    wire, connection = site.connect()
    connection.data_received(b"".join(request(f"GET /{number} HTTP/1.1") for number in range(count)))
    answers = [b"/%d" % number for number in range(count)]
    await wire.until(lambda: len(bodies(wire.written)) == count)
    assert bodies(wire.written) == answers
    connection.data_received(request("GET /last HTTP/1.1", "Connection: close"))
    assert bodies(await wire.closed()) == [*answers, b"/last"]


async def test_a_trailer_is_no_header_of_the_next_request() -> None:
    site = Site()
    seen: list[str | None] = []

    def answer(exchange: Exchange) -> Response:
        seen.append(exchange.request.headers.get("Authorization"))
        return Response(200, b"", {})

    site.response = answer
    wire, connection = site.connect()
    first = request("POST /1 HTTP/1.1", "Transfer-Encoding: chunked") + b"0\r\nAuthorization: Basic a\r\n\r\n"
    connection.data_received(first + request("POST /2 HTTP/1.1", body=b"ab"))
    await wire.closed()
    assert site.asked == ["POST /1"]
    assert seen == [None]


async def test_what_follows_a_switch_to_an_unknown_protocol_is_not_read() -> None:
    site = Site()
    wire, connection = site.connect()
    upgrade = request("GET /1 HTTP/1.1", "Connection: Upgrade", "Upgrade: h2c")
    connection.data_received(upgrade + request("POST /2 HTTP/1.1", body=b"ab")[:-2])
    connection.data_received(request("GET /3 HTTP/1.1"))
    await wire.closed()
    assert site.asked == ["GET /1"]


async def test_a_malformed_chunk_is_answered_as_soon_as_it_comes() -> None:
    site = Site()
    wire, connection = site.connect()
    connection.data_received(request("POST / HTTP/1.1", "Transfer-Encoding: chunked") + b"2\r\nab\r\n")
    await asyncio.sleep(0)
    connection.data_received(b"ZZ\r\n\r\n")
    written = await wire.closed()
    assert written.startswith(b"HTTP/1.1 400 ")
    assert site.server.counters["400 bad-http"] >= 1


async def test_a_request_of_http_1_0_gets_no_interim_answer() -> None:
    site = Site()
    wire, connection = site.connect()
    connection.data_received(request("POST / HTTP/1.0", "Expect: 100-continue", body=b"ab"))
    assert (await wire.closed()).startswith(b"HTTP/1.0 200 ")


async def test_a_request_whose_body_comes_while_another_is_answered_is_read_to_its_end() -> None:
    site = Site()
    site.may_answer.clear()
    wire, connection = site.connect()
    connection.data_received(request("GET /1 HTTP/1.1"))
    await asyncio.sleep(0)
    whole = request("POST /2 HTTP/1.1", "Connection: close", body=b"abcd")
    connection.data_received(whole[:-2])
    assert wire.is_paused
    site.may_answer.set()
    await wire.until(lambda: not wire.is_paused)
    connection.data_received(whole[-2:])
    assert bodies(await wire.closed()) == [b"/1", b"/2abcd"]


async def test_a_body_over_the_buffer_is_read_on_once_a_part_is_taken() -> None:
    body = bytes(4 * BODY_BUFFER_SIZE)

    async def count(exchange: Exchange) -> Response:
        return Response(200, b"%d" % len(await exchange.body(len(body))), PLAIN)

    wire, connection = Wire(), HttpServer("test", count, _refusal)(Peer("192.0.2.7"))
    wire.protocol = connection
    connection.connection_made(wire)
    sent = request("POST / HTTP/1.1", "Connection: close", body=body)
    connection.data_received(sent[: 3 * BODY_BUFFER_SIZE])
    assert wire.is_paused
    await wire.until(lambda: not wire.is_paused)
    connection.data_received(sent[3 * BODY_BUFFER_SIZE :])
    assert bodies(await wire.closed()) == [b"%d" % len(body)]


async def test_it_says_when_it_waits_for_a_request_and_when_it_no_longer_does() -> None:
    site, wire, told = Site(), Wire(), list[bool]()
    connection = site.server(Peer("192.0.2.7"))
    assert isinstance(connection, MayGiveWay)
    connection.watch_idle(told.append)
    wire.protocol = connection
    connection.connection_made(wire)
    assert told == [True]
    site.may_answer.clear()
    connection.data_received(request("GET /1 HTTP/1.1")[:5])
    assert told == [True]  # a part of a request
    connection.data_received(request("GET /1 HTTP/1.1")[5:])
    await asyncio.sleep(0)
    assert told == [True, False]
    site.may_answer.set()
    await wire.until(lambda: bool(site.server.idle))
    assert told == [True, False, True]
    connection.data_received(request("GET /2 HTTP/1.1", "Connection: close"))
    assert bodies(await wire.closed()) == [b"/1", b"/2"]
    assert True not in told[3:]
    assert told[3:]


@pytest.mark.parametrize("cut", [0, 5, None])
async def test_a_request_to_switch_protocols_is_answered_as_if_it_had_not_asked(cut: int | None) -> None:
    site = Site()
    wire, connection = site.connect()
    first = request("GET /1 HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket")
    second = request("GET /2 HTTP/1.1", "Connection: close")
    connection.data_received(first + second[:cut])
    if cut is not None:
        connection.data_received(second[cut:])
    assert bodies(await wire.closed()) == [b"/1", b"/2"]


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("GET http://a/b/c?d HTTP/1.1", "GET /b/c"),
        ("GET /b/c?d#e HTTP/1.1", "GET /b/c"),
        ("OPTIONS * HTTP/1.1", "OPTIONS *"),
    ],
)
async def test_a_target_may_have_every_form(line: str, asked: str) -> None:
    site = Site()
    wire, connection = site.connect()
    connection.data_received(request(line, "Connection: close"))
    await wire.closed()
    assert site.asked == [asked]


async def test_what_follows_a_request_and_is_no_http_is_answered_after_it() -> None:
    site = Site()
    site.may_answer.clear()
    wire, connection = site.connect()
    connection.data_received(request("GET /1 HTTP/1.1"))
    await asyncio.sleep(0)
    connection.data_received(b"\0\0\0\0\r\n\r\n")
    connection.data_received(request("GET /2 HTTP/1.1"))
    site.may_answer.set()
    first, _, second = (await wire.closed()).partition(b"\r\n\r\n/1")
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert second.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert second.endswith(b"\r\n\r\nbad-http")
    assert site.asked == ["GET /1"]


@pytest.mark.parametrize("line", ["GET /1 HTTP/2.0", "GET /1 HTTP/1.2", "GET /1 HTTP/0.9", "GET /1", "HEAD / HTTP/3.0"])
async def test_a_version_that_is_not_served_is_answered_in_one_that_is(
    line: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    site = Site()
    wire, connection = site.connect()
    connection.data_received(request(line))
    connection.data_received(request("GET /2 HTTP/1.1"))
    written = await wire.closed()
    assert written.startswith(b"HTTP/1.1 400 Bad Request\r\n")  # RFC 9110, 2.5: a version we conform to
    assert written.endswith(b"\r\n\r\nbad-http")
    assert site.asked == []
    assert site.server.counters == {"400 bad-http": 1}
    (record,) = [record for record in caplog.records if record.name == "fleet.servers.test"]
    assert "device=- serial=- code=bad-http status=400 ms=" in record.getMessage()


@pytest.mark.parametrize(
    ("method", "status", "body", "length", "sent"),
    [
        ("GET", 200, b"abc", b"3", b"abc"),
        ("GET", 200, b"", b"0", b""),
        ("HEAD", 200, b"abc", b"3", b""),
        ("GET", 204, b"", None, b""),
        ("GET", 304, b"", None, b""),
    ],
)
async def test_an_answer_has_a_length_and_a_body_where_its_status_and_method_have_one(
    method: str, status: int, body: bytes, length: bytes | None, sent: bytes
) -> None:
    site = Site()
    site.response = lambda exchange: Response(status, body, {})
    wire, connection = site.connect()
    connection.data_received(request(f"{method} / HTTP/1.1", "Connection: close"))
    head, _, received = (await wire.closed()).partition(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert fields.pop(b"Date").endswith(b" GMT")
    assert fields == {b"Server": b"fleet", b"Connection": b"close"} | ({b"Content-Length": length} if length else {})
    assert received == sent


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\0", "a\x7f"])
async def test_a_header_with_a_control_character_never_leaves(value: str, caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    site.response = lambda exchange: Response(200, b"abc", {"Location": value})
    wire, connection = site.connect()
    connection.data_received(request("GET / HTTP/1.1"))
    assert await wire.closed() == b""
    assert "code=internal" in caplog.text


async def test_a_handler_that_fails_again_and_again_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    def fail(exchange: Exchange) -> Response:
        raise RuntimeError("broken")

    site = Site()
    site.response = fail
    for _ in range(100):
        wire, connection = site.connect()
        connection.data_received(request("GET / HTTP/1.1", "Connection: close"))
        assert b"internal" in await wire.closed()
    assert site.server.counters == {"500 internal": 100}
    traces = [record for record in caplog.records if record.exc_info]
    assert 1 <= len(traces) <= 40  # ten in a second, and the test may take some


async def test_an_answer_that_says_close_is_the_last() -> None:
    site = Site()
    site.response = lambda exchange: Response(200, b"abc", {"Connection": "close"})
    wire, connection = site.connect()
    connection.data_received(request("GET /1 HTTP/1.1") + request("GET /2 HTTP/1.1"))
    assert bodies(await wire.closed()) == [b"abc"]
    assert site.asked == ["GET /1"]


@pytest.mark.parametrize(
    ("version", "expected"), [("1.1", b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"), ("1.0", b"abcd")], ids=["1.1", "1.0"]
)
async def test_a_stream_is_chunked_where_the_client_knows_chunks(version: str, expected: bytes) -> None:
    site = Site()

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"abc", b"", b"d"):
            yield piece

    site.stream = pieces
    wire, connection = site.connect()
    connection.data_received(request(f"GET / HTTP/{version}", "Connection: close"))
    head, _, body = (await wire.closed()).partition(b"\r\n\r\n")
    assert (b"\r\nTransfer-Encoding: chunked" in head) == (version == "1.1")
    assert b"Content-Length" not in head
    assert body == expected


async def test_a_stream_ends_when_its_client_goes() -> None:
    site, ended = Site(), asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            yield b"a"
            await asyncio.Event().wait()
        finally:
            ended.set()

    site.stream = pieces
    wire, connection = site.connect()
    connection.data_received(request("GET / HTTP/1.1"))
    await wire.until(lambda: b"\r\na\r\n" in wire.written)
    wire.lose()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await ended.wait()
    assert isinstance(connection, Connection)
    await wire.until(lambda: connection.task is None)
    assert dict(site.server.counters) == {"400 gone": 1}


async def test_a_stream_that_fails_is_cut_and_holds_no_second_answer(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        raise OSError("the disk")

    site.stream = pieces
    wire, connection = site.connect()
    connection.data_received(request("GET /1 HTTP/1.1") + request("GET /2 HTTP/1.1"))
    written = await wire.closed()
    assert written.count(b"HTTP/1.1") == 1
    assert written.endswith(b"\r\n\r\n1\r\na\r\n")
    assert "the disk" in caplog.text
    assert site.asked == ["GET /1"]


async def test_a_client_that_goes_while_its_body_is_read_ends_the_request() -> None:
    site = Site()
    wire, connection = site.connect()
    connection.data_received(request("POST / HTTP/1.1", body=b"abcd")[:-1])
    await asyncio.sleep(0)
    assert isinstance(connection, Connection)
    task = connection.task
    assert task is not None
    wire.lose()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await task
    assert dict(site.server.counters) == {"400 gone": 1}
    assert wire.written == b""


async def test_idle_connections_are_closed_in_their_order_by_one_timer() -> None:
    site = Site(HttpLimits(idle_seconds_max=0.05))
    wires = [site.connect()[0] for _ in range(3)]
    busy, connection = site.connect()
    site.may_answer.clear()
    connection.data_received(request("GET / HTTP/1.1"))
    for wire in wires:
        assert await wire.closed() == b""
    assert busy.protocol is connection  # a request in progress is not idle
    site.may_answer.set()
    assert bodies(await busy.closed()) == [b"/"]


async def test_a_shutdown_closes_idle_connections_and_cancels_who_never_ends() -> None:
    site = Site()
    site.may_answer.clear()
    idle, _ = site.connect()
    busy, connection = site.connect()
    connection.data_received(request("GET / HTTP/1.1"))
    await asyncio.sleep(0)
    await site.server.shutdown(0.05)
    assert await idle.closed() == await busy.closed() == b""
    late, _ = site.connect()
    assert await late.closed() == b""


async def test_a_health_check_is_a_line_where_it_says_another_thing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def never(_: Exchange) -> Response:
        raise NotImplementedError

    server = HttpServer("health", never, _refusal)
    for code in ("ok", "ok", "broker-silent", "broker-silent", "ok"):
        server._note(Outcome(event="admin.health", code=code, is_routine=True), 200, Peer("192.0.2.1"), 0.0)
    assert [record.getMessage().partition("code=")[2].split()[0] for record in caplog.records] == [
        "ok",
        "broker-silent",
        "ok",
    ]
