"""Sessions of the gateway as the registry has them: opened, taken over, ended, and listed by the API."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.config.timestamps import EPOCH
from fleet.domain.access import Act
from fleet.domain.model_rules import ModelRules
from fleet.domain.mqtt_rules import ClientIdBinding, MqttRules
from fleet.domain.presence import GatewayRun, SessionFilter, SessionFound
from fleet.domain.registry_events import SessionKicked
from fleet.servers.gateway import close_reasons
from fleet.services import presence as service
from fleet.services.presence import Presence, kick
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.wire.mqtt.codes import V5, V311, PacketType
from fleet.wire.mqtt.connect import Connect, Will, encode_connect
from tests.servers.gateway_fixtures import GatewayHarness, Wire, last_words, now, open_gateway, peer_of, populate
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "BATCH_SECONDS", 0.01)


@asynccontextmanager
async def recording(path: Path) -> AsyncIterator[GatewayHarness]:
    registry = await SqliteRegistry.open(path / "registry.db")
    presence = Presence(registry, GatewayRun("aa" * 8, "host:/home", 1, now()), now)
    await presence.begin()
    async with open_gateway(path, registry=registry, presence=presence) as h:
        task = asyncio.create_task(presence.run(h.gateway.heard))
        yield h
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def found(h: GatewayHarness, reason: str = "", since: datetime = EPOCH) -> SessionFound:
    """The session of cam-1, once it has ended for `reason` or, with "", is open, and began after `since`."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            match await h.registry.sessions(SessionFilter("cam-1")):
                case [one] if one.reason == reason and one.session.connected_at > since:
                    return one
            await asyncio.sleep(0.01)


async def settled(h: GatewayHarness, count: int, *, ended: int) -> dict[str, str]:
    """Close reason of each client id, once there are `count` of which so many have ended."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            known = {each.session.client_id: each.reason for each in await h.registry.sessions()}
            if len(known) == count and sum(map(bool, known.values())) == ended:
                return known
            await asyncio.sleep(0.01)


async def test_a_session_from_connack_to_its_end(tmp_path: Path) -> None:
    async with recording(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        before = now()
        agreed = ("TLS_AES_128_GCM_SHA256", "X25519")
        peer = replace(peer_of(cam), address="192.0.2.7", tls_version="TLSv1.3", read_agreed=lambda: agreed)
        wire = await h.dial(peer)
        wire.send(encode_connect(Connect(V5, "cam-1")))
        side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
        await side.packet()
        assert await h.registry.sessions() == []  # the broker may still refuse it
        side.send(b"\x20\x03\x00\x00\x00")
        await wire.packet()
        opened = (await found(h)).session
        assert (opened.address, opened.tls, opened.tls_group, opened.mqtt) == ("192.0.2.7", "TLSv1.3", "X25519", "5.0")
        assert before <= opened.connected_at == opened.seen_at <= now()
        assert [session for session, _ in h.gateway.heard()] == [opened]
        wire.transport.abort()
        ended = (await found(h, "client-gone")).session
        assert ended.connected_at == opened.connected_at < ended.seen_at == ended.ended_at
        assert list(h.gateway.heard()) == []


async def test_who_is_refused_was_never_connected(tmp_path: Path) -> None:
    async with recording(tmp_path) as h:
        other, cam = await populate(h.registry, "cam-2", "cam-1")
        _, connack = await h.connect(other, V5, client_id="cam-1")
        assert connack.code
        await h.live(cam, V5)
        await found(h)
        assert [each.session.device_id for each in await h.registry.sessions()] == ["cam-1"]


async def test_a_session_that_is_taken_over_leaves_the_new_one(tmp_path: Path) -> None:
    async with recording(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        await h.live(cam)
        first = (await found(h)).session
        await h.live(cam)
        second = (await found(h, since=first.connected_at)).session
        assert (second.ended_at, second.mqtt) == (None, "3.1.1")


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize("publishes_will", [False, True])
async def test_a_kick_ends_the_session_with_its_will_or_without(
    tmp_path: Path, version: int, publishes_will: bool
) -> None:
    will = Will("devices/cam-1/up/gone", b"gone")
    async with recording(tmp_path) as h:
        cam, other = await populate(h.registry, "cam-1", "cam-2")
        wire, side = await h.live(cam, version, will=will)
        _, others_side = await h.live(other, version)
        kicked = SessionKicked("cam-1", publishes_will=publishes_will)
        await kick(h.registry, kicked, act=Act("operator bob", now(), "192.0.2.1"), reason="stuck")
        to_device = [packet.type for packet in await wire.until_closed()]
        assert to_device == ([PacketType.DISCONNECT] if version == V5 else [])
        assert bytes(wire.raw) == (last_words(close_reasons.KICKED) if version == V5 else b"")
        to_broker = [packet.type for packet in await side.until_closed()]
        assert to_broker == ([] if publishes_will else [PacketType.DISCONNECT])
        await found(h, close_reasons.KICKED_WITH_WILL.code if publishes_will else close_reasons.KICKED.code)
        assert not others_side.closed.is_set()
        wire, _ = await h.live(cam, version)  # it may connect again, at once
        entry = (await h.registry.audit())[-1].entry
        detail = {"will": "published" if publishes_will else "discarded", "reason": "stuck"}
        assert (entry.action, entry.subject, entry.actor, entry.detail) == (
            "session.kick",
            "device cam-1",
            "operator bob",
            detail,
        )


async def test_a_kick_by_client_id_ends_that_session_alone(tmp_path: Path) -> None:
    async with recording(tmp_path) as h:
        cam, other = await populate(h.registry, "cam-1", "cam-2")
        wire, _ = await h.live(cam)
        second, _ = await h.live(other)
        act = Act("operator bob", now())
        await kick(h.registry, SessionKicked("cam-1", "cam-2"), act=act)  # another device's
        await kick(h.registry, SessionKicked("cam-1", "cam-1/x"), act=act)
        await kick(h.registry, SessionKicked("cam-2", "cam-2"), act=act)
        await second.until_closed()
        assert not wire.closed.is_set()
        await kick(h.registry, SessionKicked("cam-1", "cam-1"), act=act)
        await wire.until_closed()
        assert h.gateway.stats["mqtt.session.kicked"] == 2


async def test_a_session_that_ends_during_a_round_is_not_said_to_be_open(tmp_path: Path) -> None:
    async with recording(tmp_path) as h:
        wires = [(await h.live(cam))[0] for cam in await populate(h.registry, "cam-1", "cam-2")]
        assert len(list(h.gateway.heard())) == 2
        heard = h.gateway.heard()
        next(heard)
        for wire in wires:
            wire.transport.abort()
        await settled(h, 2, ended=2)
        assert list(heard) == []


async def test_several_sessions_of_one_device_are_recorded_and_kicked_each(tmp_path: Path) -> None:
    async with recording(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        await h.set_model(rules=ModelRules(mqtt=MqttRules(client_id=ClientIdBinding.PREFIX)))
        wires: dict[str, Wire] = {}
        for client_id in ("cam-1", "cam-1/app", "cam-1/bridge"):
            wires[client_id] = wire = await h.dial(cam)
            wire.send(encode_connect(Connect(V5, client_id)))
            side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
            await side.packet()
            side.send(b"\x20\x03\x00\x00\x00")
            await wire.packet()
        act = Act("operator bob", now())
        await kick(h.registry, SessionKicked("cam-1", "cam-1/app"), act=act)
        await wires["cam-1/app"].until_closed()
        known = await settled(h, 3, ended=1)
        assert known == {"cam-1": "", "cam-1/app": "kicked", "cam-1/bridge": ""}
        await kick(h.registry, SessionKicked("cam-1"), act=act)
        for client_id in ("cam-1", "cam-1/bridge"):
            await wires[client_id].until_closed()
        assert await settled(h, 3, ended=3) == dict.fromkeys(wires, "kicked")


async def test_without_it_nothing_is_recorded(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        await h.live(cam)
        assert list(h.gateway.heard()) == []
