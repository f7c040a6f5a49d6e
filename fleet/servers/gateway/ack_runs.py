"""PUBACKs of the broker, collected so that a device gets a run of them in one TLS record and one send.

A broker acknowledges each QoS 1 message in a write of its own. When a device has sent several messages, those that
come before the PUBACK of its last one wait for it, HELD_SECONDS_MAX at most: as if they were still in the socket. A
device that waits for each PUBACK gets it at once.
"""

import asyncio
from collections.abc import Callable

from fleet.wire.mqtt import acks

PUBACK = acks.PUBACK
HELD_SECONDS_MAX = 0.002
_SIZE = 4  # of a PUBACK without reason code
HELD_SIZE_MAX = 32 * _SIZE


def can_wait(data: bytes, last_id: bytes) -> bool:
    """Whether `data`, which begins with a PUBACK, has nothing else, nor at its end that of the device's last message.

    `last_id` is the last message's packet identifier.
    """
    size = len(data)
    if size % _SIZE or size > HELD_SIZE_MAX or data.endswith(last_id):
        return False
    return size == _SIZE or data[::_SIZE].count(PUBACK) * _SIZE == size


class AckRuns:
    """Those of one event loop that have something to wait for."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def wait(self, release: Callable[[], None]) -> None:
        """Call `release` within HELD_SECONDS_MAX."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(HELD_SECONDS_MAX, self._release)
        self._waiting.append(release)

    def _release(self) -> None:
        loop = asyncio.get_running_loop()
        waiting, self._waiting = self._waiting, []
        for release in waiting:
            loop.call_soon(release)  # not at once: what one of them raises must not keep the others
