"""EST on the wire: the recipe that every stock client takes, and every way in which a request can be wrong."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fleet.ca.keys import generate_key
from fleet.servers.http_connection import HttpLimits
from fleet.wire.csr import build_csr
from fleet.wire.est import BODY_SIZE_MAX, encode_body
from tests.servers.est_fixtures import Answer, EstHarness, basic, csr_for, open_est
from tests.waiting import PATIENCE_SECONDS

CACERTS = "/.well-known/est/cacerts"
ENROLL = "/.well-known/est/simpleenroll"


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        yield est


# The recipe


async def test_cacerts_is_byte_for_byte_what_every_client_takes(est: EstHarness) -> None:
    answer = await est.send("GET", CACERTS)
    lines = answer.head.split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert "Content-Type: application/pkcs7-mime; smime-type=certs-only" in lines
    assert "Content-Transfer-Encoding: base64" in lines
    assert f"Content-Length: {len(answer.body)}" in lines
    assert answer.header("Server") == "fleet"
    assert "Transfer-Encoding: chunked" not in lines
    assert b"\n" not in answer.body
    assert set(answer.certificates) == {est.root[0], est.issuing[0]}


async def test_libest_gets_wrapped_lines(est: EstHarness) -> None:
    answer = await est.send("GET", CACERTS, headers={"User-Agent": "libest/3.2.0"})
    lines = answer.body.split(b"\n")
    assert lines.pop() == b""
    assert {len(line) for line in lines[:-1]} == {64}
    assert len(answer.certificates) == 2


@pytest.mark.parametrize("extra", [b"", b"Connection: keep-alive\r\n"])
async def test_http_1_0_is_answered_as_http_1_0(est: EstHarness, extra: bytes) -> None:
    reader, writer = await est.connect()
    writer.write(b"GET " + CACERTS.encode() + b" HTTP/1.0\r\n" + extra + b"\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert (b"\r\nConnection: keep-alive\r\n" in head) == bool(extra)
    writer.close()


async def test_an_answer_is_one_tls_record(est: EstHarness) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = est.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    reader, writer = await asyncio.open_connection("127.0.0.1", est.port)

    async def record() -> bytes:
        head = await reader.readexactly(5)
        return head + await reader.readexactly(int.from_bytes(head[3:]))

    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            incoming.write(await record())
    tls.write(f"GET {CACERTS} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    writer.write(outgoing.read())
    while True:
        incoming.write(await record())
        try:
            answer = Answer(tls.read(65536))  # what the first record with any of our bytes holds
            break
        except ssl.SSLWantReadError:
            continue  # a record of the TLS layer's own
    assert len(answer.body) == int(answer.header("Content-Length") or 0)
    writer.close()


async def test_one_connection_serves_request_after_request(est: EstHarness) -> None:
    reader, writer = await est.connect()
    for _ in range(3):
        writer.write(f"GET {CACERTS} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = Answer(await reader.readuntil(b"\r\n\r\n"))
        assert head.status == 200
        await reader.readexactly(int(head.header("Content-Length") or 0))
    writer.close()


async def test_bodies_come_in_every_shape_that_clients_send(est: EstHarness) -> None:
    token = await est.token(model="cam", uses=9)
    der = csr_for("cam-1", generate_key())
    lines = base64.encodebytes(der)
    shapes = [
        (encode_body(der), "application/pkcs10"),
        (lines, "application/pkcs10"),
        (lines.replace(b"\n", b"\r\n"), 'APPLICATION/pkcs10; charset="utf-8"'),
        (b" \t" + lines.replace(b"\n", b" \r\n\t") + b"\n", "application/pkcs10"),
    ]
    for body, content_type in shapes:
        headers = {"Content-Type": content_type, "Content-Transfer-Encoding": "base64", **basic(token, "cam-1")}
        answer = await est.send("POST", ENROLL, body, headers)
        assert answer.status == 200, answer.text


async def test_a_body_may_come_chunked_in_pieces_or_after_100_continue(est: EstHarness) -> None:
    token = await est.token(model="cam", uses=9)
    body = encode_body(csr_for("cam-1"))
    head = f"POST {ENROLL} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/pkcs10\r\n"
    head += f"Authorization: {basic(token)['Authorization']}\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:100], body[100:])) + b"0\r\n\r\n"
    answer = Answer(await est.exchange(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks))
    assert answer.status == 200, answer.text
    whole = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    answer = Answer(await est.exchange_all(*(whole[at : at + 50] for at in range(0, len(whole), 50))))
    assert answer.status == 200, answer.text
    reader, writer = await est.connect()
    writer.write(head.encode() + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert Answer(await reader.read()).status == 200
    writer.close()


# Paths, methods, types


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "no-such-path"),
        ("GET", "/.well-known/est", 404, "no-such-path"),
        ("GET", "/.well-known/est/", 404, "no-such-path"),
        ("GET", "/.well-known/est//cacerts", 404, "no-such-path"),
        ("GET", "/.well-known/est/cacerts/", 404, "no-such-path"),
        ("GET", "/.well-known/est/CACERTS", 404, "no-such-path"),
        ("GET", "/.well-known/est/a/b/cacerts", 404, "no-such-path"),
        ("GET", "/.well-known/est/../est/cacerts", 404, "no-such-path"),
        ("GET", "/.well-known/est/a%2Fb/cacerts", 404, "no-such-path"),
        ("GET", "/.well-known/est/simpleenroll/cacerts", 404, "no-such-path"),
        ("GET", "/.well-known/est/csrattrs/cacerts", 404, "no-such-path"),
        ("GET", "/.well-known/est/#/cacerts", 404, "no-such-path"),
        ("GET", f"/.well-known/est/{'x' * 65}/cacerts", 404, "no-such-path"),
        ("POST", "/.well-known/est/csrattrs", 405, "bad-method"),
        ("GET", "/.well-known/est/serverkeygen", 405, "bad-method"),
        ("POST", "/.well-known/est/cam/fullcmc", 501, "not-served"),
        ("POST", CACERTS, 405, "bad-method"),
        ("HEAD", ENROLL, 405, "bad-method"),
        ("GET", ENROLL, 405, "bad-method"),
        ("DELETE", ENROLL, 405, "bad-method"),
        ("PROPFIND", ENROLL, 405, "bad-method"),
        ("GET", "/.well-known/est/cam/simplereenroll", 405, "bad-method"),
    ],
)
async def test_what_has_no_route_is_refused(est: EstHarness, method: str, path: str, status: int, code: str) -> None:
    answer = await est.send(method, path)
    assert answer.status == status
    if method != "HEAD":
        assert answer.code == code
    if status == 405:
        assert answer.header("Allow") == ("GET, HEAD" if path.endswith(("cacerts", "csrattrs")) else "POST")


async def test_a_label_makes_no_difference_to_cacerts(est: EstHarness) -> None:
    plain, cam, unknown = [await est.send("GET", f"/.well-known/est/{at}cacerts") for at in ("", "cam/", "nonesuch/")]
    assert plain.body == cam.body == unknown.body


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/pkcs10x",
        "pkcs10",
        "application/pkcs7-mime",
        "application/json",
        "a/b; c" * 99,
    ],
)
async def test_another_content_type_is_415(est: EstHarness, content_type: str | None) -> None:
    headers = {**basic(await est.token(model="cam"))}
    if content_type is not None:
        headers["Content-Type"] = content_type
    answer = await est.send("POST", ENROLL, encode_body(csr_for("cam-1")), headers)
    assert (answer.status, answer.code) == (415, "bad-content-type")


async def test_a_compressed_body_is_415(est: EstHarness) -> None:
    headers = {**basic(await est.token(model="cam")), "Content-Encoding": "gzip"}
    answer = await est.post("simpleenroll", csr_for("cam-1"), headers)
    assert (answer.status, answer.code) == (415, "content-encoding")


# Bodies


async def test_a_body_that_says_it_is_too_large_is_refused_unread(est: EstHarness) -> None:
    head = f"POST {ENROLL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n"
    head += f"Authorization: {basic(await est.token(model='cam'))['Authorization']}\r\n"
    reader, writer = await est.connect()
    writer.write(f"{head}Content-Length: {BODY_SIZE_MAX + 1}\r\n\r\n".encode())
    answer = Answer(await reader.readuntil(b"(too-large)\n"))  # not one byte of the body has been sent
    assert answer.status == 413
    assert answer.header("Connection") == "close"
    writer.close()


async def test_a_chunked_body_is_cut_at_the_cap(est: EstHarness) -> None:
    head = f"POST {ENROLL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n"
    head += f"Authorization: {basic(await est.token(model='cam'))['Authorization']}\r\n"
    reader, writer = await est.connect()
    writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    chunk = b"A" * 4096
    for _ in range(BODY_SIZE_MAX // len(chunk) + 1):
        writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
    answer = Answer(await reader.readuntil(b"(too-large)\n"))  # though the last chunk never comes
    assert answer.status == 413
    writer.close()


def csr_signed_by_another_key() -> bytes:
    request, other = csr_for("cam-1"), csr_for("cam-1")
    return x509.load_der_x509_csr(request).public_bytes(Encoding.DER)[:-60] + other[-60:]


def csr_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, algorithm: hashes.HashAlgorithm) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cam-1")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)  # type: ignore[arg-type]


BODIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "malformed"),
    "white space": (b" \r\n\t\n", "malformed"),
    "not base64": (b"this is no base64!", "malformed"),
    "DER, not base64": (csr_for("cam-1"), "malformed"),
    "PEM": (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "malformed"),
    "base64url": (encode_body(b"\xff\xfe\xfd" * 9).replace(b"/", b"_"), "malformed"),
    "not DER": (encode_body(b"0\x82\xff\xff nothing of the kind"), "malformed"),
    "half a CSR": (encode_body(csr_for("cam-1")[:150]), "malformed"),
    "bytes after the CSR": (encode_body(csr_for("cam-1") + b"\0"), "malformed"),
    "a CSR twice": (encode_body(csr_for("cam-1") * 2), "malformed"),
    "an empty SEQUENCE": (encode_body(b"0\0"), "malformed"),
    "a certificate's shape": (encode_body(b"\x30\x03\x02\x01\x01"), "malformed"),
    "RSA-1024": (encode_body(csr_of(rsa.generate_private_key(65537, 1024), hashes.SHA256())), "weak-key"),  # noqa: S505
    "P-192": (encode_body(csr_of(ec.generate_private_key(ec.SECP192R1()), hashes.SHA256())), "weak-key"),
    "secp256k1": (encode_body(csr_of(ec.generate_private_key(ec.SECP256K1()), hashes.SHA256())), "unsupported"),
    "a key the model forbids": (
        encode_body(csr_of(ec.generate_private_key(ec.SECP521R1()), hashes.SHA512())),
        "key-not-allowed",
    ),
    "another key's signature": (encode_body(csr_signed_by_another_key()), "bad-signature"),
    "no name": (encode_body(build_csr(generate_key(), (), ())), "no-common-name"),
    "two names": (
        encode_body(build_csr(generate_key(), (("2.5.4.3", "cam-1"), ("2.5.4.3", "cam-2")), ())),
        "no-common-name",
    ),
    "a name that is a wildcard": (encode_body(csr_for("#")), "bad-device-id"),
    "a name with a slash": (encode_body(csr_for("a/b")), "bad-device-id"),
    "a name with a NUL": (encode_body(csr_for("cam-1@").replace(b"cam-1@", b"cam-1\0")), "malformed"),
}


async def test_every_bad_body_is_400_with_one_plain_sentence(est: EstHarness) -> None:
    headers = {"Content-Type": "application/pkcs10", **basic(await est.token(model="cam", uses=99))}
    for what, (body, code) in BODIES.items():
        answer = await est.send("POST", ENROLL, body, {**headers, "Content-Length": str(len(body))})
        assert (answer.status, answer.code) == (400, code), what
        assert answer.header("Content-Type") == "text/plain; charset=utf-8"
        assert answer.text.count("\n") == 1
        assert ". (" in answer.text, what
    assert await est.registry.devices() == []


async def test_a_csr_over_its_own_cap_is_413(est: EstHarness) -> None:
    answer = await est.enroll(b"0\x82\x50\x00" + bytes(0x5000), basic(await est.token(model="cam")))
    assert (answer.status, answer.code) == (413, "too-large")


async def test_a_request_cut_anywhere_harms_nothing(est: EstHarness) -> None:
    body = encode_body(csr_for("cam-1"))
    head = f"POST {ENROLL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n"
    head += f"Authorization: {basic(await est.token(model='cam'))['Authorization']}\r\n"
    whole = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    reader, writer = await est.connect()  # one that stays
    for at in range(1, len(whole), 37):
        _, cut = await est.connect()
        cut.write(whole[:at])
        await cut.drain()
        cut.transport.abort()
    writer.write(f"GET {CACERTS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert Answer(await reader.read()).status == 200
    writer.close()
    assert await est.registry.devices() == []


# Not HTTP, too much of it, too slow


@pytest.mark.parametrize(
    "raw",
    [
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        f"GET {CACERTS}\r\n\r\n".encode(),
        f"GET {CACERTS} HTTP/0.9\r\n\r\n".encode(),
        *(f"GET {CACERTS} HTTP/{version}\r\nHost: a\r\n\r\n".encode() for version in ("1.2", "2.0", "3.0")),
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nBad header\0: x\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_400_and_closed(est: EstHarness, raw: bytes) -> None:
    answer = Answer(await est.exchange(raw))
    assert (answer.status, answer.code) == (400, "bad-http")
    assert b"aiohttp" not in answer.raw
    assert b"Python" not in answer.raw


@pytest.mark.parametrize(
    ("raw", "status", "code", "sentence"),
    [
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri-too-long", "4096 bytes"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 5000 + b"\r\n\r\n", 431, "headers-too-large", "4096 bytes"),
        (b"GET / HTTP/1.1\r\n" + b"X" * 5000 + b": x\r\n\r\n", 431, "headers-too-large", "4096 bytes"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100 + b"\r\n", 431, "headers-too-large", "more than 48"),
        (b"GET / HTTP/1.1\r\nX: y\r\n\r\n", 400, "bad-http", "needs one Host header"),
    ],
)
async def test_a_head_over_a_limit_is_told_which(
    est: EstHarness, raw: bytes, status: int, code: str, sentence: str
) -> None:
    answer = Answer(await est.exchange(raw))
    assert answer.raw.startswith(b"HTTP/1.1 ")
    assert (answer.status, answer.code) == (status, code)
    assert sentence in answer.text


async def test_head_is_answered_like_get_without_a_body(est: EstHarness) -> None:
    got, headed = [
        Answer(await est.exchange(f"{method} {CACERTS} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()))
        for method in ("GET", "HEAD")
    ]
    assert (got.status, headed.status) == (200, 200)
    assert headed.raw.endswith(b"\r\n\r\n")
    size = len(got.raw.partition(b"\r\n\r\n")[2])
    assert size > 0
    assert f"Content-Length: {size}\r\n".encode() in headed.raw


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/.well-known/est/%63acerts", 200),
        ("/%2Ewell-known/%65st/c%61certs", 200),
        ("/.well-known/est/cam/%63%61certs", 200),
        ("/.well-known%2Fest/cacerts", 404),
        ("/.well-known/est/%2563acerts", 404),
        ("/.well-known/est/%2E%2E/cacerts", 404),
        ("/.well-known/est/cacerts%00", 404),
        ("/.well-known/est/cacert%C5%BF", 404),
    ],
)
async def test_only_unreserved_characters_are_decoded(est: EstHarness, path: str, status: int) -> None:
    raw = f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert Answer(await est.exchange(raw.encode())).status == status


async def test_two_authorization_headers_are_refused(est: EstHarness) -> None:
    good = basic(await est.token(model="cam"))["Authorization"]
    lines = f"Authorization: {good}\r\nAuthorization: {good}\r\n"
    raw = f"POST {ENROLL} HTTP/1.1\r\nHost: a\r\n{lines}Content-Length: 0\r\nConnection: close\r\n\r\n"
    answer = Answer(await est.exchange(raw.encode()))
    assert (answer.status, answer.code) == (401, "bad-authorization")
    assert "several" in answer.text


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[EstHarness]:
    limits = HttpLimits(idle_seconds_max=0.2, body_seconds_max=0.2, linger_seconds_max=0.2)
    async with open_est(tmp_path, limits) as est:
        yield est


async def test_who_sends_no_whole_head_is_closed(hasty: EstHarness) -> None:
    for part in (b"", b"G", b"GET / HTTP/1.1\r\nHost: lo"):
        assert await hasty.exchange(part) == b""


async def test_who_sends_no_whole_body_is_told_408_and_closed(hasty: EstHarness) -> None:
    head = f"POST {ENROLL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\nContent-Length: 500\r\n"
    head += f"Authorization: {basic(await hasty.token(model='cam'))['Authorization']}\r\n\r\nMIIB"
    answer = Answer(await hasty.exchange(head.encode()))
    assert (answer.status, answer.code) == (408, "too-slow")


@pytest.mark.parametrize("chunks", [b"Z\r\n", b"-1\r\n", b"4\r\nMIIBxx\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n"])
async def test_broken_chunks_are_refused_and_closed(hasty: EstHarness, chunks: bytes) -> None:
    head = f"POST {ENROLL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n"
    head += f"Authorization: {basic(await hasty.token(model='cam'))['Authorization']}\r\n"
    for parts in ((chunks,), (b"4\r\nMIIB\r\n", chunks)):
        answer = Answer(await hasty.exchange_all(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n", *parts))
        # The parser does not tell a body that is being read of its end; the deadline does.
        assert (answer.status, answer.code) in {(400, "bad-http"), (408, "too-slow")}


async def test_an_idle_connection_is_closed(hasty: EstHarness) -> None:
    answer = Answer(await hasty.exchange(f"GET {CACERTS} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()))
    assert answer.status == 200


async def test_requests_are_counted_by_status_and_code(est: EstHarness) -> None:
    await est.send("GET", CACERTS)
    await est.send("GET", "/")
    assert dict(est.servers["est"].counters) == {"200": 1, "404 no-such-path": 1}


async def test_a_request_under_way_is_answered_before_the_house_closes(est: EstHarness) -> None:
    body = encode_body(csr_for("cam-1"))
    head = f"POST {ENROLL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n"
    head += f"Authorization: {basic(await est.token(model='cam'))['Authorization']}\r\n"
    reader, writer = await est.connect()
    writer.write(head.encode() + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
    await reader.readuntil(b"\r\n\r\n")  # from here on the request is under way
    idle, _ = await est.connect()
    closing = asyncio.create_task(est.servers["est"].shutdown(10.0))
    assert await idle.read() == b""
    writer.write(body)
    assert Answer(await reader.read()).status == 200
    await closing
    writer.close()


async def test_who_never_ends_a_request_does_not_keep_the_house_open(est: EstHarness) -> None:
    head = f"POST {ENROLL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n"
    head += f"Authorization: {basic(await est.token(model='cam'))['Authorization']}\r\n"
    reader, writer = await est.connect()
    writer.write(head.encode() + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    await est.servers["est"].shutdown(0.1)
    assert await reader.read() == b""
    writer.close()


async def test_a_client_that_asks_and_never_reads_is_put_out(tmp_path: Path) -> None:
    async with open_est(tmp_path, HttpLimits(write_seconds_max=0.2)) as est:
        reader, writer = await est.connect()
        writer.write(f"GET {CACERTS} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")  # it is established there too
        assert est.listeners["est"].stats.connected == 1
        cast(asyncio.Transport, writer.transport).pause_reading()
        request = f"GET {CACERTS} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        gone = asyncio.create_task(est.listeners["est"].wait_closed())
        async with asyncio.timeout(PATIENCE_SECONDS):
            with suppress(ConnectionError):
                while not gone.done():
                    writer.write(request * 100)
                    await asyncio.wait({gone, asyncio.ensure_future(writer.drain())}, return_when="FIRST_COMPLETED")
            await gone
        writer.transport.abort()


EMPTY = {"Authorization": "Basic Og=="}  # a colon: neither name nor password


@pytest.mark.parametrize(
    ("operation", "headers", "body", "status", "code"),
    [
        ("simpleenroll", {}, b"AA==", 401, "no-credentials"),
        ("simpleenroll", {"Authorization": "Bearer x"}, b"AA==", 401, "bad-authorization"),
        ("serverkeygen", {}, b"AA==", 401, "no-credentials"),
        ("simplereenroll", {}, b"AA==", 401, "no-certificate"),
        (
            "simpleenroll",
            {"Authorization": "Basic Og==", "Content-Type": "text/plain"},
            b"AA==",
            415,
            "bad-content-type",
        ),
        ("simpleenroll", EMPTY, b"A" * 70_000, 413, "too-large"),
    ],
)
async def test_what_is_refused_before_anything_is_read_is_in_the_audit(
    est: EstHarness, operation: str, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    headers = {"Content-Type": "application/pkcs10", **headers}
    answer = await est.send("POST", f"/.well-known/est/{operation}", body, headers)
    assert (answer.status, answer.code) == (status, code)
    entry = (await est.registry.audit())[-1].entry
    action = {"simpleenroll": "device.enroll", "simplereenroll": "device.reenroll"}.get(
        operation, "device.serverkeygen"
    )
    assert (entry.actor, entry.action, entry.outcome, entry.address) == ("nobody", action, code, "127.0.0.1")
