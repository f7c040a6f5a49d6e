"""Topic aliases of MQTT 5.0 (3.3.2.3.4), and the Response Topic: what the gateway reads in a PUBLISH's properties.

A register belongs to one direction of one connection. The broker has none: it gets each topic in full, so that a
message that is withheld from it leaves no alias behind that only one side knows.
"""

import re
from typing import NamedTuple

from fleet.servers.gateway.close_reasons import ALIAS, ALIASED_TOPIC_TOO_LONG, PROTOCOL_ERROR, CloseSession
from fleet.servers.gateway.limits.limits import ALIASED_TOPIC_SIZE_MAX
from fleet.wire.mqtt.fields import Fields, encode_binary, encode_integer, encode_varint
from fleet.wire.mqtt.properties import Properties, Property, decode_properties, encode_properties, value_of, without
from fleet.wire.mqtt.topics import is_topic_name

ALIASES_MAX = 16  # of each register
SHORTENED_MIN = 8  # bytes of a topic for which an alias is sent, which takes three itself

PROPERTIES_EACH = 8
"""Properties of a PUBLISH that are read for what one packet costs."""

ALIAS_MARK = re.compile(rb"[\x23\xa3]")
"""Without one of these bytes, properties hold no alias: its identifier, also with a continuation bit set."""
ALIAS_OR_RESPONSE_MARK = re.compile(rb"[\x23\xa3\x08\x88]")
"""Likewise for a Response Topic."""


class Marked(NamedTuple):
    """Properties of a PUBLISH that has an alias or a Response Topic, or so many that reading them counts."""

    properties: Properties
    alias: int | None
    response: str | None
    payload_at: int


class Head(NamedTuple):
    """Where things are in a PUBLISH that begins at `pos`, and ends at `stop` if all of it is there."""

    topic: bytes
    pos: int
    after: int
    """After topic and packet identifier."""
    stop: int
    marked: Marked | None

    def packet_id(self, data: bytes) -> bytes:
        return data[self.after - 2 : self.after] if data[self.pos] & 6 else b""

    def payload_size(self, data: bytes, *, v5: bool) -> int:
        if self.marked or not v5:
            return self.stop - (self.marked.payload_at if self.marked else self.after)
        fields = Fields(data, self.after, self.stop)
        fields.take(fields.varint())
        return self.stop - fields.pos

    def payload(self, data: bytes) -> bytes:
        """What there is of the payload, of one that is marked."""
        return data[self.marked.payload_at : self.stop] if self.marked else b""


def marked(data: bytes, pos: int, stop: int, mark: re.Pattern[bytes]) -> Marked | None:
    """The properties at `pos`, if there is an alias or a Response Topic; their other rules are left to the broker.

    Raises: Malformed. CloseSession: a Response Topic that is no topic name.
    """
    fields = Fields(data, pos, stop)
    if not mark.search(fields.take(fields.varint())):
        return None
    properties = decode_properties(Fields(data, pos, stop))
    alias = value_of(properties, Property.TOPIC_ALIAS)
    response = value_of(properties, Property.RESPONSE_TOPIC)
    if not isinstance(alias, int) and not isinstance(response, str) and len(properties) < PROPERTIES_EACH:
        return None
    # [MQTT-3.3.2-14] no wildcard characters
    if isinstance(response, str) and not is_topic_name(response):
        raise CloseSession(PROTOCOL_ERROR)
    return Marked(
        properties,
        alias if isinstance(alias, int) else None,
        response if isinstance(response, str) else None,
        fields.pos,
    )


class ReceivedAliases:
    """Register of the aliases that one side has set."""

    __slots__ = ("_maximum", "_topics")

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._topics: dict[int, bytes] = {}

    def topic(self, alias: int, topic: bytes) -> bytes:
        """The topic of a PUBLISH with this alias, and `topic`, which is b"" or becomes the alias's.

        Raises: CloseSession.
        """
        # [MQTT-3.3.2-8], [MQTT-3.3.2-9]
        if not 0 < alias <= self._maximum:
            raise CloseSession(ALIAS)
        if not topic:
            try:
                return self._topics[alias]
            except KeyError:
                raise CloseSession(PROTOCOL_ERROR) from None
        if len(topic) > ALIASED_TOPIC_SIZE_MAX:
            raise CloseSession(ALIASED_TOPIC_TOO_LONG)
        # Also when the message is refused: its sender has set the alias.
        self._topics[alias] = topic
        return topic


class SentAliases:
    """Register of the aliases that we have set; the first topics that repeat get them, and keep them."""

    __slots__ = ("_aliases", "_maximum", "_size_max")

    def __init__(self, maximum: int, size_max: int | None) -> None:
        """`size_max`: the longest packet that the receiver takes; None: any."""
        self._maximum = min(maximum, ALIASES_MAX)
        self._size_max = size_max
        self._aliases: dict[bytes, int] = {}

    def shorten(self, head: Head, data: bytes) -> bytes | None:
        """The whole PUBLISH with an alias, which must be sent; None: it stays as it is."""
        alias = self._aliases.get(head.topic)
        topic = b"" if alias else head.topic
        if alias is None:
            alias = len(self._aliases) + 1
            if alias > self._maximum or not SHORTENED_MIN <= len(topic) <= ALIASED_TOPIC_SIZE_MAX:
                return None
        fields = Fields(data, head.after, head.stop)
        properties = fields.take(fields.varint()) + bytes((Property.TOPIC_ALIAS,)) + encode_integer(alias, 2)
        rest = encode_varint(len(properties)) + properties + data[fields.pos : head.stop]
        packet = _start(head, topic, data, len(rest)) + rest
        if self._size_max is not None and len(packet) > self._size_max:
            return None
        self._aliases[head.topic] = alias
        return packet


def with_topic(topic: bytes, head: Head, found: Marked, data: bytes) -> bytes:
    """A PUBLISH up to its payload, with its topic in place of its alias."""
    properties = encode_properties(without(found.properties, Property.TOPIC_ALIAS))
    return _start(head, topic, data, len(properties) + head.stop - found.payload_at) + properties


def _start(head: Head, topic: bytes, data: bytes, left: int) -> bytes:
    """A PUBLISH up to its properties: `left` bytes follow."""
    fields = encode_binary(topic) + head.packet_id(data)
    return bytes((data[head.pos],)) + encode_varint(len(fields) + left) + fields
