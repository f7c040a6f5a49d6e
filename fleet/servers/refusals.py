"""Refusals of a request: HTTP status, stable code and sentence for each error; and what the log says of any request. No
HTTP library is needed for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import Struct, field

from fleet.domain.errors import (
    Conflict,
    FleetError,
    Invalid,
    NotFound,
    Pending,
    Refused,
    TooMany,
    Unauthenticated,
    Unavailable,
)
from fleet.wire.errors import BadSignature, Malformed, TooLarge, Unsupported, WeakKey, WireError

HTTP_STATUS: dict[type[Exception], int] = {
    TooLarge: 413,
    WireError: 400,
    Invalid: 400,
    Unauthenticated: 401,
    Refused: 403,
    NotFound: 404,
    Conflict: 409,
    Pending: 202,
    TooMany: 429,
    Unavailable: 503,
}
"""HTTP status by error class; the nearest class in the MRO counts."""

WIRE_CODES: dict[type[WireError], str] = {
    TooLarge: "too-large",
    Malformed: "malformed",
    BadSignature: "bad-signature",
    WeakKey: "weak-key",
    Unsupported: "unsupported",
}
"""WireErrors carry no code of their own: what they mean depends on who reads. These are ours, and stable."""

RETRY_AFTER_SECONDS = 10


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What the log line of a request says."""

    event: str = "http"
    kind: str = "device"
    """Of the certificate's holder: device, station, claim, operator."""
    holder: str = "-"
    serial: str = "-"
    code: str = "ok"
    reason: str = ""
    """What is wrong with the request, where its answer does not say it."""
    is_routine: bool = False
    """A health check: logged as INFO where its code is another than at the last of that client."""


class HttpRefused(FleetError):
    """A request that is refused for its form, with a status of its own."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(code, message)
        self.status = status
        self.headers = dict(headers or {})


class Refusal(Struct, frozen=True):
    """What a client is answered when a request fails."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_internal(self) -> bool:
        """Whether the error is ours, and to be logged with its traceback."""
        return self.code == "internal"


def no_such_path() -> HttpRefused:
    return HttpRefused(404, "no-such-path", "There is nothing at this path.")


def refusal_of(error: Exception) -> Refusal:
    """The answer to a request whose handling raised `error`."""
    if isinstance(error, HttpRefused):
        return Refusal(error.status, error.code, error.message, error.headers)
    if isinstance(error, ConnectionError):
        return Refusal(400, "gone", "The connection was lost.")  # the answer goes nowhere; only the log line is read
    status = next((HTTP_STATUS[kind] for kind in type(error).__mro__ if kind in HTTP_STATUS), 500)
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else {}
    if isinstance(error, Pending | TooMany):
        headers = {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, FleetError):
        return Refusal(status, error.code, f"{error.message} {error.advice}".rstrip(), headers)
    if isinstance(error, WireError):
        return Refusal(status, WIRE_CODES[type(error)], str(error), headers)
    return Refusal(500, "internal", "The server failed; it has been logged.")
