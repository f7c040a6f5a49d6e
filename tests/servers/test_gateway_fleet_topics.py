"""What is the fleet's alone, `devices/ID/fleet/#`: received by its device, published by no client, in no way."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.domain.changes import Change, Event, EventKind
from fleet.domain.errors import Unavailable
from fleet.domain.writes import SetModel
from fleet.servers.gateway.broker import publisher as publisher_module
from fleet.servers.gateway.broker.mosquitto import BACKEND, PUBLISHER
from fleet.servers.gateway.broker.publisher import IN_FLIGHT_MAX, BrokerPublisher
from fleet.servers.gateway.relay.reason_strings import PUBLISH_REFUSED
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, Reason
from fleet.wire.mqtt.connect import Connect, Will, decode_connect
from fleet.wire.mqtt.properties import Property, value_of
from fleet.wire.mqtt.publish import Publish, encode_publish
from tests.servers.gateway_fixtures import MODEL, FakeBroker, open_gateway, operator, populate
from tests.servers.gateway_relay_harness import VERSIONS
from tests.servers.mosquitto_gateway import MosquittoGateway, needs_mosquitto, open_mosquitto_gateway
from tests.servers.paho_client import Paho
from tests.waiting import PATIENCE_SECONDS, until

TOPIC = "devices/cam-1/fleet/renew"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[MosquittoGateway]:
    async with open_mosquitto_gateway(tmp_path) as opened:
        yield opened


async def devices(gateway: MosquittoGateway, version: int, *names: str) -> list[Paho]:
    """Connected ones. Their model grants `devices/#`."""
    held = await populate(gateway.harness.registry, *names)
    await gateway.harness.set_model(publish=("devices/#", "#"), subscribe=("devices/{id}/down/#",), retain=True)
    await gateway.harness.count("mqtt.model.applied")
    return [await gateway.device(each, version) for each in held]


@needs_mosquitto
@VERSIONS
async def test_a_device_receives_what_the_fleet_sends_it_and_no_other(gateway: MosquittoGateway, version: int) -> None:
    fleet = await gateway.local(PUBLISHER, version=V5)
    one, two = await devices(gateway, version, "cam-1", "cam-2")
    failure = 0x87 if version == V5 else 0x80
    for client, mine, others in ((one, "cam-1", "cam-2"), (two, "cam-2", "cam-1")):
        asked = (f"devices/{mine}/fleet/#", f"devices/{others}/fleet/#", "devices/+/fleet/#", "fleet/presence/#")
        assert await client.subscribe(*asked) == [1, failure, failure, failure]
    for name in ("cam-2", "cam-1"):
        assert await fleet.publish(f"devices/{name}/fleet/renew", name.encode()) in (0, 0x10)
    assert await one.message() == (TOPIC, b"cam-1")
    assert await two.message() == ("devices/cam-2/fleet/renew", b"cam-2")


@needs_mosquitto
async def test_nobody_else_publishes_there(gateway: MosquittoGateway) -> None:
    fleet, backend = await gateway.local(PUBLISHER, version=V5), await gateway.local(BACKEND, "backend", V5)
    one, two = await devices(gateway, V5, "cam-1", "cam-2")
    assert await one.subscribe("devices/cam-1/fleet/#") == [1]
    for client in (one, two, backend):
        for retain in (False, True):
            assert await client.publish(TOPIC, b"forged", 1, retain=retain) == Reason.NOT_AUTHORIZED
    assert await fleet.publish("devices/cam-1/down/x", b"not the fleet's business") == Reason.NOT_AUTHORIZED
    assert await fleet.publish(TOPIC, b"true") == 0
    assert await one.message() == (TOPIC, b"true")
    assert gateway.harness.gateway.stats["mqtt.publish.refused"] == 4


async def test_a_refusal_says_that_the_topic_is_reserved(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (held,) = await populate(h.registry, "cam-1")
        await h.set_model(publish=("#", "devices/#"), subscribe=("#",))
        wire, _ = await h.live(held, V5)
        for topic in (TOPIC, "fleet/presence/cam-1"):
            answer = acks.acknowledge(acks.PUBACK, 1, V5, Reason.NOT_AUTHORIZED, PUBLISH_REFUSED["reserved"])
            wire.raw.clear()
            wire.send(encode_publish(Publish(topic, b"forged", 1, 1), V5))
            assert await wire.received(len(answer)) == answer
        await h.gateway.context.denials.close()
        rows = [row.entry for row in await h.registry.audit() if row.entry.action == "mqtt.publish"]
        assert {row.detail["reason"] for row in rows} == {"reserved"}
        _, connack = await h.connect(held, V5, will=Will(TOPIC, b"forged"))
        assert "reserved" in str(value_of(connack.properties, Property.REASON_STRING))


async def test_a_will_there_is_refused_whatever_the_model_says(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (held,) = await populate(h.registry, "cam-1")
        await h.set_model(publish=("#", "devices/#"), subscribe=("#",))
        asks = ((Property.RESPONSE_TOPIC, TOPIC),)
        for will in (Will(TOPIC, b"forged"), Will("up", b"forged", properties=asks)):
            _, connack = await h.connect(held, V5, will=will)
            assert connack.code == Reason.NOT_AUTHORIZED
        for will_topic in (TOPIC, "devices/cam-2/fleet/renew", "fleet/presence/cam-1"):
            _, connack = await h.connect(held, V311, will=Will(will_topic, b"forged", retain=True))
            assert connack.code == 5


@VERSIONS
async def test_nobody_is_asked_to_answer_there(tmp_path: Path, version: int) -> None:
    async with open_gateway(tmp_path) as h:
        (held,) = await populate(h.registry, "cam-1")
        await h.set_model(publish=("#",), subscribe=("#",))
        wire, side = await h.live(held, version)
        properties = ((Property.RESPONSE_TOPIC, TOPIC),) if version == V5 else ()
        asks = Publish("x" if version == V5 else TOPIC, b"?", properties=properties)
        true = encode_publish(Publish("x", b"true"), version)
        wire.send(encode_publish(asks, version) + true)
        assert await side.received(len(true)) == true


@VERSIONS
async def test_a_retained_message_of_another_is_not_delivered(tmp_path: Path, version: int) -> None:
    """It is from before the topic was reserved: the fleet retains nothing there."""
    async with open_gateway(tmp_path) as h:
        (held,) = await populate(h.registry, "cam-1")
        wire, side = await h.live(held, version)
        live = encode_publish(Publish(TOPIC, b"live"), version)
        retained = [encode_publish(Publish(TOPIC, b"old", qos, 7 * bool(qos), retain=True), version) for qos in (0, 1)]
        own = encode_publish(Publish("news/a", b"kept", retain=True), version)
        side.send(live + retained[0] + retained[1] + live + own)
        expected = live + live + own
        assert await wire.received(len(expected)) == expected
        assert h.gateway.stats["mqtt.deliver.refused"] == 2


# The fleet's own client


@needs_mosquitto
@VERSIONS
async def test_the_publisher_reaches_a_device_and_says_whether_it_has_subscribed(
    gateway: MosquittoGateway, version: int
) -> None:
    publisher = BrokerPublisher(gateway.broker)
    one, two = await devices(gateway, version, "cam-1", "cam-2")
    assert await publisher.publish(TOPIC, b"nobody") is False
    assert await one.subscribe("devices/cam-1/fleet/#") == [1]
    assert await two.subscribe("devices/cam-1/fleet/#") != [1]
    payloads = [str(number).encode() for number in range(3 * IN_FLIGHT_MAX)]
    assert await asyncio.gather(*(publisher.publish(TOPIC, each) for each in payloads)) == [True] * len(payloads)
    assert sorted([(await one.message())[1] for _ in payloads]) == sorted(payloads)
    assert two.messages.empty()
    with pytest.raises(Unavailable) as caught:
        await publisher.publish("devices/cam-1/down/x", b"")
    assert caught.value.code == "publish-refused"
    count = len(payloads) + 1
    assert publisher.counters == {"published": count, "not-subscribed": 1, "publish-refused": 1}
    assert publisher.is_connected
    await publisher.close()
    assert not publisher.is_connected


@needs_mosquitto
async def test_the_publisher_comes_back_with_the_broker(
    gateway: MosquittoGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "BACKOFF_SECONDS_MAX", 0.02)
    monkeypatch.setattr(publisher_module, "BACKOFF_SECONDS_MIN", 0.01)
    publisher = BrokerPublisher(gateway.broker)
    assert await publisher.publish(TOPIC, b"1") is False
    gateway.broker.process.signal(signal.SIGKILL)
    await until(lambda: not publisher.is_connected)

    async with asyncio.timeout(PATIENCE_SECONDS):
        while publisher.counters["published"] < 2:
            with suppress(Unavailable):
                await publisher.publish(TOPIC, b"2")
            await asyncio.sleep(0)
    assert set(publisher.counters) <= {"published", "not-subscribed", "broker-unreachable"}
    await publisher.close()


async def scripted(broker: FakeBroker, *answers: bytes) -> list[Connect]:
    """What the fake broker gets in one connection after the other, of which each is answered so; b"": it closes."""
    connects = []
    for answer in answers:
        side = await asyncio.wait_for(broker.sessions.get(), PATIENCE_SECONDS)
        connects.append(decode_connect((await side.packet()).body))
        if answer:
            side.send(answer)
        else:
            side.transport.close()
    return connects


@pytest.mark.parametrize("refusal", [b"", b"\x20\x03\x00\x84\x00", b"\x20\x02\x00\x01"])
async def test_a_broker_that_knows_mqtt_311_alone(refusal: bytes) -> None:
    broker = FakeBroker()
    publisher = BrokerPublisher(broker)
    publishing = asyncio.create_task(publisher.publish(TOPIC, b"x"))
    connects = await scripted(broker, refusal, b"\x20\x02\x00\x00" + acks.acknowledge(acks.PUBACK, 1, V311))
    # The PUBACK came before its PUBLISH was sent: nothing was to be acknowledged.
    assert [(each.version, each.username) for each in connects] == [(V5, PUBLISHER), (V311, PUBLISHER)]
    with pytest.raises(Unavailable) as caught:
        await publishing
    assert caught.value.code == "broker-unreachable"
    await publisher.close()


@pytest.mark.parametrize(
    ("answer", "says"), [(b"\x20\x03\x00\x87\x00", "refused its user _publisher"), (b"\xd0\x00", "no CONNACK")]
)
async def test_a_broker_that_does_not_take_the_publisher(answer: bytes, says: str) -> None:
    broker = FakeBroker()
    publisher = BrokerPublisher(broker)
    publishing = asyncio.create_task(publisher.publish(TOPIC, b"x"))
    await scripted(broker, answer)
    with pytest.raises(Unavailable) as caught:
        await publishing
    assert (caught.value.code, says in caught.value.message) == ("broker-unreachable", True)
    with pytest.raises(Unavailable) as caught:  # at once: the next attempt is later
        await publisher.publish(TOPIC, b"x")
    assert "a moment ago" in caught.value.message
    assert broker.sessions.empty()
    assert (publisher.is_connected, publisher.counters) == (False, {"broker-unreachable": 2})


@pytest.mark.parametrize("connack", [b"", b"\x20\x03\x00\x00\x00"])
async def test_a_broker_that_does_not_answer(connack: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "ANSWER_SECONDS_MAX", 0.1)
    broker = FakeBroker()
    publisher = BrokerPublisher(broker)
    publishing = [asyncio.create_task(publisher.publish(TOPIC, b"x")) for _ in range(3)]
    side = await asyncio.wait_for(broker.sessions.get(), PATIENCE_SECONDS)
    side.send(connack)
    assert {type(each) for each in await asyncio.gather(*publishing, return_exceptions=True)} == {Unavailable}
    await asyncio.wait_for(side.closed.wait(), PATIENCE_SECONDS)
    assert publisher.counters == {"broker-unreachable": 3}


async def test_the_publishers_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "WAITING_MAX", 3)
    broker = FakeBroker(hurdle=asyncio.Event())
    publisher = BrokerPublisher(broker)
    waiting = [asyncio.create_task(publisher.publish(TOPIC, b"x")) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable) as caught:
        await publisher.publish(TOPIC, b"x")
    assert caught.value.code == "publisher-busy"
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    broker.error = OSError("away")
    broker.hurdle = None
    with pytest.raises(Unavailable) as caught:
        await publisher.publish(TOPIC, b"x")
    assert caught.value.code == "broker-unreachable"


@needs_mosquitto
async def test_who_is_connected_is_read_by_those_whose_model_says_so_and_written_by_the_fleet(
    gateway: MosquittoGateway,
) -> None:
    publisher, topic = BrokerPublisher(gateway.broker), "fleet/presence/cam-2"
    one, two = await devices(gateway, V5, "cam-1", "cam-2")
    assert await two.subscribe("fleet/presence/#") == [0x87]
    granted = ("fleet/presence/#", "devices/#", "devices/{id}/down/#")
    event = Event(EventKind.MODEL_CHANGED, MODEL.name)
    found = await gateway.harness.registry.model(MODEL.name)
    assert found is not None
    change = Change(operator("model.set"), (SetModel(replace(found, subscribe=granted)),), (event,))
    await gateway.harness.registry.commit(change)
    await gateway.harness.count("mqtt.model.applied", 2)
    assert await one.subscribe("fleet/presence/+", "devices/#") == [1, 1]
    assert await one.publish(topic, b"forged") == Reason.NOT_AUTHORIZED
    assert await publisher.publish(topic, b"true") is True
    assert await publisher.publish("devices/cam-2/fleet/renew", b"seen by one that reads all") is True
    assert [await one.message() for _ in range(2)] == [
        (topic, b"true"),
        ("devices/cam-2/fleet/renew", b"seen by one that reads all"),
    ]
    await publisher.close()
