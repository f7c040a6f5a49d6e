"""Messages in the order in which they were accepted: the interface of a queue, and the queue in memory. No I/O."""

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from device_agent.packets import NO_EXTRAS, Extras

ID_SIZE = 12  # bytes at random: unique among all messages of all devices


def new_message_id() -> str:
    """A fresh message id, 24 hexadecimal digits."""
    return os.urandom(ID_SIZE).hex()


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes
    qos: int = 1
    on_done: Callable[[str], None] | None = field(default=None, compare=False)
    """Called once: with "" when acknowledged, or with the reason why it cannot be delivered."""
    extras: Extras = NO_EXTRAS
    """Its expiry counts from its acceptance: it is not sent later, and then with what is left."""
    id: str = field(default_factory=new_message_id, compare=False)
    """The same in each copy that is sent."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message in a queue."""

    row: int
    """Ascending in the order of acceptance, and never given twice by one queue."""
    at: float
    """When it was accepted, in seconds of the queue's clock."""
    message: Message
    note: str = ""
    """Why it is here: the reason of a refusal."""

    @property
    def expires_at(self) -> float | None:
        seconds = self.message.extras.expiry_seconds
        return None if seconds is None else self.at + seconds

    def is_over(self, now: float, age_seconds_max: float) -> bool:
        """Whether its time to live has passed, or it is older than `age_seconds_max`."""
        expires_at = self.expires_at
        return now - self.at >= age_seconds_max or (expires_at is not None and now >= expires_at)


OnStored = Callable[[str], None]
"""Called once: with "" when the message is stored, or with the reason why it is not."""


class Queue(Protocol):
    """Entries in order. What has been removed is neither counted nor read."""

    is_durable: bool
    """Whether what is stored survives the process."""

    @property
    def count(self) -> int: ...
    @property
    def size(self) -> int:
        """Bytes that count against a bound."""

    @property
    def unstored(self) -> int:
        """Messages that are added and not stored yet."""

    @property
    def is_blocked(self) -> bool:
        """Whether storing has failed a moment ago, so that who can wait should."""

    def size_of(self, message: Message) -> int:
        """Bytes of a message that count against a bound."""

    def add(self, message: Message, at: float, on_stored: OnStored | None = None, note: str = "") -> Entry:
        """Store `message` at the end, at the next `commit` at the latest."""

    def remove(self, entry: Entry) -> None:
        """Remove an entry."""

    def read(self, after: int, limit: int) -> list[Entry]:
        """At most `limit` stored entries whose rows are above `after`, oldest first."""

    def overdue(self, after: int, now: float, age_seconds_max: float) -> list[Entry]:
        """Some stored entries above `after` that are over; [] if there is none."""

    def commit(self) -> None:
        """Store what was added."""


class MemoryQueue:
    """A queue that is lost with the process. `add` stores at once."""

    is_durable = False
    unstored = 0
    is_blocked = False

    def __init__(self) -> None:
        # An OrderedDict, since a dict is slow at its front once many were removed there.
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._row = 0
        self.size = 0

    @property
    def count(self) -> int:
        return len(self._entries)

    def size_of(self, message: Message) -> int:
        return len(message.payload)

    def add(self, message: Message, at: float, on_stored: OnStored | None = None, note: str = "") -> Entry:
        self._row += 1
        entry = self._entries[self._row] = Entry(self._row, at, message, note)
        self.size += self.size_of(message)
        if on_stored is not None:
            on_stored("")
        return entry

    def remove(self, entry: Entry) -> None:
        if self._entries.pop(entry.row, None) is not None:
            self.size -= self.size_of(entry.message)

    def read(self, after: int, limit: int) -> list[Entry]:
        return list(islice((entry for row, entry in self._entries.items() if row > after), limit))

    def overdue(self, after: int, now: float, age_seconds_max: float) -> list[Entry]:
        entries = self._entries.items()
        return [entry for row, entry in entries if row > after and entry.is_over(now, age_seconds_max)]

    def commit(self) -> None:
        pass
