"""Errors of the agent, as one tree; those of its EST client are siblings.

ClientError (fleet.est_client.errors)
 ├─ BadConfig           agent.toml, a URL or an argument is invalid
 ├─ BadCredentials      key and certificate cannot be loaded
 ├─ EstError            an enrollment failed
 └─ AgentError
     ├─ NotEnrolled     there is no usable identity in this home
     ├─ Busy            another process of this device holds the lock
     ├─ StoreDamaged    the home cannot be read or written
     ├─ KeyStoreFailed  the TPM or token that has the keys cannot be used
     ├─ NotRunning      no agent answers on this home's socket
     ├─ SendRefused     a message was not accepted, or not acknowledged
     ├─ SubscriptionRefused   the server, or the agent, refuses a subscription
     ├─ RequestFailed   a request got no answer
     ├─ TimedOut        the agent, or the server behind it, has not answered in time; a TimeoutError, too
     └─ Denied          the settings of the agent do not allow it to this user
"""

from fleet.est_client.errors import ClientError


class AgentError(ClientError):
    """The command was not carried out."""

    code = "failed"
    """Stable, for programs that use the control socket."""


class NotEnrolled(AgentError):
    """There is no usable identity in this home."""


class Busy(AgentError):
    """Another process of this device holds the lock."""


class StoreDamaged(AgentError):
    """The home cannot be read or written."""


class KeyStoreFailed(AgentError):
    """The TPM or PKCS#11 token that has the device's keys cannot be used."""


class KeyStoreLost(Exception):
    """OpenSSL cannot use the key store in this process any more: it loads a provider when a process starts, only."""

    def __str__(self) -> str:
        return (
            f"The key store {self.args[0]} cannot be used. Run `device-agent doctor`, and start the agent again: "
            "it finds the key store when it starts."
        )


class NotRunning(AgentError):
    """No agent answers on this home's socket."""


class SendRefused(AgentError):
    """A message was not accepted, or not acknowledged."""

    code = "send-refused"


class SubscriptionRefused(AgentError):
    """The server, or the agent, refuses a subscription."""

    code = "subscription-refused"


class RequestFailed(AgentError):
    """A request got no answer."""

    code = "request-failed"


class TimedOut(AgentError, TimeoutError):
    """The agent has not answered in time: its message says what it waits for, or what is full."""

    code = "timed-out"


class Denied(AgentError):
    """The settings of the agent do not allow it to this user."""

    code = "denied"


BY_CODE: dict[str, type[AgentError]] = {
    each.code: each for each in (SendRefused, SubscriptionRefused, RequestFailed, Denied)
}
"""The errors that an answer on the control socket names."""
