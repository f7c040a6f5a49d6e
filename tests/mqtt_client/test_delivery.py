"""Messages of QoS 1 of the MQTT client: each is acknowledged, or its sender hears that the connection was lost."""

import asyncio

import pytest

from fleet.mqtt_client.client import PACKET_ID_MAX, MqttClient
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, Reason
from fleet.wire.mqtt.connect import Connack, Connect, encode_connack
from fleet.wire.mqtt.publish import Publish, encode_publish
from tests.mqtt_client.test_client import Broker

NEWS = Publish("news", b"rain")


def connected(version: int) -> tuple[MqttClient, Broker]:
    client = MqttClient(Connect(version, "c"))
    broker = Broker(client)
    client.data_received(encode_connack(Connack(False, 0), version))
    return client, broker


async def delivering(client: MqttClient, count: int = 1) -> "list[asyncio.Task[int]]":
    tasks = [asyncio.create_task(client.deliver(NEWS)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize("step", range(1, 12))
@pytest.mark.parametrize(("version", "codes"), [(V5, [0, 0x87, 0x10]), (V311, [0, 0, 0])])
async def test_each_gets_its_own_answer_however_the_bytes_are_cut(version: int, codes: list[int], step: int) -> None:
    client, broker = connected(version)
    tasks = await delivering(client, 3)
    for packet_id in (1, 2, 3):
        assert encode_publish(Publish("news", b"rain", 1, packet_id), version) in broker.got
    answers = [
        acks.acknowledge(acks.PUBACK, packet_id, version, Reason.NOT_AUTHORIZED if code == 0x87 else Reason.SUCCESS)
        for packet_id, code in ((1, codes[0]), (2, codes[1]))
    ]
    answers.append(b"\x40\x03\x00\x03\x10" if version == V5 else b"\x40\x02\x00\x03")
    stream = answers[2] + answers[0] + answers[1]
    for pos in range(0, len(stream), step):
        client.data_received(stream[pos : pos + step])
    assert [await task for task in tasks] == codes
    assert broker.is_open


@pytest.mark.parametrize("stream", [b"\x40\x02\x00\x07", b"\x40\x02\x00\x00", b"\x40\x03\x00\x01\x55", b"\x40\x01\x00"])
async def test_an_answer_to_nothing_ends_the_connection(stream: bytes) -> None:
    client, broker = connected(V5)
    (task,) = await delivering(client)
    client.data_received(stream)
    with pytest.raises(ConnectionError):
        await task
    assert not broker.is_open


async def test_nothing_is_delivered_on_a_lost_connection() -> None:
    client, broker = connected(V5)
    (task,) = await delivering(client)
    broker.close()
    with pytest.raises(ConnectionError):
        await task
    with pytest.raises(ConnectionError):
        await client.deliver(NEWS)


async def test_an_identifier_is_not_used_again_before_its_acknowledgement() -> None:
    client, broker = connected(V5)
    (given_up,) = await delivering(client)
    given_up.cancel()
    client._packet_id = PACKET_ID_MAX
    (task,) = await delivering(client)
    client.data_received(b"\x40\x02\x00\x01\x40\x02\x00\x02")
    assert await task == 0
    assert broker.is_open
