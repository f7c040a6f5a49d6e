"""Publishing: input lines into the outbox, and messages from the outbox onto the connection. Never blocks."""

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from device_agent.config.topics import topic_for
from device_agent.core import Link
from device_agent.log.event_log import EventLog
from device_agent.packets import Extras
from device_agent.spool.line_reader import LineReader
from device_agent.spool.message_queue import Message
from device_agent.spool.outbox import Outbox
from fleet.est_client.errors import ClientError


class Sender(Protocol):
    """The connection that messages are sent on."""

    @property
    def state(self) -> Link: ...
    @property
    def in_flight_max(self) -> int: ...
    def publish(self, topic: str, payload: bytes, qos: int, extras: Extras) -> int:
        """The packet id; 0 for QoS 0. Raises: ValueError."""


@dataclass(frozen=True, slots=True)
class PublishInput:
    """An input, such as stdin, whose lines are published."""

    lines: LineReader
    topic: str | None
    """Topic of every line; None: lines are `TOPIC PAYLOAD`."""
    qos: int = 1
    stop_at_end: bool = False
    """Stop the agent once the input has ended and every message is delivered or refused."""
    returned: deque[Message] = field(default_factory=deque)
    """Messages of lines that could not be stored, or have no room; they come first when the outbox has it."""

    @property
    def at_end(self) -> bool:
        """Whether all lines have been passed on."""
        return self.lines.at_end and not self.lines.has_line and not self.returned

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
        source.lines.refused += source.lines.too_long
        source.lines.too_long = 0
    while not outbox.is_full:
        try:
            if source.returned:
                message = source.returned.popleft()
            elif (line := source.lines.take()) is not None:
                message = source.message(line, device_id)
            else:
                return
            if not outbox.has_room_for(message):
                source.returned.appendleft(message)
                return
            outbox.put(message, partial(_keep_unless_stored, source, message))
        except ClientError as error:
            source.lines.refused += 1
            log.event("line-refused", line=source.lines.number, reason=error.message)


def _keep_unless_stored(source: PublishInput, message: Message, failure: str) -> None:
    if failure:
        source.returned.append(message)


def publish_waiting(outbox: Outbox, connection: Sender, log: EventLog) -> None:
    """Send queued messages, as far as the send window allows."""
    while connection.state is Link.UP:
        message = outbox.next_to_send(connection.in_flight_max)
        if message is None:
            return
        try:
            packet_id = connection.publish(message.topic, message.payload, message.qos, outbox.extras)
        except ValueError as error:
            log.event("message-refused", reason=error, topic=message.topic, id=message.id)
            outbox.never(message, str(error))
        else:
            outbox.sent(message, packet_id)
