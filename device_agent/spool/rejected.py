"""Messages that the server has refused, or that cannot be sent: the newest, with the reason, for a person to see."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from device_agent.spool.message_queue import Entry, Message, OnStored, Queue

MESSAGES_MAX = 100
SIZE_MAX = 1024 * 1024  # bytes
REASON_CHARACTERS_MAX = 300


class RejectedMessages:
    """Bounded: the oldest give way."""

    def __init__(self, queue: Queue, now: Callable[[], float]) -> None:
        self._queue = queue
        self._now = now

    def __len__(self) -> int:
        return self._queue.count

    def add(self, message: Message, reason: str) -> None:
        message = replace(message, on_done=None)  # who waited for it has been told
        self._queue.add(message, self._now(), note=reason[:REASON_CHARACTERS_MAX])
        if self._is_over_bound:
            self._queue.commit()
        while self._is_over_bound and (oldest := self._queue.read(0, 1)):
            self._queue.remove(oldest[0])

    def entries(self) -> list[Entry]:
        """All, oldest first."""
        self._queue.commit()
        return self._queue.read(0, MESSAGES_MAX)

    def clear(self) -> int:
        """Forget all, and return how many they were."""
        entries = self.entries()
        for entry in entries:
            self._queue.remove(entry)
        return len(entries)

    def forget_when_stored(self, entry: Entry) -> OnStored:
        """A callback for who stores the message of `entry` elsewhere."""

        def on_stored(failure: str) -> None:
            if not failure:
                self._queue.remove(entry)

        return on_stored

    @property
    def _is_over_bound(self) -> bool:
        return self._queue.count > MESSAGES_MAX or self._queue.size > SIZE_MAX


def shown(entry: Entry) -> dict[str, object]:
    """A rejected message for a program to read: when it was refused, its topic, its size in bytes, and the reason."""
    message = entry.message
    return {
        "time": datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="seconds"),
        "topic": message.topic,
        "size": len(message.payload),
        "id": message.id,
        "reason": entry.note,
    }
