"""What the broker may hold for a device: counted over sessions, workers, restarts, and as long as it may hold it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.servers.gateway.limits.kept_filters import LEAVING_MAX, FilterSet, KeptFilters
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS
from fleet.wire.mqtt.codes import V5, V311, PacketType
from fleet.wire.mqtt.connect import Connect, encode_connect
from fleet.wire.mqtt.fields import encode_integer, encode_packet
from fleet.wire.mqtt.properties import Property
from fleet.wire.mqtt.subscribe import Subscribe, Subscription, Unsubscribe, decode_suback, encode_subscribe
from tests.mqtt_packets import encode_unsubscribe
from tests.servers.gateway_fixtures import FakeBroker, Wire, open_gateway, populate

FILTERS_MAX = DEFAULT_LIMITS.filters_per_device_max
MANY = [f"f/{number}" for number in range(FILTERS_MAX)]


def session(path: Path, *, outlives: bool = True) -> FilterSet:
    """A session of cam-1 at a worker, or at its successor."""
    return KeptFilters(directory=path).of_session("cam-1", outlives_connection=outlives)


def test_all_workers_count_together_and_so_do_their_successors(tmp_path: Path) -> None:
    one, two = session(tmp_path), session(tmp_path)
    assert one.add(MANY[:600]) == frozenset()
    assert two.add(MANY[500:]) == frozenset()
    assert one.add(["g"]) == {"g"}
    assert session(tmp_path).add(["g"]) == {"g"}
    assert set(session(tmp_path)) == set(MANY)
    assert KeptFilters(directory=tmp_path).of_session("cam-2", outlives_connection=True).add(["g"]) == frozenset()


def test_what_the_broker_forgets_is_forgotten(tmp_path: Path) -> None:
    session(tmp_path).add(MANY)
    session(tmp_path).clear()
    assert session(tmp_path).add(["g"]) == frozenset()
    passing = session(tmp_path, outlives=False)
    passing.clear()
    assert not list(tmp_path.iterdir())
    assert passing.add(MANY) == frozenset()  # ends with the connection
    assert not list(tmp_path.iterdir())
    session(tmp_path).add(MANY)
    KeptFilters(directory=tmp_path).session_purged("cam-1")
    assert not list(tmp_path.iterdir())


def test_an_unsubscribed_filter_counts_until_the_broker_has_acknowledged_it(tmp_path: Path) -> None:
    mine = session(tmp_path)
    mine.add(MANY)
    mine.leave(7, MANY[:2])
    assert mine.add(["g"]) == frozenset()  # the broker reads this one later
    assert set(session(tmp_path)) == {*MANY, "g"}  # had the connection ended now
    mine = session(tmp_path)
    mine.leave(7, MANY[:2])
    mine.left(7)
    assert set(session(tmp_path)) == {*MANY[2:], "g"}


def test_what_is_subscribed_to_again_stays(tmp_path: Path) -> None:
    mine = session(tmp_path)
    mine.add(["a", "b"])
    mine.leave(1, ["a", "b"])
    mine.add(["a"])
    mine.leave(2, ["a"])
    mine.add(["a"])
    mine.left(1)
    mine.left(2)
    assert set(session(tmp_path)) == set(mine) == {"a"}
    mine.leave(3, ["a"])
    mine.stayed(3)
    assert set(session(tmp_path)) == set(mine) == {"a"}


def test_who_unsubscribes_without_end_and_reads_no_answer_keeps_his_share(tmp_path: Path) -> None:
    mine = session(tmp_path)
    mine.add(MANY)
    for number in range(5):
        mine.leave(number + 1, list(mine))
        mine.add([f"g/{number}/{one}" for one in range(FILTERS_MAX)])
    assert len(set(session(tmp_path))) <= FILTERS_MAX + LEAVING_MAX


def test_what_leaves_is_counted_until_it_is_answered_and_nothing_else_is() -> None:
    kept = FilterSet(
        replace(DEFAULT_LIMITS, filters_per_device_max=2 * LEAVING_MAX, filter_bytes_per_device_max=1_000_000)
    )
    names = [f"f{number}" for number in range(LEAVING_MAX + 1)]
    assert not kept.add(names)
    for number in range(1, 5 * LEAVING_MAX):
        kept.leave(number, ["unknown"])  # as many as a client likes: each of them was looked at for the next
    assert not any(map(kept.is_leaving, range(1, 5 * LEAVING_MAX)))
    for answer in (kept.left, kept.stayed, lambda packet_id: kept.clear()):
        kept.add(names)
        kept.leave(1, names[1:])
        kept.leave(2, names[:1])
        assert kept.is_leaving(1)
        assert not kept.is_leaving(2)  # one too many
        answer(1)
    kept.add(names)
    kept.leave(2, names[:1])
    assert kept.is_leaving(2)


def test_only_the_session_that_connected_last_may_remove(tmp_path: Path) -> None:
    """An earlier one may read the broker's UNSUBACK when the later one has subscribed again."""
    old = session(tmp_path)
    old.add(["a", "b"])
    old.leave(1, ["a"])
    session(tmp_path).add(["a"])
    old.left(1)
    old.clear()
    assert set(session(tmp_path)) == {"a", "b"}


def test_a_filter_that_was_written_in_part_is_not_one(tmp_path: Path) -> None:
    session(tmp_path).add(["a", "b"])
    with (tmp_path / "cam-1").open("ab") as file:
        file.write(b"devices/par")
    mine = session(tmp_path)
    assert set(mine) == {"a", "b"}
    mine.add(["c"])
    assert set(session(tmp_path)) == {"a", "b", "c"}


def test_what_cannot_be_written_is_refused_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mine = session(tmp_path)
    mine.add(["a"])
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", lambda descriptor, data, start: len(data) // 2)
        assert mine.add(["a", "b"]) == {"b"}
    assert "event=kept-filters.not-written" in caplog.text
    assert set(session(tmp_path)) == set(mine) == {"a"}
    assert mine.add(["b"]) == frozenset()


async def connected(wire: Wire, broker: FakeBroker, version: int, *, present: bool) -> Wire:
    """The broker's side, after CONNECT of a persistent session and CONNACK."""
    expiry = ((Property.SESSION_EXPIRY_INTERVAL, 60),) if version == V5 else ()
    wire.send(encode_connect(Connect(version, "cam-1", clean=False, properties=expiry)))
    side = await broker.sessions.get()
    assert (await side.packet()).type is PacketType.CONNECT
    side.send(encode_packet(0x20, bytes((present, 0)) + (b"\0" if version == V5 else b"")))
    assert (await wire.packet()).type is PacketType.CONNACK
    return side


@pytest.mark.parametrize("version", [V311, V5])
async def test_a_gateway_that_starts_again_knows_what_its_broker_kept(tmp_path: Path, version: int) -> None:
    broker = FakeBroker()
    kept = KeptFilters(directory=tmp_path / "kept")
    refusal = 0x97 if version == V5 else 0x80
    topics = [f"devices/cam-1/down/{number}" for number in range(FILTERS_MAX)]
    held = None
    for start in range(3):
        async with open_gateway(tmp_path, broker, kept_filters=kept) as built:
            held = held or (await populate(built.registry, "cam-1"))[0]
            wire = await built.dial(held)
            side = await connected(wire, broker, version, present=start > 0)
            if start == 0:
                asked = Subscribe(1, tuple(Subscription(topic, 1) for topic in topics))
                wire.send(encode_subscribe(asked, version))
                await side.packet()
            elif start == 1:
                wire.send(encode_subscribe(Subscribe(2, (Subscription("devices/cam-1/down/x", 1),)), version))
                assert decode_suback((await wire.packet()).body, version).codes == (refusal,)
                wire.send(encode_unsubscribe(Unsubscribe(3, tuple(topics[:1])), version))
                await side.packet()
                side.send(encode_packet(0xB0, encode_integer(3, 2) + (b"\0\0" if version == V5 else b"")))
                assert (await wire.packet()).type is PacketType.UNSUBACK
            else:
                wire.send(encode_subscribe(Subscribe(2, (Subscription("devices/cam-1/down/x", 1),)), version))
                assert (await side.packet()).type is PacketType.SUBSCRIBE  # there is room for it
