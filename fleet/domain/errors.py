"""What can be wrong with a request, as one tree with stable codes.

    FleetError
     ├─ Invalid           the request can never be right: bad name, weak key, impossible filter
     ├─ Unauthenticated   nobody we know: no proof, an unknown certificate, a wrong token
     ├─ Refused           we know who asks, and the answer is no
     ├─ NotFound          what was named does not exist
     ├─ Conflict          it exists already, or somebody changed it first
     ├─ TooMany           others have asked for more than there is room for: ask again
     └─ Unavailable       try again later: nothing was done

`code` is for programs and never changes; the message is one plain sentence for people; `advice` says what to do next.
Neither ever holds a token, a key or a request body.
"""


class FleetError(Exception):
    """The root of every refusal and failure that the services raise."""

    def __init__(self, code: str, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.advice = advice


class Invalid(FleetError):
    """The request can never be right."""


class Unauthenticated(FleetError):
    """Nobody we know."""


class Refused(FleetError):
    """We know who asks, and the answer is no."""


class NotFound(FleetError):
    """What was named does not exist."""


class Conflict(FleetError):
    """It exists already, or somebody changed it first."""


class TooMany(FleetError):
    """There is no room for one more."""

    def __init__(self, code: str, message: str, advice: str = "", *, retry_after_seconds: int) -> None:
        super().__init__(code, message, advice)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(FleetError):
    """Try again later: nothing was done."""
