"""One deadline for the whole exchange, whatever a server drips; and TLS settings of the client."""

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.config.small_files import CERTIFICATES_SIZE_MAX
from fleet.est_client import transport
from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import BadConfig, BadCredentials, EstUnreachable, EstUntrusted
from fleet.est_client.tls import client_context, is_refusal_text
from fleet.est_client.transport import Deadline
from fleet.wire.est import BODY_SIZE_MAX
from tests.device_agent.fleet_parts import Authority, key_pem, pem
from tests.device_agent.wild_servers import Behavior, answers, http, read_request, tls_server

TIMEOUT_SECONDS = 0.6
SLACK_SECONDS = 15.0  # a busy machine; without the deadline each of these servers holds a client for 20 s


def asked_for_seconds(authority: Authority, port: int) -> float:
    """How long a request takes that has to fail."""
    begun = time.monotonic()
    asking = EstClient(f"https://localhost:{port}", authority.ca_file, policy=Policy(TIMEOUT_SECONDS, 0))
    with pytest.raises(EstUnreachable, match=r"within 0\.6 s"):
        asking.cacerts()
    return time.monotonic() - begun


def dripping(data: bytes, seconds: float = 0.1, *, times: int = 200) -> Behavior:
    """Send `data` byte by byte, with less than the timeout in between, then the last byte again and again."""

    def behave(stream: ssl.SSLSocket) -> None:
        read_request(stream)
        for n in range(times):
            stream.sendall(data[n : n + 1] or data[-1:])
            time.sleep(seconds)

    return behave


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nX-Header: " + b"x" * 200,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    ],
)
def test_a_head_that_drips_is_cut_off(authority: Authority, answer: bytes) -> None:
    with tls_server(authority, dripping(answer)) as port:
        assert asked_for_seconds(authority, port) < SLACK_SECONDS


def test_a_body_that_drips_is_cut_off(authority: Authority) -> None:
    def behave(stream: ssl.SSLSocket) -> None:
        read_request(stream)
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
        for _ in range(200):
            stream.sendall(b"A")
            time.sleep(0.1)

    with tls_server(authority, behave) as port:
        assert asked_for_seconds(authority, port) < SLACK_SECONDS


@pytest.fixture
def dripping_handshake() -> Iterator[int]:
    """A port where a byte of a TLS record comes every 0.1 s: its header announces 16 KiB."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"\x16\x03\x03\x3f\xff")
            for _ in range(200):
                try:
                    connection.sendall(b"\x02")
                except OSError:
                    return
                time.sleep(0.1)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.close()
    thread.join(30)


def test_a_handshake_that_drips_is_cut_off(authority: Authority, dripping_handshake: int) -> None:
    assert asked_for_seconds(authority, dripping_handshake) < SLACK_SECONDS


def test_a_listener_that_never_accepts_is_given_up(authority: Authority) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        held = []
        for _ in range(4):  # fill the backlog: the next SYN is dropped
            held.append(socket.socket())
            held[-1].setblocking(False)
            held[-1].connect_ex(full.getsockname())
        assert asked_for_seconds(authority, full.getsockname()[1]) < SLACK_SECONDS
        for each in held:
            each.close()


def test_each_address_gets_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    class QuickAcks(socket.socket):
        def connect(self, address: object) -> None:
            tried.append(self.gettimeout() or 0)
            raise TimeoutError("timed out")

    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 9))] * 3
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "socket", QuickAcks)
    with pytest.raises(TimeoutError):
        transport.connect("h", 9, Deadline(30.0))
    assert tried == pytest.approx([10.0, 15.0, 30.0], abs=1.0)


def test_a_name_that_is_looked_up_without_end_is_given_up(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(SLACK_SECONDS * 4) or [])
    try:
        assert asked_for_seconds(authority, 1) < SLACK_SECONDS
    finally:
        over.set()


def test_a_deadline_that_has_passed_is_a_timeout() -> None:
    assert 0 < Deadline(5.0).left() <= 5.0
    for seconds in (0.0, -1.0):
        with pytest.raises(TimeoutError):
            Deadline(seconds).left()


def test_the_body_is_capped_at_its_limit(authority: Authority) -> None:
    context = client_context(authority.ca_file)
    request = transport.Request("GET", "/", {}, lambda _: None)
    largest = b"A" * BODY_SIZE_MAX
    with tls_server(authority, answers(http("200 OK", largest), http("200 OK", largest + b"A"))) as port:
        assert transport.exchange("localhost", port, context, request, 20.0).body == largest
        with pytest.raises(transport.AnswerTooLarge):
            transport.exchange("localhost", port, context, request, 20.0)


def test_a_body_without_a_length_ends_with_the_connection(authority: Authority) -> None:
    request = transport.Request("GET", "/", {}, lambda _: None)
    with tls_server(authority, answers(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\nhello")) as port:
        answer = transport.exchange("localhost", port, client_context(authority.ca_file), request, 20.0)
    assert answer == transport.Answer(200, "a/b", "", b"hello")


def test_a_chunked_body_cut_off_is_no_body(authority: Authority) -> None:
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    with tls_server(authority, answers(raw)) as port, pytest.raises((OSError, HTTPException)):
        transport.exchange(
            "localhost", port, client_context(authority.ca_file), transport.Request("GET", "/", {}, lambda _: None), 20
        )


# TLS


def test_a_common_name_names_no_server(authority: Authority, tmp_path: Path) -> None:
    """RFC 9525, 6.3: only the subjectAltName does. OpenSSL takes a CN where there is no SAN, unless it is forbidden."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")]))
        .issuer_name(authority.issuing.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(authority.issuing_key, hashes.SHA256())
    )
    twin = Authority(tmp_path / "twin")
    twin.server_file.write_bytes(pem(certificate, authority.issuing))
    twin.server_key_file.write_bytes(key_pem(key))
    with tls_server(twin, answers(http("200 OK"))) as port, pytest.raises(EstUntrusted, match="ostname mismatch"):
        EstClient(f"https://localhost:{port}", authority.ca_file).cacerts()
    assert not client_context(authority.ca_file).hostname_checks_common_name


def test_a_context_verifies_and_is_recent(authority: Authority) -> None:
    context = client_context(authority.ca_file)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == 1
    assert not context.verify_flags & 0x200000
    assert client_context(authority.ca_file, check_time=False).verify_flags & 0x200000
    bound = client_context(authority.ca_file, newest=ssl.TLSVersion.TLSv1_2)
    assert bound.maximum_version is ssl.TLSVersion.TLSv1_2


def test_files_that_cannot_be_used_are_said_plainly(authority: Authority, tmp_path: Path) -> None:
    """No source file of a C library, no error number."""
    cert_file, key_file = authority.client("cam-7")
    _, other_key = authority.client("cam-8")
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("hello")
    large, pipe = tmp_path / "large.pem", tmp_path / "pipe.pem"
    large.write_bytes(authority.ca_file.read_bytes() + b"\n" * CERTIFICATES_SIZE_MAX)
    os.mkfifo(pipe)
    for ca_file, why in (
        (nothing, "it holds no PEM certificate"),
        (tmp_path / "none", "No such file or directory"),
        (large, "File too large"),
        (pipe, "it is not a regular file"),
    ):
        with pytest.raises(BadConfig) as bad:
            client_context(ca_file)
        assert bad.value.message == f"The CA file {ca_file} cannot be used: {why}."
    for pair, why in (
        ((nothing, key_file), "it is not unencrypted PEM"),
        ((cert_file, nothing), "it is not unencrypted PEM"),
        ((cert_file, tmp_path / "none"), "No such file or directory"),
        ((cert_file, other_key), "the key does not belong to the certificate"),
    ):
        with pytest.raises(BadCredentials) as refused:
            client_context(authority.ca_file, pair)
        assert refused.value.message == f"The certificate {pair[0]} and its key cannot be used: {why}."


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("TLSV1_ALERT_UNKNOWN_CA", True),
        ("TLSV1_ALERT_ACCESS_DENIED", True),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", True),
        ("tlsv13 alert certificate required", True),
        ("CERTIFICATE_VERIFY_FAILED", False),
        ("TLSV1_ALERT_INTERNAL_ERROR", False),
        ("", False),
    ],
)
def test_which_alerts_are_a_refusal(text: str, refused: bool) -> None:
    assert is_refusal_text(text) is refused
