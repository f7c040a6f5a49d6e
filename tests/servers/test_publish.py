"""The publish listener: CRLs and CA certificates over plain HTTP, with validators, and nothing else."""

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta

import pytest

from fleet.domain.published_file import CA_CERTIFICATE, CRL, PublishedFile
from fleet.servers.http_connection import PART_SIZE, HttpLimits
from fleet.tls.errors import Refusal
from fleet.tls.listener import Listener, ListenerLimits
from tests.servers.publish_fixtures import connected, serving
from tests.waiting import PATIENCE_SECONDS

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
CA = PublishedFile(b"\x30\x03abc", CA_CERTIFICATE, NOW - timedelta(days=3, microseconds=5), timedelta(days=1))
LARGE = PublishedFile(bytes(range(256)) * 16_384, CRL, NOW, timedelta(seconds=5), NOW + timedelta(seconds=3))
FILES = {"/ca/ab.cer": CA, "/crl/ab.crl": LARGE}


def served(
    limits: ListenerLimits | None = None, http_limits: HttpLimits | None = None
) -> AbstractAsyncContextManager[Listener]:
    async def find(path: str) -> PublishedFile | None:
        return FILES.get(path)

    return serving(find, NOW, limits=limits, http_limits=http_limits)


async def test_a_file_with_its_type_and_validators() -> None:
    async with served() as listener, connected(listener) as client:
        whole = await client.ask("GET", "/ca/ab.cer")
        assert (whole.status, whole.body) == (200, CA.body)
        assert whole.headers["Content-Type"] == "application/pkix-cert"
        assert whole.headers["Cache-Control"].startswith("max-age=86400, public")
        assert whole.headers["Expires"] == "Sat, 02 May 2026 12:00:00 GMT"
        assert whole.headers["Last-Modified"] == "Tue, 28 Apr 2026 11:59:59 GMT"
        head = await client.ask("HEAD", "/ca/ab.cer")
        assert {**head.headers, "Date": ""} == {**whole.headers, "Date": ""}
        assert (await client.ask("GET", "http://h/ca/ab.cer")).body == CA.body, "a proxy's form of the target"


async def test_a_crl_is_cached_until_its_next_update_at_most_and_comes_whole() -> None:
    async with served() as listener, connected(listener) as client:
        assert len(LARGE.body) > 10 * PART_SIZE
        for _ in range(2):
            found = await client.ask("GET", "/crl/ab.crl")
            assert (found.status, found.body) == (200, LARGE.body)
        assert found.headers["Content-Type"] == "application/pkix-crl"
        assert found.headers["Cache-Control"].startswith("max-age=3,")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"If-None-Match: {CA.etag}", 304),
        (f'If-None-Match: "x", W/{CA.etag}', 304),
        ("If-None-Match: *", 304),
        ('If-None-Match: "x"', 200),
        ("If-Modified-Since: Tue, 28 Apr 2026 11:59:59 GMT", 304),
        ("If-Modified-Since: Tue, 28 Apr 2026 11:59:58 GMT", 200),
        ("If-Modified-Since: yesterday", 200),
        ("If-Modified-Since: Tue, 99 Apr 99999 11:59:59 GMT", 200),
        (f'If-None-Match: "x"\r\nIf-Modified-Since: {"Tue, 28 Apr 2026 11:59:59 GMT"}', 200),
        ("Range: bytes=0-1", 200),
        ("Range: bytes=9999-", 200),
    ],
)
async def test_conditional_requests(header: str, status: int) -> None:
    async with served() as listener, connected(listener) as client:
        found = await client.ask("GET", "/ca/ab.cer", header)
        assert (found.status, found.body) == (status, CA.body if status == 200 else b"")
        assert found.headers["ETag"] == CA.etag
        assert ("Content-Length" in found.headers) == (status == 200)
        assert (await client.ask("GET", "/ca/ab.cer")).body == CA.body, "the connection goes on"


async def test_a_date_never_says_that_a_client_has_the_newest_crl() -> None:
    async with served() as listener, connected(listener) as client:
        for path, status in (("/crl/ab.crl", 200), ("/ca/ab.cer", 304)):
            file = await client.ask("HEAD", path)
            dated = f"If-Modified-Since: {file.headers['Last-Modified']}"  # two CRLs may have that of one second
            assert (await client.ask("GET", path, dated)).status == status
            assert (await client.ask("GET", path, f"If-None-Match: {file.headers['ETag']}", dated)).status == 304


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/ca/", 404),
        ("GET", "/ca/ab.cer?x", 404),
        ("GET", "/ca//ab.cer", 404),
        ("GET", "/ca/../ca/ab.cer", 404),
        ("GET", "/ca/%61b.cer", 404),
        ("GET", "/v1/status", 404),
        ("GET", "/.well-known/est/cacerts", 404),
        ("POST", "/", 404),
        ("POST", "/ca/ab.cer", 405),
        ("DELETE", "/crl/ab.crl", 405),
        ("PUT", "/ca/ab.cer", 405),
        ("OPTIONS", "/ca/ab.cer", 405),
    ],
)
async def test_nothing_else_is_served(method: str, path: str, status: int) -> None:
    async with served() as listener, connected(listener) as client:
        found = await client.ask(method, path)
        assert (found.status, found.headers["Cache-Control"]) == (status, "no-store")
        assert found.headers.get("Allow") == ("GET, HEAD" if status == 405 else None)
        assert found.headers["X-Error-Code"] == ("bad-method" if status == 405 else "no-such-path")


async def test_idle_connections_give_way_and_an_address_block_has_a_cap() -> None:
    limits = ListenerLimits(connected_max=3, connected_per_address_max=2)
    async with served(limits) as listener, connected(listener) as first, connected(listener) as second:
        assert (await second.ask("GET", "/ca/ab.cer")).status == 200
        async with connected(listener) as third:
            assert (await third.ask("GET", "/ca/ab.cer")).status == 200
            declined = await first.answer("GET")
            assert (declined.status, declined.headers["X-Error-Code"]) == (503, "too-many-connections")
            assert (declined.headers["Retry-After"], declined.headers["Connection"]) == ("10", "close")
            assert await first.is_closed(), "the oldest idle one of the block"
            assert listener.stats.connected == 2
            assert listener.stats.refused[Refusal.GAVE_WAY] == 1
            async with connected(listener) as fourth:
                assert (await fourth.ask("GET", "/ca/ab.cer")).status == 200
                assert await second.is_closed(), "it has had its answer, and gets no other"


async def test_new_connections_of_one_address_have_a_rate() -> None:
    limits = ListenerLimits(per_address_per_second=0.1)  # a burst of one
    async with served(limits) as listener, connected(listener) as first, connected(listener) as second:
        assert (await first.ask("GET", "/ca/ab.cer")).status == 200
        assert (await second.ask("GET", "/ca/ab.cer")).status == 503
        assert await second.is_closed()
        assert listener.stats.refused == {Refusal.ADDRESS_RATE: 1}


async def test_who_is_told_that_there_is_no_room_and_stays_is_closed() -> None:
    async with served(ListenerLimits(connected_max=1)) as listener, connected(listener) as first:
        assert (await first.ask("GET", "/ca/ab.cer")).status == 200
        async with connected(listener) as second, connected(listener) as third:
            assert (await third.ask("GET", "/ca/ab.cer")).status == 200
            assert (await second.answer("GET")).status == 503
            async with asyncio.timeout(PATIENCE_SECONDS):
                while listener.declined:
                    second.writer.write(b"GET / HTTP/1.1\r\n")
                    await asyncio.sleep(0.05)
            assert listener.stats.connected == 1


async def test_the_last_connection_to_end_is_counted() -> None:
    async with served() as listener:
        async with connected(listener) as client:
            assert (await client.ask("GET", "/", "Connection: close")).status == 404
            assert await client.is_closed()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await listener.wait_closed()
        assert (listener.stats.connected, listener.stats.handshaking) == (0, 0)


@pytest.mark.long
async def test_ten_thousand_at_once_leave_room_for_a_newcomer() -> None:
    limits = ListenerLimits(connected_max=2000, connected_per_address_max=200)
    gate = asyncio.Semaphore(200)
    kept: list[asyncio.StreamWriter] = []

    async def come(number: int) -> None:
        async with gate:
            with contextlib.suppress(OSError):
                local = (f"127.1.{number // 100}.2", 0)  # a hundred from each address
                _, writer = await asyncio.open_connection("127.0.0.1", listener.port, local_addr=local)
                kept.append(writer)

    # On a busy machine they take longer to come than an idle connection is kept: none is to end but for a newcomer.
    async with served(limits, HttpLimits(idle_seconds_max=600.0)) as listener:
        try:
            await asyncio.gather(*map(come, range(10_000)))
            assert listener.stats.connected <= 2000
            async with connected(listener) as newcomer:
                assert (await newcomer.ask("GET", "/ca/ab.cer")).body == CA.body
            # All that had connected before the newcomer were accepted before it.
            assert listener.stats.refused[Refusal.GAVE_WAY] >= 7000
        finally:
            for writer in kept:
                writer.close()
