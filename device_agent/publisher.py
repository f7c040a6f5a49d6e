"""Publishing: input lines into the outbox, and messages from the outbox onto the connection. Never blocks."""

from dataclasses import dataclass

from device_agent.connection import Connection
from device_agent.core import Link
from device_agent.event_log import EventLog
from device_agent.line_reader import LineReader
from device_agent.outbox import Message, Outbox, topic_for
from fleet.est_client.errors import ClientError


@dataclass(frozen=True, slots=True)
class PublishInput:
    """An input, such as stdin, whose lines are published."""

    lines: LineReader
    topic: str | None
    """Topic of every line; None: lines are `TOPIC PAYLOAD`."""
    qos: int = 1
    stop_at_end: bool = False
    """Stop the agent once the input has ended and every message is delivered or refused."""

    def message(self, line: bytes, device_id: str) -> Message:
        """The message in a line.

        Raises: BadConfig if its topic is invalid.
        """
        if self.topic is not None:
            return Message(self.topic, line, self.qos)
        topic, _, payload = line.partition(b" ")
        return Message(topic_for(topic.decode("utf-8", "replace"), device_id), payload, self.qos)


def take_lines(source: PublishInput, outbox: Outbox, device_id: str, log: EventLog) -> None:
    """Move lines into the outbox while it has room. An invalid line is logged and dropped."""
    if source.lines.too_long:
        log.event("line-refused", reason="too long", lines=source.lines.too_long)
        source.lines.too_long = 0
    while not outbox.is_full and (line := source.lines.take()) is not None:
        try:
            outbox.put(source.message(line, device_id))
        except ClientError as error:
            log.event("line-refused", reason=error.message)


def publish_waiting(outbox: Outbox, connection: Connection, log: EventLog) -> None:
    """Send queued messages, as far as the send window allows."""
    while connection.state is Link.UP:
        message = outbox.next_to_send(connection.window)
        if message is None:
            return
        try:
            packet_id = connection.publish(message.topic, message.payload, message.qos)
        except ValueError as error:
            log.event("message-refused", reason=error)
            outbox.never(message, str(error))
        else:
            outbox.sent(message, packet_id)
