"""Clients that enroll one device after another at a server that is killed again and again, and retry until answered.

A retry uses the same key and token: the answer may have been lost after the certificate was issued, and then the server
must return that very certificate. All clients share one token until it is used up, so that they compete for its last
use.
"""

import base64
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL

from fleet.domain.issuance_context import COMMON_NAME
from fleet.wire.csr import build_csr
from fleet.wire.errors import WireError
from fleet.wire.est import PKCS10, WELL_KNOWN, decode_body, decode_certs_only, encode_body
from hw_bench.drivers.handshake import client_context, connect
from hw_bench.processes import BenchError

READ_SIZE = 16384
PAUSE_SECONDS = 0.03  # between two attempts while the server is down
PATIENCE_SECONDS = 60.0  # without any certificate


@dataclass(frozen=True, slots=True)
class Received:
    """A certificate that its client has received."""

    device: str
    token: str
    """Id of the token in the request."""
    fingerprint: str
    serial: str


class Tokens:
    """The token that all clients share. `more` creates new ones, "ID.SECRET" each."""

    def __init__(self, more: Callable[[], list[str]]) -> None:
        self._more = more
        self._lock = threading.Lock()
        self._waiting: list[str] = []
        self._current = ""

    def current(self, spent: str = "") -> str:
        """The current token; a new one when it equals `spent`."""
        with self._lock:
            if self._current == spent:
                self._waiting = self._waiting or self._more()
                self._current = self._waiting.pop()
            return self._current


class Clients:
    """`count` clients, one thread each; they run while the context is open."""

    def __init__(self, address: tuple[str, int], model: str, count: int, tokens: Tokens) -> None:
        self.received: list[Received] = []
        self.unanswered = 0
        """Failed attempts: refused connections, broken ones, 503."""
        self._address, self._model, self._tokens = address, model, tokens
        self._context = client_context("", "", "TLSv1.3")
        self._problems: list[str] = []
        self._heard = "nothing"
        self._stopping = threading.Event()
        self._news = threading.Condition()
        self._threads = [threading.Thread(target=self._live, args=(number,), daemon=True) for number in range(count)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Return when they hold `count` certificates. Raises: BenchError when a client got an impossible answer."""
        with self._news:
            enough = self._news.wait_for(lambda: self._problems or len(self.received) >= count, PATIENCE_SECONDS)
        if self._problems:
            raise BenchError(self._problems[0])
        if not enough:
            raise BenchError(f"No client got a certificate within {PATIENCE_SECONDS:.0f} s. Last heard: {self._heard}.")

    def pause(self, seconds: float) -> None:
        """Sleep while they run on."""
        self._stopping.wait(seconds)

    def _live(self, client: int) -> None:
        number = 0
        try:
            while not self._stopping.is_set():
                number += 1
                self._enroll(f"crash-{client}-{number}")
        except Exception as error:  # raised again by wait_for, in the main thread
            self._report(problem=f"client {client}, device {number}: {error}")

    def _enroll(self, device: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        body = encode_body(build_csr(key, ((COMMON_NAME, device),), ()))
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        token = self._tokens.current()
        while not self._stopping.is_set():
            status, answer = self._ask(_request(self._model, device, token, body))
            if status == 200:
                self._keep(device, token, spki, answer)
                return
            if status == 403 and b"token-used-up" in answer:
                token = self._tokens.current(spent=token)
            elif status in (0, 503):
                self.unanswered += 1
                self._heard = f"{status} {answer[:200].decode(errors='replace').strip()}" if status else "no answer"
                self._stopping.wait(PAUSE_SECONDS)
            else:
                raise BenchError(f"{device} was answered {status}: {answer[:200].decode(errors='replace').strip()}")

    def _keep(self, device: str, token: str, spki: bytes, answer: bytes) -> None:
        try:
            certificate = decode_certs_only(decode_body(answer))[0]
        except WireError as error:
            raise BenchError(f"{device} got no certificate: {error}") from error
        if certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != spki:
            raise BenchError(f"{device} got a certificate for another key.")
        fingerprint = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
        serial = f"{certificate.serial_number:x}"
        self._report(Received(device, token.partition(".")[0], fingerprint, serial))

    def _report(self, received: Received | None = None, problem: str = "") -> None:
        with self._news:
            if received is not None:
                self.received.append(received)
            if problem:
                self._problems.append(problem)
            self._news.notify_all()

    def _ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body; (0, b"") without a complete answer."""
        try:
            connection = connect(self._address)
        except OSError:
            return 0, b""
        try:
            tls = SSL.Connection(self._context, connection)
            tls.set_connect_state()
            tls.sendall(request)
            answer = b""
            while part := _read(tls):
                answer += part
        except (SSL.Error, OSError):
            return 0, b""
        finally:
            connection.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        size = next((int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")), -1)
        return (int(lines[0].split()[1]), body) if size == len(body) else (0, b"")


def _read(tls: SSL.Connection) -> bytes:
    try:
        return tls.recv(READ_SIZE)
    except SSL.ZeroReturnError:
        return b""  # Connection: close


def _request(model: str, device: str, token: str, body: bytes) -> bytes:
    login = base64.b64encode(f"{device}:{token}".encode()).decode()
    lines = [
        f"POST {WELL_KNOWN}/{model}/simpleenroll HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {PKCS10}",
        "Content-Transfer-Encoding: base64",
        f"Authorization: Basic {login}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
