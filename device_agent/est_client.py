"""EST as a client (RFC 7030, RFC 8951): CA certificates, first enrollment, re-enrollment. One connection a call.

On the standard library's http.client and ssl, so that a device and a factory station can both carry it. Nothing is
taken from the server before its certificate has been verified, and no body is parsed before its size is known.
"""

import base64
import contextlib
import http.client
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from device_agent.client_tls import client_context, is_refusal
from device_agent.errors import BadConfig, EstBadAnswer, EstBusy, EstRefused, EstUnreachable, EstUntrusted
from fleet.wire import est
from fleet.wire.csrattrs import CsrAttributes, decode_csrattrs
from fleet.wire.errors import WireError

REASON_SIZE_MAX = 300  # characters of the server's sentence that we repeat
RETRY_AFTER_DEFAULT_SECONDS = 5.0  # for a 202 or 503 that does not say when
RETRY_AFTER_MIN_SECONDS = 1.0  # a server that says 0 is still not asked in a tight loop


BoundCsr = Callable[[str | None], bytes]
"""Makes the DER of a CSR with this challenge password in it; the same key each time."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    content_type: str
    retry_after_seconds: float
    body: bytes


class EstClient:
    """One server and one proof of who asks: a client certificate, or user and password, or neither (cacerts only).

    `url` is `https://HOST:PORT`, with or without `/.well-known/est`, behind which a label may stand: it is put before
    every operation that is called without one. `certificate` is (PEM chain, PEM key). `basic` is
    (device id, token); an id that HTTP's Basic cannot carry is left out of it.
    `timeout_seconds` bounds each network step; `patience_seconds` bounds all the waiting that 202, 429 and 503 ask for.
    `check_time=False` ignores the dates (only) of the server's certificate: for a clock that is not set yet.

    Raises: BadConfig when the URL or the CA file cannot be right; StoreDamaged when the client certificate cannot be
    loaded.
    """

    def __init__(
        self,
        url: str,
        ca_file: Path | str,
        certificate: tuple[Path | str, Path | str] | None = None,
        basic: tuple[str, str] | None = None,
        *,
        timeout_seconds: float = 30.0,
        patience_seconds: float = 60.0,
        check_time: bool = True,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._host, self._port, self._label = parse_est_url(url)
        self._ca_file = Path(ca_file)
        self._certificate = (Path(certificate[0]), Path(certificate[1])) if certificate else None
        self._basic = basic
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = patience_seconds
        self._check_time = check_time
        self._pause = pause
        self._context()  # a bad file is an error here, not in the middle of an enrollment

    def cacerts(self, label: str | None = None) -> list[x509.Certificate]:
        """The CA certificates that the server hands out: root and chain, in no promised order. RFC 7030, 4.1.

        `label` is the path segment of 3.2.2.

        Raises: EstError.
        """
        return _certificates(self._ask("GET", "cacerts", None, label))

    def csrattrs(self, label: str | None = None) -> CsrAttributes:
        """What the server wants to see in a CSR; nothing in particular when it does not say. RFC 7030, 4.5.

        Raises: EstError.
        """
        answer = self._ask("GET", "csrattrs", None, label, (200, 204, 404))
        if answer.status != 200:  # RFC 7030, 4.5.2: 204 and 404 both mean that there are none
            return CsrAttributes()
        try:
            return decode_csrattrs(est.decode_body(answer.body))
        except WireError as error:
            raise EstBadAnswer(f"The server's CSR attributes cannot be read: {error}") from error

    def renewal_info(self, fingerprint: str) -> tuple[tuple[datetime, datetime] | None, float]:
        """Start and end of the window in which the server would have this certificate renewed, and after how many
        seconds to ask again; None when it suggests nothing. Not of RFC 7030: what RFC 9773, 4.2 is to ACME.

        Raises: EstError.
        """
        answer = self._ask("GET", f"renewal-info/{fingerprint}", None, None, (200, 400, 403, 404, 405, 501))
        if answer.status != 200:
            return None, 0.0  # not our server, or one that knows no such certificate
        try:
            suggested = json.loads(answer.body)["suggestedWindow"]
            start, end = (datetime.fromisoformat(suggested[name]).astimezone(UTC) for name in ("start", "end"))
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            raise EstBadAnswer("The server's renewal information cannot be read.") from error
        if not start <= end:
            raise EstBadAnswer("The server suggests a window that ends before it begins.")
        return (start, end), answer.retry_after_seconds

    def simpleenroll(self, csr: bytes | BoundCsr, label: str | None = None) -> x509.Certificate:
        """The certificate issued for this CSR. RFC 7030, 4.2.1; `label` is the path segment of 3.2.2.

        A BoundCsr is made for the connection that it goes over.

        Asked again for as long as the server answers 202, 429 or 503, within `patience_seconds`.

        Raises: EstError.
        """
        return self._enroll("simpleenroll", csr, label)

    def simplereenroll(self, csr: bytes | BoundCsr, label: str | None = None) -> x509.Certificate:
        """The successor of the client certificate that we present. RFC 7030, 4.2.2.

        Raises: EstError.
        """
        return self._enroll("simplereenroll", csr, label)

    def _enroll(
        self, operation: Literal["simpleenroll", "simplereenroll"], csr: bytes | BoundCsr, label: str | None
    ) -> x509.Certificate:
        certificates = _certificates(self._ask("POST", operation, csr, label))
        # RFC 7030, 4.2.3: only the issued certificate. Some servers add the chain, so ours is found by its key.
        public_key = x509.load_der_x509_csr(csr if isinstance(csr, bytes) else csr(None)).public_key()
        for certificate in certificates:
            with contextlib.suppress(ValueError, UnsupportedAlgorithm):  # a CA's key may be of a kind unknown here
                if certificate.public_key() == public_key:
                    return certificate
        raise EstBadAnswer("The server's answer holds no certificate for the key that was sent.")

    def _ask(
        self,
        method: str,
        operation: str,
        csr: bytes | BoundCsr | None,
        label: str | None,
        wanted: tuple[int, ...] = (200,),
    ) -> _Answer:
        label = label or self._label
        path = est.WELL_KNOWN + (f"/{quote(label, safe='')}" if label else "") + f"/{operation}"
        waited_seconds = 0.0
        while True:
            answer = self._ask_once(method, path, csr)
            if answer.status in wanted:
                return answer
            # RFC 7030, 4.2.3: 202 asks for the same request again after Retry-After. 429 and 503 do too.
            if answer.status not in (202, 429, 503):
                raise _refusal(answer, operation)
            waited_seconds += answer.retry_after_seconds
            if waited_seconds > self._patience_seconds:
                reason = _reason(answer)
                raise EstBusy(
                    f"The EST server asks to come back in {answer.retry_after_seconds:.0f} s{': ' if reason else '.'}"
                    + reason,
                    "Try again later: the same key will be used.",
                    answer.retry_after_seconds,
                    pending=answer.status == 202,
                )
            self._pause(answer.retry_after_seconds)

    def _ask_once(self, method: str, path: str, csr: bytes | BoundCsr | None) -> _Answer:
        headers = {"Accept": "*/*", "Connection": "close"}
        if csr is not None:
            headers |= {"Content-Type": est.PKCS10, "Content-Transfer-Encoding": "base64"}
        if self._basic is not None and not path.endswith("/cacerts"):
            headers["Authorization"] = _basic_credentials(*self._basic)
        # A fresh context for each connection, so that a rotated certificate is always the one presented.
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=self._timeout_seconds, context=self._context(bound=callable(csr))
        )
        try:
            connection.connect()
            body = csr(_binding(connection)) if callable(csr) else csr
            connection.request(method, path, body=None if body is None else est.encode_body(body), headers=headers)
            return _read_answer(connection.getresponse(), time.monotonic() + self._timeout_seconds)
        except ssl.SSLCertVerificationError as error:
            raise EstUntrusted(
                f"The EST server at {self._host}:{self._port} did not prove who it is: {error.verify_message}.",
                "Check the URL's host name, the CA file and this device's clock.",
            ) from error
        except ssl.SSLError as error:
            if is_refusal(error) and self._certificate is None:
                raise EstRefused(
                    f"The server at {self._host}:{self._port} wants a client certificate: {error.reason}.",
                    "Is that the MQTT port? EST usually listens on 8443.",
                ) from error
            if is_refusal(error):
                raise EstRefused(
                    f"The EST server refused our certificate in the handshake: {error.reason}.",
                    "It may be expired or revoked, or of another CA: enroll again with a new token.",
                ) from error
            raise EstUnreachable(f"TLS with {self._host}:{self._port} failed: {error.reason or error}.") from error
        except http.client.HTTPException as error:
            raise EstBadAnswer(f"The server's answer is not HTTP: {type(error).__name__}.") from error
        except OSError as error:
            raise EstUnreachable(
                f"The EST server at {self._host}:{self._port} cannot be reached: {error}.",
                "Check the network and the URL.",
            ) from error
        finally:
            connection.close()

    def _context(self, *, bound: bool = False) -> ssl.SSLContext:
        # The ssl module cannot export TLS 1.3's binding (RFC 9266); of TLS 1.2 it can.
        newest = ssl.TLSVersion.TLSv1_2 if bound else ssl.TLSVersion.MAXIMUM_SUPPORTED
        return client_context(self._ca_file, self._certificate, check_time=self._check_time, newest=newest)


def _binding(connection: http.client.HTTPSConnection) -> str:
    """RFC 7030, 3.5: base64 of the connection's tls-unique."""
    binding = connection.sock.get_channel_binding("tls-unique") if isinstance(connection.sock, ssl.SSLSocket) else None
    if not binding:
        raise EstUnreachable("The connection to the EST server has no channel binding.")
    return base64.b64encode(binding).decode()


def parse_est_url(url: str) -> tuple[str, int, str]:
    """Host, port and label of an EST server's URL; without a label "".

    Raises: BadConfig.
    """
    advice = "Write it as https://HOST:PORT, or https://HOST:PORT/.well-known/est/LABEL."
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError as error:
        raise BadConfig(f"{url!r} is not an EST server's URL: {error}.", advice) from error
    if parts.scheme != "https" or not host or parts.username or parts.query or parts.fragment:
        raise BadConfig(f"{url!r} is not an EST server's URL.", advice)
    path = parts.path.rstrip("/")
    label = path.removeprefix(f"{est.WELL_KNOWN}/") if path.startswith(f"{est.WELL_KNOWN}/") else ""
    # RFC 7030, 3.2.2: a label is never equal to an operation.
    if (path not in ("", est.WELL_KNOWN) and not label) or "/" in label or label in est.OPERATIONS:
        raise BadConfig(f"{url!r} has a path that EST does not use.", advice)
    return host, port, unquote(label)


def _basic_credentials(user: str, password: str) -> str:
    # RFC 7617, 2: a user-id with a colon is invalid. Ours may have one; the token alone names the device as well.
    sent = "" if ":" in user else user
    return "Basic " + base64.b64encode(f"{sent}:{password}".encode()).decode()


def _read_answer(response: http.client.HTTPResponse, deadline: float) -> _Answer:
    parts: list[bytes] = []
    size = 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > est.BODY_SIZE_MAX:
            raise EstBadAnswer(f"The server's answer is larger than {est.BODY_SIZE_MAX} bytes.")
        if time.monotonic() > deadline:
            raise EstUnreachable("The EST server's answer did not arrive in time.")
    if response.length:  # of a Content-Length, this much never came
        raise EstUnreachable("The EST server hung up in the middle of its answer.")
    return _Answer(
        response.status,
        response.headers.get("Content-Type", ""),
        _retry_after_seconds(response.headers.get("Retry-After", "")),
        b"".join(parts),
    )


def _retry_after_seconds(text: str) -> float:
    # RFC 9110, 10.2.3 also allows a date; a device may have no clock, so a date counts as the default delay.
    if not text.strip().isascii() or not text.strip().isdigit():
        return RETRY_AFTER_DEFAULT_SECONDS
    return max(RETRY_AFTER_MIN_SECONDS, float(text))


def _certificates(answer: _Answer) -> list[x509.Certificate]:
    # RFC 7030, 4.1.3 and 4.2.3
    if not est.is_certs_only(answer.content_type):
        raise EstBadAnswer(
            f"The server answered with {answer.content_type[:80] or 'no content type'!r}, no certificates."
        )
    try:
        return est.decode_certs_only(est.decode_body(answer.body))
    except WireError as error:
        raise EstBadAnswer(f"The server's answer cannot be read: {error}") from error


_ADVICE = {
    401: "Check the token: it may be mistyped.",
    403: "Ask the fleet's operator about this device's state and token.",
    404: "Check the EST URL.",
    405: "Check the EST URL.",
}


def _reason(answer: _Answer) -> str:
    """The server's own sentence, if it sent one, so that it cannot draw on a terminal."""
    if answer.content_type.partition(";")[0].strip().lower() != "text/plain":
        return ""
    text = answer.body[: 4 * REASON_SIZE_MAX].decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:REASON_SIZE_MAX]


def _refusal(answer: _Answer, operation: str) -> EstRefused | EstUnreachable | EstBadAnswer:
    reason = _reason(answer)
    message = f"The EST server refused {operation} ({answer.status}){': ' + reason if reason else '.'}"
    if answer.status >= 500:
        return EstUnreachable(message, "The server has a problem of its own: try again later.")
    if answer.status < 400:
        return EstBadAnswer(message, "Check the EST URL: RFC 7030 knows no such answer.")
    # A server that gives its reason gives its advice too.
    return EstRefused(message, "" if reason else _ADVICE.get(answer.status, ""), answer.status)
