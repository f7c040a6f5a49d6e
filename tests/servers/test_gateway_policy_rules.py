"""QoS ceiling and shared subscriptions of a model, in each direction of a session."""

from pathlib import Path

import pytest
from msgspec.structs import replace as with_rules

from fleet.domain.access import Act
from fleet.domain.model_rules import ModelRules
from fleet.domain.mqtt_rules import MqttOverride, MqttRules, OnDenied
from fleet.domain.topic_policy import TopicPolicy
from fleet.servers.gateway import close_reasons
from fleet.services.tagging import label_device
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import Connack, Connect, Will, decode_connack, encode_connack, encode_connect
from fleet.wire.mqtt.properties import Properties, Property, value_of
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.reader import PacketReader
from fleet.wire.mqtt.subscribe import Subscribe, Subscription, encode_subscribe
from tests.servers.gateway_fixtures import now, open_gateway, populate, refused
from tests.servers.gateway_relay_harness import VERSIONS, RelayHarness, chunks


def policy(qos_max: int = 2, *, shared: bool = True) -> TopicPolicy:
    return TopicPolicy(("up/#",), ("down/#",), True, qos_max, shared)


def message(version: int, qos: int, packet_id: int = 6, topic: str = "up/a") -> bytes:
    return encode_publish(Publish(topic, b"x", qos, packet_id if qos else 0), version)


@VERSIONS
@pytest.mark.parametrize("qos_max", [0, 1, 2])
def test_messages_up_to_the_ceiling_pass(version: int, qos_max: int) -> None:
    harness = RelayHarness(version, policy(qos_max))
    stream = b"".join(message(version, qos, 6 + qos) for qos in range(qos_max + 1)) * 2
    for part in chunks(stream, 1):
        harness.relay.from_device(part)
    assert harness.to_broker == stream
    assert not harness.notes


@pytest.mark.parametrize(("qos_max", "qos"), [(0, 1), (0, 2), (1, 2)])
def test_a_higher_qos_ends_a_session_of_5_0(qos_max: int, qos: int) -> None:
    for step in (1, 3, 1_000):
        harness = RelayHarness(V5, policy(qos_max))
        harness.relay.from_device(message(V5, 0))  # its topic is known from then on
        (*most, last) = chunks(message(V5, 0) + message(V5, qos), step)
        for part in most:
            harness.relay.from_device(part)
        reason = harness.ends(last)
        assert reason is close_reasons.QOS_REFUSED
        assert harness.to_broker == message(V5, 0) * 2
        assert (harness.notes, harness.reasons) == ([("mqtt.publish", "refused", "up/a")], ["qos"])
        harness.relay.disconnect(reason)
        assert bytes(harness.to_device) == acks.disconnect(V5, Reason.QOS_NOT_SUPPORTED, reason.text)


@pytest.mark.parametrize(("qos_max", "qos"), [(0, 1), (0, 2), (1, 2)])
def test_3_1_1_gets_what_its_model_says(qos_max: int, qos: int) -> None:
    harness = RelayHarness(V311, policy(qos_max))
    harness.relay.from_device(message(V311, qos))
    assert not harness.to_broker
    packet = acks.PUBACK if qos == 1 else acks.PUBREC
    assert bytes(harness.to_device) == acks.acknowledge(packet, 6, V311)
    assert harness.reasons == ["qos"]
    harness.relay.set_rules(with_rules(MqttRules(), on_denied=OnDenied.CLOSE))
    assert harness.ends(message(V311, qos, 7)) is close_reasons.PUBLISH_REFUSED


@VERSIONS
def test_a_ceiling_that_is_lowered_counts_at_once(version: int) -> None:
    harness = RelayHarness(version, policy(2))
    harness.relay.from_device(message(version, 1) * 3)
    assert harness.to_broker == message(version, 1) * 3
    assert harness.relay.set_policy(policy(0))
    if version == V5:
        assert harness.ends(message(version, 1, 9)) is close_reasons.QOS_REFUSED
    else:
        harness.relay.from_device(message(version, 1, 9))
    assert harness.to_broker == message(version, 1) * 3


def test_another_topic_is_refused_for_that() -> None:
    harness = RelayHarness(V5, policy(0))
    harness.relay.from_device(message(V5, 1, topic="other"))
    assert (harness.notes, harness.reasons) == ([("mqtt.publish", "refused", "other")], [])


@VERSIONS
@pytest.mark.parametrize("qos_max", [0, 1, 2])
def test_a_subscription_is_granted_the_ceiling(version: int, qos_max: int) -> None:
    harness = RelayHarness(version, policy(qos_max))
    others = 0x2C if version == V5 else 0  # No Local, Retain As Published, Retain Handling
    asked = tuple(Subscription(f"down/{qos}", others + qos) for qos in range(3))
    harness.relay.from_device(encode_subscribe(Subscribe(4, asked), version))
    granted = tuple(Subscription(f"down/{qos}", others + min(qos, qos_max)) for qos in range(3))
    assert bytes(harness.to_broker) == encode_subscribe(Subscribe(4, granted), version)
    codes = [min(qos, qos_max) for qos in range(3)]
    harness.relay.from_broker(harness.suback(*codes, packet_id=4))
    assert bytes(harness.to_device) == harness.suback(*codes, packet_id=4)
    harness.to_broker.clear()
    mixed = (*asked, Subscription("up/a", 2))
    harness.relay.from_device(encode_subscribe(Subscribe(5, mixed), version))
    assert bytes(harness.to_broker) == encode_subscribe(Subscribe(5, granted), version)


@VERSIONS
def test_no_shared_subscription(version: int) -> None:
    harness = RelayHarness(version, policy(shared=False))
    harness.relay.from_device(harness.subscribe("$share/g/down/a"))
    code = Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED if version == V5 else 0x80
    text = "The device's model does not allow shared subscriptions." if version == V5 else ""
    assert bytes(harness.to_device) == harness.explained(code, text=text)
    assert not harness.to_broker
    assert (harness.notes, harness.reasons) == ([("mqtt.subscribe", "refused", "$share/g/down/a")], ["shared"])
    harness.to_device.clear()
    harness.subscribed("down/a")


@VERSIONS
def test_a_session_with_a_shared_subscription_ends_when_none_is_allowed_any_more(version: int) -> None:
    harness = RelayHarness(version, policy())
    harness.subscribed("$share/g/down/a")
    assert not harness.relay.set_policy(policy(shared=False))


async def test_new_tags_reach_a_live_session(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (held,) = await populate(h.registry, "cam-1")
        await h.set_model(publish=("sites/{tag:site}/#",), subscribe=("sites/{tag:site}/#", "all"))
        wire, side = await h.live(held, V5)

        async def tagged(site: str) -> None:
            found = await h.registry.device("cam-1")
            assert found is not None
            await label_device(h.registry, found, (("site", site),), (), act=Act("operator", now()))

        await tagged("essen")
        await h.count("mqtt.tags.applied")
        wire.send(message(V5, 0, topic="sites/bonn/a"))
        await h.count("mqtt.publish.refused")
        essen = message(V5, 0, topic="sites/essen/a")
        wire.send(essen)
        assert await side.received(len(essen)) == essen
        wire.send(encode_subscribe(Subscribe(7, (Subscription("sites/essen/b"),)), V5))
        assert (await side.packet()).type is PacketType.PUBLISH
        assert (await side.packet()).type is PacketType.SUBSCRIBE
        await tagged("bonn")
        last = (await wire.until_closed())[-1]  # it holds a subscription that is another's now
        assert last.body[0] == close_reasons.POLICY_CHANGED.disconnect


async def test_an_override_follows_a_devices_tags_and_its_model(tmp_path: Path) -> None:
    gold = MqttOverride("tier=gold", publish=("gold/{id}",), qos_max=1)
    async with open_gateway(tmp_path) as h:
        (held,) = await populate(h.registry, "cam-1")
        await h.set_model(rules=ModelRules(mqtt=MqttRules(overrides=(gold,))))
        wire, side = await h.live(held, V5)

        async def passes(topic: str, qos: int) -> None:
            wire.send(message(V5, qos, topic=topic))
            assert topic.encode() in (await side.packet()).body

        async def is_refused(topic: str, times: int) -> None:
            wire.send(message(V5, 0, topic=topic))
            await h.count("mqtt.publish.refused", times)

        await passes("devices/cam-1/up/a", 2)
        await is_refused("gold/cam-1", 1)
        found = await h.registry.device("cam-1")
        assert found is not None
        await label_device(h.registry, found, (("tier", "gold"),), (), act=Act("operator", now()))
        await h.count("mqtt.tags.applied")
        await is_refused("devices/cam-1/up/a", 2)
        await passes("gold/cam-1", 1)
        wider = with_rules(gold, publish=("gold/{id}", "more"))
        await h.set_model(rules=ModelRules(mqtt=MqttRules(overrides=(wider,))), revision=2)
        await h.count("mqtt.model.applied", 2)
        await passes("more", 1)
        wire.send(message(V5, 2, topic="gold/cam-1"))
        last = (await wire.until_closed())[-1]
        assert last.body[0] == close_reasons.QOS_REFUSED.disconnect
        wire = await h.dial(held)
        will = Will("gold/cam-1", b"", qos=2)
        wire.send(encode_connect(Connect(V5, "cam-1", will=will)))
        assert await refused(wire, V5) == Reason.QOS_NOT_SUPPORTED  # at admission, too


def announced(given: TopicPolicy, brokers: Properties = ()) -> tuple[object, object]:
    harness = RelayHarness(V5, given, greeted=False)
    harness.relay.from_broker(encode_connack(Connack(False, 0, brokers), V5))
    (packet,) = PacketReader().feed(bytes(harness.to_device))
    found = decode_connack(packet.body, V5).properties
    return value_of(found, Property.MAXIMUM_QOS), value_of(found, Property.SHARED_SUBSCRIPTION_AVAILABLE)


def test_connack_announces_them() -> None:
    assert announced(policy()) == (None, None)  # the property is 0 or 1
    assert announced(policy(1)) == (1, None)
    assert announced(policy(0, shared=False)) == (0, 0)
    brokers: Properties = ((Property.MAXIMUM_QOS, 0), (Property.SHARED_SUBSCRIPTION_AVAILABLE, 1))
    assert announced(policy(1), brokers) == (0, 1)
    assert announced(policy(shared=False), brokers) == (0, 0)
