"""Errors of a request, as one tree with stable codes (see error_codes).

    FleetError
     ├─ Invalid           the request can never succeed: bad name, weak key, malformed filter
     ├─ Unauthenticated   no valid credentials: none, an unknown certificate, a wrong token
     ├─ Refused           authenticated, but not authorized
     ├─ NotFound          the object named does not exist
     ├─ Conflict          it exists already, or was changed concurrently
     ├─ Pending           valid, and waiting for approval: retry later
     ├─ TooMany           a quota or queue is full: retry later
     └─ Unavailable       nothing was done: retry later
         └─ Unreachable   the external authorization service failed

`code` is stable, for programs; the message is one plain sentence for people; `advice` says what to do next. Neither
contains a token, a key or a request body.
"""

from collections.abc import Mapping
from typing import TypeVar

Found = TypeVar("Found")


class FleetError(Exception):
    """Root of the errors raised by the services."""

    def __init__(self, code: str, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.advice = advice
        self.detail: Mapping[str, str] = {}
        """What its audit row has besides."""


class Invalid(FleetError):
    """The request can never succeed."""


class Unauthenticated(FleetError):
    """No valid credentials."""


class Refused(FleetError):
    """Authenticated, but not authorized."""


class NotFound(FleetError):
    """The object named does not exist."""


def known(found: Found | None, what: str, name: str) -> Found:
    """`found`, that of this name. Raises: NotFound (`no-such-WHAT`): it is None."""
    if found is None:
        raise no_such(what, name)
    return found


def no_such(what: str, name: str) -> NotFound:
    """There is no such `what` (a model, device, ...), or it is not for the caller to see: the answer is the same."""
    return NotFound(f"no-such-{what}", f"There is no {what} {name[:80]!r}.", f"See: fleet {what} list")


class Conflict(FleetError):
    """It exists already, or was changed concurrently."""


class _AskAgain(FleetError):
    def __init__(self, code: str, message: str, advice: str = "", *, retry_after_seconds: int) -> None:
        super().__init__(code, message, advice)
        self.retry_after_seconds = retry_after_seconds


class Pending(_AskAgain):
    """Waiting for approval."""


class TooMany(_AskAgain):
    """A quota or queue is full."""


class Unavailable(FleetError):
    """Nothing was done: retry later."""


class Unreachable(Unavailable):
    """The model's webhook gave no valid response."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            "webhook-failed", "The authorization service of this model gave no valid response.", "Try again."
        )
        self.problem = problem
        """The cause, for the audit; not sent to the client."""
