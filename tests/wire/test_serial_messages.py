"""Messages: round trips, strict encoding, every field's limits, everything unknown refused."""

import dataclasses
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.wire.errors import Malformed, TooLarge, Unsupported, WireError
from fleet.wire.serial import messages as m
from fleet.wire.serial.field_types import Bool, Bytes, FieldType, ListOf, OneOf, Text, Uint, printable
from fleet.wire.serial.frames import PAYLOAD_SIZE_MAX
from fleet.wire.serial.messages import BODIES, Message, decode, encode, read_header

SESSION = bytes(range(8))


def values_of(field_type: FieldType) -> st.SearchStrategy[Any]:
    match field_type:
        case Uint(maximum=maximum, minimum=minimum):
            return st.integers(minimum, maximum)
        case Bool():
            return st.booleans()
        case Bytes(maximum=maximum, minimum=minimum):
            return st.binary(min_size=minimum, max_size=maximum)
        case Text(maximum=maximum, minimum=minimum):
            letters = st.characters(max_codepoint=0x2FFF).filter(str.isprintable)
            return st.text(letters, min_size=minimum, max_size=maximum // 3)
        case OneOf(choices=choices):
            return st.sampled_from(choices)
        case ListOf(item=item, maximum=maximum):
            return st.lists(values_of(item), min_size=1, max_size=maximum).map(tuple)
    raise AssertionError(field_type)


def largest_of(field_type: FieldType) -> Any:
    match field_type:
        case Uint(maximum=maximum):
            return maximum
        case Bool():
            return True
        case Bytes(maximum=maximum):
            return b"\xff" * maximum
        case Text(maximum=maximum):
            return "x" * maximum
        case OneOf(choices=choices):
            return max(choices, key=len)
        case ListOf(item=item, maximum=maximum):
            return (largest_of(item),) * maximum
    raise AssertionError(field_type)


def smallest_of(field_type: FieldType) -> Any:
    match field_type:
        case Bytes(minimum=minimum):
            return b"x" * minimum
        case Text(minimum=minimum):
            return "x" * minimum
        case ListOf(item=item):
            return (smallest_of(item),)
    return largest_of(field_type)


bodies = st.sampled_from(list(BODIES.values())).flatmap(
    lambda kind: st.tuples(*map(values_of, kind.FIELD_TYPES)).map(lambda values: kind(*values))
)
messages = st.builds(Message, st.binary(min_size=8, max_size=8), st.integers(0, m.STEP_MAX), bodies)


def largest(kind: type[m.Body]) -> Message:
    return Message(b"\xff" * 8, m.STEP_MAX, kind(*map(largest_of, kind.FIELD_TYPES)))


def raw(*items: object) -> bytes:
    return cbor2.dumps(list(items), canonical=True)


@given(messages)
def test_what_is_written_is_read(message: Message) -> None:
    payload = encode(message)
    assert decode(payload) == message
    assert read_header(payload) == m.Header(m.VERSION, message.body.KIND, message.session, message.step)


@pytest.mark.parametrize("kind", BODIES.values())
def test_the_largest_message_fits_a_frame(kind: type[m.Body]) -> None:
    payload = encode(largest(kind))
    assert len(payload) <= PAYLOAD_SIZE_MAX
    assert decode(payload) == largest(kind)


@pytest.mark.parametrize("kind", BODIES.values())
def test_a_message_cut_off_or_followed_by_anything_is_refused(kind: type[m.Body]) -> None:
    payload = encode(largest(kind))
    for size in range(len(payload)):
        with pytest.raises(WireError):
            decode(payload[:size])
    with pytest.raises(Malformed, match="deterministic"):
        decode(payload + b"\x00")


@given(st.binary(max_size=200))
def test_any_octets_are_read_or_refused(data: bytes) -> None:
    for octets in (data, b"\x85\x01\x01\x48" + SESSION + b"\x00" + data):
        try:
            message = decode(octets)
        except WireError:
            continue
        assert encode(message) == octets


@given(messages, st.data())
def test_a_damaged_message_is_another_one_or_refused(message: Message, data: st.DataObject) -> None:
    payload = bytearray(encode(message))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(payload))
    except WireError:
        return
    assert found != message
    assert encode(found) == payload


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"", Malformed),
        (b"\xa0", Malformed),  # a map
        (bytes(PAYLOAD_SIZE_MAX + 1), TooLarge),
        (raw(2, 1, SESSION, 0, {1: [1], 2: ""}), Unsupported),  # version
        (raw(2, 1, SESSION, 0), Unsupported),  # a later version may have another length
        (raw(1, 40, SESSION, 0, {}), Unsupported),  # kind
        (raw(1, 0, SESSION, 0, {}), Unsupported),
        (raw(1, 256, SESSION, 0, {}), Malformed),
        (raw(1, 8, SESSION, 0), Malformed),
        (raw(1, 8, SESSION, 0, {}, 0), Malformed),
        (raw(1, 8, SESSION, 0, []), Malformed),
        (raw(1, 8, SESSION, 0, {1: 1}), Malformed),  # a field too many
        (raw(1, 3, SESSION, 0, {}), Malformed),  # one too few
        (raw(1, 3, SESSION, 0, {2: 1}), Malformed),
        (raw(1, 3, SESSION, 0, {"1": 1}), Malformed),
        (raw(1, 3, SESSION, 0, {True: 1}), Malformed),
        (raw(1, 3, SESSION, 0, {1: True}), Malformed),
        (raw(1, 3, SESSION, 0, {1: -1}), Malformed),
        (raw(1, 3, SESSION, 0, {1: m.CSR_SIZE_MAX + 1}), Malformed),
        (raw(1, 3, SESSION, 0, {1: 1.5}), Malformed),
        (raw(1, 3, SESSION, 0, {1: None}), Malformed),
        (raw(1, 3, SESSION, 0, {1: 1 << 70}), Malformed),  # a bignum is a tag
        (raw(1, 3, SESSION[:7], 0, {1: 1}), Malformed),
        (raw(1, 3, SESSION + b"x", 0, {1: 1}), TooLarge),
        (raw(1, 3, "12345678", 0, {1: 1}), Malformed),
        (raw(1, 3, SESSION, m.STEP_MAX + 1, {1: 1}), Malformed),
        (raw(1, 3, SESSION, 0, cbor2.CBORTag(4711, {1: 1})), Malformed),
        (raw(1, 2, SESSION, 0, {1: "a\nb", 2: "EC-P256", 3: False}), Malformed),
        (raw(1, 2, SESSION, 0, {1: "", 2: "EC-P256", 3: False}), Malformed),
        (raw(1, 2, SESSION, 0, {1: "é" * 33, 2: "EC-P256", 3: False}), TooLarge),
        (raw(1, 2, SESSION, 0, {1: "a", 2: "EC-P256", 3: 0}), Malformed),
        (raw(1, 7, SESSION, 0, {1: bytes(31)}), Malformed),
        (raw(1, 7, SESSION, 0, {1: bytes(33)}), TooLarge),
        (raw(1, 1, SESSION, 0, {1: [], 2: ""}), Malformed),
        (raw(1, 1, SESSION, 0, {1: [1] * 9, 2: ""}), TooLarge),
        (raw(1, 1, SESSION, 0, {1: [[1]], 2: ""}), Malformed),
        (raw(1, 1, SESSION, 0, {1: [[[1]]], 2: ""}), Malformed),
        (raw(1, 4, SESSION, 0, {1: 3, 2: 1, 3: bytes(32)}), Malformed),  # no such blob
        (bytes.fromhex("9f0108480001020304050607 00a0ff"), Malformed),  # indefinite
        (bytes.fromhex("8501084800010203040506070 0bfff".replace(" ", "")), Malformed),
        (bytes.fromhex("8518010848000102030405060700a0"), Malformed),  # the number one in two octets
        (bytes.fromhex("850103480001020304050607 00a201010101"), Malformed),  # a repeated key
        (bytes.fromhex("850101480001020304050607 00a202600181 01"), Malformed),  # keys out of order
        (bytes.fromhex("850102480001020304050607 00a30161ff026145 03f4"), Malformed),  # not UTF-8
        (bytes.fromhex("d9d9f7850108480001020304050607 00a0"), Malformed),  # "this is CBOR" is a tag too
        (bytes.fromhex("9bffffffffffffffff"), Malformed),
        (bytes.fromhex("5bffffffffffffffff"), Malformed),
        (bytes.fromhex("81" * 1000), Malformed),
    ],
)
def test_bad_messages(payload: bytes, error: type[WireError]) -> None:
    with pytest.raises(error):
        decode(payload)


@pytest.mark.parametrize("kind", BODIES.values())
def test_each_field_is_checked_both_ways(kind: type[m.Body]) -> None:
    smallest = [smallest_of(field_type) for field_type in kind.FIELD_TYPES]
    good = dict(zip((field.name for field in dataclasses.fields(kind)), map(largest_of, kind.FIELD_TYPES), strict=True))
    for number, field in enumerate(dataclasses.fields(kind), start=1):
        for wrong in (object(), None, -1, "\x07", b"\x00" * 900, 1 << 40, [{}], 0.5):
            with pytest.raises(ValueError, match=field.name):
                encode(Message(SESSION, 0, kind(**good | {field.name: wrong})))
            if type(wrong) is object:
                continue
            values = {at: small if at != number else wrong for at, small in enumerate(smallest, start=1)}
            with pytest.raises(WireError, match=field.name):
                decode(raw(1, kind.KIND, SESSION, 0, values))


def test_a_header_can_be_read_in_any_version() -> None:
    assert read_header(raw(9, 77, SESSION, 5, "whatever", 6)) == m.Header(9, 77, SESSION, 5)
    for payload in (b"", b"\x80", raw(1, 2, SESSION), raw("1", 2, SESSION, 4)):
        with pytest.raises(Malformed):
            read_header(payload)


def test_our_own_mistake_is_not_the_peers() -> None:
    with pytest.raises(ValueError, match="session"):
        encode(Message(b"short", 0, m.Finish()))


def test_text_made_printable_always_fits() -> None:
    assert printable("a\r\n\x1b[31mé", 5) == "a[31m"
    assert printable("é" * 10, 5) == "éé"
