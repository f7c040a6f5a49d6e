"""Queues of our own mosquitto: in sum they are bounded, and the largest gives way."""

import asyncio
from pathlib import Path

import pytest

from fleet.domain.credential import Credential
from fleet.servers.gateway.broker import largest_queues
from fleet.servers.gateway.broker.mosquitto import DATABASE
from fleet.servers.gateway.broker.saved_messages import queues
from fleet.wire.mqtt.codes import V311
from tests.servers.gateway_fixtures import populate
from tests.servers.mosquitto_gateway import MosquittoGateway, needs_mosquitto, open_mosquitto_gateway
from tests.servers.paho_client import Paho
from tests.waiting import until

SIZE = 300_000


async def leave(gateway: MosquittoGateway, device: Credential, *filters: str) -> None:
    """Subscribe, and leave a session."""
    client = await gateway.device(device, V311, clean=False)
    await client.subscribe(*filters)
    await client.close()


@needs_mosquitto
async def test_the_largest_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "run" / DATABASE
    async with open_mosquitto_gateway(tmp_path) as gateway:
        held = await populate(gateway.harness.registry, "cam-1", "cam-2", "cam-3")
        for device in held:
            await leave(gateway, device, f"devices/{device.holder}/down/t", "news/x")
        backend = await gateway.backend()
        for device, count in zip(held, (1, 4, 2), strict=True):
            for _ in range(count):
                await backend.publish(f"devices/{device.holder}/down/t", bytes(SIZE), 1)
        await backend.publish("news/x", bytes(SIZE), 1)  # one message in three queues
        await until(lambda: sum(queues(database).values()) > 8 * SIZE - 3)
        by_client = queues(database)
        assert sum(by_client.values()) < 8 * SIZE + 20_000
        shares = {device.holder: by_client[device.holder] / SIZE for device in held}
        assert shares == pytest.approx({"cam-1": 4 / 3, "cam-2": 13 / 3, "cam-3": 7 / 3}, abs=0.1)

        for name, value in (("QUEUES_MAX", 5 * SIZE), ("DATABASE_MIN", SIZE), ("GROWTH_MIN", SIZE // 2)):
            monkeypatch.setattr(largest_queues, name, value)
        await backend.publish("devices/cam-1/down/t", bytes(SIZE), 1)
        await until(lambda: "cam-2" not in queues(database))
        assert queues(database).keys() == {"cam-1", "cam-3"}
        for device, expected in zip(held, (3, 0, 3), strict=True):
            client = Paho(device.holder, V311, clean=False)
            assert await client.connect("127.0.0.1", await gateway.harness.door(device)) == 0
            for _ in range(expected):
                assert len((await client.message())[1]) == SIZE
            assert client.messages.empty()
            await client.close()


@needs_mosquitto
async def test_no_queue_gives_way_for_what_is_retained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("QUEUES_MAX", 2 * SIZE), ("DATABASE_MIN", SIZE), ("GROWTH_MIN", 1)):
        monkeypatch.setattr(largest_queues, name, value)
    loop, looked = asyncio.get_running_loop(), asyncio.Event()

    def look(path: Path) -> dict[str, int]:
        loop.call_soon_threadsafe(looked.set)
        return queues(path)

    monkeypatch.setattr(largest_queues, "queues", look)
    async with open_mosquitto_gateway(tmp_path) as gateway:
        (held,) = await populate(gateway.harness.registry, "cam-1")
        await leave(gateway, held, "devices/cam-1/down/t")
        backend = await gateway.backend()
        await backend.publish("devices/cam-1/down/t", b"open", 1)
        for number in range(6):
            await backend.publish(f"news/{number}", bytes(SIZE), 1, retain=True)
            if number > 3:  # what is decided at a look is done before the next
                looked.clear()
                await until(looked.is_set)
        assert queues(tmp_path / "run" / DATABASE).keys() == {"cam-1"}
        client = Paho(held.holder, V311, clean=False)
        assert await client.connect("127.0.0.1", await gateway.harness.door(held)) == 0
        assert (await client.message())[1] == b"open"
        await client.close()
