"""A hostile or broken EST server: each renewal ends in a clear error, and the working pair and the anchors are kept."""

import base64
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509

from device_agent import child_process
from device_agent.config.agent_config import NewHome, write_config
from device_agent.enroll_child import perform
from device_agent.enrollment.enrollment import EnrollmentJob, enroll_and_wait
from device_agent.store.device_key import certificate_info
from device_agent.store.identity_store import IdentityStore
from fleet.est_client.client import RETRY_AFTER_MAX_SECONDS
from fleet.est_client.errors import EstBadAnswer, EstBusy, EstError, EstUnreachable
from tests.certs_only import encode_certs_only
from tests.device_agent.fleet_parts import Authority, key_pem, pem
from tests.device_agent.wild_servers import Behavior, http, read_request, tls_server

pytestmark = pytest.mark.usefixtures("forked_programs")
NOW = datetime.now(UTC)
PKCS7 = "Content-Type: application/pkcs7-mime; smime-type=certs-only"
Issue = Callable[[Any], list[x509.Certificate]]
"""Certificates for a public key."""


def certs(*certificates: x509.Certificate) -> bytes:
    return http("200 OK", base64.b64encode(encode_certs_only(certificates)), PKCS7)


class Wild:
    """An EST server whose answers a test replaces: to cacerts, and to the request for a certificate."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.port = 0
        self.reset()

    def reset(self) -> None:
        self.cacerts = certs(self.authority.root, self.authority.issuing)
        self.issue: Issue = lambda key: [self.issued(key)]
        self.answer: Behavior | bytes | None = None
        self.asked: list[str] = []

    def issued(self, key: Any, name: str = "cam-7", by: Authority | None = None, **given: Any) -> x509.Certificate:
        return (by or self.authority).issue(name, key=SimpleNamespace(public_key=lambda: key), **given)[0]

    def serve(self, stream: ssl.SSLSocket) -> None:
        head, _, body = read_request(stream).partition(b"\r\n\r\n")
        self.asked.append(head.split(b" ")[1].decode().rpartition("/")[2])
        if self.asked[-1] == "cacerts":
            stream.sendall(self.cacerts)
        elif callable(self.answer):
            self.answer(stream)
        elif self.answer is not None:
            stream.sendall(self.answer)
        else:
            csr = x509.load_der_x509_csr(base64.b64decode(body))
            stream.sendall(certs(*self.issue(csr.public_key())))


@pytest.fixture(scope="module")
def served(authority: Authority) -> Iterator[Wild]:
    wild = Wild(authority)
    with tls_server(authority, wild.serve) as port:
        wild.port = port
        yield wild


@pytest.fixture
def wild(served: Wild) -> Wild:
    served.reset()
    return served


@pytest.fixture
def home(wild: Wild, tmp_path: Path) -> Path:
    """Enrolled, and pointed at the wild server."""
    home = tmp_path / "home"
    new = NewHome("cam-7", f"https://localhost:{wild.port}", "h", 1, wild.authority.ca_file.read_bytes())
    write_config(home, new)
    store = IdentityStore(home)
    certificate, key = wild.authority.issue("cam-7")
    store.write_key("slot-a", key_pem(key))
    info = certificate_info(certificate, "cam-7", NOW)
    store.promote(store.complete("slot-a", pem(certificate, wild.authority.issuing), info))
    return home


def renew(home: Path, deadline_seconds: float = 20.0) -> None:
    perform(EnrollmentJob(home, "reenroll", deadline_seconds=deadline_seconds), datetime.now(UTC))


def fails(home: Path, kind: type[EstError], says: str, **given: Any) -> EstError:
    """A renewal that fails so, and changes nothing that works."""
    store = IdentityStore(home)
    before, anchors = store.current(), (home / "ca.pem").read_bytes()
    with pytest.raises(kind, match=says) as caught:
        renew(home, **given)
    assert store.current() == before is not None
    assert store.candidate() is None
    assert (home / "ca.pem").read_bytes() == anchors
    return caught.value


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another CA, with the names of ours."""
    return Authority(tmp_path_factory.mktemp("foreign") / "ca")


def other_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1()).public_key()


def test_a_certificate_for_another_key(wild: Wild, home: Path) -> None:
    wild.issue = lambda key: [wild.issued(other_key())]
    fails(home, EstBadAnswer, "no certificate for the key")


def test_a_certificate_of_a_foreign_ca(wild: Wild, home: Path, foreign: Authority) -> None:
    wild.issue = lambda key: [wild.issued(key, by=foreign), foreign.issuing, foreign.root]
    fails(home, EstBadAnswer, "does not chain to this device's CA file")


def test_an_attackers_root_in_cacerts_is_not_trusted(wild: Wild, home: Path, foreign: Authority) -> None:
    wild.cacerts = certs(wild.authority.root, wild.authority.issuing, foreign.root, foreign.issuing)
    wild.issue = lambda key: [wild.issued(key, by=foreign)]
    fails(home, EstBadAnswer, "does not chain")
    wild.issue = lambda key: [wild.issued(key)]
    before = (home / "ca.pem").read_bytes()
    renew(home)  # what is ours among them still serves
    assert (home / "ca.pem").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"begin": NOW - timedelta(days=9), "end": NOW - timedelta(days=8)}, "expired at"),
        ({"begin": NOW + timedelta(days=1), "end": NOW + timedelta(days=8)}, "begins in the future"),
        ({"name": "cam-8"}, "common name is not cam-7"),
        ({"ca": True}, "is a CA's"),
        ({"usage": x509.oid.ExtendedKeyUsageOID.SERVER_AUTH}, "not valid for TLS clients"),
    ],
)
def test_a_certificate_that_is_not_for_this_device(wild: Wild, home: Path, given: dict[str, Any], says: str) -> None:
    wild.issue = lambda key: [wild.issued(key, **given)]
    fails(home, EstBadAnswer, says)


def test_an_answer_of_a_megabyte(wild: Wild, home: Path) -> None:
    wild.answer = http("200 OK", b"A" * 1_000_000, PKCS7)
    fails(home, EstBadAnswer, "larger than")
    wild.cacerts, wild.answer = wild.answer, None
    fails(home, EstBadAnswer, "larger than")


def dripping(stream: ssl.SSLSocket) -> None:
    for octet in b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + b"A" * 500:
        stream.sendall(bytes([octet]))
        time.sleep(0.05)


def continuing(stream: ssl.SSLSocket) -> None:
    for _ in range(500):
        stream.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.05)


@pytest.mark.parametrize("slow", [dripping, continuing])
def test_a_slow_loris(wild: Wild, home: Path, slow: Behavior) -> None:
    wild.answer = slow
    begun = time.monotonic()
    fails(home, EstUnreachable, "within 0.5 s", deadline_seconds=0.5)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("status", ["302 Found", "307 Temporary Redirect"])
def test_a_redirect_is_not_followed(wild: Wild, home: Path, status: str) -> None:
    wild.answer = http(status, b"", f"Location: https://localhost:{wild.port}/elsewhere")
    fails(home, EstBadAnswer, "refused simplereenroll")
    assert wild.asked == ["cacerts", "simplereenroll"]


@pytest.mark.parametrize(
    ("status", "retry_after"),
    [
        ("202 Accepted", ""),
        ("202 Accepted", "1"),
        ("503 Service Unavailable", "-1"),
        ("503 Service Unavailable", "31536000"),
        ("429 Too Many Requests", "9" * 400),
        ("503 Service Unavailable", "inf"),
        ("202 Accepted", "Fri, 31 Dec 9999 23:59:59 GMT"),
    ],
)
def test_later_for_ever_and_any_retry_after(wild: Wild, home: Path, status: str, retry_after: str) -> None:
    wild.answer = http(status, b"", f"Retry-After: {retry_after}".encode().decode("latin-1"))
    busy = fails(home, EstBusy, "asks to retry", deadline_seconds=1.0)
    assert isinstance(busy, EstBusy)
    assert 1 <= busy.retry_after_seconds <= RETRY_AFTER_MAX_SECONDS


@pytest.mark.parametrize("status", ["500 Internal Server Error"])
def test_a_server_that_fails(wild: Wild, home: Path, status: str) -> None:
    wild.answer = http(status, b"<html>", "Content-Type: text/html")
    fails(home, EstUnreachable, "refused simplereenroll")


def test_pkcs7_cut_at_any_place(wild: Wild, home: Path) -> None:
    whole = encode_certs_only([wild.authority.issuing])
    for length in range(0, len(whole), len(whole) // 5):
        wild.answer = http("200 OK", base64.b64encode(whole[:length]), PKCS7)
        fails(home, EstBadAnswer, "cannot be read")


@pytest.mark.parametrize(
    "text", [b"", b"SSH-2.0-x\r\n", b"HTTP/9 1\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a:b\r\n" * 999]
)
def test_no_http(wild: Wild, home: Path, text: bytes) -> None:
    wild.answer = text
    fails(home, EstError, "EST server|HTTP|content type")


# The child that asks


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL, perhaps because"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV."),
        ("import os, signal; os.kill(os.getpid(), signal.SIGALRM)", "took too long"),
        ("raise SystemExit(7)", "exit code 7"),
        ("print('{')", "exit code 0"),
    ],
)
def test_the_childs_death_is_told_with_its_cause(
    home: Path, monkeypatch: pytest.MonkeyPatch, code: str, says: str
) -> None:
    monkeypatch.setattr(child_process, "module_command", lambda _: [sys.executable, "-I", "-S", "-c", code])
    outcome = enroll_and_wait(EnrollmentJob(home, "reenroll"))
    assert not outcome.ok
    assert says in outcome.message
