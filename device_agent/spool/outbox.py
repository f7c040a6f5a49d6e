"""Outgoing messages: a bounded queue, and the messages in flight. No I/O of its own."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, inf

from device_agent.errors import AgentError, SendRefused
from device_agent.packets import NO_EXTRAS, Extras
from device_agent.spool.message_queue import Entry, MemoryQueue, Message, OnStored, Queue
from device_agent.spool.rejected import RejectedMessages, shown

PAYLOAD_SIZE_MAX = 256 * 1024  # bytes of one message
QUEUE_SIZE_MAX = 4 * 1024 * 1024  # bytes of queued payload: bounds memory during a long outage
WINDOW_MAX = 32  # messages in flight: enough to fill a slow link, few enough to drain in a moment
TTL_SECONDS_MAX = 0xFFFFFFFF  # MQTT 5.0, 3.3.2.3.3: four bytes
ID_PROPERTY = "fleet-message-id"  # user property of MQTT 5: the same in each copy of a message
SWEEP_SECONDS = 1.0  # between two looks for messages that are over
_READ_MAX = 32  # entries read ahead of the one that is sent next


@dataclass(frozen=True, slots=True)
class Bounds:
    size_max: int = QUEUE_SIZE_MAX
    """Bytes, as the queue counts them."""
    age_seconds_max: float = inf
    drop_oldest: bool = False
    """When full: drop the oldest, instead of refusing the newest."""


class Outbox:
    """First in, first out. A QoS 1 message is kept until acknowledged, and sent again after a lost connection."""

    def __init__(
        self,
        messages_max: int,
        bounds: Bounds = Bounds(),
        queue: Queue | None = None,
        rejected: RejectedMessages | None = None,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.messages_max = messages_max
        self._bounds = bounds
        self._queue: Queue = MemoryQueue() if queue is None else queue
        self._now = now
        self._ahead: deque[Entry] = deque()  # read, and not sent yet; oldest first
        self._read_to = 0
        self._taken: Entry | None = None
        self._in_flight: dict[int, Entry] = {}  # by packet id, in the order they were sent
        self._listeners: dict[str, Callable[[str], None]] = {}  # by message id
        self._sweep_at = 0.0
        self._stopping = False
        self.rejected = RejectedMessages(MemoryQueue(), now) if rejected is None else rejected
        self.delivered = 0
        """Messages delivered since the start."""
        self.refused = 0
        """Accepted messages, since the start, that the server refused or that cannot be sent."""
        self.dropped = 0
        """Messages, since the start, that were dropped, or not accepted, because the outbox was full."""
        self.expired = 0
        """Accepted messages, since the start, that became too old to be sent."""

    def __len__(self) -> int:
        return self._queue.count

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def size(self) -> int:
        return self._queue.size

    @property
    def unsaved(self) -> int:
        """Messages that would be lost, or delivered twice, if the process ended now."""
        return self.in_flight + self._queue.unstored if self._queue.is_durable else len(self)

    @property
    def is_full(self) -> bool:
        """Whether an input has to wait. False where the oldest gives way."""
        return self._queue.is_blocked or (not self._has_room(1) and not self._bounds.drop_oldest)

    def has_room_for(self, message: Message) -> bool:
        """Whether an input need not wait with it."""
        return self._bounds.drop_oldest or self._has_room(self.size_of(message))

    def size_of(self, message: Message) -> int:
        """Bytes of a message that count against the bound."""
        return self._queue.size_of(message)

    @property
    def size_max(self) -> int:
        return self._bounds.size_max

    def _has_room(self, size: int) -> bool:
        return len(self) < self.messages_max and self._queue.size + size <= self._bounds.size_max

    def put(self, message: Message, on_accepted: OnStored | None = None) -> None:
        """Accept a message: it is stored once `on_accepted` was called with "".

        Raises: SendRefused if it is too large, or the outbox is full and does not drop its oldest.
        """
        if len(message.payload) > PAYLOAD_SIZE_MAX:
            raise SendRefused(f"The payload is larger than {PAYLOAD_SIZE_MAX} bytes.")
        size = self.size_of(message)
        if not self._has_room(size) and not (self._bounds.drop_oldest and self._make_room(size)):
            self.dropped += 1
            raise SendRefused(
                f"The outbox is full: {len(self)} messages wait, {self.size} bytes of {self._bounds.size_max}.",
                "Wait until the agent is connected: device-agent status --wait-connected 60.",
            )
        if message.on_done is not None:
            self._listeners[message.id] = message.on_done

        def on_stored(failure: str) -> None:
            if failure:
                self._listeners.pop(message.id, None)
            if on_accepted is not None:
                on_accepted(failure)

        self._queue.add(message, self._now(), on_stored)

    def next_to_send(self, window: int) -> Message | None:
        """The message to send now; None if the queue is empty or `window` messages are in flight."""
        while not self._stopping and len(self._in_flight) < window and (entry := self._oldest()) is not None:
            self._ahead.popleft()
            if not entry.is_over(self._now(), self._bounds.age_seconds_max):
                self._taken = entry
                return entry.message
            self._expire(entry)
        return None

    @property
    def extras(self) -> Extras:
        """To be sent with the message just taken by `next_to_send`: its own, what is left of its time, and its id."""
        entry = self._taken
        if entry is None:
            return NO_EXTRAS
        extras, expires_at = entry.message.extras, entry.expires_at
        if expires_at is not None:
            extras = replace(extras, expiry_seconds=max(1, ceil(expires_at - self._now())))
        if entry.message.qos:  # QoS 0 is sent once
            extras = replace(extras, user=(*extras.user, (ID_PROPERTY, entry.message.id)))
        return extras

    def sent(self, message: Message, packet_id: int) -> None:
        """`message`, just taken by `next_to_send`, has been sent. QoS 0 ends here."""
        entry = self._take(message)
        if message.qos == 0:
            self.delivered += 1
            self._finish(entry)
        else:
            self._in_flight[packet_id] = entry

    def acknowledged(self, packet_id: int, failure: str = "", is_temporary: bool = False) -> None:
        """The server has acknowledged `packet_id`, or refused the message because of `failure`. One that it refuses for
        now is to be sent again, before newer ones."""
        entry = self._in_flight.pop(packet_id, None)
        if entry is None:
            return
        if failure and is_temporary:
            self._ahead = deque(sorted((entry, *self._ahead), key=lambda each: each.row))
        elif failure:
            self._reject(entry, failure)
        else:
            self.delivered += 1
            self._finish(entry)

    def name_of(self, packet_id: int) -> dict[str, str]:
        """Topic and id of a message in flight, for the log."""
        entry = self._in_flight.get(packet_id)
        return {"topic": entry.message.topic, "id": entry.message.id} if entry is not None else {}

    def never(self, message: Message, failure: str) -> None:
        """`message`, just taken by `next_to_send`, can never be sent."""
        self._reject(self._take(message), failure)

    def connection_lost(self) -> None:
        """Requeue the messages in flight, before newer ones: the server may or may not have them."""
        self._ahead = deque(sorted((*self._in_flight.values(), *self._ahead), key=lambda each: each.row))
        self._in_flight.clear()

    def commit(self) -> None:
        """Call once a turn: store what was accepted, and drop what is over."""
        now = self._now()
        if now >= self._sweep_at and len(self):
            self._sweep_at = now + SWEEP_SECONDS
            self._sweep(now)
        self._queue.commit()

    def stop(self) -> None:
        """Hand out no more messages if those that wait are kept for the next start."""
        self._stopping = self._queue.is_durable

    def retry_rejected(self) -> int:
        """Accept again what the server has refused; the number of messages.

        Raises: SendRefused if the outbox is full; the rest stays in the list.
        """
        count = 0
        for entry in self.rejected.entries():
            self.put(entry.message, self.rejected.forget_when_stored(entry))
            count += 1
        return count

    def _oldest(self) -> Entry | None:
        if not self._ahead:
            self._ahead.extend(self._queue.read(self._read_to, _READ_MAX))
            if self._ahead:
                self._read_to = self._ahead[-1].row
        return self._ahead[0] if self._ahead else None

    def _make_room(self, size: int) -> bool:
        """Drop the oldest that are not in flight, until there is room for so many bytes."""
        while not self._has_room(size):
            if self._oldest() is None:
                self._queue.commit()  # what was accepted in this turn counts, and cannot be read before
            if (entry := self._oldest()) is None:
                return False
            self._ahead.popleft()
            self.dropped += 1
            self._finish(entry, "it was dropped for newer ones, since the outbox was full")
        return True

    def _sweep(self, now: float) -> None:
        age_max = self._bounds.age_seconds_max
        over = [entry for entry in self._ahead if entry.is_over(now, age_max)]
        if over:
            self._ahead = deque(entry for entry in self._ahead if not entry.is_over(now, age_max))
        while more := self._queue.overdue(self._read_to, now, age_max):
            for entry in more:
                self._expire(entry)
        for entry in over:
            self._expire(entry)

    def _take(self, message: Message) -> Entry:
        entry, self._taken = self._taken, None
        if entry is None or entry.message is not message:
            raise RuntimeError("this message was not taken by next_to_send")
        return entry

    def _expire(self, entry: Entry) -> None:
        self.expired += 1
        self._finish(entry, "it expired before it could be sent")

    def _reject(self, entry: Entry, failure: str) -> None:
        self.refused += 1
        self.rejected.add(entry.message, failure)
        self._finish(entry, failure)

    def _finish(self, entry: Entry, failure: str = "") -> None:
        self._queue.remove(entry)
        if (listener := self._listeners.pop(entry.message.id, None)) is not None:
            listener(failure)


def act_on_rejected(outbox: Outbox, act: object) -> dict[str, object]:
    """List the rejected messages, "retry" or "drop" all of them; the answer for a program.

    Raises: AgentError if there is no such `act`; SendRefused.
    """
    match act:
        case None:
            return {"rejected": [shown(entry) for entry in outbox.rejected.entries()]}
        case "retry":
            return {"count": outbox.retry_rejected()}
        case "drop":
            return {"count": outbox.rejected.clear()}
    raise AgentError("There is no such act.", "One of: retry, drop.")
