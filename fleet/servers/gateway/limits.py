"""Limits of one gateway."""

from dataclasses import dataclass

from fleet.wire.mqtt.reader import PACKET_SIZE_MAX


@dataclass(frozen=True, slots=True)
class Limits:
    """All times in seconds, all sizes in bytes."""

    sessions_max: int = 9_000
    """Total number of connections; each takes two of 20,000 file descriptors."""
    per_certificate_max: int = 4
    """Connections with one certificate: the current one, its successor, and two that are dead but not closed yet."""
    connect_seconds_max: float = 10.0
    """From the end of the TLS handshake to a complete CONNECT."""
    open_seconds_max: float = 10.0
    """From CONNECT to CONNACK: admission, the connection to the broker, and the broker's CONNACK."""
    linger_seconds_max: float = 2.0
    """For a closing connection to send what was written, before it is aborted."""
    stuck_seconds_max: float = 30.0
    """For a device that does not read: meanwhile the broker queues its messages in memory."""
    feed_silence_seconds_max: float = 10.0
    """For the registry's feed to be down, before no new sessions are admitted."""
    packet_size_max: int = PACKET_SIZE_MAX
    """Remaining length of a PUBLISH after CONNECT."""
