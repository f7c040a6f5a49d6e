"""Messages from the fleet that no program on the device has taken yet: a bounded store in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from device_agent.packets import Received

MESSAGES_MAX = 1000
SIZE_MAX = 2 * 1024 * 1024  # bytes: bounds memory while the program that wants them is away
OVERHEAD = 300  # bytes that a held message costs beside its topic and payload


@dataclass(slots=True, eq=False)
class Incoming:
    """A message and what has become of it here."""

    number: int
    message: Received
    arrived_at: float
    """On the monotonic clock."""
    packet_id: int = 0
    """Under which the server waits for its acknowledgement; 0: it does not."""
    taken: bool = False
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.message.topic) + len(self.message.payload) + OVERHEAD


class Inbox:
    """In the order of arrival. When it is full, the oldest gives way.

    It is in memory: what was acknowledged and not taken is lost with the process. The one of the spool survives it, and
    says `on_stored` of what may be acknowledged before a program has taken it.
    """

    unwanted_seconds_max = 60.0
    """How long messages that no subscription matches are held: until the programs of an earlier run are back."""

    def __init__(self, messages_max: int = MESSAGES_MAX, size_max: int = SIZE_MAX) -> None:
        self._messages_max = messages_max
        self._size_max = size_max
        self._held: dict[int, Incoming] = {}
        self._size = 0
        self._number = 0
        self.dropped = 0
        """Messages, since the start, that gave way or that nobody wanted."""
        self.on_stored: Callable[[Incoming], None] = lambda _: None

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Incoming]:
        return iter(tuple(self._held.values()))

    def new_number(self) -> int:
        """A number that no message has had in this run, be it held here or not."""
        self._number += 1
        return self._number

    def get(self, number: int) -> Incoming | None:
        return self._held.get(number)

    def add(self, incoming: Incoming) -> list[Incoming]:
        """Hold a message; those that gave way for it."""
        self._held[incoming.number] = incoming
        self._size += incoming.size
        dropped = []
        while len(self._held) > self._messages_max or (self._size > self._size_max and len(self._held) > 1):
            dropped.append(self.drop(next(iter(self._held.values()))))
        return dropped

    def remove(self, incoming: Incoming) -> None:
        """A program has taken it."""
        if self._held.pop(incoming.number, None) is not None:
            self._size -= incoming.size

    def drop(self, incoming: Incoming) -> Incoming:
        """Nobody has taken it, and nobody will."""
        self.remove(incoming)
        self.dropped += 1
        return incoming

    def matching(self, topic_filter: str) -> list[Incoming]:
        """The held messages that are for the filter."""
        return [each for each in self._held.values() if each.message.is_for(topic_filter)]
