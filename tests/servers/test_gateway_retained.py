"""Retained messages of a device at our own broker: bounded by count and bytes, over connections and restarts."""

import asyncio
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet.domain.mqtt_rules import MqttRules, OnDenied
from fleet.servers.gateway.broker.mosquitto import DATABASE
from fleet.servers.gateway.broker.saved_messages import Retained, retained_messages
from fleet.servers.gateway.close_reasons import CloseSession
from fleet.servers.gateway.limits import retained
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS, Limits
from fleet.servers.gateway.limits.retained import RetainedMessages, cost_of
from fleet.servers.gateway.relay.reason_strings import TOO_MUCH_RETAINED
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import Will
from fleet.wire.mqtt.publish import Publish, encode_publish
from tests.servers.gateway_fixtures import MODEL, Wire, populate
from tests.servers.gateway_relay_harness import VERSIONS, RelayHarness
from tests.servers.mosquitto_gateway import needs_mosquitto, open_mosquitto_gateway
from tests.waiting import until


def kept(tmp_path: Path, count: int = 3, size: int = 1_000_000) -> RetainedMessages:
    limits = replace(DEFAULT_LIMITS, retained_messages_per_device_max=count, retained_bytes_per_device_max=size)
    return RetainedMessages(tmp_path / DATABASE, limits)


def test_up_to_the_number_of_topics_and_one_past_it(tmp_path: Path) -> None:
    messages = kept(tmp_path)
    assert [messages.put("cam-1", f"up/{n}", 5) for n in range(4)] == [True, True, True, False]
    assert messages.put("cam-1", "up/0", 50)  # in the place of another
    assert messages.put("cam-2", "up/3", 5)
    assert messages.put("cam-1", "up/0", 0)  # deletes
    assert messages.put("cam-1", "up/9", 0)
    assert [messages.put("cam-1", f"up/{n}", 5) for n in (3, 4)] == [True, False]


def test_up_to_the_bytes_and_one_past_them(tmp_path: Path) -> None:
    messages = kept(tmp_path, size=10_000)
    left = 10_000 - cost_of("up/a", 1_000) - cost_of("up/b", 1) + 1
    assert messages.put("cam-1", "up/a", 1_000)
    assert not messages.put("cam-1", "up/b", left + 1)
    assert messages.put("cam-1", "up/b", left)
    assert not messages.put("cam-1", "up/b", left + 1)
    assert messages.put("cam-1", "up/b", left - 1)
    assert messages.put("cam-3", "up/a", 9_000_000)  # a single one
    assert not messages.put("cam-3", "up/b", 1)


async def test_where_all_have_too_much_each_has_an_equal_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retained, "LOOK_SECONDS", 0)
    monkeypatch.setattr(retained, "SAVED_SECONDS", 0)
    each = cost_of("up/a", 1_000)
    monkeypatch.setattr(retained, "ALL_BYTES_MAX", 4 * each)
    saved = [Retained("cam-1", "cam", topic, 1_000) for topic in ("up/a", "up/b", "up/c")]
    messages, database = kept(tmp_path, count=9), tmp_path / DATABASE
    database.touch()
    watching = asyncio.create_task(messages.watch(lambda path: saved))
    await until(lambda: "cam-1" in messages._kept)
    assert messages.put("cam-2", "up/a", 1_000)
    assert not messages.put("cam-1", "up/d", 1)
    assert messages.put("cam-1", "up/c", 900), "a smaller one in the place of another"
    assert messages.put("cam-2", "up/b", 1_000), "half of all"
    assert not messages.put("cam-2", "up/c", 1)
    assert messages.put("cam-3", "up/a", 200), "a third of all"
    assert not messages.put("cam-3", "up/a", 2_000)
    watching.cancel()


def test_levels_count_and_go_on_counting_when_the_message_is_deleted(tmp_path: Path) -> None:
    messages = kept(tmp_path, size=100 * 768)
    deep = [f"devices/cam-1/up/{n}" + "/a" * 24 for n in range(5)]
    taken = [messages.put("cam-1", topic, size) for topic in deep for size in (1, 0, 1, 0)]
    assert taken == [True] * 12 + [False] * 8
    assert messages.put("cam-1", deep[0], 5)  # its levels are there already
    assert not messages.put("cam-2", "/".join("a" * 200), 0)  # even what deletes nothing makes them


async def test_what_is_saved_counts_and_what_was_put_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retained, "LOOK_SECONDS", 0)
    monkeypatch.setattr(retained, "SAVED_SECONDS", 0)
    messages, database = kept(tmp_path), tmp_path / DATABASE
    saved: list[Retained] = [
        *(Retained("cam-1/x", "cam", f"old/{n}", 5) for n in range(2)),
        *(Retained("cam-1", "_backend", f"other/{n}", 5) for n in range(9)),
    ]
    looks: list[Path] = []

    def read(path: Path) -> Iterable[Retained]:
        looks.append(path)
        yield from saved

    assert messages.put("cam-1", "up/new", 5)
    task = asyncio.create_task(messages.watch(read))
    await asyncio.sleep(0.01)
    assert not looks  # nothing is saved yet
    database.touch()
    await until(lambda: "old/0" in messages._kept["cam-1"].sizes)
    assert not messages.put("cam-1", "up/newer", 5)
    assert messages.put("cam-1", "up/new", 6)
    del saved[1]  # the backend has deleted it
    os.utime(database, ns=(time.time_ns(),) * 2)  # the refusal asks for another look; times of files are coarse
    await until(lambda: messages.put("cam-1", "up/newer", 5))
    assert set(looks) == {database}
    task.cancel()


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_the_refusal(version: int, qos: int) -> None:
    asked: list[tuple[str, int]] = []

    def retain(topic: str, size: int) -> bool:
        asked.append((topic, size))
        return size < 5

    h = RelayHarness(version, retain=retain)
    packets = [
        encode_publish(Publish("up/a", payload, qos, 7 if qos else 0, retain=True), version)
        for payload in (b"", b"1234", b"12345", bytes(100_000))
    ]
    for packet in packets:
        h.relay.from_device(packet)
    assert h.to_broker == packets[0] + packets[1]
    assert asked == [("up/a", 0), ("up/a", 4), ("up/a", 5), ("up/a", 100_000)]
    assert h.notes == [("mqtt.publish", "quota", "up/a")] * 2
    assert h.reasons == ["retained"] * 2
    reason = Reason.QUOTA_EXCEEDED if version == V5 else Reason.SUCCESS
    answer = acks.acknowledge_publish(qos, 7, version, reason, TOO_MUCH_RETAINED) if qos else b""
    assert h.to_device == answer * 2


def test_with_311_a_model_may_say_that_the_session_closes() -> None:
    h = RelayHarness(V311, retain=lambda topic, size: False)
    h.relay.set_rules(MqttRules(on_denied=OnDenied.CLOSE))
    packet = encode_publish(Publish("up/a", b"1", 1, 7, retain=True), V311)
    with pytest.raises(CloseSession) as closing:
        h.relay.from_device(packet)
    assert closing.value.reason.code == "publish-refused"


@needs_mosquitto
async def test_mosquittos_database_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retained, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(retained, "SAVED_SECONDS", 0)
    database = tmp_path / "run" / DATABASE
    limits = Limits(retained_messages_per_device_max=3)
    options: dict[str, Any] = {"limits": limits, "saved": database}

    async def put(wire: Wire, name: str, payload: bytes = b"x") -> bool:
        wire.send(encode_publish(Publish(f"devices/cam-1/up/{name}", payload, 1, 7, retain=True), V5))
        packet = await wire.packet()
        assert packet.type is PacketType.PUBACK
        return packet.body[2:3] != bytes((Reason.QUOTA_EXCEEDED,))

    async with open_mosquitto_gateway(tmp_path, **options) as gateway:
        (cam,) = await populate(gateway.harness.registry, "cam-1")
        wire, _ = await gateway.harness.connect(cam, V5)
        answers = [await put(wire, name, bytes(70_000)) for name in "abcd"]
        assert answers == [True, True, True, False]
        backend = await gateway.backend()
        await backend.publish("other", b"y", 1, retain=True)
        await until(lambda: len(list(retained_messages(database))) == 4)
        found = {each for each in retained_messages(database) if each.username != "_backend"}
        assert found == {Retained("cam-1", MODEL.name, f"devices/cam-1/up/{name}", 70_000) for name in "abc"}
    async with open_mosquitto_gateway(tmp_path, **options) as gateway:
        wire, _ = await gateway.harness.connect(cam, V5)
        kept_now = gateway.harness.gateway.context.retained
        assert kept_now is not None
        await until(lambda: "cam-1" in kept_now._kept)
        assert not await put(wire, "e")
        assert await put(wire, "a", b"")
        assert await put(wire, "e")
        will = Will("devices/cam-1/up/gone", b"x", retain=True)
        _, connack = await gateway.harness.connect(cam, V5, will=will)
        assert connack.code == Reason.QUOTA_EXCEEDED
        [row] = [row.entry for row in await gateway.harness.registry.audit() if row.entry.outcome == "will-quota"]
        assert (row.actor, row.action, row.subject) == ("device cam-1", "mqtt.connect", "device cam-1")


def test_other_files_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / DATABASE
    assert list(retained_messages(path)) == []
    for content in (b"", b"x", b"\x00\xb5\x00mosquitto db", b"\x00\xb5\x00mosquitto db\0\0\0\0\0\0\0\x05", bytes(100)):
        path.write_bytes(content)
        assert list(retained_messages(path)) == []
