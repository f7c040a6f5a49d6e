"""A client that sends SUBSCRIBEs without waiting gets the SUBACK of each, in the order in which it sent them."""

from dataclasses import replace
from pathlib import Path

import pytest

from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.broker.mosquitto import Mosquitto, mosquitto_program
from fleet.servers.gateway.relay.subscriptions import AWAITED_BYTES_MAX, ENTRY_BYTES
from fleet.wire.mqtt.codes import V5, PacketType
from fleet.wire.mqtt.reader import Packet, PacketReader
from fleet.wire.mqtt.subscribe import Suback, Subscribe, Subscription, decode_suback, decode_subscribe, encode_subscribe
from tests.servers.gateway_fixtures import MODEL, open_gateway, populate
from tests.servers.gateway_relay_harness import VERSIONS, RelayHarness, chunks

ALLOWED, MIXED, REFUSED = ("down/a",), ("#", "down/b", "other"), ("other", "#")
KINDS = (REFUSED, ALLOWED, REFUSED, MIXED, REFUSED, REFUSED, MIXED, ALLOWED, MIXED, REFUSED)
PROGRAM = mosquitto_program()


def packets_in(data: bytes) -> list[Packet]:
    return list(PacketReader().feed(data))


def codes_of(filters: tuple[str, ...], version: int, granted: int = 1) -> tuple[int, ...]:
    failure = 0x87 if version == V5 else 0x80
    return tuple(granted if each.startswith("down/") else failure for each in filters)


def expected(kinds: tuple[tuple[str, ...], ...], version: int) -> list[Suback]:
    return [Suback(number, codes_of(kind, version)) for number, kind in enumerate(kinds, 1)]


def pipelined(h: RelayHarness) -> bytes:
    return b"".join(h.subscribe(*kind, packet_id=number) for number, kind in enumerate(KINDS, 1))


def subacks(data: bytes, version: int) -> list[Suback]:
    """Those in `data`, without their Reason Strings."""
    found = (decode_suback(each.body, version) for each in packets_in(data) if each.type is PacketType.SUBACK)
    return [replace(each, properties=()) for each in found]


def brokers_answer(h: RelayHarness) -> bytes:
    """A SUBACK for each SUBSCRIBE that the broker got."""
    asked = [decode_subscribe(each.body, h.version) for each in packets_in(bytes(h.to_broker))]
    return b"".join(h.suback(*[1] * len(each.subscriptions), packet_id=each.packet_id) for each in asked)


@VERSIONS
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_answers_are_in_order(version: int, size: int) -> None:
    h = RelayHarness(version)
    for part in chunks(pipelined(h), size):
        h.relay.from_device(part)
    # Only what waits for nothing has been answered.
    assert subacks(bytes(h.to_device), version) == expected(KINDS, version)[:1]
    for part in chunks(brokers_answer(h), size):
        h.relay.from_broker(part)
    assert subacks(bytes(h.to_device), version) == expected(KINDS, version)


@VERSIONS
def test_a_refusal_waits_for_what_was_sent_before_it_and_no_longer(version: int) -> None:
    h = RelayHarness(version)
    h.relay.from_device(h.subscribe(*ALLOWED, packet_id=1) + h.subscribe(*REFUSED, packet_id=2))
    h.relay.from_device(h.subscribe(*ALLOWED, packet_id=3) + h.subscribe(*REFUSED, packet_id=4))
    h.relay.from_broker(h.suback(1, packet_id=1))
    assert [each.packet_id for each in subacks(bytes(h.to_device), version)] == [1, 2]
    h.relay.from_broker(h.suback(1, packet_id=3))
    assert [each.packet_id for each in subacks(bytes(h.to_device), version)] == [1, 2, 3, 4]
    h.relay.from_device(h.subscribe(*REFUSED, packet_id=5))
    assert [each.packet_id for each in subacks(bytes(h.to_device), version)] == [1, 2, 3, 4, 5]


def test_a_broker_that_answers_in_another_order_or_too_often_loses_no_answer() -> None:
    h = RelayHarness(V5)
    h.relay.from_broker(h.suback(0, packet_id=77))
    h.relay.from_device(pipelined(h))
    answers = [each.encode() for each in packets_in(brokers_answer(h))]
    h.relay.from_broker(b"".join(reversed(answers)))
    found = subacks(bytes(h.to_device), V5)
    assert sorted(each.packet_id for each in found) == [*range(1, len(KINDS) + 1), 77]
    assert [each for each in expected(KINDS, V5) if each not in found] == []


@pytest.mark.parametrize("kind", [MIXED, REFUSED])
def test_those_that_await_an_answer_are_bounded(kind: tuple[str, ...]) -> None:
    h = RelayHarness(V5)
    room = AWAITED_BYTES_MAX // (ENTRY_BYTES + len(kind))
    packets = b"".join(h.subscribe(*kind, packet_id=number) for number in range(2, room + 2))
    h.relay.from_device(h.subscribe(*ALLOWED) + packets)
    assert room > 1_000
    assert h.ends(h.subscribe(*kind, packet_id=60_000)) is close_reasons.QUOTA


def test_room_is_free_again_once_answered() -> None:
    h = RelayHarness(V5)
    room = AWAITED_BYTES_MAX // (ENTRY_BYTES + len(MIXED))
    for _ in range(2):
        h.relay.from_device(b"".join(h.subscribe(*MIXED, packet_id=number) for number in range(1, room + 1)))
        h.relay.from_broker(b"".join(h.suback(1, packet_id=number) for number in range(1, room + 1)))
        h.relay.from_device(b"".join(h.subscribe(*REFUSED, packet_id=number) for number in range(1, room + 1)))
    assert len(subacks(bytes(h.to_device), V5)) == 4 * room


def test_allowed_ones_take_no_room() -> None:
    h = RelayHarness(V5)
    for packet_id in range(1, 20_001):
        h.relay.from_device(h.subscribe(*ALLOWED, packet_id=packet_id))
    assert len(packets_in(bytes(h.to_broker))) == 20_000


@pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")
@VERSIONS
async def test_before_a_real_broker(tmp_path: Path, version: int) -> None:
    assert PROGRAM is not None
    broker = await Mosquitto.start(PROGRAM, tmp_path / "run", [MODEL])
    try:
        async with open_gateway(tmp_path, broker) as h:
            (cam,) = await populate(h.registry, "cam-1")
            wire, connack = await h.connect(cam, version)
            assert connack.code == 0
            kinds = KINDS * 30
            for number, kind in enumerate(kinds, 1):
                own = tuple(Subscription(each.replace("down", "devices/cam-1/down"), 1) for each in kind)
                wire.send(encode_subscribe(Subscribe(number, own), version))
            packets = [await wire.packet() for _ in kinds]
            assert subacks(b"".join(each.encode() for each in packets), version) == expected(kinds, version)
    finally:
        await broker.close()
