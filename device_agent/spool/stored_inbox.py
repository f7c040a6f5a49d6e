"""Messages from the fleet that no program has taken yet, in the spool: they survive the process."""

from collections.abc import Callable
from functools import partial

from device_agent.packets import Received
from device_agent.spool.inbox import MESSAGES_MAX, SIZE_MAX, Inbox, Incoming
from device_agent.spool.message_queue import Entry, Message, Queue

_RETAINED = "retained"  # in the note of an entry, before the subscription identifiers


class StoredInbox(Inbox):
    """A message is acknowledged to the server once it is stored; in an inbox that is half full, once it is taken."""

    def __init__(
        self, queue: Queue, now: Callable[[], float], monotonic: Callable[[], float], age_seconds_max: float
    ) -> None:
        super().__init__()
        self.unwanted_seconds_max = age_seconds_max
        self._queue = queue
        self._now = now
        self._monotonic = monotonic
        self._entries: dict[int, Entry] = {}

    def load(self) -> None:
        """Take up what an earlier run has left, as far as the bounds allow. Call once, before anything is added."""
        row = 0
        while entries := self._queue.read(row, MESSAGES_MAX):
            for entry in entries:
                row = entry.row
                message = entry.message
                words = entry.note.split()
                identifiers = tuple(int(word) for word in words if word.isdigit())
                received = Received(
                    message.topic,
                    message.payload,
                    message.qos,
                    packet_id=0,
                    dup=False,
                    retain=_RETAINED in words,
                    extras=message.extras,
                    identifiers=identifiers,
                )
                arrived_at = self._monotonic() - max(0.0, self._now() - entry.at)
                incoming = Incoming(self.new_number(), received, arrived_at)
                self._entries[incoming.number] = entry
                super().add(incoming)

    def add(self, incoming: Incoming) -> list[Incoming]:
        message = incoming.message
        self._entries[incoming.number] = self._queue.add(
            Message(message.topic, message.payload, message.qos, extras=message.extras),
            self._now(),
            partial(self._stored, incoming),
            " ".join([_RETAINED] * message.retain + [str(each) for each in message.identifiers]),
        )
        return super().add(incoming)

    def remove(self, incoming: Incoming) -> None:
        super().remove(incoming)
        if (entry := self._entries.pop(incoming.number, None)) is not None:
            self._queue.remove(entry)

    def _stored(self, incoming: Incoming, failure: str) -> None:
        if not failure and len(self) < MESSAGES_MAX // 2 and self._size < SIZE_MAX // 2:
            self.on_stored(incoming)
