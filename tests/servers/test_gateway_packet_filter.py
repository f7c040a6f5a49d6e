"""What goes through the gateway and what stays behind, wherever the stream is cut."""

import itertools
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.domain.mqtt_rules import MqttRules, OnDenied
from fleet.domain.topic_policy import TopicPolicy
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason, CloseSession
from fleet.servers.gateway.relay.device_packets import UNRELEASED_MAX
from fleet.servers.gateway.relay.outcome import Fate, Outcome
from fleet.servers.gateway.relay.packet_actions import TO_BROKER, TO_DEVICE
from fleet.servers.gateway.relay.packet_filter import HEAD_SIZE_MAX, HOLD_SIZE_MAX, TOPICS_MAX, PacketFilter
from fleet.servers.gateway.relay.reason_strings import FILTERS, TOPIC_REFUSED
from fleet.wire.errors import Malformed, WireError
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, Reason
from fleet.wire.mqtt.connect import Connect, encode_connect
from fleet.wire.mqtt.fields import encode_packet, encode_varint
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.reader import PacketReader
from fleet.wire.mqtt.subscribe import (
    Unsubscribe,
)
from tests.mqtt_packets import encode_unsubscribe
from tests.servers.gateway_relay_harness import SIZE_MAX, VERSIONS, RelayHarness, chunks


def good_stream(harness: RelayHarness) -> bytes:
    """Everything that a device may send, QoS 0 to 2, and nothing that is refused."""
    return b"".join(
        (
            harness.publish("up/a"),
            harness.publish("up/a", 1),
            harness.subscribe("down/#", "news/+"),
            acks.PINGREQ,
            harness.publish("up/b/c", 2, payload=b"y" * 150),
            acks.acknowledge(acks.PUBREL, 5, harness.version),
            acks.acknowledge(acks.PUBACK, 9, harness.version),
            acks.acknowledge(acks.PUBREC, 9, harness.version, Reason.UNSPECIFIED),
            acks.acknowledge(acks.PUBCOMP, 9, harness.version),
            encode_unsubscribe(Unsubscribe(3, ("down/#", "other")), harness.version),
            harness.publish("up/a", payload=b"z" * 20_000),
            acks.disconnect(harness.version),
        )
    )


# What goes through


@VERSIONS
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 100_000])
def test_what_is_allowed_goes_through_as_it_came(version: int, size: int) -> None:
    harness = RelayHarness(version)
    stream = good_stream(harness)
    for chunk in chunks(stream, size):
        harness.relay.from_device(chunk)
    assert harness.to_broker == stream
    assert not harness.to_device
    assert harness.relay.closing is close_reasons.CLIENT_DISCONNECTED


@VERSIONS
def test_cut_at_every_byte(version: int) -> None:
    stream = b"".join(
        (
            RelayHarness(version).publish("up/a", 1),
            RelayHarness(version).subscribe("#", "news/x", packet_id=4),
            RelayHarness(version).publish("up/b", 2),
            RelayHarness(version).subscribe("#", packet_id=6),
            acks.PINGREQ,
        )
    )
    whole = RelayHarness(version)
    whole.relay.from_device(stream)
    for cut in range(len(stream) + 1):
        harness = RelayHarness(version)
        harness.relay.from_device(stream[:cut])
        harness.relay.from_device(stream[cut:])
        assert harness.to_broker == whole.to_broker
        assert harness.to_device == whole.to_device


@VERSIONS
def test_many_packets_leave_in_one_write(version: int) -> None:
    harness = RelayHarness(version)
    stream = harness.publish("up/a") * 1000
    harness.relay.from_device(stream)
    assert harness.to_broker == stream
    assert harness.writes == 1


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1])
def test_each_packet_of_a_run_is_judged_as_by_itself(version: int, qos: int) -> None:
    """One octet of a packet in the middle differs: what comes of it is the same as when each octet comes alone."""

    def outcome(stream: bytes, size: int) -> tuple[bytes, bytes, int, object]:
        harness = RelayHarness(version)
        reason: object = None
        try:
            for chunk in chunks(stream, size):
                harness.relay.from_device(chunk)
        except CloseSession as closing:
            reason = closing.reason
        except WireError as error:
            reason = type(error)
        packets = harness.relay.to_broker.packets if reason is None else 0
        return bytes(harness.to_broker), bytes(harness.to_device), packets, reason

    packet = RelayHarness(version).publish("up/a", qos, payload=b"\x23\x00\x01 and more")
    for place in range(len(packet)):
        for value in {0, 1, packet[place] ^ 1, packet[place] + 1 & 0xFF, 0x23, 0x32, 0x80, 0xFF}:
            odd = packet[:place] + bytes([value]) + packet[place + 1 :]
            stream = packet * 3 + odd + packet * 2
            assert outcome(stream, len(stream)) == outcome(stream, 1)


@VERSIONS
def test_nothing_follows_a_disconnect(version: int) -> None:
    harness = RelayHarness(version)
    harness.relay.from_device(acks.disconnect(version) + harness.publish("up/a"))
    harness.relay.from_device(harness.publish("up/a"))
    assert harness.to_broker == acks.disconnect(version)


@VERSIONS
@pytest.mark.parametrize("size", [1000, 65_536, 65_537, 1 << 20])
def test_a_long_publish_streams(version: int, size: int) -> None:
    harness = RelayHarness(version)
    stream = harness.publish("up/a", 1, payload=bytes(250_000)) + harness.publish("up/a")
    for chunk in chunks(stream, size):
        harness.relay.from_device(chunk)
    assert harness.to_broker == stream


def test_a_long_publish_starts_before_it_is_whole() -> None:
    harness = RelayHarness(V311)
    stream = harness.publish("up/a", payload=bytes(250_000))
    harness.relay.from_device(stream[:100_000])
    assert len(harness.to_broker) == 100_000


def test_a_long_publish_starts_only_with_64_kib_of_its_own() -> None:
    harness = RelayHarness(V311)
    good, long = harness.publish("up/a") * 9_000, harness.publish("up/a", payload=bytes(250_000))
    harness.relay.from_device(good + long[:65_535])
    assert harness.to_broker == good
    harness.relay.from_device(long[65_535:65_536])
    assert harness.to_broker == good + long[:65_536]


def test_a_short_publish_waits_until_it_is_whole() -> None:
    harness = RelayHarness(V311)
    stream = harness.publish("up/a", payload=bytes(50_000))
    harness.relay.from_device(stream[:-1])
    assert not harness.to_broker
    harness.relay.from_device(stream[-1:])
    assert harness.to_broker == stream


def test_a_padded_length_goes_through_as_it_came() -> None:
    harness = RelayHarness(V311)
    packet = b"\x30\x86\x80\x80\x00\x00\x04up/a"
    for chunk in chunks(packet, 1):
        harness.relay.from_device(chunk)
    assert harness.to_broker == packet


def test_a_length_that_is_cut_needs_only_its_own_bytes() -> None:
    harness = RelayHarness(V311)
    good, packet = harness.publish("up/a") * 100, b"\x30\x86\x80\x80\x00\x00\x04up/a"
    for cut in range(1, len(packet)):
        harness.to_broker.clear()
        harness.relay.from_device(good + packet[:cut])
        harness.relay.from_device(packet[cut:])
        assert harness.to_broker == good + packet


# PUBLISH that is refused


@pytest.mark.parametrize("topic", ["other", "up", "u", "upp/x", "$SYS/x", "devices/b/up"])
def test_a_refused_publish_of_311_ends_the_session_where_the_model_says_so(topic: str) -> None:
    for qos in (0, 1, 2):
        harness = RelayHarness(V311, TopicPolicy(("up/+",), ()))
        harness.relay.rules = MqttRules(OnDenied.CLOSE)
        good = harness.publish("up/a")
        assert harness.ends(good + harness.publish(topic, qos) + good) is close_reasons.PUBLISH_REFUSED
        assert harness.to_broker == good
        assert not harness.to_device
        assert harness.notes == [("mqtt.publish", "refused", topic)]


@pytest.mark.parametrize(("qos", "answer"), [(0, b""), (1, b"\x40\x02\x00\x05"), (2, b"\x50\x02\x00\x05")])
@pytest.mark.parametrize("topic", ["other", "up", "u", "upp/x", "$SYS/x", "devices/b/up"])
def test_a_refused_publish_of_311_is_acknowledged_and_dropped(topic: str, qos: int, answer: bytes) -> None:
    harness = RelayHarness(V311, TopicPolicy(("up/+",), ()))
    good = harness.publish("up/a")
    for _ in range(2):  # judged, then remembered
        harness.relay.from_device(good + harness.publish(topic, qos) + good)
    assert harness.to_broker == good * 4
    assert harness.to_device == answer * 2
    assert harness.notes == [("mqtt.publish", "refused", topic)] * 2


def test_the_handshake_of_a_dropped_qos_2_message_is_ended_by_us_and_any_other_by_the_broker() -> None:
    harness = RelayHarness(V311)
    release = [acks.acknowledge(acks.PUBREL, packet_id, V311) for packet_id in (5, 6)]
    harness.relay.from_device(harness.publish("other", 2, 5) + harness.publish("up/a", 2, 6))
    harness.to_broker.clear()
    harness.to_device.clear()
    for chunk in chunks(release[0] + release[1] + release[0], 1):  # the last is of a session that we know nothing of
        harness.relay.from_device(chunk)
    assert harness.to_device == acks.acknowledge(acks.PUBCOMP, 5, V311)
    assert harness.to_broker == release[1] + release[0]
    assert harness.relay.answers == 2


def test_dropped_qos_2_messages_held_are_bounded() -> None:
    harness = RelayHarness(V311)
    ids = range(1, UNRELEASED_MAX + 3)
    for packet_id in ids:
        harness.relay.from_device(harness.publish("other", 2, packet_id))
    for packet_id in ids:
        harness.relay.from_device(acks.acknowledge(acks.PUBREL, packet_id, V311))
    over = ids[UNRELEASED_MAX:]
    assert harness.to_broker == b"".join(acks.acknowledge(acks.PUBREL, packet_id, V311) for packet_id in over)


@pytest.mark.parametrize(("qos", "first"), [(0, 0), (1, acks.PUBACK), (2, acks.PUBREC)])
def test_a_refused_publish_of_50_is_answered(qos: int, first: int) -> None:
    harness = RelayHarness(V5)
    answer = acks.acknowledge(first, 5, V5, Reason.NOT_AUTHORIZED, TOPIC_REFUSED) if qos else b""
    good = harness.publish("up/a")
    for _ in range(2):  # asked about, then remembered
        harness.relay.from_device(good + harness.publish("other", qos) + good)
    assert harness.to_broker == good * 4
    assert harness.to_device == answer * 2


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_a_long_refused_publish_stays_behind(size: int) -> None:
    harness = RelayHarness(V5)
    good = harness.publish("up/a")
    for chunk in chunks(good + harness.publish("other", 1, payload=bytes(250_000)) + good, size):
        harness.relay.from_device(chunk)
    assert harness.to_broker == good * 2
    assert harness.to_device == acks.acknowledge(acks.PUBACK, 5, V5, Reason.NOT_AUTHORIZED, TOPIC_REFUSED)


def test_the_answers_remembered_are_bounded() -> None:
    harness = RelayHarness(V5)
    stream = b"".join(harness.publish(f"up/{n}") for n in range(3 * TOPICS_MAX))
    harness.relay.from_device(stream)
    assert harness.to_broker == stream
    assert len(harness.relay.to_broker._topics) <= TOPICS_MAX
    harness.relay.from_device(harness.publish("up/" + "x" * 300))
    assert all(len(topic) <= 256 for topic in harness.relay.to_broker._topics)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"\x00\x00", close_reasons.PROTOCOL_ERROR),  # no topic
        (b"\x00\x04up/#", None),
        (b"\x00\x04up/\xff", None),
        (b"\x00\x04up/\x00", None),
        (b"\x00\x09up/", None),
        (b"\x00", None),
        (b"", None),
    ],
)
def test_topics_that_are_none(body: bytes, expected: CloseReason | None) -> None:
    for version, qos in itertools.product((V311, V5), (0, 2)):
        harness = RelayHarness(version)
        packet = encode_packet(
            0x30 | qos << 1, body + (b"\x00\x01" if qos else b"") + (b"\x00" if version == V5 else b"")
        )
        for _ in range(2):
            if expected is not None:
                assert harness.ends(packet) is expected
            else:
                with pytest.raises(WireError):
                    harness.relay.from_device(packet)
            assert not harness.to_broker
            harness = RelayHarness(version)


# RETAIN


class Verdicts:
    """A Handler that records what it is asked, and allows every topic but `other`."""

    def __init__(self, *, retain: bool) -> None:
        self.retain = retain
        self.asked: list[str] = []
        self.retains = 0
        self.refusals: list[tuple[str, int, int]] = []

    def topic_allowed(self, topic: str) -> bool:
        self.asked.append(topic)
        return topic != "other"

    def hold(self, topic: str, packet_id: int, size: int) -> bool:
        return True

    def may_retain(self, topic: str, qos: int, packet_id: int, size: int) -> bool:
        return True

    def response_allowed(self, topic: str) -> bool:
        return True

    def response_refused(self, topic: str, qos: int, packet_id: int) -> None:
        raise AssertionError(topic)

    def flags_allowed(self, topic: bytes, *, qos: int, retain: bool) -> bool:
        self.retains += retain
        return self.retain or not retain

    def refused(self, topic: str, qos: int, packet_id: int) -> None:
        self.refusals.append((topic, qos, packet_id))

    def packet(self, first: int, body: bytes) -> Outcome:
        return Fate.FORWARDED


def filter_with(handler: Verdicts, version: int, kinds: bytes = TO_BROKER) -> tuple[PacketFilter, bytearray]:
    written = bytearray()
    return PacketFilter(kinds, version, handler, written.extend, SIZE_MAX), written


def message(version: int, qos: int, *, retain: bool, topic: str = "up/a", payload: bytes = b"") -> bytes:
    return encode_publish(Publish(topic, payload, qos, 0x0102 if qos else 0, retain), version)


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_retain_is_checked_for_every_message(version: int, qos: int, size: int) -> None:
    plain, retained = (message(version, qos, retain=retain, payload=b"\xff" * size) for retain in (False, True))
    for allowed in (True, False):
        handler = Verdicts(retain=allowed)
        packets, written = filter_with(handler, version)
        for chunk in chunks(plain + retained + plain + retained, 70_000):
            packets.feed(chunk)
        assert written == (plain + retained if allowed else plain) * 2
        assert handler.refusals == ([] if allowed else [("up/a", qos, 0x0102 if qos else 0)] * 2)
        assert handler.asked == ["up/a"]
        assert handler.retains == 2


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_retained_message_to_a_refused_topic_is_refused_once(version: int, qos: int) -> None:
    handler = Verdicts(retain=True)
    packets, written = filter_with(handler, version)
    packets.feed(message(version, qos, retain=True, topic="other") + message(version, qos, retain=True))
    assert written == message(version, qos, retain=True)
    assert handler.refusals == [("other", qos, 0x0102 if qos else 0)]


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_each_retained_message_to_the_device_is_shown(version: int, qos: int) -> None:
    handler = Verdicts(retain=True)
    packets, written = filter_with(handler, version, TO_DEVICE)
    packets.feed(message(version, qos, retain=True) * 3)
    assert written == message(version, qos, retain=True) * 3
    assert handler.retains == 3  # they count


# Limits, to the byte


@pytest.mark.parametrize(("size", "streams"), [(65_536, False), (65_537, True)])
def test_a_publish_of_more_than_64_kib_is_streamed(size: int, streams: bool) -> None:
    head = b"\x30" + encode_varint(size - 4) + b"\0\4up/a"
    packets, written = filter_with(Verdicts(retain=True), V311)
    packets.feed(head + bytes(65_535 - len(head)))
    assert not written
    packets.feed(b"x" * (size - 65_536))
    assert len(written) == (65_536 if streams else 0)
    packets.feed(b"x")
    assert len(written) == size


@pytest.mark.parametrize("first", [0x82, 0x40])
def test_other_packets_have_at_most_64_kib(first: int) -> None:
    packets, written = filter_with(Verdicts(retain=True), V311)
    for cut in (65_540, 65_539, 65_536, 65_535, 5, 4, 1):
        packet = encode_packet(first, bytes(65_536))
        written.clear()
        packets.feed(packet[:cut])
        assert not written or cut == len(packet)
        packets.feed(packet[cut:])
        assert written == packet
    with pytest.raises(CloseSession):
        packets.feed(bytes((first,)) + encode_varint(65_537))


def test_the_largest_publish() -> None:
    packets, written = filter_with(Verdicts(retain=True), V311)
    packets.feed(message(V311, 0, retain=False, payload=bytes(SIZE_MAX - 6)))
    assert len(written) == SIZE_MAX + 4
    with pytest.raises(CloseSession):
        packets.feed(b"\x30" + encode_varint(SIZE_MAX + 1))


def test_a_head_of_at_most_192_kib() -> None:
    for size, refused in ((196_607, False), (196_608, True)):
        packet = with_properties(encode_varint(190_000 * 5) + b"\x26\0\0\0\0" * 190_000)
        packets = PacketFilter(TO_BROKER, V5, Verdicts(retain=True), bytearray().extend, 1 << 24)
        if refused:
            with pytest.raises(CloseSession):
                packets.feed(packet[:size])
        else:
            packets.feed(packet[:size])
            assert packets._need == 196_608
    packets, written = filter_with(Verdicts(retain=True), V5)
    packet = with_properties(encode_varint(70_000) + b"\x26\0\0\0\0" * 14_000)
    packets.feed(packet[:65_536])
    assert packets._need == len(packet)  # which is less
    packets.feed(packet[65_536:])
    assert written == packet


def test_256_topics_of_256_bytes_are_cached() -> None:
    handler = Verdicts(retain=True)
    packets, _ = filter_with(handler, V311)
    names = [f"{n:0256}" for n in range(256)]
    for _ in range(2):
        for name in names:
            packets.feed(message(V311, 0, retain=False, topic=name))
    assert handler.asked == names
    packets.feed(message(V311, 0, retain=False, topic="x" * 257) * 2)
    assert handler.asked[256:] == ["x" * 257] * 2  # too long
    packets.feed(message(V311, 0, retain=False, topic="one more"))
    packets.feed(message(V311, 0, retain=False, topic=names[0]))
    assert handler.asked[258:] == ["one more", names[0]]


def test_1024_packets_of_our_own_may_wait() -> None:
    packets, written = filter_with(Verdicts(retain=True), V311)
    packets.feed(message(V311, 0, retain=False, payload=bytes(100_000))[:70_000])
    for _ in range(1024):
        packets.inject(b"!")
    with pytest.raises(CloseSession):
        packets.inject(b"!")
    packets.feed(bytes(100_000 + 10 - 70_000))
    assert written == message(V311, 0, retain=False, payload=bytes(100_000)) + b"!" * 1024
    assert packets.between_packets


def test_a_packet_of_our_own_need_not_wait_for_one_that_is_dropped() -> None:
    packets, written = filter_with(Verdicts(retain=True), V311)
    long = message(V311, 1, retain=False, topic="other", payload=bytes(100_000))
    packets.feed(long[:70_000])
    packets.inject(b"!")
    assert written == b"!"
    packets.feed(long[70_000:] + message(V311, 0, retain=False))
    assert written == b"!" + message(V311, 0, retain=False)


# Topic aliases


def with_properties(properties: bytes, topic: bytes = b"up/a", payload: bytes = b"") -> bytes:
    return encode_packet(0x30, len(topic).to_bytes(2, "big") + topic + properties + payload)


@pytest.mark.parametrize("alias", [b"\x00\x00", b"\x00\x11", b"\xff\xff"])
def test_an_alias_over_the_maximum_ends_the_session(alias: bytes) -> None:
    for topic in (b"up/a", b""):
        harness = RelayHarness(V5)
        harness.relay.from_device(harness.publish("up/a"))
        assert harness.ends(with_properties(b"\x03\x23" + alias, topic)) is close_reasons.ALIAS


@pytest.mark.parametrize("alias", [b"\x00\x00", b"\x00\x11"])
def test_an_alias_over_the_maximum_in_a_long_publish_ends_the_session(alias: bytes) -> None:
    packet = with_properties(b"\x03\x23" + alias, payload=bytes(100_000))
    for size in (1000, 1 << 20):
        harness = RelayHarness(V5)
        with pytest.raises(CloseSession) as caught:
            for chunk in chunks(packet, size):
                harness.relay.from_device(chunk)
        assert caught.value.reason is close_reasons.ALIAS


def test_an_alias_of_the_broker_ends_the_session() -> None:
    for topic in (b"down/a", b""):
        harness = RelayHarness(V5)
        assert harness.ends(with_properties(b"\x03\x23\x00\x01", topic), from_broker=True) is close_reasons.ALIAS


def test_other_properties_go_through() -> None:
    harness = RelayHarness(V5)
    # The byte 0x23 as part of a content type, "##", is no alias.
    stream = with_properties(b"\x05\x03\x00\x02##") + with_properties(b"\x02\x01\x01")
    harness.relay.from_device(stream)
    assert harness.to_broker == stream


def test_properties_that_run_over() -> None:
    for properties in (b"\x20\x01\x01", b"\x80\x00", b"\xff\xff\xff\xff\x7f", b"\x03\x23\x00", b""):
        with pytest.raises(Malformed):
            RelayHarness(V5).relay.from_device(with_properties(properties))


def test_a_head_that_never_ends() -> None:
    # Properties of 250 KB: no more than HEAD_SIZE_MAX of them is held.
    packet = with_properties(b"\x90\xa1\x0f" + bytes(250_000))
    harness = RelayHarness(V5)
    with pytest.raises(CloseSession) as caught:
        for chunk in chunks(packet, 5000):
            harness.relay.from_device(chunk)
            assert len(harness.relay.to_broker._held) <= HEAD_SIZE_MAX
    assert caught.value.reason is close_reasons.TOO_LARGE
    assert not harness.to_broker


# What is not a device's to send, and sizes


@VERSIONS
@pytest.mark.parametrize("first", [0x10, 0x20, 0x90, 0xB0, 0xD0, 0xF0, 0x00, 0x36, 0x80, 0x60, 0xE1])
def test_packets_that_end_the_session_at_their_first_byte(version: int, first: int) -> None:
    harness = RelayHarness(version)
    good = harness.publish("up/a")
    assert harness.ends(good + bytes((first,))) is close_reasons.PROTOCOL_ERROR
    assert harness.to_broker == good
    harness.relay.from_device(good)
    assert harness.to_broker == good  # nothing goes through any more


@VERSIONS
def test_a_second_connect(version: int) -> None:
    harness = RelayHarness(version)
    assert harness.ends(encode_connect(Connect(version, "cam"))) is close_reasons.PROTOCOL_ERROR


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_sizes_over_the_caps(size: int) -> None:
    for packet in (
        encode_packet(0x30, b"\x00\x04up/a" + bytes(SIZE_MAX)),
        encode_packet(0x82, bytes(HOLD_SIZE_MAX + 1)),
        encode_packet(0x40, bytes(HOLD_SIZE_MAX + 1)),
        b"\x30\xff\xff\xff\x7f",
    ):
        harness = RelayHarness(V311)
        with pytest.raises(CloseSession) as caught:
            for chunk in chunks(packet, size):
                harness.relay.from_device(chunk)
        assert caught.value.reason is close_reasons.TOO_LARGE
        assert not harness.to_broker


def test_a_length_that_never_ends() -> None:
    with pytest.raises(Malformed):
        RelayHarness(V311).relay.from_device(b"\x30\x80\x80\x80\x80")


# Garbage


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([V311, V5]), st.lists(st.binary(max_size=40), max_size=5))
def test_garbage_raises_nothing_else(version: int, parts: list[bytes]) -> None:
    harness = RelayHarness(version)
    for part in parts:
        try:
            harness.relay.from_device(part)
        except (CloseSession, WireError):
            break


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([V311, V5]), st.data())
def test_a_damaged_stream_never_lets_a_forbidden_topic_through(version: int, data: st.DataObject) -> None:
    harness = RelayHarness(version, TopicPolicy(("up/a",), ()))
    stream = bytearray(harness.publish("up/a", 1) + harness.publish("up/a") + acks.PINGREQ + harness.publish("up/a", 2))
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CloseSession, WireError):
        harness.relay.from_device(bytes(stream))
    for packet in PacketReader().feed(bytes(harness.to_broker)):
        if packet.first >> 4 == 3:
            assert packet.body.startswith(b"\x00\x04up/a")


# What mosquitto rejects


def raw(first: int, body: bytes) -> bytes:
    return bytes((first, len(body))) + body


BOTH = [
    *(raw(first, body) for first in (0x40, 0x50, 0x62, 0x70) for body in (b"", b"\1", b"\0\0", b"\0\1\xff")),
    raw(0x32, b"\0\4up/t\0\0"),
    raw(0xC0, b"x"),
    raw(0xA2, b"\0\1\0\6down/\1"),
]
ONLY_V5 = [
    *(raw(first, body) for first in (0x40, 0x50) for body in (b"\0\1\x92", b"\0\1\0\1", b"\0\1\0\0x")),
    *(raw(first, body) for first in (0x62, 0x70) for body in (b"\0\1\x10", b"\0\1\0\2\x11\0", b"\0\1\0\0x")),
    raw(0x40, b"\0\1\0\4\x1f\0\1\x07"),
    raw(0x40, b"\0\1\0\7\x26\0\1a\0\1\x7f"),
]


@pytest.mark.parametrize(
    ("version", "packet"),
    [*((version, packet) for version in (V311, V5) for packet in BOTH), *((V5, packet) for packet in ONLY_V5)],
)
def test_a_packet_that_would_end_the_brokers_connection_is_malformed(version: int, packet: bytes) -> None:
    harness = RelayHarness(version)
    before = harness.publish("up/t")
    with pytest.raises(Malformed):
        harness.relay.from_device(before + packet)
    assert harness.to_broker == before


@VERSIONS
@pytest.mark.parametrize("number", [1, 0x1F, 0x7F, 0x9F, 0xFDD0, 0xFDEF, 0xFFFE, 0xFFFF, 0x1FFFE, 0x10FFFF])
def test_characters_that_no_topic_may_have(version: int, number: int) -> None:
    harness = RelayHarness(version)
    with pytest.raises(Malformed):
        harness.relay.from_device(harness.publish(f"up/{chr(number)}"))
    harness = RelayHarness(version)
    harness.relay.from_device(harness.subscribe(f"down/{chr(number)}"))
    assert not harness.to_broker
    code = Reason.TOPIC_FILTER_INVALID if version == V5 else 0x80
    assert harness.to_device == harness.explained(code, text=FILTERS[Reason.TOPIC_FILTER_INVALID]) or version == V311
    harness.relay.from_broker(harness.publish(f"down/{chr(number)}"))  # that is between the broker and its sender
    assert harness.to_device.endswith(harness.publish(f"down/{chr(number)}"))


@VERSIONS
@pytest.mark.parametrize("number", [0x20, 0x7E, 0xA0, 0xFDCF, 0xFDF0, 0xFFFD, 0x10000, 0x10FFFD])
def test_characters_next_to_them(version: int, number: int) -> None:
    harness = RelayHarness(version)
    packets = harness.publish(f"up/{chr(number)}") + harness.subscribe(f"down/{chr(number)}")
    harness.relay.from_device(packets)
    assert harness.to_broker == packets


@VERSIONS
@pytest.mark.parametrize("at", [0, 1, 256, 299])
def test_a_run_of_messages_ends_before_the_identifier_0(version: int, at: int) -> None:
    harness = RelayHarness(version)
    first = harness.publish("up/t", 1, 7)
    good = b"".join(harness.publish("up/t", 1, packet_id) for packet_id in range(1, at + 1))
    with pytest.raises(Malformed):
        harness.relay.from_device(first + good + harness.publish("up/t", 1, 0) + harness.publish("up/t", 1, 9))
    assert harness.to_broker == first + good


@VERSIONS
def test_a_long_message_with_the_identifier_0(version: int) -> None:
    harness = RelayHarness(version)
    with pytest.raises(Malformed):
        harness.relay.from_device(harness.publish("up/t", 1, 0, bytes(200_000)))
    assert not harness.to_broker


def test_acknowledgements_with_reasons() -> None:
    harness = RelayHarness(V5)
    packets = (
        raw(0x40, b"\0\1\x10") + raw(0x50, b"\0\1\x80\4\x1f\0\1x") + raw(0x62, b"\0\1\x92") + raw(0x70, b"\0\1\0\0")
    )
    harness.relay.from_device(packets)
    assert harness.to_broker == packets
