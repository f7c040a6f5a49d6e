"""The packet reader: the same packets however the stream is cut, and no memory for what is over the cap."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.wire.errors import Malformed, TooLarge
from fleet.wire.mqtt.reader import CONNECT_SIZE_MAX, PACKET_SIZE_DEFAULT, Packet, PacketReader, remaining_length

PACKETS = [
    Packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a"),
    Packet(0xC0, b""),
    Packet(0x30, b"\x00\x01t" + bytes(200)),
    Packet(0x32, b"\x00\x01t\x00\x01" + bytes(20_000)),
    Packet(0x82, b"\x00\x01\x00\x01t\x00"),
    Packet(0xE0, b""),
]
SMALL = [packet for packet in PACKETS if len(packet.body) < 1000]


def test_whole() -> None:
    assert list(PacketReader().feed(b"".join(p.encode() for p in PACKETS))) == PACKETS


def test_byte_by_byte() -> None:
    reader = PacketReader()
    found = [p for byte in b"".join(p.encode() for p in PACKETS) for p in reader.feed(bytes((byte,)))]
    assert found == PACKETS
    assert reader.held == 0


def test_cut_at_every_byte() -> None:
    stream = b"".join(p.encode() for p in SMALL)
    for cut in range(len(stream) + 1):
        reader = PacketReader()
        assert [*reader.feed(stream[:cut]), *reader.feed(stream[cut:])] == SMALL


@settings(deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1))
def test_any_cuts(steps: list[int]) -> None:
    stream = b"".join(p.encode() for p in SMALL)
    reader, at = PacketReader(), 0
    found: list[Packet] = []
    for step in steps:
        found += reader.feed(stream[at : at + step])
        at += step
    found += reader.feed(stream[at:])
    assert found == SMALL


def test_what_comes_behind_the_first_packet_stays() -> None:
    reader = PacketReader()
    assert next(reader.feed(b"\xc0\x00\x30\x05ab")) == Packet(0xC0, b"")
    reader.feed(b"cd")
    assert reader.held == 6
    assert reader.rest() == b"\x30\x05abcd"
    assert reader.held == 0
    assert list(reader.feed(b"\xc0\x00")) == [Packet(0xC0, b"")]


def test_a_reader_that_was_emptied_starts_anew() -> None:
    reader = PacketReader()
    assert list(reader.feed(b"\x30\x7f" + bytes(20))) == []
    assert len(reader.rest()) == 22
    assert list(reader.feed(b"\xc0\x00")) == [Packet(0xC0, b"")]


def test_a_length_over_the_cap_is_refused_as_soon_as_it_is_read() -> None:
    reader = PacketReader(100)
    with pytest.raises(TooLarge):
        list(reader.feed(b"\x10\xff\xff\xff\x7f"))
    assert list(PacketReader(100).feed(b"\x10\x64" + bytes(100))) == [Packet(0x10, bytes(100))]
    with pytest.raises(TooLarge):
        list(PacketReader(100).feed(b"\x10\x65"))


def test_a_length_that_never_ends() -> None:
    for tail in (b"\x80\x80\x80\x80", b"\xff\xff\xff\xff\x01"):
        reader = PacketReader()
        with pytest.raises(Malformed):
            for byte in b"\x10" + tail:
                list(reader.feed(bytes((byte,))))


def test_a_padded_length_passes() -> None:
    assert list(PacketReader().feed(b"\x30\x83\x80\x80\x00\x00\x01t")) == [Packet(0x30, b"\x00\x01t")]


@pytest.mark.parametrize("first", [0x00, 0x0F, 0x11, 0x36, 0x3E, 0x60, 0x80, 0xA0, 0xE1, 0xF1])
def test_a_type_or_flags_that_do_not_exist(first: int) -> None:
    with pytest.raises(Malformed):
        list(PacketReader().feed(bytes((first, 0))))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_never_raises_anything_else(data: bytes) -> None:
    reader = PacketReader(1000)
    try:
        for packet in reader.feed(data):
            assert len(packet.body) <= 1000
    except (Malformed, TooLarge):
        pass


def test_the_limits_before_and_after_connect() -> None:
    assert CONNECT_SIZE_MAX == 131_072
    assert PACKET_SIZE_DEFAULT == 16_777_216
    assert PacketReader().size_max == 268_435_455


def test_remaining_length() -> None:
    assert remaining_length(b"x\x7fyy", 1) == (127, 2)
    assert remaining_length(b"\xff\xff\xff\x7f", 0) == (268_435_455, 4)
    assert remaining_length(b"\x80\x80\x80", 0) is None
    assert remaining_length(b"", 0) is None
    with pytest.raises(Malformed):
        remaining_length(b"\x80\x80\x80\x80", 0)


def test_a_packet_is_found_as_soon_as_it_is_complete() -> None:
    for packet in PACKETS:
        reader, data = PacketReader(), packet.encode()
        assert list(reader.feed(data[:-1])) == []
        assert reader.held == len(data) - 1
        assert list(reader.feed(data[-1:])) == [packet]
        assert list(reader.feed(data)) == [packet]  # and the next one after it
