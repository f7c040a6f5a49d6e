"""What `fleet ca check` fetches, from servers that answer as no server should."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial

import pytest

from fleet.home.http_fetch import TooLarge, fetch_over_http
from fleet.home.publication_check import PublishedUrl, check_url
from tests.home.test_publication_check import CA
from tests.waiting import PATIENCE_SECONDS

OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


@contextmanager
def answering(*answers: bytes, is_kept_open: bool = False) -> Iterator[str]:
    """URL of a server that gives one of these answers on each connection, and perhaps never ends the last."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                with suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(answer)
                        if is_kept_open:
                            done.wait(PATIENCE_SECONDS)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x"
        done.set()
        thread.join(PATIENCE_SECONDS)


def test_what_is_there_is_fetched() -> None:
    with answering(OK % 3 + b"abc") as url:
        assert fetch_over_http(url, None, size_max=3) == b"abc"


@pytest.mark.parametrize("kind", ["crl", "ocsp", "ca"])
def test_an_answer_that_is_not_http_is_said_in_its_row(kind: str) -> None:
    with answering(b"SSH-2.0-x\r\n") as url:
        result = check_url(PublishedUrl(kind, url, CA[0], 1), fetch_over_http, datetime.now(UTC))
    assert (result.state, result.reason) == ("unreachable", "it does not answer as HTTP does")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a b", "http://127.0.0.1:x/a", "http://[::1/a", "http://a\x00/b"])
def test_a_url_that_is_not_valid_is_said_in_its_row(url: str) -> None:
    result = check_url(PublishedUrl("crl", url, CA[0], 1), fetch_over_http, datetime.now(UTC))
    assert result.state in ("unreachable", "wrong")


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nX-A: b\r\n", OK % 9 + b"abc"])
def test_an_answer_that_does_not_end_is_given_up(begun: bytes) -> None:
    with answering(begun, is_kept_open=True) as url, pytest.raises(OSError, match=r"in full within 0\.1 s"):
        fetch_over_http(url, None, seconds_max=0.1)


def test_what_is_too_large_is_not_read_on() -> None:
    with answering(OK % 60_000_000 + b"x" * 1000, is_kept_open=True) as url, pytest.raises(TooLarge):
        fetch_over_http(url, None, size_max=999)
    judged: dict[str, bool] = {}
    for kind in ("crl", "ocsp"):
        with answering(OK % 11 + b"x" * 11) as url:
            published = PublishedUrl(kind, url, CA[0], 1)
            judged[kind] = check_url(published, partial(fetch_over_http, size_max=10), datetime.now(UTC)).is_large
    assert judged == {"crl": True, "ocsp": False}


@pytest.mark.parametrize("place", ["ftp://127.0.0.1:1/x", "http://localhost:1/x", "file:///etc/hostname"])
def test_a_redirect_to_elsewhere_is_not_followed(place: str) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()
    with answering(head) as url, pytest.raises(OSError, match="HTTP 302"):
        fetch_over_http(url, None)


def test_a_redirect_within_the_host_is_followed() -> None:
    head = b"HTTP/1.1 301 Moved Permanently\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n"
    with answering(head, OK % 1 + b"y") as url:
        assert fetch_over_http(url, None) == b"y"
