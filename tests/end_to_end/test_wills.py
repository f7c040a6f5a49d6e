"""Wills of devices behind `fleet serve`, with one worker and with two: whose are published, and whose never."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from fleet.wire.mqtt.codes import V5, V311
from hw_bench.cpu_time import process_tree
from tests.end_to_end.test_workers import TRIES_MAX, Identity, Street, tell, until
from tests.servers.paho_client import Paho
from tests.serving import ANY_PORTS, Served, run_fleet

pytestmark = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")

LATE = 3600  # seconds of delay


@pytest.fixture(params=["1", "2"])
async def street(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> AsyncIterator[Street]:
    served = Served(home, tmp_path / "ready.json", (*ANY_PORTS, "--workers", request.param))
    await asyncio.to_thread(served.start)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, served.stop)
        yield await asyncio.to_thread(Street, served, tmp_path, stack)


def topic(identity: Identity) -> str:
    return f"devices/{identity.name}/up/gone"


async def connect(street: Street, identity: Identity, delay: int | None) -> Paho:
    """A live session of 5.0 that outlives its connection, and whose will waits; None: without a will."""
    before = sessions_of(street, identity)
    client = Paho(identity.name, V5, clean=False)
    client.client.tls_set_context(identity.context(street.served))
    if delay is not None:
        properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
        properties.WillDelayInterval = delay
        client.client.will_set(topic(identity), b"gone", 1, properties=properties)
    assert await client.connect(*street.served.address("mqtt")) == 0
    street._stack.push_async_callback(client.close)
    await until(lambda: len(sessions_of(street, identity)) > len(before))
    return client


def sessions_of(street: Street, identity: Identity) -> list[str]:
    """The worker of each session that the device ever had, in order; "" for the only one."""
    line = rf"(?:worker=(\d+) )?event=mqtt\.connect device={identity.name} .* code=ok"
    return re.findall(line, street.served.log)


async def vanish(street: Street, identity: Identity, client: Paho) -> None:
    """Its connection is lost, and the gateway knows."""
    ended = street.ended(identity.name)
    client.vanish()
    await until(lambda: street.ended(identity.name) > ended)


async def nothing_but(street: Street, observer: Paho, seconds: float) -> None:
    """The observer gets nothing for `seconds`, and then what is published last."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await observer.messages.get()
    await observer.publish("devices/last/up/x", b"last")
    assert await observer.message() == ("devices/last/up/x", b"last")


async def test_a_stop_takes_no_longer_because_the_broker_hangs(street: Street) -> None:
    gone, cam = [await asyncio.to_thread(street.enroll, f"cam-{number}") for number in range(2)]
    await vanish(street, gone, await connect(street, gone, LATE))
    await connect(street, cam, None)
    tree = process_tree((street.served.process.pid,))
    (broker,) = [pid for pid in tree if Path(f"/proc/{pid}/comm").read_text() == "mosquitto\n"]
    os.kill(broker, signal.SIGSTOP)
    assert await asyncio.to_thread(street.served.stop) == 0  # 5 seconds, and one for a slow machine
    assert "worker.killed" not in street.served.log
    assert street.served.log.count("event=wills.not-cancelled") == 1


@pytest.mark.parametrize("street", ["2"], indirect=True)
async def test_a_worker_that_ends_alone_leaves_waiting_wills_to_the_broker(street: Street) -> None:
    cam = await asyncio.to_thread(street.enroll, "cam-1")
    observer = await street.backend("devices/#")
    await vanish(street, cam, await connect(street, cam, 10))
    (worker,) = sessions_of(street, cam)
    tell(street.served, worker, signal.SIGTERM)
    await asyncio.to_thread(street.served.wait_for_line, f"event=worker.restarted worker={worker}")
    assert await observer.message() == (topic(cam), b"gone")


async def test_a_stop_publishes_no_will(street: Street) -> None:
    cams = [await asyncio.to_thread(street.enroll, f"cam-{number}") for number in range(4)]
    observer = await street.backend("devices/#")
    for cam, version in zip(cams, (V311, V5), strict=False):
        client = street.client(cam, version)
        client.client.will_set(topic(cam), b"gone", 1)
        assert await client.connect(*street.served.address("mqtt")) == 0
    await connect(street, cams[2], LATE)
    await vanish(street, cams[3], await connect(street, cams[3], LATE))
    assert await asyncio.to_thread(street.served.stop) == 0
    await observer.got(observer.disconnected)
    assert observer.messages.empty()


async def test_a_client_that_is_killed_leaves_its_will(street: Street) -> None:
    program = shutil.which("mosquitto_sub")
    if program is None:
        pytest.skip("mosquitto_sub: not installed")
    cam = await asyncio.to_thread(street.enroll, "cam-1")
    observer = await street.backend("devices/#")
    host, port = street.served.address("mqtt")
    tls = ("--cafile", str(street.served.ca_file), "--cert", str(cam.certificate), "--key", str(cam.key))
    will = ("--will-topic", topic(cam), "--will-payload", "gone", "--will-qos", "1")
    client = subprocess.Popen(
        [program, "-h", host, "-p", str(port), *tls, "-i", cam.name, "-t", f"devices/{cam.name}/down/#", *will],
        stdout=subprocess.DEVNULL,
    )
    try:
        await until(lambda: bool(sessions_of(street, cam)))
    finally:
        client.kill()
        client.wait()
    assert await observer.message() == (topic(cam), b"gone")


async def test_no_will_of_a_device_that_is_back_in_time_at_any_worker(street: Street) -> None:
    cam = await asyncio.to_thread(street.enroll, "cam-1")
    observer = await street.backend("devices/#")
    client = await connect(street, cam, 3)
    for _ in range(5):
        await vanish(street, cam, client)
        client = await connect(street, cam, 3)
    await nothing_but(street, observer, 5)
    client.vanish()
    assert await observer.message() == (topic(cam), b"gone")


async def test_no_will_of_a_device_that_is_suspended_meanwhile(street: Street) -> None:
    cam = await asyncio.to_thread(street.enroll, "cam-1")
    observer = await street.backend("devices/#")
    await vanish(street, cam, await connect(street, cam, 8))
    await asyncio.to_thread(run_fleet, street.served.home, "device", "suspend", cam.name)
    await asyncio.to_thread(street.served.wait_for_line, f"event=mqtt.will device={cam.name} code=cancelled")
    await nothing_but(street, observer, 10)


@pytest.mark.parametrize("street", ["2"], indirect=True)
async def test_a_device_that_is_back_at_another_worker_is_left_alone(street: Street) -> None:
    """Its former worker knows of a will that the new policy forbids: no reason to take over what lives elsewhere."""
    cam = await asyncio.to_thread(street.enroll, "cam-1")
    client = await connect(street, cam, LATE)
    for _ in range(TRIES_MAX):
        await vanish(street, cam, client)
        client = await connect(street, cam, None)
        if len(set(sessions_of(street, cam)[-2:])) == 2:
            break
        await vanish(street, cam, client)
        client = await connect(street, cam, LATE)
    assert len(set(sessions_of(street, cam)[-2:])) == 2
    words = ("model", "set", "default", "--publish", "devices/{id}/up/t")
    await asyncio.to_thread(run_fleet, street.served.home, *words)
    await until(lambda: street.served.log.count("event=mqtt.model model=default code=applied") == 2)
    await asyncio.to_thread(street.served.wait_for_line, f"event=mqtt.will device={cam.name} code=returned")
    await client.publish(f"devices/{cam.name}/up/t", b"here")
    assert client.disconnected.empty()
    assert "code=cancelled" not in street.served.log
