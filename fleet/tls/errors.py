"""Errors that end a TLS connection, as one tree.

    TlsError                 (a ConnectionError, so that asyncio treats it as a lost connection)
     ├─ HandshakeFailed      no client was authenticated; `reason` is a value of `Refusal`
     ├─ ProtocolBroken       after the handshake: a record that does not decrypt, an alert, a forbidden message
     └─ Truncated            the peer closed without close_notify: the data may be incomplete

No message repeats the peer's bytes.
"""

from enum import StrEnum


class Refusal(StrEnum):
    """Why a connection was refused. The values appear in counters and logs and never change."""

    TOTAL_CAP = "too-many-handshakes"
    ADDRESS_CAP = "too-many-handshakes-from-address"
    ADDRESS_RATE = "too-many-connections-a-second-from-address"
    CONNECTED_CAP = "too-many-connections"
    CONNECTED_ADDRESS_CAP = "too-many-connections-from-address"
    GAVE_WAY = "gave-way-to-newcomer"
    """The listener was full, and this address block held most of it."""
    NO_DESCRIPTOR = "no-descriptor"
    """The system has none for it, or our share of them is taken and no connection may be ended for it."""
    DEADLINE = "handshake-deadline"
    SIZE = "handshake-too-large"
    NOT_TLS = "not-tls"
    NO_PROXY_HEADER = "no-proxy-header"
    """From a trusted balancer, whose connections all begin with one."""
    BAD_PROXY_HEADER = "bad-proxy-header"
    UNTRUSTED_PROXY_HEADER = "proxy-header-from-untrusted-address"
    """Of a client, or of a balancer that is not configured as one: to us it is no TLS."""
    NO_CERTIFICATE = "no-certificate"
    BAD_CERTIFICATE = "bad-certificate"
    HANDSHAKE = "handshake-failed"
    GONE = "gone-before-handshake"
    """The peer or our listener closed during the handshake."""


class TlsError(ConnectionError):
    """The root: this connection has ended."""


class HandshakeFailed(TlsError):
    """The handshake failed: no client was authenticated."""

    def __init__(self, reason: Refusal, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


class ProtocolBroken(TlsError):
    """After the handshake, the peer violated the protocol or sent an alert that we did."""


class Truncated(TlsError):
    """The peer closed without close_notify (RFC 8446, 6.1)."""
