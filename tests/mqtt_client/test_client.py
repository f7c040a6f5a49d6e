"""The MQTT client against a broker's bytes, whole and cut everywhere."""

import asyncio

import pytest

from fleet.mqtt_client.client import MESSAGES_MAX, MqttClient, MqttVisit
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, Reason
from fleet.wire.mqtt.connect import Connack, Connect, encode_connack, encode_connect
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.subscribe import Suback, Subscribe, Subscription, encode_suback, encode_subscribe
from tests.waiting import PATIENCE_SECONDS

CONNECT = Connect(V5, "")
CONNACK = encode_connack(Connack(False, 0), V5)
SUBACK = encode_suback(Suback(1, (0,)), V5)
NEWS = Publish("news", b"rain")


class Broker(asyncio.Transport):
    """What the client has sent, and whether it has closed."""

    def __init__(self, client: MqttVisit) -> None:
        super().__init__()
        self.client, self.got, self.is_open = client, b"", True
        client.connection_made(self)

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        if not self.is_open:
            raise RuntimeError("the handler is closed")  # as uvloop's
        self.got += data

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.client.connection_lost(None)

    def abort(self) -> None:
        self.close()


@pytest.mark.parametrize("step", range(1, len(CONNACK + SUBACK) + 20))
async def test_it_connects_subscribes_and_receives_however_the_bytes_are_cut(step: int) -> None:
    client = MqttClient(CONNECT)
    broker = Broker(client)
    subscribing = asyncio.create_task(client.subscribe("news"))
    await asyncio.sleep(0)
    assert broker.got == encode_connect(CONNECT) + encode_subscribe(Subscribe(1, (Subscription("news"),)), V5)
    stream = CONNACK + SUBACK + encode_publish(NEWS, V5)
    for pos in range(0, len(stream), step):
        client.data_received(stream[pos : pos + step])
    await subscribing
    assert (client.connack.result(), client.messages.get_nowait()) == (Connack(False, 0), NEWS)
    client.disconnect()
    assert broker.got.endswith(acks.disconnect(V5))
    assert client.lost.done()


@pytest.mark.parametrize(
    "stream",
    [
        SUBACK,
        CONNACK + CONNACK,
        CONNACK + acks.disconnect(V5, Reason.NOT_AUTHORIZED),
        CONNACK + encode_publish(Publish("news", b"", 1, 1), V5),
        CONNACK + encode_publish(NEWS, V5)[:1] + b"\xff\xff\xff\x7f",
        CONNACK + encode_publish(NEWS, V5) * (MESSAGES_MAX + 1),
        b"\x00\x00",
    ],
    ids=["no-connack", "second-connack", "disconnect", "qos-1", "too-large", "too-many", "no-mqtt"],
)
async def test_a_broker_that_breaks_the_protocol_is_disconnected(stream: bytes) -> None:
    client = MqttClient(CONNECT)
    broker = Broker(client)
    client.data_received(stream)
    assert not broker.is_open
    with pytest.raises(ConnectionError):
        await client.subscribe("news")


async def test_a_subscription_that_is_refused_is_said() -> None:
    client = MqttClient(CONNECT)
    Broker(client)
    client.data_received(CONNACK + encode_suback(Suback(1, (0x87,)), V5))
    with pytest.raises(ConnectionError, match="refused the subscription"):
        await client.subscribe("news")


async def test_a_broker_that_leaves_a_ping_unanswered_is_disconnected() -> None:
    client = MqttClient(Connect(V5, "", keep_alive=1))
    broker = Broker(client)
    client.data_received(CONNACK)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await client.lost
    assert broker.got.endswith(acks.PINGREQ)


async def test_a_visit_leaves_what_follows_its_connack_unread() -> None:
    """Messages of the session that it goes on with are the device's, also one that is too long for us."""
    visit = MqttVisit(CONNECT, size_max=64)
    broker = Broker(visit)
    message = encode_publish(Publish("news", b"x" * 100, 1, 1), V5)
    visit.data_received(CONNACK + message[:20])
    visit.data_received(message[20:] + b"\x00\x00")
    assert (await visit.connack).code == 0
    sent = len(broker.got)
    visit.disconnect(acks.ends_session())
    assert broker.got[sent:] == acks.ends_session()


async def test_a_visit_that_is_cut_off_says_so() -> None:
    visit = MqttVisit(CONNECT)
    Broker(visit).close()
    with pytest.raises(ConnectionError):
        await visit.connack


@pytest.mark.parametrize(("version", "code"), [(V5, Reason.UNSUPPORTED_PROTOCOL_VERSION), (V311, None)])
async def test_a_connect_of_5_that_is_answered_by_closing_is_refused_for_its_version(
    version: int, code: int | None
) -> None:
    client = MqttVisit(Connect(version, "cam-1"))
    Broker(client).close()
    if code is None:
        with pytest.raises(ConnectionError, match="closed"):
            await client.answer()
    else:
        assert await client.answer() == Connack(False, code)
    client.disconnect()  # as after each answer


@pytest.mark.parametrize("answer", [CONNACK, encode_connack(Connack(False, 0x87), V5), b"\x20\x02\x00\x01"])
async def test_the_answer_is_the_connack_though_the_broker_closes_behind_it(answer: bytes) -> None:
    client = MqttVisit(CONNECT)
    broker = Broker(client)
    client.data_received(answer)
    broker.close()
    assert (await client.answer()).code == (0x84 if answer[3] == 1 else answer[3])


async def test_an_answer_that_is_no_connack_says_nothing_of_the_version() -> None:
    client = MqttVisit(CONNECT)
    Broker(client)
    client.data_received(SUBACK)
    with pytest.raises(ConnectionError, match="no CONNACK"):
        await client.answer()
