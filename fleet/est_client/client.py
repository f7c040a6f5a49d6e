"""EST client (RFC 7030, RFC 8951): CA certificates, enrollment, re-enrollment. One connection for each request.

On the standard library's http.client and ssl, so that a device and a factory station can both carry it. Nothing is
read from a server whose certificate has not been verified, and no body is parsed before its size is known.
"""

import base64
import contextlib
import http.client
import json
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from fleet.est_client import transport
from fleet.est_client.errors import EstAlerted, EstBadAnswer, EstBusy, EstRefused, EstUnreachable, EstUntrusted
from fleet.est_client.server_checks import ServerTime, also_check, is_about_dates
from fleet.est_client.tls import client_context, is_refusal
from fleet.est_client.transport import Answer, Request
from fleet.est_client.url import parse_est_url
from fleet.wire import device_report, est
from fleet.wire.csrattrs import CsrAttributes, decode_csrattrs
from fleet.wire.errors import WireError

REASON_SIZE_MAX = 300  # characters of the server's sentence that are repeated
USER_AGENT = "fleet-est"  # a server may send no texts to clients without one
RETRY_AFTER_DEFAULT_SECONDS = 5.0  # for a 202, 429 or 503 without Retry-After
RETRY_AFTER_MIN_SECONDS = 1.0  # even for Retry-After: 0, so that no server is polled in a tight loop
RETRY_AFTER_MAX_SECONDS = 86400.0  # no answer postpones a retry without end


BoundCsr = Callable[[str | None], bytes]
"""Builds the DER of a CSR with this challenge password in it, with the same key each time."""


@dataclass(frozen=True, slots=True)
class Document:
    """A body that is sent as it is."""

    content_type: str
    data: bytes


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Policy:
    """Time limits, how strictly the server is verified, and who is notified of waits."""

    timeout_seconds: float = 30.0
    """For one request: connect, handshake, request and answer."""
    patience_seconds: float = 60.0
    """For all the waiting that 202, 429 and 503 ask for."""
    check_time: bool = True
    """False ignores the dates (only) of the server's certificate: for a clock that is not set yet."""
    at: datetime | None = None
    """Judges the dates of the server's chain instead of the system's clock, which `check_time` leaves out then."""
    pins: tuple[str, ...] = ()
    """Of server or trust anchor, one of which must match (`server_checks.parse_pin`); () for any."""
    report: Callable[[str], None] = _silent
    """Called before each of those waits, with a sentence: how long, and why."""


DEFAULT_POLICY = Policy()


class EstClient:
    """One server, and the credentials for it: a client certificate, or user and password, or neither (cacerts only).

    `url` is `https://HOST:PORT`, with or without `/.well-known/est` and a label behind it; that label is used for each
    operation that is called without one. `certificate` is (PEM chain, PEM key). `basic` is (device id, token); an id
    that HTTP Basic cannot carry is left out of it.

    Raises: BadConfig if the URL or the CA file is invalid; BadCredentials if the client certificate cannot be loaded.
    """

    def __init__(
        self,
        url: str,
        ca_file: Path | str,
        certificate: tuple[Path | str, Path | str] | None = None,
        basic: tuple[str, str] | None = None,
        *,
        policy: Policy = DEFAULT_POLICY,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._host, self._port, self._label = parse_est_url(url)
        self._ca_file = Path(ca_file)
        self._certificate = (Path(certificate[0]), Path(certificate[1])) if certificate else None
        self._basic = basic
        self._policy = policy
        self._pause = pause
        self.server_time: ServerTime | None = None
        """What the server said last, over a chain that verified."""
        self._context()  # a bad file is an error here, not in the middle of an enrollment

    def cacerts(self, label: str | None = None) -> list[x509.Certificate]:
        """The server's CA certificates: root and chain, in no promised order. RFC 7030, 4.1.

        `label` is the path segment of 3.2.2.

        Raises: EstError.
        """
        return _certificates(self._ask("GET", "cacerts", None, label))

    def csrattrs(self, label: str | None = None) -> CsrAttributes:
        """The attributes that the server wants in a CSR; none if it does not say. RFC 7030, 4.5. Raises: EstError."""
        answer = self._ask("GET", "csrattrs", None, label, (200, 204, 404))
        if answer.status != 200:  # RFC 7030, 4.5.2: 204 and 404 both mean that there are none
            return CsrAttributes()
        try:
            return decode_csrattrs(est.decode_body(answer.body))
        except WireError as error:
            raise EstBadAnswer(f"The server's CSR attributes cannot be read: {error}") from error

    def trust_update(self) -> bytes | None:
        """The fleet's statement that former roots are retired, not judged (`fleet.wire.trust_update`); None if there is
        none. Not in RFC 7030. Raises: EstError.
        """
        return self._statement("trust-update")

    def server_trust_update(self) -> bytes | None:
        """Likewise of the roots above the server's own certificate, which are no tenant's. Raises: EstError."""
        return self._statement("server-trust-update")

    def _statement(self, path: str) -> bytes | None:
        answer = self._ask("GET", path, None, None, (200, 204, 400, 403, 404, 405, 501))
        return answer.body if answer.status == 200 else None

    def renewal_info(self, fingerprint: str) -> tuple[tuple[datetime, datetime] | None, float]:
        """Start and end of the window in which the server suggests to renew this certificate (None if it suggests
        nothing), and the seconds until the next poll. Not in RFC 7030: what RFC 9773, 4.2 is to ACME.

        Raises: EstError.
        """
        answer = self._ask("GET", f"renewal-info/{fingerprint}", None, None, (200, 400, 403, 404, 405, 501))
        if answer.status != 200:
            return None, 0.0  # another server, or one that does not know this certificate
        try:
            suggested = json.loads(answer.body)["suggestedWindow"]
            start, end = (datetime.fromisoformat(suggested[name]).astimezone(UTC) for name in ("start", "end"))
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            raise EstBadAnswer("The server's renewal information cannot be read.") from error
        if not start <= end:
            raise EstBadAnswer("The server suggests a window that ends before it begins.")
        return (start, end), _retry_after_seconds(answer)

    def device_report(self, report: bytes) -> None:
        """Send a signed report (`fleet.wire.device_report`). Not in RFC 7030. Raises: EstError."""
        self._ask("POST", "device-report", Document(device_report.CONTENT_TYPE, report), None, (204,))

    def simpleenroll(self, csr: bytes | BoundCsr, label: str | None = None) -> x509.Certificate:
        """The certificate issued for this CSR. RFC 7030, 4.2.1; `label` is the path segment of 3.2.2.

        A BoundCsr is built for the connection that it is sent on.

        Retries while the server answers 202, 429 or 503, within the policy's `patience_seconds`.

        Raises: EstError.
        """
        return self._enroll("simpleenroll", csr, label)

    def simplereenroll(self, csr: bytes | BoundCsr, label: str | None = None) -> x509.Certificate:
        """The successor of the client certificate that we present. RFC 7030, 4.2.2. Raises: EstError."""
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
        csr: bytes | BoundCsr | Document | None,
        label: str | None,
        wanted: tuple[int, ...] = (200,),
    ) -> Answer:
        label = label or self._label
        path = est.WELL_KNOWN + (f"/{quote(label, safe='')}" if label else "") + f"/{operation}"
        waited_seconds = 0.0
        while True:
            answer = self._ask_once(method, path, csr)
            if answer.status in wanted:
                return answer
            # RFC 7030, 4.2.3: 202 means later, with the same CSR. 429 and 503 mean later, too.
            if answer.status not in (202, 429, 503):
                raise _refusal(answer, operation)
            wait_seconds = _retry_after_seconds(answer)
            waited_seconds += wait_seconds
            reason = _reason(answer)
            why = f": {reason}" if reason else "."
            if waited_seconds > self._policy.patience_seconds:
                raise EstBusy(
                    f"The EST server asks to retry after {_spoken(wait_seconds)}{why}",
                    "Try again later: the same key will be used.",
                    wait_seconds,
                    pending=answer.status == 202,
                )
            self._policy.report(f"Waiting for {_spoken(wait_seconds)}, as the EST server asks{why}")
            self._pause(wait_seconds)

    def _ask_once(self, method: str, path: str, csr: bytes | BoundCsr | Document | None) -> Answer:
        headers = {"Accept": "*/*", "Connection": "close", "User-Agent": USER_AGENT}
        if isinstance(csr, Document):
            headers["Content-Type"] = csr.content_type
        elif csr is not None:
            headers |= {"Content-Type": est.PKCS10, "Content-Transfer-Encoding": "base64"}
        if self._basic is not None and not path.endswith("/cacerts"):
            headers["Authorization"] = _basic_credentials(*self._basic)

        is_authenticated = False

        def body(stream: ssl.SSLSocket) -> bytes | None:
            nonlocal is_authenticated
            is_authenticated = True  # the handshake is over
            if isinstance(csr, Document):
                return csr.data
            data = csr(_binding(stream)) if callable(csr) else csr
            return None if data is None else est.encode_body(data)

        # A fresh context for each connection, so that a rotated certificate is always the one presented.
        context = self._context(bound=callable(csr))
        request = Request(method, path, headers, body)
        try:
            answer = transport.exchange(self._host, self._port, context, request, self._policy.timeout_seconds)
        except transport.AnswerTooLarge:
            raise EstBadAnswer(f"The server's answer is larger than {est.BODY_SIZE_MAX} bytes.") from None
        except transport.AnswerCutOff:
            raise EstUnreachable("The EST server closed the connection in the middle of its answer.") from None
        except ssl.SSLError as error:
            raise self._tls_failure(error, is_authenticated) from error
        except http.client.HTTPException as error:
            raise EstBadAnswer(f"The server's answer is not HTTP: {type(error).__name__}.") from error
        except OSError as error:
            is_late = isinstance(error, TimeoutError)
            why = f"it did not answer within {self._policy.timeout_seconds:g} s" if is_late else error
            message = f"The EST server at {self._host}:{self._port} cannot be reached: {why}."
            raise EstUnreachable(message, "Check the network and the URL.") from error

        self.server_time = ServerTime.of(answer.date, answer.certificate)
        return answer

    def _tls_failure(self, error: ssl.SSLError, is_authenticated: bool) -> EstUntrusted | EstRefused | EstUnreachable:
        """`is_authenticated`: the server is, since the handshake is over."""
        server = f"{self._host}:{self._port}"
        if isinstance(error, ssl.SSLCertVerificationError):
            return EstUntrusted(
                f"The certificate of the EST server at {server} did not verify: {error.verify_message}.",
                "Check the URL's host name, the CA file and this device's clock.",
                is_about_dates=is_about_dates(error),
            )
        if is_refusal(error):
            # In TLS 1.3 a refusal of our certificate comes after the handshake (RFC 8446, 4.4.2.4), and is protected.
            kind = EstRefused if is_authenticated else EstAlerted
            if self._certificate is None:
                return kind(
                    f"The server at {server} requires a client certificate: {error.reason}.",
                    "Is that the MQTT port? EST usually listens on 8443.",
                )
            said = "The EST server refused our certificate" if is_authenticated else f"An alert of {server} ended TLS"
            return kind(
                f"{said} in the handshake: {error.reason}.",
                "Our certificate may be expired, revoked, or issued by another CA: enroll again with a new token.",
            )
        return EstUnreachable(f"TLS with {server} failed: {error.reason or error}.")

    def _context(self, *, bound: bool = False) -> ssl.SSLContext:
        # The ssl module cannot export TLS 1.3's channel binding (RFC 9266); it can for TLS 1.2.
        newest = ssl.TLSVersion.TLSv1_2 if bound else ssl.TLSVersion.MAXIMUM_SUPPORTED
        policy = self._policy
        check_time = policy.check_time and policy.at is None
        context = client_context(self._ca_file, self._certificate, check_time=check_time, newest=newest)
        if policy.pins or policy.at is not None:
            also_check(context, pins=policy.pins, at=policy.at)
        return context


def _binding(stream: ssl.SSLSocket) -> str:
    binding = transport.channel_binding(stream)
    if binding is None:
        raise EstUnreachable("The connection to the EST server has no channel binding.")
    return binding


def _basic_credentials(user: str, password: str) -> str:
    # RFC 7617, 2: a user-id with a colon is invalid. Ours may have one; the token alone names the device as well.
    sent = "" if ":" in user else user
    return "Basic " + base64.b64encode(f"{sent}:{password}".encode()).decode()


def _retry_after_seconds(answer: Answer) -> float:
    # RFC 9110, 10.2.3 also allows a date; a device may have no clock, so a date counts as the default delay.
    text = answer.retry_after
    if not text.strip().isascii() or not text.strip().isdigit():
        return RETRY_AFTER_DEFAULT_SECONDS
    return min(RETRY_AFTER_MAX_SECONDS, max(RETRY_AFTER_MIN_SECONDS, float(text)))


def _spoken(seconds: float) -> str:
    """For people, who count in hours what takes more than two; RETRY_AFTER_MAX_SECONDS is a day."""
    return f"{seconds:.0f} s" + (f" ({seconds / 3600:.0f} h)" if seconds >= 7200 else "")


def _certificates(answer: Answer) -> list[x509.Certificate]:
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


_CODE = re.compile(rb"\(([a-z][a-z-]{0,63})\)\s*\Z")  # of the fleet's EST server, after its sentence: never cut with it


def _reason(answer: Answer) -> str:
    """The server's own sentence, "" if it sent none; no control characters, so that it cannot draw on a terminal."""
    if answer.content_type.partition(";")[0].strip().lower() != "text/plain":
        return ""
    text = answer.body[: 4 * REASON_SIZE_MAX].decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:REASON_SIZE_MAX]


def _refusal(answer: Answer, operation: str) -> EstRefused | EstUnreachable | EstBadAnswer:
    reason = _reason(answer)
    message = f"The EST server refused {operation} ({answer.status}){': ' + reason if reason else '.'}"
    if answer.status >= 500:
        return EstUnreachable(message, "The server failed: try again later.")
    if answer.status < 400:
        return EstBadAnswer(message, "Check the EST URL: RFC 7030 defines no such answer.")
    # A server that gives its reason gives its advice too.
    code = _CODE.search(answer.body) if reason else None
    advice = "" if reason else _ADVICE.get(answer.status, "")
    return EstRefused(message, advice, answer.status, code[1].decode() if code else "")
