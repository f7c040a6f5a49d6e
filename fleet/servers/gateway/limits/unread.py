"""What waits in the gateway for devices that do not read.

The broker is read all the same: what it had to keep for one client, no limit by bytes bounds for QoS 0, and all of its
clients pay for that. Past a limit messages of QoS 0 are dropped, the newest first, so that the others keep their order;
those of QoS 1 and 2 never are, and a session with too much of them is closed. Where all sessions together have too
much, the one with most of it is closed.
"""

from collections.abc import Callable

from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS, Limits

SHARE_BYTES = 65_536  # of one session at least: not refused for what others have
ASKED_MAX = 1_024  # packets of a device that does not read, each of which may cause an answer


class UnreadTotal:
    """That of all sessions of this process. `count` counts a message that is dropped."""

    __slots__ = ("bytes", "count", "holders", "limits")

    def __init__(self, count: Callable[[], None], limits: Limits = DEFAULT_LIMITS) -> None:
        self.bytes = 0
        self.count = count
        self.limits = limits
        self.holders: set[Unread] = set()

    @property
    def share(self) -> int:
        """Bytes of each session that has any, if all had the same."""
        return self.limits.unread_bytes_max // (len(self.holders) or 1)

    def give_way(self) -> None:
        """Close the session with most of it, if there is too much."""
        if self.bytes > self.limits.unread_bytes_max:
            largest = max(self.holders, key=lambda each: each.bytes)
            if largest.bytes > 2 * SHARE_BYTES:
                largest.close()


class Unread:
    """That of one session, from when its device stops reading until it has read everything."""

    __slots__ = ("_packets", "_size", "_total", "bytes", "close", "dropped")

    def __init__(self, total: UnreadTotal, size: Callable[[], int], packets: int, close: Callable[[], None]) -> None:
        """`size`: the bytes that wait now; `packets`: those the device has sent before; `close` closes the session."""
        self._total = total
        self._size = size
        self._packets = packets
        self.close = close
        self.bytes = 0
        self.dropped = 0
        """Messages."""
        total.holders.add(self)

    def has_room(self, size: int) -> bool:
        """Whether one more message of QoS 0 with `size` bytes may wait; counted as dropped if not."""
        total, before = self._total, self._size()
        waits = before + size
        if waits <= max(SHARE_BYTES, min(total.share, total.limits.unread_bytes_per_device_max)):
            return True
        is_single = before <= SHARE_BYTES
        if total.bytes - self.bytes + waits <= total.limits.unread_bytes_max and (
            is_single or waits <= total.limits.unread_bytes_per_device_max
        ):
            return True
        self.dropped += 1
        total.count()
        return False

    def take(self, feed: Callable[[bytes], None], data: bytes) -> None:
        """`feed(data)`, which writes to the device; close the session if too much of QoS 1 and 2 waits."""
        self._count()
        feed(data)
        self._count()
        limits = self._total.limits
        # Our own broker sends no more than this before it is acknowledged.
        acknowledged_max = limits.unacknowledged_bytes_per_device_max + limits.packet_size_max
        if self.bytes > limits.unread_bytes_per_device_max + acknowledged_max:
            self.close()
        self._total.give_way()

    def _count(self) -> None:
        before, self.bytes = self.bytes, self._size()
        self._total.bytes += self.bytes - before

    def is_asked(self, packets: int) -> bool:
        """Whether the device sends on, `packets` by now, without reading the answers."""
        return packets - self._packets > ASKED_MAX

    def end(self) -> None:
        """The device has read it, or the session has ended. Again does nothing."""
        self._total.holders.discard(self)
        self._total.bytes -= self.bytes
        self.bytes = 0
