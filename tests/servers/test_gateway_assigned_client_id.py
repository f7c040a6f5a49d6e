"""A CONNECT with an empty client id: the device's id is assigned (MQTT 5.0, 3.1.3.1, 3.2.2.3.7; 3.1.1, 3.1.3.1)."""

import asyncio
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.domain.device import DeviceState
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.broker.mosquitto import Mosquitto, mosquitto_program
from fleet.servers.gateway.session.phases import Phase
from fleet.services import revocation
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import (
    Connack,
    Connect,
    Will,
    decode_connack,
    decode_connect,
    encode_connack,
    encode_connect,
)
from fleet.wire.mqtt.properties import Properties, Property, value_of
from tests.servers.gateway_fixtures import (
    MODEL,
    GatewayHarness,
    Wire,
    credential,
    now,
    open_gateway,
    populate,
    refused,
    up,
)
from tests.servers.gateway_relay_harness import VERSIONS
from tests.servers.paho_client import Paho
from tests.servers.test_gateway_session_machine import ADMISSION, Bench
from tests.waiting import PATIENCE_SECONDS, until

PROGRAM = mosquitto_program()
KEPT: Properties = ((Property.SESSION_EXPIRY_INTERVAL, 600),)
UNNAMED = [
    Connect(V311, ""),
    Connect(V5, ""),
    Connect(V5, "", clean=False),
    Connect(V5, "", clean=False, properties=KEPT),
    Connect(V311, "", will=Will("devices/cam-1/up/gone", b"x"), username="cam-2", password=b"x"),
]


async def opened(h: GatewayHarness, wire: Wire, connect: Connect, *properties: tuple[Property, object]) -> Connack:
    """The CONNACK for `connect`, which the broker accepts with these properties."""
    wire.send(encode_connect(connect))
    side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
    got = decode_connect((await side.packet()).body)
    assert (got.client_id, got.version, got.properties) == ("cam-1", connect.version, connect.properties)
    # An id that is new has no session yet, whatever the broker keeps for the device.
    assert got.clean
    side.send(encode_connack(Connack(False, 0, properties), connect.version))  # type: ignore[arg-type]
    return decode_connack((await wire.packet()).body, connect.version)


@pytest.mark.parametrize("connect", UNNAMED)
async def test_the_device_gets_its_id(tmp_path: Path, connect: Connect) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        connack = await opened(h, await h.dial(cam), connect)
        assert connack.code == 0
        assigned = value_of(connack.properties, Property.ASSIGNED_CLIENT_IDENTIFIER)
        assert assigned == ("cam-1" if connect.version == V5 else None)
        assert len(h.gateway.context.open_sessions.of_device("cam-1")) == 1


async def test_the_id_is_ours_and_not_the_brokers(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        connack = await opened(h, await h.dial(cam), Connect(V5, ""), (Property.ASSIGNED_CLIENT_IDENTIFIER, "other"))
        found = [value for name, value in connack.properties if name == Property.ASSIGNED_CLIENT_IDENTIFIER]
        assert found == ["cam-1"]


@VERSIONS
async def test_who_says_its_id_gets_none_assigned(tmp_path: Path, version: int) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        connack = await opened(h, await h.dial(cam), Connect(version, "cam-1"))
        assert value_of(connack.properties, Property.ASSIGNED_CLIENT_IDENTIFIER) is None


async def test_311_without_clean_session_is_refused(tmp_path: Path) -> None:
    # [MQTT-3.1.3-8] of 3.1.1: return code 2, then close
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(V311, "", clean=False)))
        assert await refused(wire, V311) == 2
        row = (await h.registry.audit())[-1].entry
        assert (row.actor, row.outcome) == ("device cam-1", "client-id-mismatch")
        assert h.broker.sessions.empty()


@pytest.mark.parametrize(("version", "code"), [(V311, 5), (V5, Reason.NOT_AUTHORIZED)])
async def test_a_certificate_that_is_unknown(tmp_path: Path, version: int, code: int) -> None:
    async with open_gateway(tmp_path) as h:
        await populate(h.registry, "cam-1")
        wire = await h.dial(credential("cam-1"))
        wire.send(encode_connect(Connect(version, "")))
        assert await refused(wire, version) == code
        assert h.gateway.sessions == 0


@pytest.mark.parametrize(("first", "second"), [("", "cam-1"), ("cam-1", ""), ("", "")])
async def test_the_newer_connection_takes_over(tmp_path: Path, first: str, second: str) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        older = await h.dial(cam)
        await opened(h, older, Connect(V5, first))
        await opened(h, await h.dial(cam), Connect(V5, second))
        (packet,) = await older.until_closed()
        assert (packet.type, packet.body[0]) == (PacketType.DISCONNECT, Reason.SESSION_TAKEN_OVER)
        assert len(h.gateway.context.open_sessions.of_device("cam-1")) == 1


@VERSIONS
async def test_a_revocation_closes_the_session(tmp_path: Path, version: int) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        await opened(h, wire, Connect(version, ""))
        await revocation.revoke(h.registry, "cam-1", act=Act("operator", now()))
        await wire.until_closed()
        assert h.gateway.stats["mqtt.session.device-ended"] == 1
        assert h.gateway.context.open_sessions.of_device("cam-1") == ()


async def test_events_find_it_before_the_registry_is_asked_for_the_last_time() -> None:
    """A suspension that was told of before the id was known is in the registry's second answer."""
    bench = Bench()
    bench.connect = Connect(V5, "")
    await bench.reach(Phase.ADMITTING)
    await until(lambda: bench.context.asked == [""])
    assert bench.context.open_sessions.of_device("") == ()
    bench.context.admissions.put_nowait(ADMISSION)
    await until(lambda: len(bench.context.asked) == 2)
    assert bench.session.phase is Phase.ADMITTING
    assert bench.session.client_id == "cam-1"
    assert bench.context.open_sessions.of_device("cam-1") == (bench.session,)
    bench.context.admissions.put_nowait(close_reasons.DEVICE_ENDED)
    await until(lambda: bench.session.phase is Phase.CLOSED)
    assert bench.context.open_sessions.of_device("cam-1") == ()
    await bench.finish()


async def test_one_that_is_closed_before_its_id_is_known_claims_none() -> None:
    bench = Bench()
    bench.connect = Connect(V5, "")
    await bench.reach(Phase.ADMITTING)
    bench.session.close(close_reasons.SHUTTING_DOWN)
    bench.context.admissions.put_nowait(ADMISSION)
    await asyncio.gather(*bench.context.tasks)
    assert bench.context.open_sessions.of_device("cam-1") == ()
    assert len(bench.context.open_sessions) == 0


@VERSIONS
async def test_a_suspended_device(tmp_path: Path, version: int) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1", state=DeviceState.SUSPENDED)
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(version, "")))
        assert await refused(wire, version) == (Reason.BANNED if version == V5 else 5)


@pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")
@VERSIONS
async def test_paho_without_a_client_id(tmp_path: Path, version: int) -> None:
    assert PROGRAM is not None
    broker = await Mosquitto.start(PROGRAM, tmp_path / "run", [MODEL])
    try:
        async with open_gateway(tmp_path, broker) as h:
            (cam,) = await populate(h.registry, "cam-1")
            device = Paho("", version)
            assert await device.connect("127.0.0.1", await h.door(cam)) == 0
            assert await device.subscribe("devices/cam-1/down/#") == [1]
            assert await device.publish("devices/cam-1/up/t", b"x", 1) in (0, 0x10)  # 0x10: nobody has subscribed to it
            await device.close()
            # The broker's session is the device's: who comes by the id finds what it kept.
            wire = await h.dial(cam)
            wire.send(encode_connect(Connect(V5, "", properties=KEPT)))
            assert decode_connack((await wire.packet()).body, V5).code == 0
            wire.send(up("cam-1", version=V5, qos=1))
            assert (await wire.packet()).type is PacketType.PUBACK
            wire.transport.abort()
            await h.count("mqtt.session.client-gone")
            _, connack = await h.connect(cam, V5)
            assert connack.code == 0
    finally:
        await broker.close()
