"""From the input to the outbox, and from the outbox to the connection: the way of a message, without the waiting."""

from dataclasses import dataclass

from device_agent.connection import Connection
from device_agent.core import Link
from device_agent.event_log import EventLog
from device_agent.line_reader import LineReader
from device_agent.outbox import Message, Outbox, topic_for
from fleet.est_client.errors import ClientError


@dataclass(frozen=True, slots=True)
class Feed:
    """What is published of an input such as stdin."""

    lines: LineReader
    topic: str | None
    """Every line is a payload for this topic; None: a line is `TOPIC PAYLOAD`."""
    qos: int = 1
    stop_at_end: bool = False
    """End the agent when the input has ended and everything is delivered."""

    def message(self, line: bytes, device_id: str) -> Message:
        """The message that a line stands for.

        Raises: BadConfig when its topic is none.
        """
        if self.topic is not None:
            return Message(self.topic, line, self.qos)
        topic, _, payload = line.partition(b" ")
        return Message(topic_for(topic.decode("utf-8", "replace"), device_id), payload, self.qos)


def take_lines(feed: Feed, outbox: Outbox, device_id: str, journal: EventLog) -> None:
    """Put waiting lines into the outbox, for as long as there is room. A line that can never be sent is logged and
    left out; the rest goes on."""
    if feed.lines.too_long:
        journal.event("line-refused", reason="too long", lines=feed.lines.too_long)
        feed.lines.too_long = 0
    while not outbox.is_full and (line := feed.lines.take()) is not None:
        try:
            outbox.put(feed.message(line, device_id))
        except ClientError as error:
            journal.event("line-refused", reason=error.message)


def publish_waiting(outbox: Outbox, connection: Connection, journal: EventLog) -> None:
    """Send what waits, as far as the window allows."""
    while connection.state is Link.UP:
        message = outbox.next_to_send(connection.window)
        if message is None:
            return
        try:
            packet_id = connection.publish(message.topic, message.payload, message.qos)
        except ValueError as error:
            journal.event("message-refused", reason=error)
            outbox.never(message, str(error))
        else:
            outbox.sent(message, packet_id)
