"""A broker that takes a dot in a topic for a slash: nothing with a dot reaches it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fleet.domain.errors import Unavailable
from fleet.domain.policy_explained import Action, Attempt, explained
from fleet.servers.gateway.broker.publisher import BrokerPublisher
from fleet.servers.gateway.broker.upstream import SocketUpstream, UpstreamAccess
from fleet.servers.gateway.relay.reason_strings import FILTERS, PUBLISH_REFUSED
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import SUBACK_FAILURE_V311, V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import Connack, Connect, Will, decode_connack, encode_connect
from fleet.wire.mqtt.properties import Property, value_of
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.subscribe import Subscribe, Subscription, decode_suback, encode_subscribe
from tests.servers.gateway_fixtures import MODEL, GatewayHarness, Wire, device, open_gateway, populate, up
from tests.servers.gateway_relay_harness import VERSIONS


@dataclass
class Site:
    harness: GatewayHarness
    upstream: SocketUpstream
    side: Wire
    """The broker's end of the newest session."""

    async def live(self, name: str, version: int) -> Wire:
        [held] = await populate(self.harness.registry, name)
        wire = await self.harness.dial(held)
        wire.send(encode_connect(Connect(version, name)))
        assert (await self.side.packet()).type is PacketType.CONNECT
        self.side.raw.clear()
        self.side.send(b"\x20\x03\x00\x00\x00" if version == V5 else b"\x20\x02\x00\x00")
        assert (await wire.packet()).type is PacketType.CONNACK
        wire.raw.clear()
        return wire

    async def refused(self, name: str, version: int, will: Will | None = None) -> Connack:
        [held] = await populate(self.harness.registry, name)
        _, connack = await self.harness.connect(held, version, will=will)
        return connack


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    side = Wire()
    server = await asyncio.get_running_loop().create_unix_server(lambda: side, tmp_path / "b.sock")
    upstream = SocketUpstream(tmp_path / "b.sock", UpstreamAccess(refuses_dots=True))
    async with open_gateway(tmp_path, upstream) as harness:
        yield Site(harness, upstream, side)
    server.close()


@VERSIONS
async def test_a_message_with_a_dot_in_its_topic_is_refused(site: Site, version: int) -> None:
    wire = await site.live("cam-1", version)
    wire.send(encode_publish(Publish("devices/cam-1/up/a.b", b"x", 1, 7), version) + up("cam-1", version=version))
    answer = acks.acknowledge_publish(1, 7, version, Reason.NOT_AUTHORIZED, PUBLISH_REFUSED["dot"])
    assert await wire.received(len(answer)) == answer
    allowed = up("cam-1", version=version)
    assert await site.side.received(len(allowed)) == allowed
    # A change of the model changes nothing in that.
    await site.harness.set_model(publish=("#", "devices/#"), subscribe=("#",))
    await site.harness.count("mqtt.model.applied")
    wire.raw.clear()
    wire.send(encode_publish(Publish("devices/cam-1/up/a.b", b"x", 1, 7), version))
    assert await wire.received(len(answer)) == answer
    assert site.harness.gateway.stats["mqtt.publish.refused"] == 2


@VERSIONS
async def test_a_filter_with_a_dot_is_refused(site: Site, version: int) -> None:
    wire = await site.live("cam-1", version)
    asked = tuple(Subscription(each, 1) for each in ("devices/cam-1/down/a.b", "$share/g.h/devices/cam-1/down/a.b/+"))
    wire.send(encode_subscribe(Subscribe(3, asked), version))
    suback = decode_suback((await wire.packet()).body, version)
    code = Reason.IMPLEMENTATION_SPECIFIC if version == V5 else SUBACK_FAILURE_V311
    assert suback.codes == (code, code)
    if version == V5:
        assert value_of(suback.properties, Property.REASON_STRING) == FILTERS[Reason.IMPLEMENTATION_SPECIFIC]
    own = encode_subscribe(Subscribe(4, (Subscription("$share/g.h/devices/cam-1/down/#", 1),)), version)
    wire.send(own)
    assert await site.side.received(len(own)) == own


async def test_nobody_is_asked_to_answer_on_a_topic_with_a_dot(site: Site) -> None:
    wire = await site.live("cam-1", V5)
    asks = ((Property.RESPONSE_TOPIC, "devices/cam-1/down/a.b"),)
    allowed = up("cam-1", version=V5)
    wire.send(encode_publish(Publish("devices/cam-1/up/t", b"?", properties=asks), V5) + allowed)
    assert await site.side.received(len(allowed)) == allowed


@VERSIONS
async def test_a_device_id_and_a_will_with_a_dot_are_refused(site: Site, version: int) -> None:
    dotted = await site.refused("cam-1.down", version)
    assert dotted.code == (Reason.CLIENT_IDENTIFIER_NOT_VALID if version == V5 else 2)
    will = await site.refused("cam-2", version, Will("devices/cam-2/up/a.b", b"gone"))
    assert will.code == (Reason.NOT_AUTHORIZED if version == V5 else 5)
    asks = ((Property.RESPONSE_TOPIC, "devices/cam-3/down/a.b"),) if version == V5 else ()
    topic = "devices/cam-3/up/t" if version == V5 else "devices/cam-3/up/a.b"
    assert (await site.refused("cam-3", version, Will(topic, b"gone", properties=asks))).code == will.code
    assert site.harness.gateway.stats["mqtt.connect.dot-refused"] == 3
    if version == V5:
        assert all("dot" in str(value_of(each.properties, Property.REASON_STRING)) for each in (dotted, will))
    rows = [row.entry for row in await site.harness.registry.audit() if row.entry.action == "mqtt.connect"]
    assert {(row.subject, row.outcome) for row in rows} == {
        ("device cam-1.down", "dot-refused"),
        ("device cam-2", "dot-refused"),
        ("device cam-3", "dot-refused"),
    }
    assert not site.side.raw, "the broker has seen none of it"


async def test_a_device_without_a_client_id_of_its_own_is_refused_by_its_certificates(site: Site) -> None:
    [held] = await populate(site.harness.registry, "cam-1.down")
    wire = await site.harness.dial(held)
    wire.send(encode_connect(Connect(V311, "", clean=True)))
    assert decode_connack((await wire.packet()).body, V311).code == 2
    [row] = [row.entry for row in await site.harness.registry.audit() if row.entry.outcome == "dot-refused"]
    assert (row.actor, row.subject) == ("device cam-1.down", "device cam-1.down")


async def test_the_fleet_publishes_nothing_there_either(site: Site) -> None:
    publisher = BrokerPublisher(site.upstream)
    for topic in ("devices/cam-1.down/fleet/renew", "devices/cam-1/fleet/a.b"):
        with pytest.raises(Unavailable, match="for a slash") as caught:
            await publisher.publish(topic, b"")
        assert caught.value.code == "publish-refused"


@pytest.mark.parametrize(
    ("name", "topic", "code"),
    [
        ("cam-1", "devices/cam-1/up/t", "ok"),
        ("cam-1", "devices/cam-1/up/a.b", "dot"),
        ("cam.1", "devices/cam.1/up/t", "dot"),
        ("cam.1", "all/cam2", "dot"),
    ],
)
def test_a_policy_test_says_so(name: str, topic: str, code: str) -> None:
    attempt = Attempt(Action.PUBLISH, topic)
    assert explained(device(name), MODEL, attempt, 65_536, dots=False).code == code
    assert explained(device(name), MODEL, attempt, 65_536).code == "ok"
