"""A small HTTPS client for the admin API: one certificate, JSON both ways, refusals as the FleetErrors they were."""

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fleet.domain.errors import Conflict, FleetError, Invalid, NotFound, Refused, Unauthenticated, Unavailable

TIMEOUT_SECONDS = 30.0
ANSWER_SIZE_MAX = 64 * 1024 * 1024  # a page of a thousand rows has less than one MiB

_KINDS: dict[int, type[FleetError]] = {
    400: Invalid,
    401: Unauthenticated,
    403: Refused,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    422: Conflict,
}


class Api:
    """The admin API at `url`, as the holder of the certificate in `cert`."""

    def __init__(self, url: str, cert: Path, key: Path | None, ca: Path | None) -> None:
        """Raises: Invalid: `bad-url`, `bad-certificate`. OSError: a file cannot be read."""
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.path.strip("/") or parts.query or "@" in parts.netloc:
            raise Invalid("bad-url", f"{url[:200]!r} is not the address of an admin API.", "Write https://HOST:PORT")
        try:
            self._host, self._port = parts.hostname, parts.port or 443
        except ValueError:
            raise Invalid("bad-url", f"{url[:200]!r} has no such port.", "Write https://HOST:PORT") from None
        self._url = url
        self._context = _context(cert, key, ca)

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[Any, str]:
        """The JSON of the answer, and its ETag.

        Raises: FleetError: what the server refused, by its code. Unavailable (`cannot-reach`, `bad-answer`).
        """
        given = {"Accept": "application/json", **(headers or {})}
        content = None
        if body is not None:
            content, given["Content-Type"] = json.dumps(body).encode(), "application/json"
        status, etag, raw = self._exchanged(method, path, content, given)
        try:
            value = json.loads(raw)
        except ValueError:
            raise self._strange(f"its answer to {method} {path.partition('?')[0]} is not JSON") from None
        if status >= 400:
            raise self._refusal(status, value)
        return value, etag

    def items(self, path: str) -> Iterator[Any]:
        """Everything in the list at `path`, page after page."""
        following: str | None = path
        while following is not None:
            page, _ = self.ask("GET", following)
            yield from page["items"]
            following = page["next"]

    def _exchanged(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, str, bytes]:
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_SECONDS, context=self._context)
        try:
            connection.request(method, path, content, dict(headers))
            response = connection.getresponse()
            raw = response.read(ANSWER_SIZE_MAX + 1)
        except ssl.SSLCertVerificationError as error:
            advice = "Give the root that it hangs on with --ca."
            raise Unavailable("cannot-reach", f"{self._url} is not trusted: {error.verify_message}.", advice) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
            advice = "Check the address, that the server runs, and that your certificate is good."
            raise Unavailable("cannot-reach", f"{self._url} cannot be reached: {reason}.", advice) from error
        finally:
            connection.close()
        if len(raw) > ANSWER_SIZE_MAX:
            raise self._strange("its answer is too large")
        return response.status, response.headers.get("ETag", ""), raw

    def _refusal(self, status: int, value: Any) -> FleetError:
        if not isinstance(value, dict) or not isinstance(value.get("code"), str):
            return self._strange(f"it answered {status} without saying why")
        return _KINDS.get(status, Unavailable)(value["code"], str(value.get("detail", "")))

    def _strange(self, what: str) -> Unavailable:
        return Unavailable("bad-answer", f"{self._url} is no admin API: {what}.", "Check the address.")


def _context(cert: Path, key: Path | None, ca: Path | None) -> ssl.SSLContext:
    """Raises: Invalid (`bad-certificate`). OSError."""
    for file in filter(None, (cert, key, ca)):
        file.open("rb").close()  # a missing file is told by its name, which the library leaves out
    try:
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        beside = cert.with_suffix(".key")
        context.load_cert_chain(cert, key or (beside if beside.is_file() else None), password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        message = f"{cert} with its key, or the root in {ca}, cannot be used."
        advice = "Give PEM files: --cert, --key without a password, --ca."
        raise Invalid("bad-certificate", message, advice) from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")
