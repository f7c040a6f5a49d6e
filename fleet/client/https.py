"""HTTPS transport: one kept connection to a served fleet, under the operator's client certificate.

A request has one deadline, from name resolution to the last byte of its answer. `http.client` alone has none: its
timeout starts again with every byte received.
"""

import http.client
import select
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from fleet.client.client import Answer
from fleet.config.small_files import CERTIFICATES_SIZE_MAX, read_small
from fleet.domain.errors import Invalid, Unavailable
from fleet.est_client.transport import Deadline, TimedSocket, open_connection
from fleet.wire.ca_file import ca_pem
from fleet.wire.errors import WireError

DEADLINE_SECONDS = 30.0  # a bulk step works for at most ten
ANSWER_SIZE_MAX = 64 * 1024 * 1024  # a page of a thousand rows has less than one MiB

SAFE_METHODS = frozenset({"GET", "HEAD"})  # RFC 9110, 9.2.1: may be sent again when a kept connection was closed


class HttpsTransport:
    """The API at `url`, as the holder of the certificate in `cert`."""

    def __init__(
        self, url: str, cert: Path, key: Path | None, ca: Path | None, *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        """Files are read at the first request. Raises: Invalid (`bad-url`)."""
        self._host, self._port = host_and_port(url)
        self._url = url
        self._files = (cert, key, ca)
        self._deadline_seconds = deadline_seconds
        self._kept: tuple[http.client.HTTPSConnection, TimedSocket] | None = None
        self._context: ssl.SSLContext | None = None

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        """Raises: Invalid (`bad-certificate`), Unavailable (`cannot-reach`, `bad-answer`). OSError: a file."""
        if self._context is None:
            self._context = tls_context(*self._files)
        deadline = Deadline(self._deadline_seconds)
        if self._kept is not None and select.select([self._kept[1].stream], [], [], 0)[0]:
            self._drop()  # what comes unasked is the end of the connection
        was_kept = self._kept is not None
        try:
            return self._exchange(method, target, headers, body, deadline)
        except (ConnectionError, http.client.RemoteDisconnected, ssl.SSLEOFError) as error:
            if not was_kept or method not in SAFE_METHODS:
                raise self._unreachable(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        try:
            return self._exchange(method, target, headers, body, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error

    def close(self) -> None:
        self._drop()

    def _exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, deadline: Deadline
    ) -> Answer:
        connection, stream = self._kept = self._kept or self._connected(deadline)
        stream.deadline = deadline
        is_whole = False
        try:
            connection.request(method, target, body, dict(headers))
            response = connection.getresponse()
            raw = response.read(ANSWER_SIZE_MAX + 1)
            is_whole = response.isclosed() and not response.will_close
        finally:
            if not is_whole:
                self._drop()
        if len(raw) > ANSWER_SIZE_MAX:
            message = f"{self._url} does not look like an admin API: its answer is too large."
            raise Unavailable("bad-answer", message, "Check the address.")
        return Answer(response.status, cast(Mapping[str, str], response.headers), raw)

    def _connected(self, deadline: Deadline) -> tuple[http.client.HTTPSConnection, TimedSocket]:
        assert self._context is not None  # noqa: S101  `send` has made it
        return open_connection(self._host, self._port, self._context, deadline)

    def _drop(self) -> None:
        if self._kept is not None:
            connection, stream = self._kept
            connection.close()
            stream.stream.close()
            self._kept = None

    def _unreachable(self, error: Exception) -> Unavailable:
        if isinstance(error, ssl.SSLCertVerificationError):
            message = f"{self._url} is not trusted: {error.verify_message}."
            return Unavailable("cannot-reach", message, "Pass its root CA with --ca.")
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
        if isinstance(error, TimeoutError):
            reason = f"no whole answer within {self._deadline_seconds:g} s"
        advice = "Check the address, that the server runs, and that your certificate is valid."
        return Unavailable("cannot-reach", f"{self._url} cannot be reached: {reason}.", advice)


def host_and_port(url: str) -> tuple[str, int]:
    """Host and port in the address of an API. Raises: Invalid (`bad-url`)."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # brackets that do not match, an invalid port
        host, port, parts = None, None, urlsplit("")
    strange = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme != "https" or not host or strange or not url.isascii() or port == 0:
        raise Invalid("bad-url", f"{url[:200]!r} is not the address of an admin API.", "Write https://HOST:PORT")
    return host, port or 443


def tls_context(cert: Path, key: Path | None, ca: Path | None) -> ssl.SSLContext:
    """Raises: Invalid (`bad-certificate`). OSError."""
    for file in filter(None, (cert, key, ca)):
        file.open("rb").close()  # names a missing file in the error; the library does not
    try:
        anchors = ca_pem(read_small(ca, CERTIFICATES_SIZE_MAX)) if ca is not None else None
    except WireError as error:
        message = f"{ca} cannot be used as the root CA: {error}"
        raise Invalid("bad-certificate", message, "PEM, DER and PKCS#7 are read.") from error
    try:
        context = ssl.create_default_context(cadata=anchors)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.hostname_checks_common_name = False  # RFC 9525, 2: names are in the SAN
        beside = cert.with_suffix(".key")
        context.load_cert_chain(cert, key or (beside if beside.is_file() else None), password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        message = f"{cert} with its key{f', or the root in {ca},' if ca is not None else ''} cannot be used."
        advice = "Use PEM files: --cert, --key without a password; --ca may be DER or PKCS#7 too."
        raise Invalid("bad-certificate", message, advice) from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")
