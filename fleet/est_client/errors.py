"""Errors of an EST client, as one tree.

    ClientError
     ├─ BadConfig           a URL, an address, a name, a setting or a CA file is invalid
     ├─ BadCredentials      the client certificate and its key cannot be loaded
     └─ EstError            an enrollment failed
         ├─ EstUnreachable      no answer: the network, a timeout, a closed connection, a server error (5xx)
         │   └─ EstAlerted          a TLS alert about our certificate, by a server that is not authenticated
         ├─ EstUntrusted        the server's certificate did not verify
         ├─ EstRefused          the server refused (4xx): a retry with the same credentials fails again
         ├─ EstBusy             the server asked to retry later than the client is willing to wait (202, 429, 503)
         └─ EstBadAnswer        the answer violates RFC 7030, or the certificate is not for this client

`message` is one sentence; `advice` is the next step, "" if there is none. Neither ever holds a token or a key.
"""


class ClientError(Exception):
    """The root: the request was not carried out."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class BadConfig(ClientError):
    """A URL, an address, a name, a setting or a CA file is invalid."""


class BadCredentials(ClientError):
    """The client certificate and its key cannot be loaded."""


class EstError(ClientError):
    """An enrollment failed."""

    code = "est-failed"
    """Stable, for programs such as a factory's ledger."""


class EstUnreachable(EstError):
    """No answer: the network, a timeout, a closed connection, a server error (5xx)."""

    code = "est-unreachable"


class EstAlerted(EstUnreachable):
    """A TLS alert about our certificate, in the handshake: before the server is authenticated, or, in TLS 1.2, not
    protected. Anybody on the way can send it, so it proves nothing about the certificate."""


class EstUntrusted(EstError):
    """The server's certificate did not verify."""

    code = "est-untrusted"

    def __init__(self, message: str, advice: str = "", *, is_about_dates: bool = False) -> None:
        super().__init__(message, advice)
        self.is_about_dates = is_about_dates
        """By our clock, a certificate of its chain is not valid yet, or no longer."""


class EstRefused(EstError):
    """The server refused (4xx): a retry with the same credentials fails again."""

    code = "est-refused"

    def __init__(self, message: str, advice: str = "", status: int = 0, reason_code: str = "") -> None:
        super().__init__(message, advice)
        self.status = status
        """0: in the handshake."""
        self.reason_code = reason_code
        """The fleet's code for why, as certificate-revoked; "" if the server gives none."""


class EstBusy(EstError):
    """The server asked to retry later than the client is willing to wait."""

    code = "est-busy"

    def __init__(
        self, message: str, advice: str = "", retry_after_seconds: float = 0.0, *, pending: bool = False
    ) -> None:
        super().__init__(message, advice)
        self.retry_after_seconds = retry_after_seconds
        self.pending = pending
        """The request was accepted (202) and awaits a manual decision."""


class EstBadAnswer(EstError):
    """The answer violates RFC 7030, or the certificate is not for this client."""

    code = "est-bad-answer"
