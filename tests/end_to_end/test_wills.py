"""Wills of devices behind `fleet serve`, with one worker and with two: whose are published, and whose never."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from fleet.wire.mqtt.codes import V5, V311
from hw_bench.cpu_time import process_tree
from tests.end_to_end.workers_fixtures import TRIES_MAX, Devices, Identity, by_both, tell
from tests.servers.paho_client import Paho
from tests.serving import ANY_PORTS, Served, run_fleet
from tests.waiting import until

pytestmark = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")

LATE = 3600  # seconds of delay
RUNNING_A_COMMAND = asyncio.Lock()  # one at a time has our standard streams


@pytest.fixture(scope="module")
def shared(pristine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    """Servers by their number of workers, for all tests that end none, each with devices of its own."""
    with contextlib.ExitStack() as stack:
        served = {}
        for workers in ("1", "2"):
            folder = tmp_path_factory.mktemp("shared")
            home = Path(shutil.copytree(pristine_home, folder / "a home", symlinks=True))
            served[workers] = Served(home, folder / "ready.json", (*ANY_PORTS, "--workers", workers)).start()
            stack.callback(served[workers].stop)
        yield served


@pytest.fixture(params=["1", "2"])
async def shared_street(
    request: pytest.FixtureRequest, shared: dict[str, Served], tmp_path: Path
) -> AsyncIterator[Devices]:
    async with contextlib.AsyncExitStack() as stack:
        yield await asyncio.to_thread(Devices, shared[request.param], tmp_path, stack)


@pytest.fixture(params=["1", "2"])
async def devices(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> AsyncIterator[Devices]:
    """At a server that the test may end."""
    served = Served(home, tmp_path / "ready.json", (*ANY_PORTS, "--workers", request.param))
    await asyncio.to_thread(served.start)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, served.stop)
        yield await asyncio.to_thread(Devices, served, tmp_path, stack)


def topic(identity: Identity) -> str:
    return f"devices/{identity.name}/up/gone"


async def connect(devices: Devices, identity: Identity, delay: int | None) -> Paho:
    """A live session of 5.0 that outlives its connection, and whose will waits; None: without a will."""
    before = sessions_of(devices, identity)
    client = Paho(identity.name, V5, clean=False)
    client.client.tls_set_context(identity.context(devices.served))
    if delay is not None:
        properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
        properties.WillDelayInterval = delay
        client.client.will_set(topic(identity), b"gone", 1, properties=properties)
    assert await client.connect(*devices.served.address("mqtt")) == 0
    devices._stack.push_async_callback(client.close)
    await until(lambda: len(sessions_of(devices, identity)) > len(before), devices.served.process)
    return client


def sessions_of(devices: Devices, identity: Identity) -> list[str]:
    """The worker of each session that the device ever had, in order; "" for the only one."""
    line = rf"(?:worker=(\d+) )?event=mqtt\.connect device={identity.name} .* code=ok"
    return re.findall(line, devices.served.log)


async def vanish(devices: Devices, identity: Identity, client: Paho) -> None:
    """Its connection is lost, and the gateway knows."""
    ended = devices.ended(identity.name)
    client.vanish()
    await until(lambda: devices.ended(identity.name) > ended, devices.served.process)


async def nothing_but(observer: Paho, identity: Identity, seconds: float, *, wills_max: int = 0) -> None:
    """The observer of the device's topics gets no more wills than these for `seconds`, and then what is published
    last.
    """
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            for _ in range(wills_max + 1):
                await observer.messages.get()
    last = f"devices/{identity.name}/up/last"
    await observer.publish(last, b"last")
    assert await observer.message() == (last, b"last")


async def test_a_stop_takes_no_longer_because_the_broker_hangs(devices: Devices) -> None:
    gone, cam = [await asyncio.to_thread(devices.enroll, f"cam-{number}") for number in range(2)]
    await vanish(devices, gone, await connect(devices, gone, LATE))
    await connect(devices, cam, None)
    tree = process_tree((devices.served.process.pid,))
    (broker,) = [pid for pid in tree if Path(f"/proc/{pid}/comm").read_text() == "mosquitto\n"]
    os.kill(broker, signal.SIGSTOP)
    assert await asyncio.to_thread(devices.served.stop) == 0  # 5 seconds, and ten for a busy machine
    # Before the supervisor's patience is over: half a second later, which a busy machine may need for the exit.
    assert devices.served.log.count("event=wills.not-cancelled") == 1


async def test_a_stop_publishes_no_will(devices: Devices) -> None:
    cams = [await asyncio.to_thread(devices.enroll, f"cam-{number}") for number in range(4)]
    observer = await devices.backend("devices/#")
    for cam, version in zip(cams, (V311, V5), strict=False):
        client = devices.client(cam, version)
        client.client.will_set(topic(cam), b"gone", 1)
        assert await client.connect(*devices.served.address("mqtt")) == 0
    await connect(devices, cams[2], LATE)
    await vanish(devices, cams[3], await connect(devices, cams[3], LATE))
    assert await asyncio.to_thread(devices.served.stop) == 0
    await observer.got(observer.disconnected)
    assert observer.messages.empty()


async def test_a_client_that_is_killed_leaves_its_will(shared_street: Devices) -> None:
    devices = shared_street
    program = shutil.which("mosquitto_sub")
    if program is None:
        pytest.skip("mosquitto_sub: not installed")
    cam = await asyncio.to_thread(devices.enroll, "killed")
    observer = await devices.backend("devices/killed/#")
    host, port = devices.served.address("mqtt")
    tls = ("--cafile", str(devices.served.ca_file), "--cert", str(cam.certificate), "--key", str(cam.key))
    will = ("--will-topic", topic(cam), "--will-payload", "gone", "--will-qos", "1")
    client = subprocess.Popen(
        [program, "-h", host, "-p", str(port), *tls, "-i", cam.name, "-t", f"devices/{cam.name}/down/#", *will],
        stdout=subprocess.DEVNULL,
    )
    try:
        await until(lambda: bool(sessions_of(devices, cam)), client)
    finally:
        client.kill()
        client.wait()
    assert await observer.message() == (topic(cam), b"gone")


@pytest.mark.parametrize("shared_street", ["2"], indirect=True)
async def test_a_worker_that_ends_alone_leaves_waiting_wills_to_the_broker(shared_street: Devices) -> None:
    devices = shared_street
    cam = await asyncio.to_thread(devices.enroll, "left")
    observer = await devices.backend("devices/left/#")
    await vanish(devices, cam, await connect(devices, cam, 5))
    (worker,) = sessions_of(devices, cam)
    tell(devices.served, worker, signal.SIGTERM)
    await asyncio.to_thread(devices.served.wait_for_line, f"event=worker.replaced worker={worker} ")
    assert await observer.message() == (topic(cam), b"gone")


async def no_will_of_a_device_that_is_back_in_time(devices: Devices) -> None:
    cam = await asyncio.to_thread(devices.enroll, "back")
    observer = await devices.backend("devices/back/#")
    client, now, late = await connect(devices, cam, 3), asyncio.get_running_loop().time, 0
    for _ in range(5):
        gone_at = now()
        await vanish(devices, cam, client)
        client = await connect(devices, cam, 3)
        late += now() - gone_at >= 3  # on a busy machine: its will was due
    assert late < 5
    await nothing_but(observer, cam, 5, wills_max=late)
    client.vanish()
    assert await observer.message() == (topic(cam), b"gone")


async def no_will_of_a_device_that_is_suspended_meanwhile(devices: Devices) -> None:
    cam = await asyncio.to_thread(devices.enroll, "suspended")
    observer = await devices.backend("devices/suspended/#")
    await vanish(devices, cam, await connect(devices, cam, 8))
    async with RUNNING_A_COMMAND:
        await asyncio.to_thread(run_fleet, devices.served.home, "device", "suspend", cam.name)
    await asyncio.to_thread(devices.served.wait_for_line, f"event=mqtt.will device={cam.name} code=cancelled")
    await nothing_but(observer, cam, 10)


async def test_no_will_in_time_at_any_worker(shared: dict[str, Served], tmp_path: Path) -> None:
    """Cases that mostly wait wait at once; the traceback of a failure names its case."""
    async with contextlib.AsyncExitStack() as stack:
        streets = []
        for workers, served in shared.items():
            (tmp_path / workers).mkdir()
            streets.append(await asyncio.to_thread(Devices, served, tmp_path / workers, stack))
        async with asyncio.TaskGroup() as running:
            for devices in streets:
                running.create_task(no_will_of_a_device_that_is_back_in_time(devices))
                running.create_task(no_will_of_a_device_that_is_suspended_meanwhile(devices))


@pytest.mark.parametrize("devices", ["2"], indirect=True)
async def test_a_device_that_is_back_at_another_worker_is_left_alone(devices: Devices) -> None:
    """Its former worker knows of a will that the new policy forbids: no reason to take over what lives elsewhere."""
    cam = await asyncio.to_thread(devices.enroll, "cam-1")
    client = await connect(devices, cam, LATE)
    for _ in range(TRIES_MAX):
        await vanish(devices, cam, client)
        client = await connect(devices, cam, None)
        if len(set(sessions_of(devices, cam)[-2:])) == 2:
            break
        await vanish(devices, cam, client)
        client = await connect(devices, cam, LATE)
    assert len(set(sessions_of(devices, cam)[-2:])) == 2
    words = ("model", "set", "default", "--publish", "devices/{id}/up/t")
    async with by_both(devices.served, "mqtt.model model=default code=applied"):
        await asyncio.to_thread(run_fleet, devices.served.home, *words)
    await asyncio.to_thread(devices.served.wait_for_line, f"event=mqtt.will device={cam.name} code=returned")
    await client.publish(f"devices/{cam.name}/up/t", b"here")
    assert client.disconnected.empty()
    assert "code=cancelled" not in devices.served.log
