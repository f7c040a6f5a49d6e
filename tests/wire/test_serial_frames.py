"""Frames: cut at every octet, every bit flipped, buried in noise, over the limits."""

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.wire.errors import TooLarge
from fleet.wire.serial.frames import ENCODED_SIZE_MAX, PAYLOAD_SIZE_MAX, FrameReader, crc32, encode_frame

PAYLOADS = [b"\x00", b"hello", b"\x00" * 40, bytes(range(256)) * 4, b"\xff" * 254, random.Random(7).randbytes(1024)]
BOOT_LOG = b"ets Jun  8 2016 00:22:57\r\nrst:0x1 (POWERON_RESET)\r\nI (29) boot: \x1b[0;32mESP-IDF\x1b[0m\r\n"


def read(stream: bytes, step: int) -> list[bytes]:
    reader = FrameReader()
    return [payload for start in range(0, len(stream), step) for payload in reader.feed(stream[start : start + step])]


def test_the_check_is_that_of_ethernet() -> None:
    assert crc32(b"123456789").hex() == "cbf43926"  # the check value of CRC-32/ISO-HDLC in every catalog


def test_a_stream_cut_at_every_octet() -> None:
    stream = BOOT_LOG + b"".join(encode_frame(payload) for payload in PAYLOADS) + b"and more log"
    for step in (*range(1, 300), *range(300, len(stream) + 1, 97)):
        assert read(stream, step) == PAYLOADS


@given(st.lists(st.binary(min_size=1, max_size=PAYLOAD_SIZE_MAX), max_size=5), st.integers(1, 2000))
def test_what_is_written_is_read(payloads: list[bytes], step: int) -> None:
    assert read(b"".join(map(encode_frame, payloads)), step) == payloads


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=100))
def test_noise_never_hides_a_whole_frame(noise: bytes, payload: bytes) -> None:
    assert read(noise + encode_frame(payload) + noise, 64)[-1:] == [payload]


@pytest.mark.parametrize("payload", [b"\x00", b"hello, board", bytes(range(48))])
def test_no_frame_with_a_flipped_bit_is_taken(payload: bytes) -> None:
    frame = encode_frame(payload)
    follower = encode_frame(b"next")
    for bit in range(len(frame) * 8):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        # A frame in front and one behind: neither the damaged one nor a blend of two is taken, and both others are.
        # Damage to a delimiter leaves the frame itself whole: its neighbor's delimiter does the same service.
        expected = [b"before", payload, b"next"] if bit // 8 in (0, len(frame) - 1) else [b"before", b"next"]
        found = read(encode_frame(b"before") + bytes(damaged) + follower, 1)
        assert found in (expected, [b"before", b"next"])


def test_a_frame_cut_off_anywhere_is_not_taken() -> None:
    frame = encode_frame(b"hello, board")
    for size in range(len(frame)):
        assert read(frame[:size] + encode_frame(b"next"), 5)[-1:] == [b"next"]
        assert read(frame[:size], 5) == []


def test_a_wrong_check_is_counted() -> None:
    reader = FrameReader()
    from cobs import cobs

    block = b"hello" + (zlib.crc32(b"hello") ^ 1).to_bytes(4, "big")
    assert reader.feed(b"\x00" + cobs.encode(block) + b"\x00") == []
    assert reader.dropped.bad_crc == 1


def test_noise_without_a_delimiter_takes_no_memory() -> None:
    reader = FrameReader()
    for _ in range(1000):
        assert reader.feed(b"\xffU" * 500) == []
        assert len(reader._pending) <= ENCODED_SIZE_MAX
    assert reader.dropped.oversized == 1
    assert reader.feed(encode_frame(b"hello")) == [b"hello"]


def test_over_the_limit() -> None:
    from cobs import cobs

    with pytest.raises(TooLarge):
        encode_frame(bytes(PAYLOAD_SIZE_MAX + 1))
    with pytest.raises(ValueError, match="at least one octet"):
        encode_frame(b"")
    largest = encode_frame(b"\x01" * PAYLOAD_SIZE_MAX)
    assert len(largest) == ENCODED_SIZE_MAX + 2
    assert read(largest, 100) == [b"\x01" * PAYLOAD_SIZE_MAX]
    for size in (PAYLOAD_SIZE_MAX + 1, PAYLOAD_SIZE_MAX * 3):
        payload = b"\x01" * size
        reader = FrameReader()
        assert reader.feed(b"\x00" + cobs.encode(payload + crc32(payload)) + b"\x00") == []
        assert reader.dropped.oversized == 1


def test_a_payload_too_large_in_a_short_enough_frame_is_dropped() -> None:
    from cobs import cobs

    payload = bytes(PAYLOAD_SIZE_MAX + 1)
    encoded = cobs.encode(payload + crc32(payload))
    assert len(encoded) <= ENCODED_SIZE_MAX
    reader = FrameReader()
    assert reader.feed(b"\x00" + encoded + b"\x00") == []
    assert (reader.dropped.oversized, reader.dropped.noise, reader.dropped.bad_crc) == (1, 0, 0)


def test_a_check_of_nothing_is_no_frame() -> None:
    """The CRC of no octets is four zeros: a frame of those has no payload."""
    from cobs import cobs

    assert crc32(b"") == bytes(4)
    reader = FrameReader()
    assert reader.feed(b"\x00" + cobs.encode(bytes(4)) + b"\x00") == []
    assert reader.dropped.noise == 1


def test_empty_stretches_are_no_frames() -> None:
    reader = FrameReader()
    assert reader.feed(b"\x00" * 50 + b"\x01\x00\x01\x01\x01\x01\x00") == []
    assert reader.dropped.noise == 2
