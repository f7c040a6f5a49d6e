"""A live session: how it ends, rules that change under it, and flow control."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind
from fleet.domain.credential import CredentialState
from fleet.domain.device import DeviceState
from fleet.domain.registry_events import decode_event
from fleet.domain.writes import AddCredential
from fleet.servers.gateway import Gateway, GatewayOptions, Limits, close_reasons
from fleet.servers.gateway.broker.visit import BrokerVisits
from fleet.servers.gateway.events.session_purge import SessionPurger
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.relay.packet_filter import HOLD_SIZE_MAX
from fleet.servers.gateway.relay.reason_strings import TOPIC_REFUSED
from fleet.servers.gateway.session import drain, timers
from fleet.services import revocation
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import Connect, Will, decode_connect, encode_connect
from fleet.wire.mqtt.properties import Property
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.subscribe import Suback, Subscribe, Subscription, encode_suback, encode_subscribe
from tests.servers.gateway_fixtures import (
    FakeBroker,
    GatewayHarness,
    Wire,
    credential,
    last_words,
    now,
    open_gateway,
    operator,
    populate,
    refused,
    up,
)
from tests.waiting import PATIENCE_SECONDS, until

VERSIONS = pytest.mark.parametrize("version", [V311, V5])


# How it ends


@VERSIONS
async def test_a_clean_disconnect_reaches_the_broker(tmp_path: Path, version: int) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, side = await h.live(cam, version)
        wire.send(up("cam-1", version=version) + acks.disconnect(version))
        last = await side.until_closed()
        assert [p.type for p in last] == [PacketType.PUBLISH, PacketType.DISCONNECT]
        await wire.until_closed()
        assert h.gateway.sessions == 0


@pytest.mark.parametrize("size", [1_000, 100_000])
async def test_half_a_message_and_silence_hold_a_drain_for_its_time_and_a_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The longer one is on its way to the broker already: it is given PACKET_SECONDS_MAX."""
    monkeypatch.setattr(drain, "PACKET_SECONDS_MAX", 0.1)
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, side = await h.live(cam, V5)
        half = up("cam-1", b"x" * size, V5, qos=1)[: size * 4 // 5]
        wire.send(half)
        if size > HOLD_SIZE_MAX:
            await side.received(len(half))
        h.gateway.begin_drain(0.1, restarts=True)
        assert (await wire.until_closed())[-1].body[0] == Reason.SERVER_SHUTTING_DOWN
        assert h.gateway.stats["mqtt.session.server-restarting"] == 1
        last = await side.until_closed()
        assert [packet.type for packet in last] == ([] if size > HOLD_SIZE_MAX else [PacketType.DISCONNECT])


async def test_a_device_that_vanishes_leaves_its_will_to_the_broker(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, side = await h.live(cam)
        wire.send(up("cam-1")[:-1])  # half a packet
        wire.transport.abort()
        assert await side.until_closed() == []
        assert not side.raw


@pytest.mark.parametrize(("version", "last"), [(V311, b""), (V5, last_words(close_reasons.BROKER_LOST))])
async def test_a_broker_that_goes_away(tmp_path: Path, version: int, last: bytes) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, side = await h.live(cam, version)
        side.transport.close()
        await wire.until_closed()
        assert wire.raw == last


@pytest.mark.parametrize(("version", "last"), [(V311, b""), (V5, last_words(close_reasons.TAKEN_OVER))])
async def test_a_newer_session_takes_over(tmp_path: Path, version: int, last: bytes) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, side = await h.live(cam, version)
        newer, newer_side = await h.live(cam, version)
        await wire.until_closed()
        await side.until_closed()
        assert wire.raw == last
        newer.send(up("cam-1", version=version))
        assert (await newer_side.packet()).type is PacketType.PUBLISH
        assert h.gateway.sessions == 1


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize(
    ("how", "state"),
    [(revocation.suspend, "suspended"), (revocation.revoke, "revoked"), (revocation.retire, "retired")],
)
async def test_a_device_that_is_cut_off(tmp_path: Path, version: int, how: object, state: str) -> None:
    async with open_gateway(tmp_path) as h:
        cam, other = await populate(h.registry, "cam-1", "cam-2")
        wire, side = await h.live(cam, version)
        bystander, bystander_side = await h.live(other, version)
        await how(h.registry, "cam-1", act=Act("operator", now()))  # type: ignore[operator]
        await wire.until_closed()
        assert wire.raw == (last_words(close_reasons.device_ended(state)) if version == V5 else b"")
        # The broker hears DISCONNECT, which drops the will.
        assert [p.type for p in await side.until_closed()] == [PacketType.DISCONNECT]
        again = await h.dial(cam)
        again.send(encode_connect(Connect(version, "cam-1")))
        assert await refused(again, version) == (Reason.BANNED if version == V5 else 5)
        bystander.send(up("cam-2", version=version))
        assert (await bystander_side.packet()).type is PacketType.PUBLISH


async def test_a_revoked_device_is_forgotten_by_the_broker(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        await populate(h.registry, "cam-1")
        await revocation.revoke(h.registry, "cam-1", act=Act("operator", now()))
        visit = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
        properties = ((Property.SESSION_EXPIRY_INTERVAL, 0), (Property.RECEIVE_MAXIMUM, 1))
        expected = Connect(V5, "cam-1", False, 60, username="cam-1", properties=properties)
        assert decode_connect((await visit.packet()).body) == expected
        visit.send(b"\x20\x03\x00\x00\x00")
        assert (await visit.packet()).type is PacketType.DISCONNECT
        await visit.until_closed()
        await h.count("mqtt.purge.ok")


async def test_of_several_gateways_none_forgets_for_the_others(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        one, two = await populate(h.registry, "cam-1", "cam-2")
        gateway = Gateway(h.registry, h.broker, clock=now, options=GatewayOptions(purges=False))
        feed = asyncio.create_task(gateway.run())
        await gateway.following()
        await revocation.revoke(h.registry, one.holder, act=Act("operator", now()))
        await revocation.retire(h.registry, two.holder, act=Act("operator", now()))
        visited = set()
        for _ in (one, two):  # by the harness's own gateway
            visit = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
            visited.add(decode_connect((await visit.packet()).body).client_id)
            visit.send(b"\x20\x03\x00\x00\x00")
            await visit.until_closed()
        assert visited == {"cam-1", "cam-2"}
        await gateway.close()
        feed.cancel()
        assert h.broker.sessions.empty()
        assert not gateway.stats


async def test_a_purge_waits_for_those_who_hear_later(tmp_path: Path) -> None:
    broker = FakeBroker()
    async with open_gateway(tmp_path) as h:
        await populate(h.registry, "cam-1", "cam-2")
        patient = SessionPurger(BrokerVisits(broker), h.registry, OutcomeLog(), after_seconds=3600)
        prompt = SessionPurger(BrokerVisits(broker), h.registry, OutcomeLog())
        for purges, device in ((patient, "cam-1"), (prompt, "cam-2")):
            for state in (DeviceState.SUSPENDED, DeviceState.REVOKED):  # from the first it may come back
                purges.on_event(decode_event(Event(EventKind.DEVICE_STATE, device, state)))
        visit = await asyncio.wait_for(broker.sessions.get(), PATIENCE_SECONDS)
        assert decode_connect((await visit.packet()).body).client_id == "cam-2"
        assert broker.sessions.empty()
        for purges in (patient, prompt):
            await purges.close()
        await visit.until_closed()


async def test_a_revocation_while_the_session_opens(tmp_path: Path) -> None:
    hurdle = asyncio.Event()
    async with open_gateway(tmp_path, FakeBroker(hurdle=hurdle)) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(V5, "cam-1")))
        await until_opening(h)
        await revocation.suspend(h.registry, "cam-1", act=Act("operator", now()))
        assert await refused(wire, V5) == Reason.BANNED
        hurdle.set()
        side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
        assert await side.until_closed() == []  # not even CONNECT
        assert h.gateway.sessions == 0


async def until_opening(h: GatewayHarness) -> None:
    """Returns when the one session has been admitted and waits for its broker."""
    await until(lambda: any(session.admission for session in h.gateway.context.open_sessions))


@pytest.mark.parametrize(("version", "code"), [(V311, 5), (V5, Reason.BANNED)])
async def test_a_revocation_before_the_brokers_answer(tmp_path: Path, version: int, code: int) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(version, "cam-1", will=Will("all/cam2", b"x"))) + up("cam-1", version=version))
        side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
        assert (await side.packet()).type is PacketType.CONNECT
        await revocation.suspend(h.registry, "cam-1", act=Act("operator", now()))
        assert await refused(wire, version) == code
        # The broker may have taken the CONNECT, and with it the will.
        assert [p.type for p in await side.until_closed()] == [PacketType.DISCONNECT]


async def test_connections_of_one_certificate_are_capped(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, limits=Limits(per_certificate_max=2)) as h:
        one, two = await populate(h.registry, "cam-1", "cam-2")
        first, _ = await h.dial(one), await h.dial(one)
        assert await (await h.dial(one)).until_closed() == []
        assert h.gateway.stats["mqtt.session.too-many-sessions"] == 1
        await h.live(two)
        first.transport.close()
        await h.count("mqtt.session.client-gone")
        await h.live(one)


async def test_the_first_use_of_a_newer_certificate_ends_the_older_ones_session(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        newer = credential("cam-1", CredentialState.ISSUED)
        await h.registry.commit(Change(operator("issue"), (AddCredential(newer),)))
        old, _ = await h.live(cam)
        await h.live(newer)
        await old.until_closed()
        assert h.gateway.sessions == 1
        # Heard later, the end of the old certificate would cut the next connection off before its CONNECT.
        newest = await h.registry.last_event()
        await until(lambda: h.gateway._feed._received == newest)
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(V311, "cam-1")))
        assert await refused(wire, V311) == 5


@pytest.mark.parametrize(
    ("version", "last"),
    [(V311, b""), (V5, acks.disconnect(V5, Reason.MAXIMUM_CONNECT_TIME, "The certificate has expired."))],
)
async def test_a_session_ends_with_its_certificate(
    tmp_path: Path, version: int, last: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "CLOCK_CHECK_SECONDS_MAX", 0.05)
    jump = timedelta()
    async with open_gateway(tmp_path, clock=lambda: now() + jump) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, side = await h.live(cam, version)
        wire.send(up("cam-1", version=version))
        await side.packet()
        jump = cam.not_after - now()
        await wire.until_closed()
        assert wire.raw == last
        assert await side.until_closed() == []  # the broker publishes the will: the device is gone
        assert h.gateway.stats["mqtt.session.certificate-expired"] == 1


# Rules that change


async def test_a_narrower_model_ends_the_sessions_that_hold_too_much(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        one, two, three = await populate(h.registry, "cam-1", "cam-2", "cam-3")
        holder, holder_side = await h.live(one, V5)
        holder.send(encode_subscribe(Subscribe(1, (Subscription("news/x"),)), V5))
        await holder_side.packet()
        willed, _ = await h.live(two, V5, will=Will("all/cam2", b"x"))
        plain, plain_side = await h.live(three, V5)
        plain.send(up("cam-3", version=V5))
        await plain_side.packet()
        await h.set_model(publish=("devices/{id}/up/other",), subscribe=("devices/{id}/down/#",))
        for wire in (holder, willed):
            await wire.until_closed()
            assert wire.raw.endswith(last_words(close_reasons.POLICY_CHANGED))
        plain.send(up("cam-3", version=V5, qos=1))
        refusal = acks.acknowledge(acks.PUBACK, 1, V5, Reason.NOT_AUTHORIZED, TOPIC_REFUSED)
        assert (await plain.packet()).encode() == refusal
        assert h.broker.models[0].publish == ("devices/{id}/up/other",)


async def test_a_wider_model_holds_at_once(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, side = await h.live(cam, V5)
        packet = encode_publish(Publish("extra/cam-1", b"", 1, 1), V5)
        wire.send(packet)
        assert (await wire.packet()).type is PacketType.PUBACK
        await h.set_model(publish=("extra/{id}",))
        await h.count("mqtt.model.applied")
        wire.send(packet)
        assert (await side.packet()).encode() == packet


async def test_a_model_that_changes_while_a_session_opens(tmp_path: Path) -> None:
    hurdle = asyncio.Event()
    async with open_gateway(tmp_path, FakeBroker(hurdle=hurdle)) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(V5, "cam-1")))
        await until_opening(h)
        await h.set_model(publish=())
        await until(lambda: any(session._policy_outdated for session in h.gateway.context.open_sessions))
        hurdle.set()
        side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
        await side.packet()
        side.send(b"\x20\x03\x00\x00\x00")
        await wire.packet()
        wire.send(up("cam-1", version=V5, qos=1))
        assert (await wire.packet()).type is PacketType.PUBACK


# Flow control


async def test_a_broker_that_does_not_read_stops_the_device(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, side = await h.live(cam)
        side.transport.pause_reading()
        message = up("cam-1", bytes(60_000))
        await until_clogged(wire, message)
        (session,) = h.gateway.context.open_sessions
        assert session._broker is not None
        assert session._broker._transport.get_write_buffer_size() < 1_000_000
        side.transport.resume_reading()
        await side.received(len(message) * 50)


async def until_clogged(sender: Wire, message: bytes) -> None:
    """Send until nothing is taken any more: what our side holds has stopped growing for a while."""
    for _ in range(400):
        sender.send(message)
    size = -1
    async with asyncio.timeout(PATIENCE_SECONDS):
        while sender.transport.get_write_buffer_size() != size:
            size = sender.transport.get_write_buffer_size()
            await asyncio.sleep(0.2)
    assert size > 0


async def test_a_device_that_asks_and_does_not_read_the_answers(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, _ = await h.live(cam, V5)
        wire.transport.pause_reading()
        bad = encode_subscribe(Subscribe(1, tuple(Subscription(f"no/{n}") for n in range(900))), V5)
        await until_clogged(wire, bad * 30)
        (session,) = h.gateway.context.open_sessions
        assert session._device is not None
        assert session._device._transport.get_write_buffer_size() < 2_000_000


async def test_close_tells_everybody(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        one, two = await populate(h.registry, "cam-1", "cam-2")
        new, _ = await h.live(one, V5)
        waiting = await h.dial(two)
        await h.gateway.close()
        await new.until_closed()
        assert new.raw == last_words(close_reasons.SHUTTING_DOWN)
        assert await waiting.until_closed() == []
        assert h.gateway.sessions == 0


@VERSIONS
async def test_what_a_device_may_not_do_is_audited_and_repeats_are_folded(tmp_path: Path, version: int) -> None:
    async with open_gateway(tmp_path) as h:
        one, two = await populate(h.registry, "cam-1", "cam-2")
        wire, _ = await h.live(one, version)
        other, _ = await h.live(two, version)
        for number in range(1, 501):
            wire.send(encode_subscribe(Subscribe(number, (Subscription("devices/cam-2/#"),)), version))
            wire.send(up("cam-2", version=version, qos=1))
        other.send(encode_subscribe(Subscribe(1, (Subscription("devices/cam-1/down/#"),)), version))
        for _ in range(1000):
            await wire.packet()
        await other.packet()

        async def rows() -> list[tuple[str, str, str, str]]:
            found = [row.entry for row in await h.registry.audit() if row.entry.outcome == "refused"]
            return sorted((entry.actor, entry.action, entry.subject, entry.detail["topic"]) for entry in found)

        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(await rows()) < 3:
                pass
        assert await rows() == [
            ("device cam-1", "mqtt.publish", "device cam-1", "devices/cam-2/up/t"),
            ("device cam-1", "mqtt.subscribe", "device cam-1", "devices/cam-2/#"),
            ("device cam-2", "mqtt.subscribe", "device cam-2", "devices/cam-1/down/#"),
        ]


@pytest.mark.parametrize("version", [V311, V5])
async def test_a_limit_is_told_from_a_policy_and_retain_from_a_topic(
    tmp_path: Path, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fleet.gateway")
    async with open_gateway(tmp_path, limits=Limits(filters_per_device_max=1)) as h:
        (one,) = await populate(h.registry, "cam-1")
        await h.set_model(retain=False)
        await h.count("mqtt.model.applied")
        wire, side = await h.live(one, version)
        for number, asked in enumerate(("devices/cam-1/down/a", "devices/cam-1/down/b", "devices/cam-2/#"), 1):
            wire.send(encode_subscribe(Subscribe(number, (Subscription(asked),)), version))
        side.send(encode_suback(Suback(1, (0,)), version))
        wire.send(encode_publish(Publish("devices/cam-1/up/t", b"x", 1, 4, retain=True), version))
        for _ in range(4):
            await wire.packet()
    expected = [
        ("mqtt.subscribe", "quota", "topic=devices/cam-1/down/b"),
        ("mqtt.subscribe", "refused", "topic=devices/cam-2/#"),
        ("mqtt.publish", "refused", "topic=devices/cam-1/up/t reason=retain"),
    ]
    for event, code, detail in expected:
        (line,) = [line for line in caplog.messages if f"event={event} " in line and line.endswith(f"code={code}")]
        assert f" {detail} ms=" in line
    registry = await SqliteRegistry.open(tmp_path / "registry.db")
    entries = [row.entry for row in await registry.audit() if row.entry.action in ("mqtt.subscribe", "mqtt.publish")]
    await registry.close()
    found = [
        (
            entry.action,
            entry.outcome,
            " ".join(f"{n}={v}" for n, v in sorted(entry.detail.items(), reverse=True) if n != "serial"),
        )
        for entry in entries
    ]
    assert sorted(found) == sorted(expected)
