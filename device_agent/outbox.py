"""Outgoing messages: a bounded queue, and the messages in flight. No I/O."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from device_agent.errors import SendRefused
from fleet.est_client.errors import BadConfig

PAYLOAD_SIZE_MAX = 256 * 1024  # bytes of one message
QUEUE_SIZE_MAX = 4 * 1024 * 1024  # bytes of queued payload: bounds memory during a long outage
WINDOW_MAX = 32  # messages in flight: enough to fill a slow link, few enough to drain in a moment
TOPIC_SIZE_MAX = 1024  # bytes; the protocol allows 65,535


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes
    qos: int = 1
    on_done: Callable[[str], None] | None = field(default=None, compare=False)
    """Called once: with "" when acknowledged, or with the reason why it cannot be delivered."""

    def done(self, failure: str = "") -> None:
        if self.on_done is not None:
            self.on_done(failure)


def topic_for(template: str, device_id: str) -> str:
    """The topic `template` with `{id}` replaced by the device id.

    Raises: BadConfig if it is not a valid topic name.
    """
    topic = template.replace("{id}", device_id)
    if not topic or set(topic) & set("+#\0") or not topic.isprintable():
        raise BadConfig(f"{template[:80]!r} is not a topic to publish to.", "Leave out +, # and control characters.")
    if len(topic.encode("utf-8", "surrogateescape")) > TOPIC_SIZE_MAX:
        raise BadConfig(f"The topic is longer than {TOPIC_SIZE_MAX} bytes.")
    return topic


class Outbox:
    """First in, first out. A QoS 1 message is kept until acknowledged, and sent again after a lost connection."""

    def __init__(self, messages_max: int) -> None:
        self._messages_max = messages_max
        self._waiting: deque[Message] = deque()
        self._in_flight: dict[int, Message] = {}  # by packet id, in the order they were sent
        self._size = 0
        self.delivered = 0
        """Messages delivered since the start."""
        self.refused = 0
        """Accepted messages, since the start, that the server refused or that cannot be sent."""

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def is_full(self) -> bool:
        return len(self) >= self._messages_max or self._size >= QUEUE_SIZE_MAX

    def put(self, message: Message) -> None:
        """Accept a message.

        Raises: SendRefused if it is too large, or the outbox is full: an accepted message is never dropped for a newer
        one.
        """
        if len(message.payload) > PAYLOAD_SIZE_MAX:
            raise SendRefused(f"The payload is larger than {PAYLOAD_SIZE_MAX} bytes.")
        if self.is_full:
            raise SendRefused(
                f"The outbox is full; messages that wait: {len(self)}.",
                "Wait until the agent is connected: device-agent status --wait-connected 60.",
            )
        self._waiting.append(message)
        self._size += len(message.payload)

    def next_to_send(self, window: int) -> Message | None:
        """The message to send now; None if the queue is empty or `window` messages are in flight."""
        if not self._waiting or len(self._in_flight) >= window:
            return None
        return self._waiting.popleft()

    def sent(self, message: Message, packet_id: int) -> None:
        """`message` has been sent. QoS 0 ends here."""
        if message.qos == 0:
            self._forget(message)
            self.delivered += 1
            message.done()
        else:
            self._in_flight[packet_id] = message

    def acknowledged(self, packet_id: int, failure: str = "") -> None:
        """The server has acknowledged `packet_id`, or refused the message because of `failure`."""
        message = self._in_flight.pop(packet_id, None)
        if message is None:
            return
        self._forget(message)
        self.delivered += not failure
        self.refused += bool(failure)
        message.done(failure)

    def never(self, message: Message, failure: str) -> None:
        """`message`, just taken by `next_to_send`, can never be sent."""
        self._forget(message)
        self.refused += 1
        message.done(failure)

    def connection_lost(self) -> None:
        """Requeue the messages in flight, before newer ones: the server may or may not have them."""
        self._waiting.extendleft(reversed(self._in_flight.values()))
        self._in_flight.clear()

    def _forget(self, message: Message) -> None:
        self._size -= len(message.payload)
