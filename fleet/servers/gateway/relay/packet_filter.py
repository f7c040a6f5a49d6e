"""Sans-I/O packet filter for one direction of a session: forwards the original bytes, drops refused packets.

    packets = PacketFilter(TO_BROKER, version, handler, write, size_max)
    packets.feed(data)        # writes the longest runs of allowed bytes, each in one call
    packets.is_behind         # then feed(b"") goes on, in the event loop's next turn
    packets.inject(packet)    # a packet of our own, between two others, never inside one

The loop is the gateway's hot path: for a topic seen before, a PUBLISH costs one dict look-up. A packet is held until
it is complete, so that a device that disconnects in the middle leaves no partial packet behind; one longer than
HOLD_SIZE_MAX is judged by its head and streamed. Memory is bounded by HEAD_SIZE_MAX, whatever the packet's size.

One read may hold 100,000 packets. Of a device's, those that the handler is asked about are processed up to
JUDGED_AT_ONCE a call: the rest waits for the next one, and other sessions have their turns in between.
"""

from collections.abc import Callable
from sys import maxsize

from fleet.domain.topic_policy import is_reserved
from fleet.servers.gateway.close_reasons import PROTOCOL_ERROR, QUOTA, TOO_LARGE, CloseSession
from fleet.servers.gateway.relay.outcome import Fate, Handler, Outcome
from fleet.servers.gateway.relay.packet_actions import (
    ASK_ACKED,
    ASK_ALWAYS,
    ASK_UNACKED,
    CHECK,
    ILLEGAL,
    INSPECT,
    INSPECT_ALL,
    PASS,
    PUBLISH_ASKED,
    TO_BROKER,
)
from fleet.servers.gateway.relay.publish_head import (
    ALIAS_MARK,
    ALIAS_OR_RESPONSE_MARK,
    ALIASES_MAX,
    PROPERTIES_EACH,
    Head,
    ReceivedAliases,
    SentAliases,
    marked,
    with_topic,
)
from fleet.wire.errors import Malformed
from fleet.wire.mqtt.acks import packet_id_of
from fleet.wire.mqtt.codes import V5, PacketType
from fleet.wire.mqtt.fields import Fields
from fleet.wire.mqtt.reader import remaining_length
from fleet.wire.mqtt.topics import topic_name

HOLD_SIZE_MAX = 65_536  # a longer PUBLISH is streamed; any other longer packet is refused
HEAD_SIZE_MAX = 3 * 65_536  # topic and properties of a long PUBLISH are read before it is streamed
TOPICS_MAX = 256  # verdicts cached, of topics up to CACHED_TOPIC_SIZE_MAX bytes: at most 64 KiB for a session
CACHED_TOPIC_SIZE_MAX = 256
INJECTED_MAX = 1_024  # packets of our own that await the end of a long one
JUDGED_AT_ONCE = 256  # packets of a device that the handler is asked about, and topic filters: 1 to 2 ms

_NO_ID = b"\0\0"  # [MQTT-2.2.1-3], [MQTT-2.2.1-4]


class PacketFilter:
    """After `stop` all input is discarded."""

    __slots__ = (
        "_aliases", "_at_once", "_dropping", "_else_kinds", "_handler", "_held", "_injected", "_kinds", "_left",
        "_mark", "_need", "_room", "_sent", "_stopped", "_topics", "_v5", "_write", "growth", "is_behind", "packets",
        "size_max",
    )  # fmt: skip

    def __init__(
        self, kinds: bytes, version: int, handler: Handler, write: Callable[[bytes], None], size_max: int
    ) -> None:
        self._kinds = kinds
        self._else_kinds: bytes | None = None  # while every PUBLISH of QoS 0 is shown
        self._v5 = version == V5
        self._handler = handler
        self._write = write
        self.size_max = size_max
        """Limit of the remaining length; may be changed at any time."""
        self._aliases = ReceivedAliases(ALIASES_MAX if kinds is TO_BROKER else 0)
        self._mark = ALIAS_OR_RESPONSE_MARK if kinds is TO_BROKER else ALIAS_MARK
        self._sent: SentAliases | None = None
        self._topics: dict[bytes, bool] = {}
        self._held = bytearray()  # the start of an incomplete packet
        self._need = 0  # bytes at which it is processed again
        self._left = 0  # bytes outstanding of a long PUBLISH that is streamed
        self._dropping = False  # instead of streaming it
        self._injected: list[bytes] = []
        self._stopped = False
        self._room = self._at_once = JUDGED_AT_ONCE if kinds is TO_BROKER else maxsize
        self.is_behind = False
        """Whether packets wait for the next call of `feed`."""
        self.packets = 0
        """Complete packets, or the judged head of a long one, refused ones included: counted with each run. The handler
        adds to it for one that costs as much as several.
        """
        self.growth = 0
        """Bytes by which packets have grown, by topics in place of aliases."""

    @property
    def between_packets(self) -> bool:
        """Whether the bytes written so far end with a complete packet."""
        return not self._left or self._dropping

    def stop(self) -> None:
        """Forward nothing from now on."""
        self._stopped = True
        self._room = -1
        self.is_behind = False
        self._held.clear()

    def forget_topics(self) -> None:
        """Drop cached verdicts: the policy has changed."""
        self._topics.clear()

    def send_aliases(self, maximum: int, size_max: int | None) -> None:
        """Send up to `maximum` topic aliases from now on, in packets of at most `size_max` bytes."""
        self._kinds, self._sent = self._kinds.translate(ASK_ALWAYS), SentAliases(maximum, size_max)

    def ask_acknowledged(self) -> None:
        """Show every PUBLISH of QoS 1 to the handler from now on, as those of QoS 2."""
        self._kinds = self._kinds.translate(ASK_ACKED)

    def ask_unacknowledged(self, asks: bool) -> None:
        """Show every PUBLISH of QoS 0 to the handler from now on, or no longer each."""
        if self._else_kinds is not None:
            self._kinds, self._else_kinds = self._else_kinds, None
        if asks:
            self._kinds, self._else_kinds = self._kinds.translate(ASK_UNACKED), self._kinds

    def inspect_all(self) -> None:
        """Show every packet but PUBLISH to the handler from now on."""
        self._kinds = self._kinds.translate(INSPECT_ALL)

    def inject(self, packet: bytes) -> None:
        """Write `packet` at the next packet boundary. Raises: CloseSession: too many are waiting."""
        if self.between_packets:
            self._write(packet)
        elif len(self._injected) < INJECTED_MAX:
            self._injected.append(packet)
        else:
            raise CloseSession(QUOTA)

    def feed(self, data: bytes) -> None:
        """Process bytes from one side and write the allowed packets to the other.

        Raises: WireError, CloseSession: the session must close; packets before the offending one were written.
        """
        if self._stopped:
            return
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return
            data = bytes(self._held)
            self._held.clear()
            self.is_behind = False
        start = pos = 0  # of the bytes not yet written; of the current packet
        if self._left:
            pos = min(self._left, len(data))
            self._left -= pos
            start = pos if self._dropping else 0
            if not self._left:
                self._end_of_long(data[start:pos])
                start = pos
        if pos < len(data):
            self._room = self.packets + self._at_once
            self._filter(data, start, pos)
        elif start < pos:
            self._write(data[start:pos])

    def hold_back(self, data: bytes, need: int = 0) -> None:
        """Keep `data` for the next call of `feed`, or for one that completes `need` bytes."""
        if data and not self._stopped:
            self._held += data
            self._need, self.is_behind = need, not need

    def _end_of_long(self, last: bytes) -> None:
        if last:
            self._write(last)
        injected, self._injected = self._injected, []
        for packet in injected:
            self._write(packet)

    # One loop on purpose: in Python a call costs as much as all other work for a packet.
    def _filter(self, data: bytes, start: int, pos: int) -> None:
        end, need, count = len(data), 0, 0
        kinds, topics, v5 = self._kinds, self._topics, self._v5
        try:
            while pos < end:
                kind = kinds[data[pos]]
                if kind == ILLEGAL:
                    raise CloseSession(PROTOCOL_ERROR)
                if end - pos < 2:
                    break
                size, body = data[pos + 1], pos + 2
                if size > 0x7F:
                    head = self._long_size(data, pos, kind)
                    if head is None:
                        break
                    size, body = head
                stop = body + size
                if stop > end:
                    need, start = self._partial(data, start, pos, body, stop)
                    pos = pos if need else end
                    break
                count += 1
                if kind >= PASS:
                    if kind == INSPECT or (kind == CHECK and (size != 2 or not (data[body + 1] or data[body]))):
                        start = self._inspect(data, start, pos, body, stop)
                        if self._room <= self.packets:
                            end = stop
                    pos = stop
                    continue
                # PUBLISH: topic, then a packet identifier unless QoS 0, then in 5.0 the properties (3.3.2)
                after = body + 2
                if after > stop:
                    raise Malformed("A PUBLISH ends before its topic.")
                after += data[body] << 8 | data[body + 1]
                topic = data[body + 2 : after]
                if kind and data[pos] & 6:
                    after += 2
                    if data[after - 2 : after] == _NO_ID:
                        raise Malformed("A packet identifier is 0.")
                if after > stop:
                    raise Malformed("A PUBLISH ends within its head.")
                found = marked(data, after, stop, self._mark) if v5 and (after == stop or data[after]) else None
                if found is not None or kind == PUBLISH_ASKED or not topics.get(topic):
                    start = self._publish(Head(topic, pos, after, stop, found), data, start)
                    if self._room <= self.packets:
                        end = stop
                elif stop + stop - pos <= end:
                    same = self._count_same(data, pos, body + 2 + len(topic), after, stop)
                    count += same
                    stop += same * (stop - pos)
                pos = stop
        except Exception:
            self.stop()
            raise
        finally:
            is_behind = self._room <= self.packets
            self.packets += count
            self._flush(data, start, pos, end)
        if pos < len(data):
            self.hold_back(data[pos:], 0 if is_behind else need or end - pos + 1)

    def _long_size(self, data: bytes, pos: int, kind: int) -> tuple[int, int] | None:
        """Size of the packet's body and where it begins; None: its remaining length is incomplete."""
        head = remaining_length(data, pos + 1)
        if head is not None and (head[0] > self.size_max or (head[0] > HOLD_SIZE_MAX and kind > PUBLISH_ASKED)):
            raise CloseSession(TOO_LARGE)
        return head

    def _count_same(self, data: bytes, pos: int, head_end: int, after: int, stop: int) -> int:
        """Number of packets behind the PUBLISH at `pos` that are as long, with the same head to the end of the topic
        and, in 5.0, no properties: like it, they are forwarded.
        """
        head, size, properties, v5 = data[pos:head_end], stop - pos, after - pos, self._v5
        count, at, last = 0, stop, len(data) - size
        while at <= last and data.startswith(head, at) and not (v5 and data[at + properties]):
            at += size
            count += 1
        if data[pos] & 6:
            ids_at = stop + properties - 2
            if 0 in data[ids_at + 1 : at : size]:  # the low bytes
                ids = [data[each : each + 2] for each in range(ids_at, at, size)]
                count = ids.index(_NO_ID) if _NO_ID in ids else count
                at = stop + count * size
        return count

    def _flush(self, data: bytes, start: int, pos: int, stop: int) -> int:
        """Write the run from `start` to `pos`, skip to `stop`, and return that: the start of the next run."""
        if start < pos:
            self._write(data if start == 0 and pos == len(data) else data[start:pos])
        return stop

    def _inspect(self, data: bytes, start: int, pos: int, body: int, stop: int) -> int:
        """Let the handler keep, replace or drop the packet at `pos`. Returns the start of the current run."""
        self._room -= 1
        outcome = self._handler.packet(data[pos], data[body:stop])
        if outcome is Fate.FORWARDED:
            return start
        start = self._flush(data, start, pos, stop)
        if outcome is not Fate.DROPPED:
            self._write(outcome)
        return start

    def _publish(self, head: Head, data: bytes, start: int) -> int:
        """Keep, replace or drop a PUBLISH: its verdict is not cached, or a refusal, or it is asked for, or its
        properties count. Returns the start of the current run.
        """
        self._room -= 1
        is_known = head.topic in self._topics
        outcome = self._judge(head, data)
        if outcome is Fate.DROPPED:
            return self._flush(data, start, head.pos, head.stop)
        if outcome is not Fate.FORWARDED:
            self._flush(data, start, head.pos, head.stop)
            self._write(outcome + head.payload(data))
            return head.stop
        if self._sent is not None and is_known and (shorter := self._sent.shorten(head, data)):
            self._flush(data, start, head.pos, head.stop)
            self._write(shorter)
            return head.stop
        return start

    def _judge(self, head: Head, data: bytes) -> Outcome:
        """What becomes of a PUBLISH; bytes: in place of its head, up to the payload."""
        outcome: Outcome = Fate.FORWARDED
        topic, found, size = head.topic, head.marked, head.stop - head.pos
        if found is not None:
            self.packets += len(found.properties) // PROPERTIES_EACH
        if found is not None and found.alias is not None:
            topic = self._aliases.topic(found.alias, topic)
            outcome = with_topic(topic, head, found, data)
            size = len(outcome) + head.stop - found.payload_at
            if size > self.size_max:
                raise CloseSession(TOO_LARGE)
            self.growth += max(0, size - (head.stop - head.pos))
        allowed = self._allowed(topic)
        qos, retain = data[head.pos] >> 1 & 3, bool(data[head.pos] & 1)
        if allowed and (qos or retain):
            allowed = self._handler.flags_allowed(topic, qos=qos, retain=retain)
        packet_id = packet_id_of(head.packet_id(data))  # 0 for QoS 0
        if not allowed:
            self._handler.refused(topic.decode(), qos, packet_id)
        elif found is not None and found.response is not None and not self._handler.response_allowed(found.response):
            self._handler.response_refused(found.response, qos, packet_id)
            allowed = False
        elif retain and not self._handler.may_retain(
            topic.decode(), qos, packet_id, head.payload_size(data, v5=self._v5)
        ):
            allowed = False
        elif qos != 1:
            allowed = self._handler.hold(topic.decode(), packet_id, size)
        return outcome if allowed else Fate.DROPPED

    def _allowed(self, topic: bytes) -> bool:
        known = self._topics.get(topic)
        if known is None:
            if not topic:
                # MQTT 5.0, 3.3.2.1: an empty topic needs an alias
                raise CloseSession(PROTOCOL_ERROR)
            known = self._handler.topic_allowed(name := topic_name(topic))
            if len(topic) <= CACHED_TOPIC_SIZE_MAX and not is_reserved(name):  # there RETAIN is judged each time
                if len(self._topics) >= TOPICS_MAX:
                    self._topics.clear()
                self._topics[topic] = known
        return known

    def _partial(self, data: bytes, start: int, pos: int, body: int, stop: int) -> tuple[int, int]:
        """Judge the head of an incomplete packet, if it is there. Returns the bytes to wait for, 0 when the rest is
        streamed or dropped, and the start of the current run.
        """
        size, have = stop - pos, len(data) - pos
        if size <= HOLD_SIZE_MAX or data[pos] >> 4 != PacketType.PUBLISH:
            return size, start
        if have < HOLD_SIZE_MAX:
            return HOLD_SIZE_MAX, start
        fields = Fields(data, body)
        try:
            topic = fields.binary()
            has_no_id = data[pos] & 6 and fields.take(2) == _NO_ID
            after = fields.pos
            if self._v5:
                fields.take(fields.varint())
        except Malformed:
            # The head is incomplete. At most three fields' worth of it is awaited.
            if have >= HEAD_SIZE_MAX:
                raise CloseSession(TOO_LARGE) from None
            return min(size, HEAD_SIZE_MAX), start
        if has_no_id:
            raise Malformed("A packet identifier is 0.")
        found = marked(data, after, fields.pos, self._mark) if self._v5 else None
        head = Head(topic, pos, after, stop, found)
        outcome = self._judge(head, data)
        self._left = stop - len(data)
        self._dropping = outcome is Fate.DROPPED
        self.packets += 1
        if outcome is Fate.FORWARDED:
            return 0, start
        start = self._flush(data, start, pos, len(data))
        if outcome is not Fate.DROPPED:
            self._write(outcome + head.payload(data))
        return 0, start
