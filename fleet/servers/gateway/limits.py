"""What one gateway takes on at most."""

from dataclasses import dataclass

from fleet.wire.mqtt.reader import PACKET_SIZE_MAX


@dataclass(frozen=True, slots=True)
class Limits:
    """All times in seconds, all sizes in bytes."""

    sessions_max: int = 9_000
    """Connections in all; each takes two file descriptors of 20,000."""
    per_certificate_max: int = 4
    """Connections by one certificate: a live one, its successor, and two whose ends we have not heard of."""
    connect_seconds_max: float = 10.0
    """From the end of the TLS handshake to a whole CONNECT."""
    open_seconds_max: float = 10.0
    """From CONNECT to CONNACK: the registry's answer, the broker's connection and the broker's answer."""
    linger_seconds_max: float = 2.0
    """How long a closing connection may take to send what was written before it is aborted."""
    stuck_seconds_max: float = 30.0
    """How long a device may take nothing of what waits for it: meanwhile the broker keeps the rest in memory."""
    feed_silence_seconds_max: float = 10.0
    """How long the registry's feed may be down before nobody new is let in."""
    packet_size_max: int = PACKET_SIZE_MAX
    """Remaining length of a PUBLISH after CONNECT."""
