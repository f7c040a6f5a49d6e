"""The outbox and the line feed: bounded, in order, nothing dropped for something newer."""

import os

import pytest

from device_agent.config.topics import topic_for
from device_agent.errors import SendRefused
from device_agent.spool.line_reader import LINE_SIZE_MAX, LineReader
from device_agent.spool.message_queue import Message
from device_agent.spool.outbox import PAYLOAD_SIZE_MAX, QUEUE_SIZE_MAX, Outbox
from fleet.est_client.errors import BadConfig


def message(text: str, qos: int = 1) -> Message:
    return Message("t", text.encode(), qos)


def send_all(outbox: Outbox, window: int = 10, first: int = 1) -> list[bytes]:
    sent: list[bytes] = []
    while (each := outbox.next_to_send(window)) is not None:
        outbox.sent(each, first + len(sent))
        sent.append(each.payload)
    return sent


def test_first_in_first_out_within_the_window() -> None:
    outbox = Outbox(10)
    for text in "abc":
        outbox.put(message(text))
    assert send_all(outbox, window=2) == [b"a", b"b"]
    assert (len(outbox), outbox.in_flight) == (3, 2)
    outbox.acknowledged(1)
    assert send_all(outbox, window=2, first=3) == [b"c"]


def test_a_refused_message_is_counted_and_is_not_delivered() -> None:
    outbox, reasons = Outbox(10), list[str]()
    for _ in range(3):
        outbox.put(Message("t", b"x", 1, reasons.append))
    send_all(outbox, window=2)
    outbox.acknowledged(1, "Not authorized")
    outbox.acknowledged(1, "Not authorized")  # of nothing that is in flight
    outbox.acknowledged(2)
    last = outbox.next_to_send(2)
    assert last is not None
    outbox.never(last, "too large")
    assert (outbox.delivered, outbox.refused, len(outbox)) == (1, 2, 0)
    assert reasons == ["Not authorized", "", "too large"]


def test_qos_0_ends_with_the_sending() -> None:
    outbox = Outbox(10)
    outbox.put(message("a", qos=0))
    assert send_all(outbox) == [b"a"]
    assert (len(outbox), outbox.delivered) == (0, 1)


def test_after_a_lost_connection_what_was_in_flight_goes_first() -> None:
    outbox = Outbox(10)
    for text in "abcd":
        outbox.put(message(text))
    send_all(outbox, window=3)
    outbox.acknowledged(2)
    outbox.connection_lost()
    assert outbox.in_flight == 0
    assert send_all(outbox) == [b"a", b"c", b"d"]


def test_full_is_said_and_nothing_is_dropped() -> None:
    outbox = Outbox(2)
    outbox.put(message("a"))
    outbox.put(message("b"))
    assert outbox.is_full
    with pytest.raises(SendRefused, match="full"):
        outbox.put(message("c"))
    send_all(outbox)
    with pytest.raises(SendRefused):
        outbox.put(message("c"))  # sent is not delivered
    outbox.acknowledged(1)
    outbox.put(message("c"))


def test_bytes_are_bounded_too() -> None:
    outbox = Outbox(1000)
    for _ in range(QUEUE_SIZE_MAX // PAYLOAD_SIZE_MAX):
        outbox.put(Message("t", bytes(PAYLOAD_SIZE_MAX)))
    with pytest.raises(SendRefused):
        outbox.put(message("x"))
    send_all(outbox, window=1000)
    outbox.acknowledged(1)
    outbox.put(message("x"))
    with pytest.raises(SendRefused, match="larger"):
        outbox.put(Message("t", bytes(PAYLOAD_SIZE_MAX + 1)))


def test_who_waits_is_told_once() -> None:
    told: list[str] = []
    outbox = Outbox(10)
    for _ in range(3):
        outbox.put(Message("t", b"", 1, told.append))
    send_all(outbox, window=2)
    outbox.acknowledged(1)
    outbox.acknowledged(1)
    outbox.acknowledged(2, "Not authorized")
    outbox.acknowledged(99)
    last = outbox.next_to_send(1)
    assert last
    outbox.never(last, "too large")
    assert told == ["", "Not authorized", "too large"]
    assert (len(outbox), outbox.delivered) == (0, 1)


def test_topics() -> None:
    assert topic_for("devices/{id}/up", "cam-7") == "devices/cam-7/up"
    for bad in ("", "a/#", "+/b", "a\0b", "a\nb", "x" * 1025):
        with pytest.raises(BadConfig):
            topic_for(bad, "cam-7")


# Lines


def feed_of(data: bytes) -> LineReader:
    """A feed on a pipe with `data` in it (64 KB at most), closed at the other end."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return LineReader(reader)


def lines_of(feed: LineReader) -> list[bytes]:
    lines: list[bytes] = []
    while not feed.at_end:
        feed.read()
        while (line := feed.take()) is not None:
            lines.append(line)
    os.close(feed.descriptor)
    return lines


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\r\nb", [b"a", b"b"]),
        (b"\n\n", [b"", b""]),
        (b"\xff\0\n", [b"\xff\0"]),
    ],
)
def test_lines(data: bytes, lines: list[bytes]) -> None:
    assert lines_of(feed_of(data)) == lines


def test_lines_cut_at_every_byte() -> None:
    data = b"one\r\ntwo\n\nthree"
    for cut in range(len(data) + 1):
        reader, writer = os.pipe()
        feed = LineReader(reader)
        os.write(writer, data[:cut])
        if cut:
            feed.read()
        os.write(writer, data[cut:])
        os.close(writer)
        assert lines_of(feed) == [b"one", b"two", b"", b"three"]


def test_a_line_without_end_is_dropped_and_the_next_is_read() -> None:
    reader, writer = os.pipe()
    feed = LineReader(reader)
    for _ in range(LINE_SIZE_MAX // 60_000 + 3):
        os.write(writer, b"x" * 60_000)
        feed.read()
        assert feed.take() is None
    os.write(writer, b"still\nnext\n")
    os.close(writer)
    assert lines_of(feed) == [b"next"]
    assert feed.too_long == 1


def test_only_what_the_server_has_counts_as_delivered() -> None:
    heard: list[str] = []
    outbox = Outbox(10)
    for _ in range(4):
        outbox.put(Message("t", b"x", 1, heard.append))
    send_all(outbox)
    outbox.acknowledged(1)
    outbox.acknowledged(4)
    outbox.acknowledged(2, "quota exceeded")
    outbox.acknowledged(2)  # answered before
    outbox.acknowledged(99)
    assert (outbox.delivered, len(outbox), heard) == (2, 1, ["", "", "quota exceeded"])
    never = Message("t", b"x", 1, heard.append)
    outbox.put(never)
    assert outbox.next_to_send(10) is never
    outbox.never(never, "too large")
    assert (outbox.delivered, len(outbox), heard[-1]) == (2, 1, "too large")


def test_a_topic_may_be_as_long_as_its_limit() -> None:
    assert topic_for("t" * 1024, "cam-7") == "t" * 1024
    assert topic_for("é" * 512, "cam-7") == "é" * 512
    for topic in ("t" * 1025, "é" * 513):
        with pytest.raises(BadConfig, match="longer than 1024 bytes"):
            topic_for(topic, "cam-7")
    assert topic_for("a/{id}/b/{id}", "cam-7") == "a/cam-7/b/cam-7"


def test_the_queue_is_bounded_in_bytes_that_are_given_back() -> None:
    outbox = Outbox(1000)
    largest = b"x" * PAYLOAD_SIZE_MAX
    for _ in range(QUEUE_SIZE_MAX // PAYLOAD_SIZE_MAX):
        assert not outbox.is_full
        outbox.put(Message("t", largest))
    assert outbox.is_full
    send_all(outbox, window=1000)
    assert outbox.is_full  # in flight is not delivered
    outbox.acknowledged(1)
    assert not outbox.is_full
    with pytest.raises(SendRefused, match="larger"):
        outbox.put(Message("t", largest + b"x"))
    outbox.put(Message("t", largest, qos=0))
    assert outbox.is_full
    send_all(outbox, window=1000)
    assert not outbox.is_full
    outbox.put(never := Message("t", largest))
    assert outbox.next_to_send(1000) is never
    outbox.never(never, "refused")
    assert not outbox.is_full


def test_what_is_refused_for_now_is_sent_again_before_newer_ones() -> None:
    outbox, reasons = Outbox(10), list[str]()
    for text in (b"a", b"b", b"c", b"d"):
        outbox.put(Message("t", text, 1, reasons.append))
    assert send_all(outbox, window=3) == [b"a", b"b", b"c"]
    outbox.acknowledged(2, "Quota exceeded", is_temporary=True)
    outbox.acknowledged(1, "Quota exceeded", is_temporary=True)
    assert send_all(outbox, window=2, first=4) == [b"a"]
    outbox.connection_lost()
    assert (len(outbox), outbox.refused, outbox.rejected.entries(), reasons) == (4, 0, [], [])
    assert send_all(outbox, first=10) == [b"a", b"b", b"c", b"d"]
    for packet_id in range(10, 14):
        outbox.acknowledged(packet_id)
    assert (len(outbox), outbox.delivered, reasons) == (0, 4, [""] * 4)
