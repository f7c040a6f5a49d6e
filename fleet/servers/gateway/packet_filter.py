"""One direction of a session: original bytes go through, every packet's head is read, what is refused stays behind.

    sieve = PacketFilter(UPBOUND, version, handler, write)
    sieve.feed(data)        # writes the longest runs of allowed bytes, each in one go
    sieve.inject(packet)    # a packet of our own, between two others, never inside one

The loop is the gateway's hot path: for a topic that was asked about before, a PUBLISH costs one dict look-up.
A packet is held until it is whole, so that a device that dies in the middle leaves nothing half-sent; one longer
than HOLD_SIZE_MAX is judged by its head and streamed. Memory is bounded by HEAD_SIZE_MAX, whatever the packet's size.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from fleet.servers.gateway.close_reasons import ALIAS, PROTOCOL_ERROR, QUOTA, TOO_LARGE, CloseSession
from fleet.wire.errors import Malformed
from fleet.wire.mqtt.codes import V5, PacketType, flags_are_legal
from fleet.wire.mqtt.fields import Fields
from fleet.wire.mqtt.properties import Property, decode_properties, value_of
from fleet.wire.mqtt.reader import remaining_length
from fleet.wire.mqtt.topics import topic_name

HOLD_SIZE_MAX = 65_536  # a longer PUBLISH is streamed; anything else that is longer is refused
HEAD_SIZE_MAX = 3 * 65_536  # a topic and properties of a long PUBLISH must be seen whole
TOPICS_MAX = 256  # answers remembered, of topics up to TOPIC_SIZE_MAX bytes: 64 KiB for a session at worst
TOPIC_SIZE_MAX = 256
INJECTED_MAX = 1_024  # packets of ours that wait for the end of a long one

_PUBLISH, _PUBLISH_ACKED, _PUBLISH_RETAINED, _PASS, _ASK, _ILLEGAL = range(6)


def _table(passed: set[PacketType], asked: set[PacketType], *, retain_is_a_right: bool) -> bytes:
    """What to do with a packet, by its first byte."""

    def kind(first: int) -> int:
        number = first >> 4
        if not flags_are_legal(first):
            return _ILLEGAL
        if number == PacketType.PUBLISH:
            if first & 1 and retain_is_a_right:
                return _PUBLISH_RETAINED
            return _PUBLISH_ACKED if first & 6 else _PUBLISH
        return _PASS if number in passed else _ASK if number in asked else _ILLEGAL

    return bytes(map(kind, range(256)))


_ACKS = {PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP}
UPBOUND = _table(
    passed=_ACKS | {PacketType.PINGREQ},
    asked={PacketType.SUBSCRIBE, PacketType.UNSUBSCRIBE, PacketType.DISCONNECT},
    retain_is_a_right=True,
)
"""Device to broker. [MQTT-3.1.0-2] a second CONNECT is illegal, as is all that only a server sends, and AUTH."""
DOWNBOUND = _table(
    passed=_ACKS | {PacketType.UNSUBACK, PacketType.PINGRESP},
    asked={PacketType.CONNACK, PacketType.SUBACK, PacketType.DISCONNECT},
    retain_is_a_right=False,
)
"""Broker to device."""


class Handler(Protocol):
    """Who answers for the packets. Each method may raise CloseSession or a WireError: what came before goes through."""

    def topic_allowed(self, topic: str) -> bool: ...

    def retain_allowed(self) -> bool: ...

    def refused(self, topic: str, qos: int, packet_id: int) -> None:
        """A PUBLISH stays behind; `packet_id` is 0 for QoS 0."""
        ...

    def packet(self, first: int, body: bytes) -> bytes | None:
        """What to write instead of this packet: None for itself, b"" for nothing."""
        ...


class PacketFilter:
    """Bytes of one direction. After `stop` it swallows everything."""

    __slots__ = (
        "_dropping", "_handler", "_held", "_id_size", "_injected", "_kinds", "_left", "_need", "_size_max", "_stopped",
        "_topics", "_v5", "_write",
    )  # fmt: skip

    def __init__(
        self, kinds: bytes, version: int, handler: Handler, write: Callable[[bytes], None], size_max: int
    ) -> None:
        self._kinds = kinds
        self._v5 = version == V5
        self._handler = handler
        self._write = write
        self._size_max = size_max
        self._topics: dict[bytes, bool] = {}
        self._held = bytearray()  # the start of a packet that is not whole
        self._need = 0  # look at it again when there are so many bytes
        self._left = 0  # bytes still to come of a long PUBLISH whose head has been judged
        self._dropping = False  # they stay behind
        self._injected: deque[bytes] = deque()
        self._stopped = False

    @property
    def between_packets(self) -> bool:
        """Whether what has been written so far ends with the end of a packet."""
        return not self._left or self._dropping

    def stop(self) -> None:
        """Let nothing through any more."""
        self._stopped = True
        self._held.clear()

    def forget_topics(self) -> None:
        """The policy has changed: ask again for each topic."""
        self._topics.clear()

    def inject(self, packet: bytes) -> None:
        """Write `packet` where one packet has ended and the next has not begun.

        Raises: CloseSession: too many wait already.
        """
        if self.between_packets:
            self._write(packet)
        elif len(self._injected) < INJECTED_MAX:
            self._injected.append(packet)
        else:
            raise CloseSession(QUOTA)

    def feed(self, data: bytes) -> None:
        """Take what the one side has sent, write what the other may have.

        Raises: WireError, CloseSession: this session is over; everything before the offending packet was written.
        """
        if self._stopped:
            return
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return
            data = bytes(self._held)
            self._held.clear()
        start = pos = 0  # not yet written; being looked at
        if self._left:
            pos = min(self._left, len(data))
            self._left -= pos
            start = pos if self._dropping else 0
            if not self._left:
                self._end_of_long(data[start:pos])
                start = pos
        if pos < len(data):
            self._sift(data, start, pos)
        elif start < pos:
            self._write(data[start:pos])

    def _end_of_long(self, last: bytes) -> None:
        self._dropping = False
        if last:
            self._write(last)
        while self._injected:
            self._write(self._injected.popleft())

    def _sift(self, data: bytes, start: int, pos: int) -> None:
        # One loop on purpose: in Python a call costs as much as all the rest that is done for a packet.
        end, need = len(data), 0
        kinds, topics, v5 = self._kinds, self._topics, self._v5
        try:
            while pos < end:
                kind = kinds[data[pos]]
                if kind == _ILLEGAL:
                    raise CloseSession(PROTOCOL_ERROR)
                body = pos + 2
                if body > end:
                    need = 2
                    break
                size = data[pos + 1]
                if size > 0x7F:
                    head = remaining_length(data, pos + 1)
                    if head is None:
                        need = end - pos + 1
                        break
                    size, body = head
                    if size > (self._size_max if kind <= _PUBLISH_RETAINED else HOLD_SIZE_MAX):
                        raise CloseSession(TOO_LARGE)
                stop = body + size
                if stop > end:
                    need = self._judge_partial(data, pos, body, stop)
                    if need:
                        break
                    start, pos = self._pass_over(data, start, pos, end) if self._dropping else start, end
                    break
                if kind == _PASS:
                    pos = stop
                    continue
                if kind == _ASK:
                    instead = self._handler.packet(data[pos], data[body:stop])
                    if instead is not None:
                        start = self._pass_over(data, start, pos, stop)
                        if instead:
                            self._write(instead)
                    pos = stop
                    if self._stopped:
                        break
                    continue
                # PUBLISH: topic, then a packet identifier unless QoS 0, then in 5.0 the properties (3.3.2)
                after = body + 2
                if after > stop:
                    raise Malformed("A PUBLISH ends before its topic.")
                after += data[body] << 8 | data[body + 1]
                topic = data[body + 2 : after]
                if kind and data[pos] & 6:
                    after += 2
                if after > stop:
                    raise Malformed("A PUBLISH ends within its head.")
                if v5:
                    if after == stop:
                        raise Malformed("A PUBLISH ends before its properties.")
                    if data[after]:
                        _no_alias(data, after, stop)
                known = topics.get(topic) and kind != _PUBLISH_RETAINED
                if not (known or self._judge(topic, data[pos], data, after)):
                    start = self._pass_over(data, start, pos, stop)
                pos = stop
        except Exception:
            self._pass_over(data, start, pos, end)
            self.stop()
            raise
        self._pass_over(data, start, pos, end)
        if pos < end and not self._stopped:
            self._held = bytearray(data[pos:])
            self._need = need

    def _pass_over(self, data: bytes, start: int, pos: int, stop: int) -> int:
        """Write the run that ends at `pos`, and go on at `stop`: what is between stays behind."""
        if start < pos:
            self._write(data if start == 0 and pos == len(data) else data[start:pos])
        return stop

    def _judge(self, topic: bytes, first: int, data: bytes, after: int) -> bool:
        """Whether a PUBLISH to `topic` goes through. Not remembered, remembered as refused, or to be retained."""
        known = self._topics.get(topic)
        if known is None:
            if not topic:
                # MQTT 5.0, 3.3.2.1: an empty topic needs an alias, and there are none: CONNACK allowed 0 of them
                raise CloseSession(PROTOCOL_ERROR)
            known = self._handler.topic_allowed(topic_name(topic))
            if len(topic) <= TOPIC_SIZE_MAX:
                if len(self._topics) >= TOPICS_MAX:
                    self._topics.clear()
                self._topics[topic] = known
        if first & 1 and known:
            known = self._handler.retain_allowed()
        if not known:
            qos = first >> 1 & 3
            packet_id = int.from_bytes(data[after - 2 : after], "big") if qos else 0
            self._handler.refused(topic.decode(), qos, packet_id)
        return known

    def _judge_partial(self, data: bytes, pos: int, body: int, stop: int) -> int:
        """A packet that is not whole: how many of its bytes to wait for; 0 when its head has been judged and the
        rest may stream, or be dropped.
        """
        size, have = stop - pos, len(data) - pos
        if size <= HOLD_SIZE_MAX or data[pos] >> 4 != PacketType.PUBLISH:
            return size
        if have < HOLD_SIZE_MAX:
            return HOLD_SIZE_MAX
        fields = Fields(data, body)
        try:
            topic = fields.binary()
            if data[pos] & 6:
                fields.take(2)
            after = fields.pos
            if self._v5:
                fields.take(fields.varint())
        except Malformed:
            # Not all of the head is here. No more than three fields' worth of it is waited for.
            if have >= HEAD_SIZE_MAX:
                raise CloseSession(TOO_LARGE) from None
            return HEAD_SIZE_MAX if size > HEAD_SIZE_MAX else size
        if self._v5:
            _no_alias(data, after, fields.pos)
        self._dropping = not self._judge(topic, data[pos], data, after)
        self._left = stop - len(data)
        return 0


def _no_alias(data: bytes, pos: int, stop: int) -> None:
    """Refuse a topic alias in the properties at `pos`. Their other rules are the broker's to judge.

    Raises: CloseSession, Malformed.
    """
    fields = Fields(data, pos, stop)
    size = fields.varint()
    # An alias has its identifier somewhere; without that byte there is nothing to decode.
    if Property.TOPIC_ALIAS not in fields.take(size):
        return
    if value_of(decode_properties(Fields(data, pos, stop)), Property.TOPIC_ALIAS) is not None:
        # [MQTT-3.3.2-9] an alias greater than the maximum, which is 0, must not be sent
        raise CloseSession(ALIAS)
