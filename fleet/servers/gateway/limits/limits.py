"""Limits of one gateway."""

from dataclasses import dataclass

from fleet.wire.mqtt.reader import CONNECT_SIZE_MAX, PACKET_SIZE_DEFAULT
from fleet.wire.mqtt.subscribe import FILTERS_MAX

ALIASED_TOPIC_SIZE_MAX = 256  # with its alias, a PUBLISH of eight bytes becomes this long for the broker


@dataclass(frozen=True, slots=True)
class Limits:
    """All times in seconds, all sizes in bytes."""

    sessions_max: int = 9_000
    """Total number of connections; each takes two file descriptors; `fleet serve` lowers it to what they allow."""
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
    connect_size_max: int = CONNECT_SIZE_MAX
    """Remaining length of a CONNECT. Its sender has proved a certificate of the fleet, but is not admitted yet."""
    packet_size_max: int = PACKET_SIZE_DEFAULT
    """Remaining length of a packet after CONNECT; of any other than PUBLISH never more than HOLD_SIZE_MAX."""
    filters_per_packet_max: int = FILTERS_MAX
    filters_per_device_max: int = 1_000
    """Kept for a device over connections: each is checked again when the policy changes."""
    filter_bytes_per_device_max: int = 65_536
    """Of all of them together."""
    filter_levels_per_device_max: int = 4_000
    """Of all of them together: 2.4 MB of mosquitto's memory."""
    in_flight_bytes_per_device_max: int = 4_194_304
    """QoS 2 messages not released by one device, unless it is a single one."""
    in_flight_bytes_max: int = 67_108_864
    """Those of all devices: a quarter of what our own mosquitto has."""
    queued_messages_per_device_max: int = 2_000
    """Messages that our own mosquitto keeps for a client that is offline or does not read."""
    queued_bytes_per_device_max: int = 4_194_304
    """The bytes of those of QoS 1 and 2."""
    unacknowledged_bytes_per_device_max: int = 4_194_304
    """Of QoS 1 and 2 that our own mosquitto has sent to a client, and that are not acknowledged."""
    retained_messages_per_device_max: int = 10_000
    """Topics on which our own mosquitto keeps a retained message of one device."""
    retained_bytes_per_device_max: int = 8_388_608
    """Its memory for them, unless it is a single one."""
    unread_bytes_per_device_max: int = 8_388_608
    """What waits in the gateway for a client that does not read, before QoS 0 is dropped for it."""
    unread_bytes_max: int = 134_217_728
    """That of all clients, of QoS 1 and 2 as well; beyond it the session with most of it is closed."""


DEFAULT_LIMITS = Limits()
