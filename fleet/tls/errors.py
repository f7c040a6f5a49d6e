"""How a TLS connection ends badly, as one tree.

    TlsError                 (a ConnectionError, so asyncio's own code takes it for a lost connection)
     ├─ HandshakeFailed      nobody was authenticated; `reason` is one of the words of `Refusal`
     ├─ ProtocolBroken       after the handshake: a record that does not decrypt, an alert, a forbidden message
     └─ Truncated            the other end went away without close_notify: what came may not be all there was

No message repeats the peer's bytes.
"""

from enum import StrEnum


class Refusal(StrEnum):
    """Why a connection never became one. The values go into counters and logs and never change."""

    TOTAL_CAP = "too-many-handshakes"
    ADDRESS_CAP = "too-many-handshakes-from-address"
    ADDRESS_RATE = "too-many-connections-a-second-from-address"
    CONNECTED_CAP = "too-many-connections"
    CONNECTED_ADDRESS_CAP = "too-many-connections-from-address"
    DEADLINE = "handshake-deadline"
    SIZE = "handshake-too-large"
    NOT_TLS = "not-tls"
    NO_CERTIFICATE = "no-certificate"
    BAD_CERTIFICATE = "bad-certificate"
    HANDSHAKE = "handshake-failed"
    GONE = "gone-before-handshake"
    """The other end closed, or our listener did, in the midst of the handshake."""


class TlsError(ConnectionError):
    """The root: this connection is over."""


class HandshakeFailed(TlsError):
    """Nobody was authenticated."""

    def __init__(self, reason: Refusal, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


class ProtocolBroken(TlsError):
    """After the handshake, the other end broke the protocol or said that we did."""


class Truncated(TlsError):
    """The other end went away without close_notify (RFC 8446, 6.1)."""
