"""The EST client against the real server, and against servers that are wrong in every way."""

import ssl
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fleet.ca.keys import generate_key
from fleet.domain.model_rules import rules_of
from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import (
    BadConfig,
    EstAlerted,
    EstBadAnswer,
    EstBusy,
    EstError,
    EstRefused,
    EstUnreachable,
    EstUntrusted,
)
from fleet.est_client.url import parse_est_url
from fleet.wire.csr import build_csr
from fleet.wire.csrattrs import CsrAttributes
from fleet.wire.est import CERTS_ONLY, decode_body, encode_body
from tests.certs_only import encode_certs_only
from tests.device_agent.fleet_parts import Authority, Device, EstServer, key_pem, pem
from tests.device_agent.wild_servers import alerting_server, answers, http, read_request, tls_server
from tests.free_ports import free_port

BOUND = rules_of({"profile": {"binding": True}})
POLICY = {"timeout_seconds", "patience_seconds", "check_time"}
CERTS = f"Content-Type: {CERTS_ONLY}"


def csr_of(name: str, key: object = None) -> bytes:
    return build_csr(key or generate_key(), [("2.5.4.3", name)], ())  # type: ignore[arg-type]


def client(authority: Authority, port: int, **given: object) -> EstClient:
    policy = Policy(**{"timeout_seconds": 10.0} | {name: given.pop(name) for name in POLICY & given.keys()})  # type: ignore[arg-type]
    options = {"pause": lambda _: None, "policy": policy} | given
    return EstClient(f"https://localhost:{port}", authority.ca_file, **options)  # type: ignore[arg-type]


# The real server


def test_cacerts_hands_out_the_chain(est: EstServer, authority: Authority) -> None:
    assert set(EstClient(est.url, authority.ca_file).cacerts()) == {authority.root, authority.issuing}


def test_a_token_buys_a_certificate_and_the_certificate_its_successor(
    est: EstServer, authority: Authority, tmp_path: Path
) -> None:
    key, successor = generate_key(), generate_key()
    asking = EstClient(est.url, authority.ca_file, basic=("pump-1", est.token("pump-1")))
    certificate = asking.simpleenroll(csr_of("pump-1", key))
    assert certificate.public_key() == key.public_key()
    cert_file, key_file = tmp_path / "a cert.pem", tmp_path / "a key.pem"
    cert_file.write_bytes(pem(certificate, authority.issuing))
    key_file.write_bytes(key_pem(key))
    renewing = EstClient(est.url, authority.ca_file, certificate=(cert_file, key_file))
    renewed = renewing.simplereenroll(csr_of("pump-1", successor))
    assert renewed.public_key() == successor.public_key()
    assert renewed.serial_number != certificate.serial_number


def test_a_label_is_one_path_segment(est: EstServer, authority: Authority) -> None:
    token = est.token("pump-2")
    asking = EstClient(est.url, authority.ca_file, basic=("pump-2", token))
    assert asking.simpleenroll(csr_of("pump-2"), label="of-pump-2").subject.rfc4514_string() == "CN=pump-2"


@pytest.mark.parametrize(("basic", "status"), [(None, 401), (("pump-3", "abcdefabcdef.wrong"), 401)])
def test_without_a_right_it_is_refused_with_the_servers_words(
    est: EstServer, authority: Authority, basic: tuple[str, str] | None, status: int
) -> None:
    with pytest.raises(EstRefused) as caught:
        EstClient(est.url, authority.ca_file, basic=basic).simpleenroll(csr_of("pump-3"))
    assert caught.value.status == status
    assert "(" in caught.value.message  # the server's own sentence and code; advice of ours would only double it
    assert caught.value.advice == ""
    assert "wrong" not in str(caught.value)


def test_no_certificate_of_another_ca_is_believed(est: EstServer, tmp_path: Path) -> None:
    with pytest.raises(EstUntrusted, match="did not verify"):
        EstClient(est.url, Authority(tmp_path, "other").ca_file).cacerts()


def test_the_host_name_is_checked(authority: Authority) -> None:
    with (
        tls_server(authority, answers(http("200 OK")), address="127.0.0.2") as port,
        pytest.raises(EstUntrusted, match="mismatch"),
    ):
        EstClient(f"https://127.0.0.2:{port}", authority.ca_file).cacerts()


# What a server may also answer


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://localhost",
        "localhost:8443",
        "https://",
        "https://h:99999",
        "https://h:x",
        "https://user:pw@h",
        "https://h/elsewhere",
        "https://h/elsewhere/.well-known/est/acme",
        "https://h/.well-known/est/cacerts",
        "https://h/.well-known/est/acme/cacerts",
        "https://h/?q",
        "https://h/#f",
        "https://[::1",
    ],
)
def test_urls_that_cannot_be_right(url: str) -> None:
    with pytest.raises(BadConfig):
        parse_est_url(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h", ("h", 443, "")),
        ("https://h:8443/", ("h", 8443, "")),
        ("https://h/.well-known/est", ("h", 443, "")),
        ("https://[::1]:1/.well-known/est/", ("::1", 1, "")),
        ("https://h/.well-known/est/acme", ("h", 443, "acme")),
        ("https://h:1/.well-known/est/a%2Fb/", ("h", 1, "a/b")),
    ],
)
def test_urls_that_are_right(url: str, expected: tuple[str, int, str]) -> None:
    assert parse_est_url(url) == expected


def test_202_429_and_503_are_asked_again_as_told(authority: Authority) -> None:
    pauses: list[float] = []
    good = http("200 OK", encode_body(encode_certs_only([authority.issuing])), CERTS)
    waits = (
        http("202 Accepted", b"", "Retry-After: 7"),
        http("503 Busy", b"", "Retry-After: 0"),
        http("503 Busy", b"", "Retry-After: Fri, 31 Dec 1999 23:59:59 GMT"),
        http("429 Too Many Requests", b"", "Retry-After: 3"),
        http("202 Accepted"),
    )
    with tls_server(authority, answers(*waits, good)) as port:
        found = client(authority, port, pause=pauses.append).cacerts()
    assert found == [authority.issuing]
    assert pauses == [7.0, 1.0, 5.0, 3.0, 5.0]


def test_patience_has_an_end(authority: Authority) -> None:
    with (
        tls_server(authority, answers(http("202 Accepted", b"", "Retry-After: 3600"))) as port,
        pytest.raises(EstBusy) as caught,
    ):
        client(authority, port).simpleenroll(csr_of("x"))
    assert caught.value.retry_after_seconds == 3600
    assert caught.value.pending


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (http("200 OK", b"hello", "Content-Type: text/html"), EstBadAnswer),
        (http("200 OK", b"hello"), EstBadAnswer),
        (http("200 OK", b"!!", CERTS), EstBadAnswer),
        (http("200 OK", b"AAAA", CERTS), EstBadAnswer),
        (http("200 OK", b"", CERTS), EstBadAnswer),
        (http("200 OK", b"A" * (64 * 1024 + 1), CERTS), EstBadAnswer),
        (http("204 No Content"), EstBadAnswer),
        (http("302 Found", b"", "Location: https://elsewhere/"), EstBadAnswer),
        (http("500 Oops", b"trace", "Content-Type: text/plain"), EstUnreachable),
        (http("401 Who", b"token used up\nsecond \x1b[31mline", "Content-Type: text/plain"), EstRefused),
        (http("404 Nowhere"), EstRefused),
        (http("413 Large"), EstRefused),
        (b"SSH-2.0-nothing\r\n", EstBadAnswer),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", EstUnreachable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", EstBadAnswer),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", EstBadAnswer),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", EstBadAnswer),
        (b"", EstError),
    ],
)
def test_answers_that_are_wrong(authority: Authority, answer: bytes, expected: type[EstError]) -> None:
    with tls_server(authority, answers(answer)) as port, pytest.raises(expected) as caught:
        client(authority, port).simpleenroll(csr_of("x"))
    assert caught.value.message.isprintable()  # what a server says cannot draw on a terminal


def test_an_answer_cut_at_every_byte_is_an_error_of_ours(authority: Authority) -> None:
    whole = http("200 OK", encode_body(encode_certs_only([authority.issuing])), CERTS)
    cuts = [*range(0, 120, 7), *range(120, len(whole), 97)]
    with tls_server(authority, answers(*(whole[:cut] for cut in cuts))) as port:
        asking = client(authority, port)
        for _ in cuts:
            with pytest.raises(EstError):
                asking.cacerts()


def test_a_certificate_for_another_key_is_not_taken(authority: Authority) -> None:
    answer = http("200 OK", encode_body(encode_certs_only([authority.issuing])), CERTS)
    with (
        tls_server(authority, answers(answer)) as port,
        pytest.raises(EstBadAnswer, match="for the key"),
    ):
        client(authority, port).simpleenroll(csr_of("x"))


def test_the_request_is_what_rfc_7030_says(authority: Authority) -> None:
    seen: list[bytes] = []

    def listen(stream: ssl.SSLSocket) -> None:
        seen.append(read_request(stream))
        stream.sendall(http("400 No"))

    csr = csr_of("x")
    with tls_server(authority, listen) as port, pytest.raises(EstRefused):
        client(authority, port, basic=("x", "id.secret")).simpleenroll(csr, label="a b")
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /.well-known/est/a%20b/simpleenroll HTTP/1.1"
    assert "Content-Type: application/pkcs10" in lines
    assert "Authorization: Basic eDppZC5zZWNyZXQ=" in lines
    assert decode_body(body) == csr


def test_an_id_with_a_colon_is_no_user_name(est: EstServer, authority: Authority) -> None:
    """RFC 7617, 2: it would end at the colon."""
    seen: list[bytes] = []

    def listen(stream: ssl.SSLSocket) -> None:
        seen.append(read_request(stream))
        stream.sendall(http("400 No"))

    with tls_server(authority, listen) as port, pytest.raises(EstRefused):
        client(authority, port, basic=("02:00:5e", "id.secret")).simpleenroll(csr_of("02:00:5e"))
    assert f"Authorization: Basic {b64encode(b':id.secret').decode()}\r\n".encode() in seen[0]
    EstClient(est.url, authority.ca_file, basic=("02:00:5e", est.token("02:00:5e"))).simpleenroll(csr_of("02:00:5e"))


def test_credentials_never_go_with_cacerts(authority: Authority) -> None:
    seen: list[bytes] = []

    def listen(stream: ssl.SSLSocket) -> None:
        seen.append(read_request(stream))
        stream.sendall(http("400 No"))

    with tls_server(authority, listen) as port, pytest.raises(EstRefused):
        client(authority, port, basic=("x", "id.secret")).cacerts()
    assert b"Authorization" not in seen[0]


def test_nobody_there(authority: Authority) -> None:
    with pytest.raises(EstUnreachable, match="cannot be reached"):
        client(authority, free_port()).cacerts()


def test_a_server_that_says_nothing_is_not_waited_for_without_end(authority: Authority) -> None:
    def listen(stream: ssl.SSLSocket) -> None:
        read_request(stream)
        stream.read()  # until the client gives up

    with tls_server(authority, listen) as port, pytest.raises(EstUnreachable):
        client(authority, port, timeout_seconds=0.3).cacerts()


def test_a_refused_client_certificate_is_a_refusal(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "other").client("stranger")
    with (
        tls_server(authority, answers(http("200 OK")), client_ca=authority) as port,
        pytest.raises(EstError) as caught,
    ):
        client(authority, port, certificate=stranger).cacerts()
    assert isinstance(caught.value, EstRefused | EstUnreachable)  # the alert may lose the race against the reset


@pytest.mark.parametrize("has_certificate", [False, True])
def test_an_alert_before_the_server_is_authenticated_is_no_refusal(authority: Authority, has_certificate: bool) -> None:
    given = {"certificate": authority.client("cam-7")} if has_certificate else {}
    with alerting_server() as port, pytest.raises(EstAlerted, match="CERTIFICATE_REVOKED"):
        client(authority, port, **given).cacerts()


def test_a_refusal_in_the_handshake_of_tls_1_2_is_not_protected(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "other").client("stranger")
    old = ssl.TLSVersion.TLSv1_2
    with (
        tls_server(authority, answers(http("200 OK")), client_ca=authority, newest=old) as port,
        pytest.raises(EstUnreachable) as caught,  # the alert may lose the race against the reset
    ):
        client(authority, port, certificate=stranger).cacerts()
    assert isinstance(caught.value, EstAlerted) or "cannot be reached" in caught.value.message


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    broken = tmp_path / "not a ca.pem"
    broken.write_text("hello")
    for file in (broken, tmp_path / "missing.pem"):
        with pytest.raises(BadConfig, match=file.name):
            EstClient("https://h", file)


def test_dates_alone_can_be_ignored(tmp_path: Path) -> None:
    """For a device whose clock is not set: an expired server certificate passes, one of another CA does not."""
    late = Authority(tmp_path / "late", made_days_ago=500)  # its server certificate is over
    with tls_server(late, answers(http("400 No"))) as port:
        with pytest.raises(EstUntrusted, match="expired"):
            client(late, port).cacerts()
        with pytest.raises(EstRefused):
            client(late, port, check_time=False).cacerts()
        with pytest.raises(EstUntrusted):
            client(Authority(tmp_path / "other"), port, check_time=False).cacerts()


# CSR attributes, and requests bound to their connection


def test_csrattrs_tell_what_the_model_wants(est: EstServer, authority: Authority) -> None:
    token = est.token("pump-8", key_types=("Ed25519",), rules=BOUND)
    asking = EstClient(est.url, authority.ca_file, basic=("pump-8", token))
    assert asking.csrattrs() == CsrAttributes(("Ed25519",), ("1.3.6.1.5.5.7.3.2",), binding=True)
    assert EstClient(est.url, authority.ca_file).csrattrs("of-pump-8") == asking.csrattrs()
    assert EstClient(est.url, authority.ca_file).csrattrs() == CsrAttributes()


def test_a_bound_request_is_made_for_its_connection(est: EstServer, authority: Authority) -> None:
    key = generate_key()
    asking = EstClient(est.url, authority.ca_file, basic=("pump-9", est.token("pump-9", rules=BOUND)))
    with pytest.raises(EstRefused) as refused:
        asking.simpleenroll(csr_of("pump-9", key))
    assert (refused.value.status, "binding-missing" in refused.value.message) == (400, True)
    certificate = asking.simpleenroll(partial(build_csr, key, (("2.5.4.3", "pump-9"),), ()))
    assert certificate.public_key() == key.public_key()


def test_the_agent_binds_its_requests_when_it_has_to(new_device: Callable[[], Device]) -> None:
    device = new_device().enrolled(rules=BOUND)
    first = device.status()["serial"]
    device.call("renew", expect=None)
    assert device.status()["serial"] != first
