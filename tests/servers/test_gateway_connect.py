"""CONNECT at the gateway: what the broker gets of it, and who is refused with which code."""

import asyncio
from pathlib import Path

import pytest

from fleet.domain.changes import Change
from fleet.domain.credential import CredentialState
from fleet.domain.device import DeviceState
from fleet.domain.peer import Peer
from fleet.domain.writes import AddCredential
from fleet.servers.gateway import Limits, close_reasons
from fleet.servers.gateway import gateway as gateway_module
from fleet.servers.gateway.events.effects import EventEffects
from fleet.services.admission import Admission
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import Connect, Will, decode_connack, decode_connect, encode_connect
from fleet.wire.mqtt.fields import encode_varint
from fleet.wire.mqtt.properties import Properties, Property, value_of
from fleet.wire.mqtt.reader import CONNECT_SIZE_MAX
from tests.servers.gateway_fixtures import (
    FakeBroker,
    credential,
    open_gateway,
    operator,
    peer_of,
    populate,
    refused,
    up,
)
from tests.waiting import PATIENCE_SECONDS

VERSIONS = pytest.mark.parametrize("version", [V311, V5])


# CONNECT


@VERSIONS
async def test_the_broker_gets_the_identity_that_the_certificate_proves(tmp_path: Path, version: int) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        will = Will("devices/cam-1/up/gone", b"gone", 1, True)
        properties = (
            ((Property.TOPIC_ALIAS_MAXIMUM, 9), (Property.SESSION_EXPIRY_INTERVAL, 60)) if version == V5 else ()
        )
        asked = Connect(version, "cam-1", False, 33, will, "root", b"secret", properties)
        wire = await h.dial(cam)
        wire.send(encode_connect(asked))
        side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
        got = decode_connect((await side.packet()).body)
        kept = ((Property.SESSION_EXPIRY_INTERVAL, 60),) if version == V5 else ()
        assert got == Connect(version, "cam-1", False, 33, will, "cam-1", None, kept)


async def test_connect_byte_by_byte_with_packets_behind_it(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        stream = encode_connect(Connect(V311, "cam-1")) + up("cam-1") * 3
        wire = await h.dial(cam)
        for byte in stream:
            wire.send(bytes((byte,)))
            await asyncio.sleep(0)
        side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
        assert (await side.packet()).type is PacketType.CONNECT
        side.send(b"\x20\x02\x00\x00")
        for _ in range(3):
            assert (await side.packet()).encode() == up("cam-1")


@pytest.mark.parametrize(
    "data",
    [b"\xc0\x00", b"\x30\x04\x00\x01tx", b"\x20\x02\x00\x00", b"GET / HTTP/1.1\r\n\r\n", b"\x00", b"\x16\x03\x01"],
)
async def test_anything_but_connect_first(tmp_path: Path, data: bytes) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(data)
        assert await wire.until_closed() == []
        assert h.gateway.stats["mqtt.session.not-connect"] == 1
        assert h.gateway.sessions == 0


@pytest.mark.parametrize(
    ("data", "counter"),
    [
        (b"\x10\xff\xff\xff\x7f", "mqtt.connect.too-large"),
        (b"\x10" + encode_varint(CONNECT_SIZE_MAX + 1), "mqtt.connect.too-large"),
        (b"\x10" + encode_varint(CONNECT_SIZE_MAX + 1) + b"\0\4MQTT", "mqtt.connect.too-large"),
        (b"\x10" + encode_varint(CONNECT_SIZE_MAX + 1) + b"\0\4MQTT\4\2\0\x3c", "mqtt.connect.too-large"),
        (b"\x10\x80\x80\x80\x80", "mqtt.connect.malformed-connect"),
    ],
)
async def test_lengths_of_connect_that_are_refused_before_any_memory_is_taken(
    tmp_path: Path, data: bytes, counter: str
) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(data)
        assert await wire.until_closed() == []
        assert h.gateway.stats[counter] == 1


async def test_a_5_0_client_is_told_that_its_connect_is_too_large(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, limits=Limits(connect_size_max=1000, open_seconds_max=0.6)) as h:
        (cam,) = await populate(h.registry, "cam-1")
        for n in range(3):  # the last after a delay
            wire = await h.dial(cam)
            wire.send(encode_connect(Connect(V5, "cam-1", will=Will("devices/cam-1/up/t", bytes(1000)))))
            assert await refused(wire, V5) == Reason.PACKET_TOO_LARGE
            assert h.gateway.stats["mqtt.connect.too-large"] == n + 1
        assert h.gateway.stats["mqtt.delay.applied"] == 1


@pytest.mark.parametrize(
    ("body", "version", "code"),
    [
        (b"\x00\x04MQTT\x06\x02\x00\x3c\x00\x05cam-1", V5, Reason.UNSUPPORTED_PROTOCOL_VERSION),
        (b"\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x05cam-1", V311, 1),
        (b"\x00\x04MQTT\x84\x02\x00\x3c\x00\x05cam-1", V311, 1),  # a mosquitto bridge, which tries again as 3.1.1
        (b"\x00\x06MQIsdp\x83\x02\x00\x3c\x00\x05cam-1", V311, 1),
        (b"\x00\x04MQTT\x85\x02\x00\x3c\x00\x05cam-1", V5, Reason.UNSUPPORTED_PROTOCOL_VERSION),
        (b"\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x02\xff\xff", V5, Reason.MALFORMED_PACKET),
    ],
)
async def test_connects_that_cannot_be_read(tmp_path: Path, body: bytes, version: int, code: int) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(bytes((0x10, len(body))) + body)
        assert await refused(wire, version) == code


async def test_a_malformed_connect_of_311_is_not_answered(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        body = b"\x00\x04MQTT\x04\x02\x00\x3c\x00\x05cam"
        wire.send(bytes((0x10, len(body))) + body)
        assert await wire.until_closed() == []
        assert h.gateway.stats["mqtt.connect.malformed-connect"] == 1


async def test_no_connect_in_time(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, limits=Limits(connect_seconds_max=0.05)) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(b"\x10")
        assert await wire.until_closed() == []
        assert h.gateway.stats["mqtt.session.connect-timeout"] == 1


# Who is refused


@pytest.mark.parametrize(("version", "code"), [(V311, 2), (V5, Reason.CLIENT_IDENTIFIER_NOT_VALID)])
@pytest.mark.parametrize("client_id", ["cam-2", "#", "CAM-1"])
async def test_a_client_id_of_somebody_else(tmp_path: Path, version: int, code: int, client_id: str) -> None:
    async with open_gateway(tmp_path) as h:
        one, two = await populate(h.registry, "cam-1", "cam-2")
        theirs, their_side = await h.live(two)
        wire = await h.dial(one)
        wire.send(encode_connect(Connect(version, client_id)))
        assert await refused(wire, version) == code
        row = (await h.registry.audit())[-1].entry
        assert (row.actor, row.outcome) == ("device cam-1", "client-id-mismatch")
        # Nor has the device of that name noticed anything.
        theirs.send(up("cam-2"))
        assert (await their_side.packet()).encode() == up("cam-2")
        assert h.gateway.sessions == 1
        assert h.broker.sessions.empty()


@pytest.mark.parametrize(("version", "code"), [(V311, 5), (V5, Reason.NOT_AUTHORIZED)])
async def test_a_stranger(tmp_path: Path, version: int, code: int) -> None:
    async with open_gateway(tmp_path) as h:
        await populate(h.registry, "cam-1")
        for peer in (peer_of(credential("cam-1")), Peer("127.0.0.1")):
            wire = await h.dial(peer)
            wire.send(encode_connect(Connect(version, "cam-1")))
            assert await refused(wire, version) == code
        assert h.gateway.stats["mqtt.connect.certificate-unknown"] == 1
        assert h.gateway.stats["mqtt.connect.no-certificate"] == 1


@pytest.mark.parametrize(("version", "code"), [(V311, 5), (V5, Reason.BANNED)])
async def test_a_suspended_device(tmp_path: Path, version: int, code: int) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1", state=DeviceState.SUSPENDED)
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(version, "cam-1")))
        assert await refused(wire, version) == code


@pytest.mark.parametrize(("version", "code"), [(V311, 5), (V5, Reason.NOT_AUTHORIZED)])
async def test_a_retained_will_to_another_devices_topic(tmp_path: Path, version: int, code: int) -> None:
    async with open_gateway(tmp_path) as h:
        cam, _ = await populate(h.registry, "cam-1", "cam-2")
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(version, "cam-1", will=Will("devices/cam-2/up/t", b"x", 0, True))))
        assert await refused(wire, version) == code
        assert (await h.registry.audit())[-1].entry.outcome == "will-refused"


@pytest.mark.parametrize(
    ("response", "reason", "code"),
    [
        ("devices/cam-2/down/r", Reason.NOT_AUTHORIZED, "will-response"),
        ("devices/cam-1/down/#", Reason.PROTOCOL_ERROR, "will-response-topic"),
        ("", Reason.PROTOCOL_ERROR, "will-response-topic"),
    ],
)
async def test_a_will_with_a_response_topic(tmp_path: Path, response: str, reason: Reason, code: str) -> None:
    async with open_gateway(tmp_path) as h:
        cam, _ = await populate(h.registry, "cam-1", "cam-2")
        wire = await h.dial(cam)
        will = Will("devices/cam-1/up/t", b"x", properties=((Property.RESPONSE_TOPIC, response),))
        wire.send(encode_connect(Connect(V5, "cam-1", will=will)))
        assert await refused(wire, V5) == reason
        assert h.gateway.stats[f"mqtt.connect.{code}"] == 1


@pytest.mark.parametrize(
    ("properties", "text"),
    [
        (((Property.RECEIVE_MAXIMUM, 0),), "Receive Maximum"),
        (((Property.MAXIMUM_PACKET_SIZE, 0),), "Maximum Packet Size"),
        (((Property.REQUEST_PROBLEM_INFORMATION, 2),), "Request Problem Information"),
        (((Property.SESSION_EXPIRY_INTERVAL, 1), (Property.SESSION_EXPIRY_INTERVAL, 1)), "twice"),
    ],
)
async def test_a_protocol_error_is_named(tmp_path: Path, properties: Properties, text: str) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(V5, "cam-1", properties=properties)))
        connack = decode_connack((await wire.packet()).body, V5)
        assert connack.code == Reason.PROTOCOL_ERROR
        assert text in str(value_of(connack.properties, Property.REASON_STRING))
        assert h.gateway.stats == {"mqtt.connect.protocol-error": 1}


@pytest.mark.parametrize(("size", "code"), [(1, 0x95), (31, 0x95), (32, 0)])
async def test_a_client_whose_packets_have_no_room_for_a_connack(tmp_path: Path, size: int, code: int) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(V5, "cam-1", properties=((Property.MAXIMUM_PACKET_SIZE, size),))))
        if code:
            assert (await wire.packet()).body == bytes((0, code, 0))  # and no Reason String
            assert h.gateway.stats == {"mqtt.connect.connack-too-large": 1}
        else:
            await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)


@VERSIONS
@pytest.mark.parametrize(("slashes", "is_refused"), [(200, False), (201, True)])
async def test_the_levels_of_a_wills_topic(tmp_path: Path, version: int, slashes: int, is_refused: bool) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        topic = "devices/cam-1/up/" + "/" * (slashes - 3)
        wire.send(encode_connect(Connect(version, "cam-1", will=Will(topic, b"x"))))
        if is_refused:
            await wire.until_closed()
            assert h.gateway.stats == {"mqtt.connect.malformed-connect": 1}
        else:
            await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)


async def test_an_authentication_method(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(V5, "cam-1", properties=((Property.AUTHENTICATION_METHOD, "SCRAM"),))))
        assert await refused(wire, V5) == Reason.BAD_AUTHENTICATION_METHOD


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b"\x10\x11\0\4MQTT\6\2\0\x3c\0\5cam-1", "unsupported-version"),
        (b"\x10" + encode_varint(CONNECT_SIZE_MAX + 1) + b"\0\4MQTT\5\2\0\x3c", "too-large"),
        (b"\x10\x0f\0\4MQTT\4\2\0\x3c\0\5cam", "malformed-connect"),
        (b"\x10\xff\xff\xff\xff\x01", "malformed-connect"),  # a remaining length of five bytes
        (encode_connect(Connect(V5, "cam-1", properties=((Property.AUTHENTICATION_METHOD, "A"),))), "auth-method"),
    ],
)
async def test_a_connect_that_is_refused_before_its_admission_is_audited_and_repeats_are_folded(
    tmp_path: Path, data: bytes, outcome: str
) -> None:
    async with open_gateway(tmp_path) as h:
        one, two = await populate(h.registry, "cam-1", "cam-2")
        for peer in (one, one, two, peer_of(credential("cam-3")), one):
            wire = await h.dial(peer)
            wire.send(data)
            await wire.until_closed()

        async def rows() -> list[tuple[str, str]]:
            found = [row.entry for row in await h.registry.audit() if row.entry.action == "mqtt.connect"]
            assert {entry.outcome for entry in found} <= {outcome}
            assert all(entry.address == "127.0.0.1" for entry in found)
            return sorted((entry.actor, entry.subject) for entry in found)

        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(await rows()) < 3:
                pass
        name = "device cam-1" if outcome == "auth-method" else "device ?"  # where there is a client id to read
        assert await rows() == [("device cam-1", name), ("device cam-2", name), ("nobody", name)]


async def test_a_distrust_that_comes_during_the_admission_is_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_distrusted(_effects: EventEffects, admission: Admission) -> bool:
        return admission.device.id == "cam-1"

    monkeypatch.setattr(EventEffects, "is_distrusted", is_distrusted)
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(V5, "cam-1")))
        assert await refused(wire, V5) == Reason.NOT_AUTHORIZED
        await h.count("mqtt.connect.certificate-distrusted")
        [row] = [row.entry for row in await h.registry.audit() if row.entry.outcome == "certificate-distrusted"]
        assert (row.actor, row.action, row.subject) == ("device cam-1", "mqtt.connect", "device cam-1")


async def test_a_feed_that_is_down_is_no_clients_doing_and_not_audited(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        before = await h.registry.last_audit()
        await h.gateway.context.denials.refused_connect(peer_of(cam), "cam-1", close_reasons.FEED_DOWN)
        assert await h.registry.last_audit() == before
        await h.gateway.context.denials.refused_connect(peer_of(cam), "cam-1", close_reasons.UNSUPPORTED_VERSION)
        assert await h.registry.last_audit() == before + 1


async def test_version_5_before_a_broker_of_311(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, FakeBroker(speaks_v5=False)) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(V5, "cam-1")))
        assert await refused(wire, V5) == Reason.UNSUPPORTED_PROTOCOL_VERSION
        await h.live(cam)


@pytest.mark.parametrize(("version", "code"), [(V311, 3), (V5, Reason.SERVER_UNAVAILABLE)])
async def test_a_broker_that_is_not_there(tmp_path: Path, version: int, code: int) -> None:
    async with open_gateway(tmp_path, FakeBroker(error=ConnectionRefusedError())) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(version, "cam-1")))
        assert await refused(wire, version) == code
        assert h.gateway.stats["mqtt.connect.broker-unreachable"] == 1


@VERSIONS
async def test_a_broker_that_closes_or_says_nothing(tmp_path: Path, version: int) -> None:
    async with open_gateway(tmp_path, limits=Limits(open_seconds_max=0.3)) as h:
        (cam,) = await populate(h.registry, "cam-1")
        for closes in (True, False):
            wire = await h.dial(cam)
            wire.send(encode_connect(Connect(version, "cam-1")))
            side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
            if closes:
                side.transport.close()
            assert await refused(wire, version) == (Reason.SERVER_UNAVAILABLE if version == V5 else 3)
        assert h.gateway.stats["mqtt.connect.broker-lost"] == 1
        assert h.gateway.stats["mqtt.connect.open-timeout"] == 1


@pytest.mark.parametrize(("version", "code"), [(V311, 3), (V5, Reason.SERVER_UNAVAILABLE)])
@pytest.mark.parametrize("failing", ["admit_client", "connect"])
async def test_an_unexpected_failure_is_answered_at_once_and_logged_once(
    tmp_path: Path,
    version: int,
    code: int,
    failing: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(*args: object) -> None:
        raise LookupError("not in the list")

    async with open_gateway(tmp_path, limits=Limits(open_seconds_max=2 * PATIENCE_SECONDS)) as h:
        (cam,) = await populate(h.registry, "cam-1")
        with monkeypatch.context() as patch:
            place = gateway_module if failing == "admit_client" else h.gateway.context.broker
            patch.setattr(place, failing, broken)
            wire = await h.dial(cam)
            wire.send(encode_connect(Connect(version, "cam-1")))
            assert await refused(wire, version) == code
        assert h.gateway.stats["mqtt.connect.internal"] == 1
        assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [LookupError]
        await h.live(cam)


async def test_the_oldest_of_many_unused_certificates_connects(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        await populate(h.registry, "cam-1")
        unused = [credential("cam-1", CredentialState.ISSUED) for _ in range(18)]
        await h.registry.commit(Change(operator("test"), tuple(map(AddCredential, unused))))
        await h.live(unused[0])
        await h.live(unused[17])


async def test_sessions_in_all_are_capped(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, limits=Limits(sessions_max=2)) as h:
        one, two, three = await populate(h.registry, "cam-1", "cam-2", "cam-3")
        first, _ = await h.live(one)
        await h.live(two)
        wire = await h.dial(three)
        assert await wire.until_closed() == []
        first.transport.close()
        await h.count("mqtt.session.client-gone")
        await h.live(three)
