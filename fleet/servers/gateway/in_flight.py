"""Messages of QoS 2 that the broker holds for a device until it has got their PUBREL (MQTT, 4.3.3).

The broker holds each in memory, with a persistent session over connections, and nothing makes the device release them.
QoS 1 needs no such limit: the broker passes a message on at once, and what it has not read yet blocks its sender.
"""

from fleet.servers.gateway.limits import DEFAULT_LIMITS, Limits

SHARE_BYTES = 65_536  # a device that holds no more than this is not refused for what others hold
MESSAGE_BYTES = 512  # of the broker's memory for a message besides its bytes


class InFlightTotal:
    """What the broker holds for all devices of this process, and the limits of it."""

    __slots__ = ("bytes", "limits")

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.bytes = 0
        self.limits = limits


class InFlight:
    """What it holds for one device."""

    __slots__ = ("_bytes", "_sizes", "_total", "outlives_connection")

    def __init__(self, total: InFlightTotal) -> None:
        self.outlives_connection = False
        """Whether the broker keeps the session when the connection ends."""
        self._total = total
        self._sizes: dict[int, int] = {}  # by packet identifier
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._sizes)

    def add(self, packet_id: int, size: int) -> bool:
        """A PUBLISH of `size` bytes, or one sent again, is on its way. False: there is no room for it."""
        before = self._sizes.get(packet_id, 0)
        growth = size + MESSAGE_BYTES - before
        held = self._bytes + growth
        alone = self._bytes == before
        limits = self._total.limits
        if held > limits.in_flight_bytes_per_device_max and not alone:
            return False
        if held > SHARE_BYTES and growth > 0 and self._total.bytes + growth > limits.in_flight_bytes_max:
            return False
        self._sizes[packet_id] = size + MESSAGE_BYTES
        self._grow(growth)
        return True

    def release(self, packet_id: int) -> None:
        """The broker has confirmed its release, or refused it."""
        self._grow(-self._sizes.pop(packet_id, 0))

    def clear(self) -> None:
        """The broker holds nothing any more."""
        self._sizes.clear()
        self._grow(-self._bytes)

    def disconnected(self) -> None:
        """The connection has ended."""
        if not self.outlives_connection:
            self.clear()

    def _grow(self, growth: int) -> None:
        self._bytes += growth
        self._total.bytes += growth
