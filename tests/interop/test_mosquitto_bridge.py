"""A mosquitto bridge, configured as the gateway's page shows, by a device's certificate that is renewed."""

import asyncio
import os
import pwd
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from fleet.servers import gateway
from fleet.servers.gateway.broker.mosquitto import BACKEND, mosquitto_program
from fleet.wire.mqtt.codes import V311
from tests.interop.stock_device import StockDevice
from tests.servers.paho_client import Paho
from tests.serving import ANY_PORTS, Served, run_fleet
from tests.waiting import PATIENCE_SECONDS, until

PROGRAM = mosquitto_program()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")
RENEWED_SECONDS_BEFORE = 25.0  # of a minute: the next one must outlive the wait of up to 15 s for the bridge
PAGE = Path(gateway.__file__).parent / "README.md"
VERSIONS = pytest.mark.parametrize("version", ["", "bridge_protocol_version mqttv50"], ids=["default", "mqttv50"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("fleet")
    run_fleet(folder / "home", "init", str(folder / "home"))
    model = ("--publish", "devices/{id}/up/#", "--subscribe", "devices/{id}/down/#")
    run_fleet(folder / "home", "model", "add", "brief", "--lifetime", "1m", *model)
    run_fleet(folder / "home", "model", "add", "strict", *model)
    run_fleet(folder / "home", "model", "set", "strict", "--on-denied", "close")
    both = "devices/{id}/both/#"
    run_fleet(folder / "home", "model", "add", "both", "--publish", both, "--subscribe", both)
    serving = Served(folder / "home", folder / "ready.json", words=(*ANY_PORTS, "--upstream", "mosquitto")).start()
    yield serving
    serving.stop()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


def configuration(device: StockDevice, more: Sequence[str], listener: Path) -> str:
    """mosquitto.conf of a site with the bridge that the page shows, for `device`."""
    shown = re.search(r"^```\n(connection .*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    bridge = shown[1]
    for old, new in (
        ("mqtt.example.com:8883", "{}:{}".format(*device.served.address("mqtt"))),
        ("/etc/mosquitto/certs/fleet-root.pem", str(device.served.ca_file)),
        ("/etc/mosquitto/certs/cam-7.pem", str(device.certificate)),
        ("/etc/mosquitto/certs/cam-7.key", str(device.key)),
        ("cam-7", device.name),
    ):
        assert old in bridge
        bridge = bridge.replace(old, new)
    # Started by root it would become the user mosquitto, who can't read a test's files.
    user = pwd.getpwuid(os.geteuid()).pw_name
    return "\n".join((f"user {user}", f"listener 0 {listener.name}", "allow_anonymous true", bridge, *more, ""))


class Site:
    """A mosquitto that is bridged to the fleet as `device`, with an application at either broker."""

    def __init__(self, device: StockDevice, local: Paho, backend: Paho) -> None:
        self.device, self.name, self.served = device, device.name, device.served
        self.local, self.backend = local, backend

    @classmethod
    async def open(cls, device: StockDevice, folder: Path, stack: AsyncExitStack, *more: str) -> "Site":
        assert PROGRAM is not None
        place, config = folder / "site.sock", folder / "site.conf"
        config.write_text(configuration(device, more, place))
        with (folder / "site.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                PROGRAM, "-v", "-c", str(config), stdout=log, stderr=log, cwd=folder
            )

        async def stop() -> None:
            process.terminate()
            await process.wait()

        stack.push_async_callback(stop)
        await until(lambda: listens(place), process)
        local, backend = Paho("application", V311, transport="unix"), Paho("backend", V311, transport="unix")
        backend.client.username_pw_set(BACKEND)
        for client, at in ((local, place), (backend, device.served.home / "run" / "broker.sock")):
            assert await client.connect_unix(at) == 0
            stack.push_async_callback(client.close)
        await backend.subscribe(f"devices/{device.name}/up/#", "$SYS/broker/connection/#")
        await local.subscribe(f"devices/{device.name}/down/#")
        return cls(device, local, backend)

    def logged(self, event: str, found: str = r"code=(\S+)") -> list[str]:
        """What the device's lines of `event` have, in order: the codes."""
        return re.findall(rf"event={event} device={self.name} .*{found}", self.served.log)

    async def connected(self, times: int) -> None:
        await until(lambda: self.logged("mqtt.connect").count("ok") >= times)

    async def subscribed(self, way: str = "down") -> None:
        """Returns when messages from the fleet reach the site: its SUBSCRIBE follows its CONNECT."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.local.messages.empty():
                await self.backend.publish(f"devices/{self.name}/{way}/ready")

    async def message(self, client: Paho) -> tuple[str, bytes]:
        """The next that is not from `subscribed`."""
        while (found := await client.message())[0].endswith("/ready"):
            pass
        return found

    async def publish(self, numbers: range) -> None:
        """By QoS 1 at both ends; returns when both brokers have acknowledged all."""
        for number in numbers:
            self.local.client.publish(f"devices/{self.name}/up/n", str(number), 1)
            self.backend.client.publish(f"devices/{self.name}/down/n", str(number), 1)
        for client in (self.local, self.backend):
            for _ in numbers:
                await client.got(client.pubacks)

    async def received(self, numbers: range, ways: Sequence[str] = ("up", "down")) -> None:
        """Returns when each of `numbers` has arrived, once or more, and nothing else."""
        for way in ways:
            client = self.backend if way == "up" else self.local
            missing = {str(number).encode() for number in numbers}
            while missing:
                topic, payload = await self.message(client)
                assert topic == f"devices/{self.name}/{way}/n"
                missing.discard(payload)


def listens(path: Path) -> bool:
    directory = os.open(path.parent, os.O_PATH)  # a test's own path may be longer than a socket's address
    try:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(f"/proc/self/fd/{directory}/{path.name}") == 0
    finally:
        os.close(directory)


@VERSIONS
async def test_a_bridge_connects_as_the_page_shows_it(
    served: Served, version: str, tmp_path: Path, stack: AsyncExitStack
) -> None:
    device = await asyncio.to_thread(StockDevice, served, f"site-{'5' if version else '3'}", tmp_path)
    site = await Site.open(device, tmp_path, stack, version)
    await site.connected(1)
    await site.subscribed()
    await site.publish(range(20))
    await site.received(range(20))
    assert not site.logged("mqtt.session")
    assert site.logged("mqtt.publish", r"topic=(\S+)") == [f"$SYS/broker/connection/{site.name}/state"]


async def test_a_model_that_closes_at_a_denied_message_does_not_close_a_bridge(
    served: Served, tmp_path: Path, stack: AsyncExitStack
) -> None:
    device = await asyncio.to_thread(StockDevice, served, "strict-site", tmp_path, "strict")
    site = await Site.open(device, tmp_path, stack, "try_private false")
    await site.connected(1)
    await site.subscribed()
    await site.publish(range(20))
    await site.received(range(20))
    assert not site.logged("mqtt.session")


@pytest.mark.parametrize(("version", "returned"), [("try_private false", 1), ("bridge_protocol_version mqttv50", 0)])
async def test_what_a_bridge_has_sent_both_ways_is_not_returned_by_mqtt_5(
    served: Served, version: str, returned: int, tmp_path: Path, stack: AsyncExitStack
) -> None:
    device = await asyncio.to_thread(StockDevice, served, f"both-{returned}", tmp_path, "both")
    topic = f"devices/{device.name}/both/t"
    site = await Site.open(device, tmp_path, stack, version, f"topic devices/{device.name}/both/# both 1")
    await site.connected(1)
    await site.local.subscribe(f"devices/{device.name}/both/#")
    await site.backend.subscribe(topic)
    await site.subscribed("both")
    await site.local.publish(topic, b"mine")
    assert await site.backend.message() == (topic, b"mine")
    await site.backend.publish(topic, b"yours")
    expected = [b"mine"] * (1 + returned) + [b"yours"]
    assert sorted([(await site.message(site.local))[1] for _ in expected]) == expected
    await site.backend.publish(topic, b"last")
    assert await site.message(site.local) == (topic, b"last")


@pytest.mark.long
@VERSIONS
async def test_a_bridge_loses_nothing_over_two_renewals(
    served: Served, version: str, tmp_path: Path, stack: AsyncExitStack
) -> None:
    """Its certificates end one after the other, in the midst of messages; it comes back with the next one.

    By MQTT 5.0 it has no session while it is away: what it sends arrives, what is sent to it then does not.
    """
    device = await asyncio.to_thread(StockDevice, served, f"brief-{'5' if version else '3'}", tmp_path, "brief")
    site = await Site.open(device, tmp_path, stack, version)
    await site.connected(1)
    await site.subscribed()
    ways = ("up",) if version else ("up", "down")
    sent = 0
    for sessions in (1, 2):
        await until(lambda: device.seconds_left() < RENEWED_SECONDS_BEFORE)
        first, ends_at = sent, time.monotonic() + device.seconds_left()
        await asyncio.to_thread(device.renew)
        assert device.seconds_left() > ends_at - time.monotonic()
        await until(lambda at=ends_at: time.monotonic() > at - 0.5)  # type: ignore[misc]
        while len(site.logged("mqtt.session")) < sessions:
            await site.publish(range(sent, sent + 1))
            sent += 1
        await site.publish(range(sent, sent + 100))  # while it is away
        sent += 100
        await site.connected(sessions + 1)
        await site.received(range(first, sent), ways)
    if version:
        await site.subscribed()
    await site.publish(range(sent, sent + 20))
    await site.received(range(sent, sent + 20))
    assert site.logged("mqtt.session") == ["certificate-expired"] * 2
    assert len(set(site.logged("mqtt.connect", r"serial=(\w+) .*code=ok"))) == 3
