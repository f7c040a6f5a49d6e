"""The HTTPS transport: one kept connection, one deadline, and what a server may not do to it."""

import contextlib
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fleet.client import https
from fleet.client.client import Client, path_of
from fleet.client.https import HttpsTransport, host_and_port
from fleet.domain.errors import Conflict, Invalid, NotFound, Unavailable

Serve = Callable[[ssl.SSLSocket], None]


def certificate(folder: Path, name: str, *, in_san: bool) -> Path:
    """A self-signed certificate for localhost with its key beside it; it is its own root."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
    )
    if in_san:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    file = folder / f"{name}.pem"
    file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    file.with_suffix(".key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return file


class Server:
    """Runs `serve` on each connection, one after the other, and counts them."""

    def __init__(self, file: Path, serve: Serve) -> None:
        self.connections = 0
        self._serve = serve
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(file, file.with_suffix(".key"))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with contextlib.suppress(OSError), raw, self._context.wrap_socket(raw, server_side=True) as tls:
                self._serve(tls)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return certificate(tmp_path, "server", in_san=True)


@pytest.fixture
def serving(file: Path) -> Iterator[Callable[[Serve], Server]]:
    servers: list[Server] = []

    def start(serve: Serve) -> Server:
        servers.append(Server(file, serve))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def transport(server: Server, file: Path, deadline_seconds: float = 10.0) -> HttpsTransport:
    return HttpsTransport(server.url, file, None, file, deadline_seconds=deadline_seconds)


def answer(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    head = (
        f'HTTP/1.1 {status}\r\nContent-Type: application/json\r\nETag: "7"\r\n{more}Content-Length: {len(body)}\r\n\r\n'
    )
    return head.encode() + body


def read_request(tls: ssl.SSLSocket) -> bytes:
    """A request with its body, b"" at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < length_of(data):
        more = tls.recv(65_536)
        if not more:
            return b""
        data += more
    return data


def length_of(head: bytes) -> int:
    found = re.search(rb"Content-Length: (\d+)", head)
    return int(found[1]) if found else 0


def echoing(tls: ssl.SSLSocket) -> None:
    while request := read_request(tls):
        tls.sendall(answer(b'{"path": "%s"}' % request.split()[1]))


def test_one_connection_carries_all_requests(serving: Callable[[Serve], Server], file: Path) -> None:
    server = serving(echoing)
    with Client(transport(server, file)) as client:
        for number in range(5):
            assert client.ask("GET", f"/v1/x/{number}") == ({"path": f"/v1/x/{number}"}, '"7"')
        assert client.post("/v1/y", {"a": 1}) == {"path": "/v1/y"}
    assert server.connections == 1


def test_a_kept_connection_that_was_closed_is_made_anew(serving: Callable[[Serve], Server], file: Path) -> None:
    """For a POST as well: nothing had been sent on the old one."""

    def once(tls: ssl.SSLSocket) -> None:
        read_request(tls)
        tls.sendall(answer(b"{}"))

    server = serving(once)
    there = transport(server, file)
    with Client(there) as client:
        client.get("/v1/a")
        kept = there._kept
        assert kept is not None
        assert select.select([kept[1].stream], [], [], 60)[0], "it was not closed"
        client.post("/v1/b", {})
        client.get("/v1/c")
    assert server.connections == 3


def test_a_request_that_was_cut_off_is_sent_again_only_when_it_is_safe(
    serving: Callable[[Serve], Server], file: Path
) -> None:
    seen: list[bytes] = []

    def answers_the_first(tls: ssl.SSLSocket) -> None:
        request = read_request(tls)
        seen.append(request.split()[0])
        tls.sendall(answer(b"{}"))
        seen.append(read_request(tls).split()[0])

    server = serving(answers_the_first)
    with Client(transport(server, file)) as client:
        client.get("/v1/a")
        client.get("/v1/b")
        assert (server.connections, seen) == (2, [b"GET", b"GET", b"GET"])
        with pytest.raises(Unavailable) as caught:
            client.post("/v1/c", {})
        assert caught.value.code == "cannot-reach"
        assert seen[-1] == b"POST"
    assert server.connections == 2


@pytest.mark.parametrize("slow", ["head", "body"])
def test_one_deadline_covers_every_byte(serving: Callable[[Serve], Server], file: Path, slow: str) -> None:
    def trickling(tls: ssl.SSLSocket) -> None:
        read_request(tls)
        data = answer(b'"' + b"x" * 500 + b'"')
        start = 10 if slow == "head" else len(data) - 400
        tls.sendall(data[:start])
        for byte in data[start:]:
            tls.sendall(bytes([byte]))
            time.sleep(0.05)

    server = serving(trickling)
    started = time.monotonic()
    with Client(transport(server, file, 1.0)) as client, pytest.raises(Unavailable, match="no whole answer within 1 s"):
        client.get("/v1/a")
    assert time.monotonic() - started < 15  # and not the 20 s that the answer takes


def test_a_server_that_never_shakes_hands(file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = HttpsTransport(f"https://localhost:{listener.getsockname()[1]}", file, None, file, deadline_seconds=0.5)
        with pytest.raises(Unavailable, match="no whole answer"):
            there.send("GET", "/", {}, None)


def test_an_answer_has_a_limit(serving: Callable[[Serve], Server], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "ANSWER_SIZE_MAX", 1000)

    def large(tls: ssl.SSLSocket) -> None:
        while read_request(tls):
            tls.sendall(answer(b"[" + b" " * 2000 + b"]"))

    server = serving(large)
    there = transport(server, file)
    with pytest.raises(Unavailable, match="too large"):
        there.send("GET", "/", {}, None)
    monkeypatch.setattr(https, "ANSWER_SIZE_MAX", 10_000)
    assert len(there.send("GET", "/", {}, None).body) == 2002  # what was left of the first answer is not taken for it
    assert server.connections == 2


def test_a_common_name_is_not_a_san(tmp_path: Path) -> None:
    file = certificate(tmp_path, "cn", in_san=False)
    server = Server(file, echoing)
    with pytest.raises(Unavailable, match=r"is not trusted.*Pass its root CA with --ca|is not trusted"):
        transport(server, file).send("GET", "/", {}, None)
    server.close()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "cannot be reached"),
        (answer(b"hello"), "is not JSON"),
        (answer(b"[" * 100_000), "is not JSON"),
        (answer(b'{"items": null}'), "is not a page"),
        (answer(b"[]"), "is not a page"),
        (answer(b'{"items": [1], "next": "/v1/a?limit=1000"}'), "repeats a page"),
        (answer(b'{"items": [1], "next": "/v1/a?cursor=2"}'), "repeats a page"),
        (answer(b'{"items": [], "next": "/v1/a?cursor=2"}'), "names a next page after an empty one"),
        (answer(b"{}", "503 Service Unavailable"), "answered 503 without a code"),
        (answer(b'{"items": [], "next": null}', "307 Temporary Redirect"), "answered 307"),
        (answer(b'{"items": [], "next": 5}'), "names no next page"),
        (b"", "cannot be reached"),
    ],
)
def test_what_is_no_api(serving: Callable[[Serve], Server], file: Path, data: bytes, why: str) -> None:
    def strange(tls: ssl.SSLSocket) -> None:
        while read_request(tls):
            tls.sendall(data)
            if not data.startswith(b"HTTP"):
                return

    with Client(transport(serving(strange), file)) as client, pytest.raises(Unavailable, match=why):
        list(client.items("/v1/a"))


def test_a_list_without_end(serving: Callable[[Serve], Server], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page has new items and another cursor: --limit bounds it, and else a number of pages that no fleet has."""
    asked: list[bytes] = []

    def endless(tls: ssl.SSLSocket) -> None:
        while request := read_request(tls):
            asked.append(request)
            tls.sendall(answer(b'{"items": [%d], "next": "/v1/a?cursor=%d"}' % (len(asked), len(asked))))

    monkeypatch.setattr("fleet.client.client.PAGES_MAX", 20)
    with Client(transport(serving(endless), file)) as client:
        assert list(client.items("/v1/a", 3)) == [1, 2, 3]
        assert len(asked) == 3
        with pytest.raises(Unavailable, match="does not end"):
            list(client.items("/v1/a"))
    assert len(asked) == 23


def test_refusals_keep_their_codes(serving: Callable[[Serve], Server], file: Path) -> None:
    answers = {
        b"/400": answer(b'{"code": "bad-name", "detail": "No."}', "400 Bad Request"),
        b"/404": answer(b'{"code": "no-such-device", "detail": "No."}', "404 Not Found"),
        b"/412": answer(b'{"code": "changed-meanwhile", "detail": "No."}', "412 Precondition Failed"),
    }

    def refusing(tls: ssl.SSLSocket) -> None:
        while request := read_request(tls):
            tls.sendall(answers[request.split()[1]])

    kinds = {
        "/400": (Invalid, "bad-name"),
        "/404": (NotFound, "no-such-device"),
        "/412": (Conflict, "changed-meanwhile"),
    }
    with Client(transport(serving(refusing), file)) as client:
        for path, (kind, code) in kinds.items():
            with pytest.raises(kind) as caught:
                client.get(path)
            assert (caught.value.code, caught.value.message) == (code, "No.")


def test_pages_are_followed_as_they_are_consumed(serving: Callable[[Serve], Server], file: Path) -> None:
    asked: list[bytes] = []

    def paging(tls: ssl.SSLSocket) -> None:
        while request := read_request(tls):
            asked.append(request.split()[1])
            number = len(asked)
            tls.sendall(answer(b'{"items": [%d, %d], "next": "/v1/n?cursor=%d"}' % (number, -number, number)))

    with Client(transport(serving(paging), file)) as client:
        assert list(client.items("/v1/n", 3, state="active", tag=["a:b", "c:d&e"], model=None)) == [1, -1, 2]
    assert asked == [b"/v1/n?limit=3&state=active&tag=a%3Ab&tag=c%3Ad%26e", b"/v1/n?cursor=1"]


@pytest.mark.parametrize(
    "url",
    [
        "http://a",
        "https://",
        "https://a/b",
        "https://a?x",
        "https://u@a",
        "https://a:99999",
        "https://[a",
        "a",
        "https://ü",
    ],
)
def test_bad_urls(url: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        HttpsTransport(url, tmp_path / "c.pem", None, None)
    assert caught.value.code == "bad-url"


def test_good_urls() -> None:
    assert host_and_port("https://a") == ("a", 443)
    assert host_and_port("https://[::1]:8444/") == ("::1", 8444)
    assert path_of("/v1/devices/{}/x", "a/b c") == "/v1/devices/a%2Fb%20c/x"


def test_bad_files(tmp_path: Path, file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HttpsTransport("https://localhost:1", tmp_path / "none.pem", None, None).send("GET", "/", {}, None)
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    for cert, ca in ((junk, file), (junk, None), (file, junk)):
        with pytest.raises(Invalid) as caught:
            HttpsTransport("https://localhost:1", cert, None, ca).send("GET", "/", {}, None)
        assert caught.value.code == "bad-certificate"
        assert "None" not in caught.value.message
    assert f"{junk} cannot be used as the root CA" in caught.value.message
