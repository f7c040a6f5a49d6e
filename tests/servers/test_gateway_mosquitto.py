"""The gateway before a real mosquitto, with paho on either side of it."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

from fleet.config.mqtt_bounds import BROKER_MEMORY_MAX
from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind
from fleet.domain.credential import Credential
from fleet.domain.device import Device, DeviceId, DeviceState
from fleet.domain.model_rules import ModelRules
from fleet.domain.mqtt_rules import MqttRules, OnDenied
from fleet.domain.writes import AddCredential, Insert, SetModel
from fleet.servers.gateway import Limits
from fleet.servers.gateway.broker import mosquitto
from fleet.servers.gateway.broker.mosquitto import BACKEND, Mosquitto
from fleet.servers.gateway.limits.kept_filters import KeptFilters
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS
from fleet.servers.gateway.relay.publish_head import ALIASES_MAX
from fleet.servers.gateway.relay.reason_strings import FILTERS, RETAIN_REFUSED, TOPIC_REFUSED
from fleet.servers.gateway.session.holders import HeldElsewhere
from fleet.services import revocation
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import Connect, Will, decode_connack, encode_connect
from fleet.wire.mqtt.properties import Property, value_of
from fleet.wire.mqtt.publish import Publish, decode_publish, encode_publish
from fleet.wire.mqtt.subscribe import Subscribe, Subscription, encode_subscribe
from tests.servers.gateway_fixtures import MODEL, Wire, credential, now, open_gateway, operator, populate
from tests.servers.mosquitto_gateway import PROGRAM, MosquittoGateway, needs_mosquitto, open_mosquitto_gateway
from tests.servers.paho_client import Paho
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = needs_mosquitto
VERSIONS = pytest.mark.parametrize("version", [V311, V5])


class Elsewhere:
    """Whether a device is held by another gateway: as `answer` says, "no" without one."""

    answer: HeldElsewhere | None = None

    async def __call__(self, device_id: str) -> bool | None:
        return await self.answer(device_id) if self.answer is not None else False


@pytest.fixture
def elsewhere() -> Elsewhere:
    return Elsewhere()


@pytest.fixture
async def gateway(tmp_path: Path, elsewhere: Elsewhere) -> AsyncIterator[MosquittoGateway]:
    async with open_mosquitto_gateway(tmp_path, held_elsewhere=elsewhere) as opened:
        yield opened


@VERSIONS
async def test_messages_of_every_qos_arrive_once_both_ways(gateway: MosquittoGateway, version: int) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    backend = await gateway.backend("devices/+/up/#")
    device = await gateway.device(cam, version)
    assert await device.subscribe("devices/cam-1/down/#", qos=2) == [2]
    for qos in (0, 1, 2):
        for n in range(20):
            device.client.publish("devices/cam-1/up/t", f"{qos} {n}", qos)
            backend.client.publish("devices/cam-1/down/t", f"{qos} {n}", qos)
    expected = [f"{qos} {n}".encode() for qos in (0, 1, 2) for n in range(20)]
    for client in (backend, device):
        found = [(await client.message())[1] for _ in expected]
        assert sorted(found) == sorted(expected)
        assert client.messages.empty()


@VERSIONS
async def test_what_is_refused_never_arrives(gateway: MosquittoGateway, version: int) -> None:
    one, two = await populate(gateway.harness.registry, "cam-1", "cam-2")
    backend = await gateway.backend("#")
    device = await gateway.device(one, version)
    failure = 0x87 if version == V5 else 0x80
    asked = ("#", "+/x", "$SYS/#", "$share/g/other", "news/a", "devices/cam-2/down/#", "$share/g/news/b")
    codes = await device.subscribe(*asked)
    assert codes == [failure, failure, failure, failure, 1, failure, 1]
    await gateway.device(two, version)
    if version == V5:
        assert await device.publish("devices/cam-2/up/t", b"forged", 1) == 0x87
        await device.publish("devices/cam-2/up/t", b"forged", 2)  # paho overlooks the reason in a PUBREC
        device.client.publish("devices/cam-2/up/t", b"forged", 0)
    else:
        for qos in (0, 1, 2):
            await device.publish("devices/cam-2/up/t", b"forged", qos)
    await device.publish("devices/cam-1/up/t", b"true")
    assert await backend.message() == ("devices/cam-1/up/t", b"true")


async def test_a_denied_message_of_311_does_not_hold_up_those_behind_it(gateway: MosquittoGateway) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    backend = await gateway.backend("devices/+/up/#")
    device = await gateway.device(cam, V311, clean=False)
    for qos in (1, 2):
        for topic in ("devices/cam-2/up/t", *["devices/cam-1/up/t"] * 5):
            device.client.publish(topic, topic.encode(), qos)
    assert [await device.got(device.pubacks) for _ in range(12)] == [0] * 12
    for _ in range(10):
        assert await backend.message() == ("devices/cam-1/up/t", b"devices/cam-1/up/t")
    assert backend.messages.empty()
    stats = gateway.harness.gateway.stats
    assert (stats["mqtt.connect.ok"], stats["mqtt.publish.refused"]) == (1, 2)
    assert device.disconnected.empty()


async def test_where_the_model_closes_at_a_denied_message_its_devices_feel_it_at_once(
    gateway: MosquittoGateway,
) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    device = await gateway.device(cam, V311)
    await device.publish("devices/cam-2/up/t", b"dropped")
    await gateway.harness.set_model(rules=ModelRules(mqtt=MqttRules(OnDenied.CLOSE)))
    await gateway.harness.count("mqtt.model.applied")
    for _ in range(2):  # by the change, then by the admission
        device.client.publish("devices/cam-2/up/t", b"dropped", 1)
        await device.got(device.disconnected)
        device = await gateway.device(cam, V311)
    assert gateway.harness.gateway.stats["mqtt.session.publish-refused"] == 2


@VERSIONS
@pytest.mark.parametrize("asks", [False, True])
async def test_a_device_that_comes_back_at_another_gateway_of_the_same_broker(
    gateway: MosquittoGateway, elsewhere: Elsewhere, tmp_path: Path, version: int, asks: bool
) -> None:
    """Newer brokers tell 5.0 why they close the older connection, mosquitto 2.0.11 does not; the other gateway does."""
    (tmp_path / "two").mkdir()
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    async with open_gateway(tmp_path / "two", gateway.broker) as other:
        (again,) = await populate(other.registry, "cam-1")

        async def held_elsewhere(device_id: str) -> bool:
            return other.gateway.holds(device_id)

        elsewhere.answer = held_elsewhere if asks else None
        older = await gateway.device(cam, version)
        assert not other.gateway.holds("cam-1")
        newer = Paho("cam-1", version)
        assert await newer.connect("127.0.0.1", await other.door(again)) == 0
        codes = ("mqtt.session.taken-over", "mqtt.session.broker-lost")
        await until(lambda: any(code in gateway.harness.gateway.stats for code in codes[: 1 if asks else 2]))
        is_named = codes[0] in gateway.harness.gateway.stats
        assert is_named or not asks
        assert await older.got(older.disconnected) == ((0x8E if is_named else 0x8B) if version == V5 else 0x80)
        assert newer.disconnected.empty()
        await newer.close()


async def test_a_broker_that_goes_takes_nobodys_session_over(gateway: MosquittoGateway, elsewhere: Elsewhere) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    asked: list[str] = []

    async def held_elsewhere(device_id: str) -> bool:
        asked.append(device_id)
        return False

    elsewhere.answer = held_elsewhere
    await gateway.device(cam, V311)
    gateway.broker.process.signal(signal.SIGKILL)
    await gateway.harness.count("mqtt.session.broker-lost")
    assert asked == ["cam-1"]


@VERSIONS
async def test_retained_messages(gateway: MosquittoGateway, version: int) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    backend = await gateway.backend()
    await backend.publish("news/today", b"sun", 1, retain=True)
    device = await gateway.device(cam, version)
    await device.subscribe("news/+")
    found = await device.got(device.messages)
    assert (found.payload, found.retain) == (b"sun", 1)
    await device.publish("devices/cam-1/up/state", b"on", 1, retain=True)
    await backend.subscribe("devices/+/up/state")
    assert (await backend.got(backend.messages)).retain == 1


@VERSIONS
async def test_a_will_is_published_when_the_device_vanishes(gateway: MosquittoGateway, version: int) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    backend = await gateway.backend("devices/+/up/#")
    device = await gateway.device(cam, version, will="devices/cam-1/up/gone")
    device.vanish()
    assert await backend.message() == ("devices/cam-1/up/gone", b"gone")


@VERSIONS
async def test_a_revoked_device_is_cut_off_and_leaves_no_will(gateway: MosquittoGateway, version: int) -> None:
    one, two = await populate(gateway.harness.registry, "cam-1", "cam-2")
    backend = await gateway.backend("#")
    device = await gateway.device(one, version, will="devices/cam-1/up/gone")
    other = await gateway.device(two, version)
    await revocation.revoke(gateway.harness.registry, "cam-1", act=Act("operator", now()))
    code = await device.got(device.disconnected)
    assert code == (0x98 if version == V5 else 0x80)
    again = Paho("cam-1", version)
    assert await again.connect("127.0.0.1", await gateway.harness.door(one)) >= 0x80
    await gateway.harness.count("mqtt.purge.ok")
    await other.publish("devices/cam-2/up/t", b"last")
    assert await backend.message() == ("devices/cam-2/up/t", b"last")
    await again.close()


@VERSIONS
async def test_a_revoked_devices_session_is_purged_and_a_suspended_ones_kept(
    gateway: MosquittoGateway, version: int
) -> None:
    one, two = await populate(gateway.harness.registry, "cam-1", "cam-2")
    for held in (one, two):
        device = await gateway.device(held, version, clean=False)
        await device.subscribe("news/#", f"devices/{held.holder}/down/#")
        await device.close()
    await gateway.harness.count("mqtt.session.client-disconnected", 2)
    await revocation.revoke(gateway.harness.registry, "cam-1", act=Act("operator", now()))
    await revocation.suspend(gateway.harness.registry, "cam-2", act=Act("operator", now()))
    await gateway.harness.count("mqtt.purge.ok")
    presents = []
    for held in (one, two):
        side = Wire()
        await gateway.broker.connect(lambda: side)  # noqa: B023
        side.send(encode_connect(Connect(version, held.holder, clean=False, username=MODEL.name)))
        presents.append(decode_connack((await side.packet()).body, version).session_present)
        side.transport.close()
    assert presents == [False, True]


@VERSIONS
async def test_shared_subscriptions_share(gateway: MosquittoGateway, version: int) -> None:
    held = await populate(gateway.harness.registry, "cam-1", "cam-2")
    devices = [await gateway.device(one, version) for one in held]
    for device in devices:
        assert await device.subscribe("$share/g/news/x") == [1]
    backend = await gateway.backend()
    for n in range(40):
        await backend.publish("news/x", str(n).encode())
    await until(lambda: sum(device.messages.qsize() for device in devices) == 40)
    assert all(not device.messages.empty() for device in devices)


@VERSIONS
async def test_messages_wait_for_a_device_that_is_away(gateway: MosquittoGateway, version: int) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    first = await gateway.device(cam, version, clean=False)
    await first.subscribe("devices/cam-1/down/#")
    await first.close()
    await gateway.harness.count("mqtt.session.client-disconnected")
    backend = await gateway.backend()
    for n in range(30):
        await backend.publish("devices/cam-1/down/t", str(n).encode())
    second = await gateway.device(cam, version, clean=False)
    assert [(await second.message())[1] for _ in range(30)] == [str(n).encode() for n in range(30)]


@VERSIONS
async def test_huge_payloads(gateway: MosquittoGateway, version: int) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    backend = await gateway.backend("devices/+/up/#")
    device = await gateway.device(cam, version)
    await device.subscribe("devices/cam-1/down/#")
    payload = bytes(range(256)) * 16_384  # 4 MiB
    await device.publish("devices/cam-1/up/blob", payload)
    assert (await backend.message())[1] == payload
    await backend.publish("devices/cam-1/down/blob", payload)
    assert (await device.message())[1] == payload


async def test_a_slow_consumer_gets_everything_in_the_end(gateway: MosquittoGateway) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    backend = await gateway.backend()
    slow = await raw_session(gateway, cam)
    slow.transport.pause_reading()
    payload = bytes(20_000)
    for n in range(400):
        backend.client.publish("devices/cam-1/down/t", n.to_bytes(2, "big") + payload, 1)
    for _ in range(400):
        await backend.got(backend.pubacks)
    (session,) = gateway.harness.gateway.context.open_sessions
    assert session._device is not None
    assert session._device._transport.get_write_buffer_size() < 1_000_000
    slow.transport.resume_reading()
    for n in range(400):
        packet = await slow.packet()
        publish = decode_publish(packet.first, packet.body, V311)
        assert publish.payload[:2] == n.to_bytes(2, "big")
        slow.send(acks.acknowledge(acks.PUBACK, publish.packet_id, V311))


async def raw_session(gateway: MosquittoGateway, cam: Credential) -> Wire:
    """A session that has subscribed to its downlink with QoS 1."""
    wire = await gateway.harness.dial(cam)
    wire.send(encode_connect(Connect(V311, cam.holder)))
    wire.send(encode_subscribe(Subscribe(1, (Subscription(f"devices/{cam.holder}/down/#", 1),)), V311))
    assert (await wire.packet()).type is PacketType.CONNACK
    assert (await wire.packet()).type is PacketType.SUBACK
    return wire


async def test_topic_aliases_both_ways(gateway: MosquittoGateway) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    backend = await gateway.backend("devices/+/up/#")
    wire = await gateway.harness.dial(cam)
    wire.send(encode_connect(Connect(V5, cam.holder, properties=((Property.TOPIC_ALIAS_MAXIMUM, 1),))))
    wire.send(encode_subscribe(Subscribe(1, (Subscription("devices/cam-1/down/#", 1),)), V5))
    connack = decode_connack((await wire.packet()).body, V5)
    assert value_of(connack.properties, Property.TOPIC_ALIAS_MAXIMUM) == ALIASES_MAX
    assert (await wire.packet()).type is PacketType.SUBACK
    alias = ((Property.TOPIC_ALIAS, ALIASES_MAX),)
    for n, topic in enumerate(("devices/cam-1/up/t", "", "")):
        wire.send(encode_publish(Publish(topic, b"%d" % n, 1, n + 1, properties=alias), V5))
        assert (await wire.packet()).type is PacketType.PUBACK
        assert await backend.message() == ("devices/cam-1/up/t", b"%d" % n)
    for n, expected in enumerate((("devices/cam-1/down/t", None), ("devices/cam-1/down/t", 1), ("", 1))):
        await backend.publish("devices/cam-1/down/t", b"%d" % n)
        packet = await wire.packet()
        publish = decode_publish(packet.first, packet.body, V5)
        assert (publish.topic, publish.alias) == expected
        assert publish.payload == b"%d" % n
        wire.send(acks.acknowledge(acks.PUBACK, publish.packet_id, V5))


async def test_a_response_topic_of_another_device(gateway: MosquittoGateway) -> None:
    cam, _ = await populate(gateway.harness.registry, "cam-1", "cam-2")
    backend = await gateway.backend("devices/+/up/#")
    device = await gateway.device(cam, V5)
    properties = PahoProperties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.CorrelationData = b"c"
    properties.ResponseTopic = "devices/cam-2/down/r"
    device.client.publish("devices/cam-1/up/t", b"forged", 1, properties=properties)
    properties.ResponseTopic = "devices/cam-1/down/r"
    device.client.publish("devices/cam-1/up/t", b"true", 1, properties=properties)
    assert await backend.message() == ("devices/cam-1/up/t", b"true")
    assert [await device.got(device.pubacks) for _ in range(2)] == [0x87, 0]


async def test_a_wider_model_reaches_the_second_wall_too(gateway: MosquittoGateway) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    backend = await gateway.backend("#")
    device = await gateway.device(cam, V5)
    assert await device.publish("extra/cam-1", b"no") == 0x87
    model = SetModel(type(MODEL)(MODEL.name, publish=("extra/{id}",), subscribe=("more/{model}/#",)))
    await gateway.harness.registry.commit(
        Change(operator("model.set"), (model,), (Event(EventKind.MODEL_CHANGED, MODEL.name),))
    )
    await gateway.harness.count("mqtt.model.applied")
    assert await device.publish("extra/cam-1", b"yes") in (0, 0x10)
    assert await backend.message() == ("extra/cam-1", b"yes")
    assert await device.subscribe("more/cam2/#") == [1]
    await backend.publish("more/cam2/x", b"down")
    assert await device.message() == ("more/cam2/x", b"down")


async def test_a_model_that_is_new_to_a_running_broker(gateway: MosquittoGateway) -> None:
    fresh = type(MODEL)("lock", publish=("locks/{id}/up",), subscribe=())
    held = credential("lock-1")
    device = Insert(Device(DeviceId("lock-1"), "lock", DeviceState.ACTIVE, now()))
    await gateway.harness.registry.commit(Change(operator("add"), (Insert(fresh), device, AddCredential(held))))
    backend = await gateway.backend("#")
    assert await (await gateway.device(held, V5)).publish("locks/lock-1/up", b"x") in (0, 0x10)
    assert await backend.message() == ("locks/lock-1/up", b"x")


async def test_paho_reads_why_it_is_refused_and_closed(gateway: MosquittoGateway) -> None:
    (held,) = await populate(gateway.harness.registry, "cam-1")
    device = await gateway.device(held, V5)
    assert await device.subscribe("#", "news/a", "devices/cam-2/down/#") == [0x87, 1, 0x87]
    assert await device.subscribe("#") == [0x87]
    assert await device.subscribe("news/b") == [1]
    assert await device.publish("devices/cam-2/up/t", b"forged", 1) == 0x87
    await revocation.suspend(gateway.harness.registry, "cam-1", act=Act("operator", now()))
    assert await device.got(device.disconnected) == 0x98
    refused = FILTERS[Reason.NOT_AUTHORIZED]
    assert device.reasons == [refused, refused, "", TOPIC_REFUSED, "The device has been suspended."]


async def test_the_second_wall_holds_by_itself(gateway: MosquittoGateway) -> None:
    """A client that came around the gateway, under a device's name, gets no further than that device."""
    backend = await gateway.backend("#")
    intruder = Paho("cam-1", V5, transport="unix")
    intruder.client.username_pw_set("cam-1")
    assert await intruder.connect_unix(gateway.broker.socket) == 0
    await intruder.subscribe("#", "devices/cam-1/down/#", qos=0)
    assert await intruder.publish("devices/cam-2/up/t", b"forged") == 0x87
    await backend.publish("devices/cam-2/down/t", b"not yours")
    await backend.publish("devices/cam-1/down/t", b"yours")
    assert await intruder.message() == ("devices/cam-1/down/t", b"yours")
    await intruder.close()


async def test_what_one_model_may_do_is_not_open_to_the_others_behind_the_gateway(gateway: MosquittoGateway) -> None:
    hub = type(MODEL)("hub", publish=("#",), subscribe=("#", "news/{model}"))
    await gateway.broker.set_models((MODEL, hub))
    backend = await gateway.backend("#")
    for model, codes in ((MODEL.name, (0x87, 0x87)), ("hub", (0, 0)), ("cam-1", (0x87, 0x87))):
        intruder = Paho("cam-1", V5, transport="unix")
        intruder.client.username_pw_set(model)
        assert await intruder.connect_unix(gateway.broker.socket) == 0
        given = [await intruder.publish(topic, b"x") for topic in ("devices/cam-2/up/t", "news/hub")]
        assert tuple(code if code == 0x87 else 0 for code in given) == codes
        assert await intruder.publish("devices/cam-1/up/t", model.encode()) in (0, 0x10)
        await intruder.close()
    expected = [b"x", b"x"]
    found = [await backend.message() for _ in range(5)]
    assert [payload for topic, payload in found if topic != "devices/cam-1/up/t"] == expected


async def test_what_one_model_may_read_is_not_delivered_to_the_others_behind_the_gateway(
    gateway: MosquittoGateway,
) -> None:
    hub = type(MODEL)("hub", publish=(), subscribe=("#",))
    await gateway.broker.set_models((MODEL, hub))
    backend = await gateway.backend()
    clients = {}
    for model, device in ((MODEL.name, "cam-1"), ("hub", "hub-1")):
        clients[model] = Paho(device, V5, transport="unix")
        clients[model].client.username_pw_set(model)
        assert await clients[model].connect_unix(gateway.broker.socket) == 0
    topics = ["devices/cam-2/down/t", "devices/cam-2/up/t", "news/x/y", "devices/cam-1/down/t"]
    # mosquitto grants them, and judges each message; what is in $SYS is retained, and would come at once.
    await clients[MODEL.name].subscribe("#", "devices/+/down/#", "$SYS/#", "$share/g/#")
    await clients["hub"].subscribe("#")
    for topic in topics:
        await backend.publish(topic, b"x")
    assert [(await clients["hub"].message())[0] for _ in topics] == topics
    assert (await clients[MODEL.name].message())[0] == "devices/cam-1/down/t"
    for client in clients.values():
        await client.close()


async def test_a_subscriber_that_hangs_costs_nobody_else_anything(gateway: MosquittoGateway) -> None:
    one, two, *rest = await populate(gateway.harness.registry, *(f"cam-{number}" for number in range(1, 23)))
    # Without rates, so that the broker gets the whole flood.
    unlimited = MqttRules(messages_per_second=0, bytes_per_second=0)
    await gateway.harness.set_model(rules=ModelRules(mqtt=unlimited))
    await gateway.harness.count("mqtt.model.applied")
    hung = await asyncio.create_subprocess_exec(
        "mosquitto_sub", "--unix", str(gateway.broker.socket), "-u", BACKEND, "-t", "devices/#", "-v",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        device = await gateway.device(one, V311)
        assert hung.stdout is not None
        while True:  # until it has subscribed
            device.client.publish("devices/cam-1/up/t", b"ready", 0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hung.stdout.readline(), 0.05)
                break
        hung.send_signal(signal.SIGSTOP)
        flood = await gateway.harness.dial(two)
        flood.send(encode_connect(Connect(V311, two.holder)))
        assert (await flood.packet()).type is PacketType.CONNACK
        burst = encode_publish(Publish("devices/cam-2/up/t", bytes(8192)), V311) * 16
        for number in range(2500):  # 320 MB: more than the broker may hold
            flood.send(burst)
            await until(lambda: flood.transport.get_write_buffer_size() < 1_000_000)
            if number % 50 == 0:
                assert await device.publish("devices/cam-1/up/t", b"bystander") == 0
        for held in rest:
            await gateway.device(held, V311)
        assert device.disconnected.empty()
        assert not gateway.broker.process.restarts
        # No session was closed, the flood's included.
        assert gateway.harness.gateway.stats == {"mqtt.connect.ok": 22, "mqtt.model.applied": 1}
    finally:
        hung.kill()
        await hung.wait()


async def test_what_a_device_has_subscribed_to_counts_over_connections(gateway: MosquittoGateway) -> None:
    """An offline session costs the broker memory by each level of its filters."""
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    granted = 0
    for number in range(6):
        device = await gateway.device(cam, V5, clean=False)
        deep = "/".join("x" * 183)
        codes = await device.subscribe(*(f"devices/cam-1/down/{number}/{place}/{deep}" for place in range(10)))
        granted += codes.count(1)
        assert set(codes) <= {1, 0x97}
        await device.close()
    assert granted == DEFAULT_LIMITS.filter_levels_per_device_max // 188
    device = await gateway.device(cam, V5)  # a clean start: the broker forgets, and so do we
    assert await device.subscribe(f"devices/cam-1/down/{'/'.join('x' * 183)}") == [1]


async def test_what_a_device_has_subscribed_to_counts_over_workers_and_our_restarts(tmp_path: Path) -> None:
    """Each gateway here is another worker, or the next process: the broker keeps the session over all of them."""
    assert PROGRAM is not None
    broker = await Mosquitto.start(PROGRAM, tmp_path / "run", [MODEL])
    granted, deep, held = 0, "/".join("x" * 183), None
    try:
        for number in range(6):
            async with AsyncExitStack() as stack:
                kept = KeptFilters(directory=tmp_path / "run" / "kept-filters")
                built = await stack.enter_async_context(open_gateway(tmp_path, broker, kept_filters=kept))
                held = held or (await populate(built.registry, "cam-1"))[0]
                device = await MosquittoGateway(built, broker, stack).device(held, V311, clean=False)
                codes = await device.subscribe(*(f"devices/cam-1/down/{number}/{one}/{deep}" for one in range(10)))
                granted += codes.count(1)
        assert granted == DEFAULT_LIMITS.filter_levels_per_device_max // 188
    finally:
        await broker.close()


@pytest.mark.parametrize("on_denied", list(OnDenied))
async def test_what_a_bridge_tells_of_itself_is_dropped(gateway: MosquittoGateway, on_denied: OnDenied) -> None:
    """A mosquitto bridge has a will below $SYS, and publishes there when it has connected."""
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    backend = await gateway.backend("devices/+/up/#", "$SYS/broker/connection/#")
    state = "$SYS/broker/connection/cam-1/state"
    device = await gateway.device(cam, V311, will=state)
    await gateway.harness.set_model(rules=ModelRules(mqtt=MqttRules(on_denied)))
    await gateway.harness.count("mqtt.model.applied")
    assert await device.publish(state, b"1", 1, retain=True) == 0
    await device.publish("devices/cam-1/up/t", b"still there")
    assert await backend.message() == ("devices/cam-1/up/t", b"still there")
    device.vanish()
    await gateway.harness.count("mqtt.session.client-gone")
    assert backend.messages.empty()


async def test_acknowledged_messages_survive_a_kill_of_the_broker(gateway: MosquittoGateway) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    device = await gateway.device(cam, V5, clean=False)
    await device.subscribe("devices/cam-1/down/#")
    await device.close()
    backend = await gateway.backend()
    await backend.publish("devices/cam-1/down/t", b"kept", 1)
    database = gateway.broker.socket.parent / mosquitto.DATABASE
    await until(lambda: database.exists() and b"kept" in database.read_bytes())
    gateway.broker.process.signal(signal.SIGKILL)
    await until(lambda: gateway.broker.process.restarts == 1)
    again = await gateway.device(cam, V5, clean=False)
    assert await again.message() == ("devices/cam-1/down/t", b"kept")


@pytest.mark.parametrize("content", [b"nonsense" * 100, b"", b"\x00\xb5\x00mosquitto db"])
async def test_a_database_that_cannot_be_loaded_is_set_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert PROGRAM is not None
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    for day in range(1, 5):
        (run / f"{mosquitto.DATABASE}.unreadable-2020010{day}T000000Z").touch()
    (run / mosquitto.DATABASE).write_bytes(content)
    broker = await Mosquitto.start(PROGRAM, run, [MODEL])
    try:
        kept = sorted(run.glob(f"{mosquitto.DATABASE}.unreadable-*"))
        if not content:  # an empty file is a database of nothing
            assert len(kept) == 4
            return
        assert len(kept) == mosquitto.SET_ASIDE_MAX
        assert kept[-1].read_bytes() == content
        assert f"file={kept[-1]}" in caplog.text
        backend = Paho("backend", V311, transport="unix")
        backend.client.username_pw_set(BACKEND)
        assert await backend.connect_unix(broker.socket) == 0
        await backend.close()
    finally:
        await broker.close()


async def test_a_broker_that_dies_comes_back(gateway: MosquittoGateway) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    device = await gateway.device(cam, V5)
    process = gateway.broker.process._process
    assert process is not None
    process.kill()
    assert await device.got(device.disconnected) == 0x8B
    await until(lambda: gateway.broker.process.restarts)
    again = await gateway.device(cam, V5)
    assert await again.publish("devices/cam-1/up/t", b"x") in (0, 0x10)


async def test_garbage_after_connect_ends_one_session_only(gateway: MosquittoGateway) -> None:
    bad, good = await populate(gateway.harness.registry, "cam-1", "cam-2")
    device = await gateway.device(good, V5)
    for garbage in (b"\x00", b"\x30\xff\xff\xff\xff", b"\x82\x02\x00\x01", b"\x36\x00", b"\x10\x00", b"\xf0\x00"):
        wire = await raw_session(gateway, bad)
        wire.send(garbage)
        await wire.until_closed()
    assert await device.publish("devices/cam-2/up/t", b"x") in (0, 0x10)
    await asyncio.wait_for(until(lambda: gateway.harness.gateway.sessions == 1), PATIENCE_SECONDS)


@VERSIONS
async def test_retained_messages_are_a_right_of_their_own(gateway: MosquittoGateway, version: int) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    await gateway.harness.set_model(retain=False)
    await gateway.harness.count("mqtt.model.applied")
    backend = await gateway.backend("devices/+/up/#")
    wire, connack = await gateway.harness.connect(cam, version)
    assert ((Property.RETAIN_AVAILABLE, 0) in connack.properties) == (version == V5)
    wire.send(encode_publish(Publish("devices/cam-1/up/t", b"kept", 1, 7, retain=True), version))
    refusal = acks.acknowledge(acks.PUBACK, 7, version, Reason.NOT_AUTHORIZED, RETAIN_REFUSED)
    assert (await wire.packet()).encode() == refusal
    wire.send(encode_publish(Publish("devices/cam-1/up/t", b"plain", 1, 8), version))
    assert await backend.message() == ("devices/cam-1/up/t", b"plain")
    will = Will("devices/cam-1/up/gone", b"", retain=True)
    _, refused = await gateway.harness.connect(cam, version, will=will)
    assert refused.code == (Reason.RETAIN_NOT_SUPPORTED if version == V5 else 5)


async def test_a_device_that_does_not_read_is_given_up(tmp_path: Path) -> None:
    async with open_mosquitto_gateway(tmp_path, limits=Limits(stuck_seconds_max=0.2)) as gateway:
        (cam,) = await populate(gateway.harness.registry, "cam-1")
        backend = await gateway.backend()
        slow = await raw_session(gateway, cam)
        slow.transport.pause_reading()
        for _ in range(300):
            backend.client.publish("devices/cam-1/down/t", bytes(60_000), 0)
        await gateway.harness.count("mqtt.session.too-slow")


async def test_nothing_is_answered_before_connack(gateway: MosquittoGateway) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    wire = await gateway.harness.dial(cam)
    asked = encode_subscribe(Subscribe(1, (Subscription("#"),)), V5)
    wire.send(encode_connect(Connect(V5, "cam-1")) + asked)
    assert (await wire.packet()).type is PacketType.CONNACK
    assert (await wire.packet()).type is PacketType.SUBACK


async def test_the_brokers_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = mosquitto.CONFIG_TEXT.replace(f"memory_limit {BROKER_MEMORY_MAX}", "memory_limit 8000000")
    monkeypatch.setattr(mosquitto, "CONFIG_TEXT", small)
    async with open_mosquitto_gateway(tmp_path) as gateway:
        (cam,) = await populate(gateway.harness.registry, "cam-1")
        device = await gateway.device(cam, V311)
        for n in range(20):
            device.client.publish(f"devices/cam-1/up/{n}", bytes(1_000_000), 1, True)
        await device.got(device.disconnected)
        assert not gateway.broker.process.restarts


@VERSIONS
async def test_messages_that_are_never_released_do_not_fill_the_broker(gateway: MosquittoGateway, version: int) -> None:
    cam, other = await populate(gateway.harness.registry, "cam-1", "cam-2")
    unlimited = MqttRules(messages_per_second=0, bytes_per_second=0)
    await gateway.harness.set_model(rules=ModelRules(mqtt=unlimited))
    await gateway.harness.count("mqtt.model.applied")
    bystander = await gateway.device(other, version)
    messages = [
        encode_publish(Publish("devices/cam-1/up/t", bytes(4_000_000), 2, packet_id), version)
        for packet_id in range(1, 68)
    ]
    wire = await gateway.harness.dial(cam)
    wire.send(encode_connect(Connect(version, "cam-1", clean=False)))
    assert (await wire.packet()).type is PacketType.CONNACK
    for message in messages[:4]:  # the first is held, the others are refused
        wire.send(message)
    if version == V5:
        answers = {(await wire.packet()).body[:3] for _ in range(4)}
        refused = bytes((Reason.QUOTA_EXCEEDED,))
        assert answers == {b"\x00\x01", *(n.to_bytes(2, "big") + refused for n in (2, 3, 4))}
        for message in messages[4:]:
            wire.send(message)
            assert (await wire.packet()).body[2:3] == refused
    else:
        await wire.until_closed()
        assert gateway.harness.gateway.stats["mqtt.session.quota"] == 1
    assert await bystander.subscribe("devices/cam-2/down/#") == [1]


async def test_a_release_that_the_broker_never_gets_releases_nothing(gateway: MosquittoGateway) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    connect = Connect(V5, "cam-1", clean=False, properties=((Property.SESSION_EXPIRY_INTERVAL, 600),))
    for packet_id, reason in ((1, b""), (2, bytes((Reason.QUOTA_EXCEEDED,)))):
        wire = await gateway.harness.dial(cam)
        wire.send(encode_connect(connect))
        assert (await wire.packet()).type is PacketType.CONNACK
        wire.send(encode_publish(Publish("devices/cam-1/up/t", bytes(3_000_000), 2, packet_id), V5))
        assert (await wire.packet()).body[:3] == packet_id.to_bytes(2, "big") + reason
        # mosquitto ends the connection at an unknown property
        wire.send(b"\x30\x16\x00\x12devices/cam-1/up/t\x01\x7f" + acks.acknowledge(acks.PUBREL, packet_id, V5))
        await wire.until_closed()


@VERSIONS
async def test_what_mosquitto_drops_a_client_for_is_told_as_the_devices_fault(
    gateway: MosquittoGateway, version: int
) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    for number, packet in enumerate((b"\x62\2\0\0", b"\x40\2\0\0", b"\x62\0", b"\xc0\1x"), start=1):
        wire, _ = await gateway.harness.connect(cam, version)
        wire.send(packet)
        await wire.until_closed()
        assert gateway.harness.gateway.stats["mqtt.session.malformed"] == number
        gateway.harness.gateway.context.return_delays._closes.clear()
    wire = await gateway.harness.dial(cam)
    wire.send(encode_connect(Connect(version, "cam-1", will=Will("devices/cam-1/up/\ufffe", b""))))
    answers = await wire.until_closed()
    assert [answer.body[1] for answer in answers] == ([Reason.MALFORMED_PACKET] if version == V5 else [])
    assert gateway.harness.gateway.stats["mqtt.connect.malformed-connect"] == 1


async def test_what_mosquitto_rejects_counts_for_the_next_delay(gateway: MosquittoGateway) -> None:
    (cam,) = await populate(gateway.harness.registry, "cam-1")
    for _ in range(2):
        wire, _ = await gateway.harness.connect(cam, V5)
        wire.send(b"\x30\x16\x00\x12devices/cam-1/up/t\x01\x7f")
        assert (await wire.until_closed())[-1].body[:1] == bytes((Reason.MALFORMED_PACKET,))
    assert gateway.harness.gateway.stats["mqtt.session.broker-rejected"] == 2
    assert gateway.harness.gateway.context.return_delays.seconds(cam.fingerprint, asyncio.get_running_loop().time()) > 0


async def test_messages_that_are_never_acknowledged_do_not_fill_the_broker(gateway: MosquittoGateway) -> None:
    """Those that it has sent to a client count by bytes, too, until the client acknowledges them."""
    cam, other = await populate(gateway.harness.registry, "cam-1", "cam-2")
    wire, _ = await gateway.harness.connect(cam, V311)
    subscription = Subscribe(1, (Subscription("devices/cam-1/down/#", 1),))
    wire.send(encode_subscribe(subscription, V311))
    assert (await wire.packet()).type is PacketType.SUBACK
    backend = await gateway.backend()
    for _ in range(67):
        await backend.publish("devices/cam-1/down/t", bytes(4_000_000), 1)
    bystander = await gateway.device(other, V311)
    assert await bystander.subscribe("devices/cam-2/down/#") == [1]
    assert backend.disconnected.empty()
    wire.transport.abort()
    assert not gateway.broker.process.restarts
