"""What can go wrong for the agent, as one tree.

    AgentError
     ├─ BadConfig        agent.toml, a URL or an argument cannot be right
     ├─ NotEnrolled      there is no usable identity in this home
     ├─ Busy             another process of this device holds what we need
     ├─ StoreDamaged     the home cannot be read or written
     ├─ NotRunning       no agent answers on this home's socket
     ├─ SendRefused      a message was not accepted, or not acknowledged
     └─ EstError         an enrollment did not succeed
         ├─ EstUnreachable   no answer: the network, a timeout, a server that hung up
         ├─ EstUntrusted     the server could not prove who it is
         ├─ EstRefused       the server said no; asking again with the same proof will not help
         ├─ EstBusy          the server said later, for longer than we are willing to wait
         └─ EstBadAnswer     the answer is not what RFC 7030 allows, or the certificate is not for us

The message is one plain sentence; `advice` says what to do next. Neither ever holds a token or a key.
"""


class AgentError(Exception):
    """The root: what was asked for did not happen."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class BadConfig(AgentError):
    """agent.toml, a URL or an argument cannot be right."""


class NotEnrolled(AgentError):
    """There is no usable identity in this home."""


class Busy(AgentError):
    """Another process of this device holds what we need."""


class StoreDamaged(AgentError):
    """The home cannot be read or written."""


class NotRunning(AgentError):
    """No agent answers on this home's socket."""


class SendRefused(AgentError):
    """A message was not accepted, or not acknowledged."""


class EstError(AgentError):
    """An enrollment did not succeed."""

    code = "est-failed"
    """For programs, such as a factory's ledger; never changes."""


class EstUnreachable(EstError):
    """No answer: the network, a timeout, a server that hung up or has a problem of its own."""

    code = "est-unreachable"


class EstUntrusted(EstError):
    """The server could not prove who it is."""

    code = "est-untrusted"


class EstRefused(EstError):
    """The server said no; asking again with the same proof will not help."""

    code = "est-refused"

    def __init__(self, message: str, advice: str = "", status: int = 0) -> None:
        super().__init__(message, advice)
        self.status = status


class EstBusy(EstError):
    """The server said later, for longer than we are willing to wait."""

    code = "est-busy"

    def __init__(
        self, message: str, advice: str = "", retry_after_seconds: float = 0.0, *, pending: bool = False
    ) -> None:
        super().__init__(message, advice)
        self.retry_after_seconds = retry_after_seconds
        self.pending = pending
        """Whether it has taken the request in (202), and somebody has yet to decide."""


class EstBadAnswer(EstError):
    """The answer is not what RFC 7030 allows, or the certificate is not for us."""

    code = "est-bad-answer"
