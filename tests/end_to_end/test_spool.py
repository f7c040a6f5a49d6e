"""A device with a spool at a served fleet: what it accepted while it was offline, and killed, arrives in its order."""

import base64
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from device_agent.apps.control import Conversation
from device_agent.cli import cli
from device_agent.spool.outbox import ID_PROPERTY
from fleet.demo.harness import AGENT, Running
from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from tests.end_to_end.apps_fixtures import Backend
from tests.end_to_end.live_device import DEVICE, LiveDevice
from tests.free_ports import free_port
from tests.serving import Served, run_fleet, start
from tests.tiers import Tier
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")
UP = f"devices/{DEVICE}/up"
TOGETHER = 20  # requests of a program that wait for their answers


@pytest.fixture(scope="module")
def fleet(pristine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("spool")
    home = Path(shutil.copytree(pristine_home, folder / "a home", symlinks=True))
    serving = Served(home, folder / "ready.json").start()
    yield serving
    serving.stop()


@pytest.fixture(scope="module")
def device(fleet: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDevice]:
    live = LiveDevice(fleet, tmp_path_factory.mktemp("device"))
    set_value(live, "enabled", "true")
    yield live
    live.stop()


@pytest.fixture
def backend(fleet: Served) -> Iterator[Backend]:
    with Backend(fleet.home, f"{UP}/#") as backend:
        yield backend


def set_value(device: LiveDevice, key: str, value: object) -> None:
    file = device.home / "agent.toml"
    text, count = re.subn(rf"^{key} = \S+", f"{key} = {value}", file.read_text(), flags=re.MULTILINE)
    assert count == 1
    file.write_text(text)


def run_offline(device: LiveDevice) -> Running:
    device.agent = start("agent", *AGENT, "--home", str(device.home), "run")
    device.agent.wait_for(lambda line: " connect-failed " in line, "that there is nobody")
    return device.agent


def send(device: LiveDevice, first: int, last: int, kill: Running | None = None) -> None:
    """Send these numbers, many at a time; the agent is killed once some of them are on their way."""
    with Conversation(device.home) as conversation:
        for start_ in range(first, last, TOGETHER):
            for number in range(start_, start_ + TOGETHER):
                payload = base64.b64encode(str(number).encode()).decode()
                conversation.say({"do": "send", "topic": "devices/{id}/up/n", "payload": payload})
            if kill is not None:
                kill.process.kill()
                kill.stop()
                return
            for _ in range(TOGETHER):
                assert conversation.hear(PATIENCE_SECONDS)["ok"]


def waiting(device: LiveDevice) -> int:
    return int(json.loads(device.call("status", "-o", "json", expect=None))["agent"]["waiting"])


def test_what_was_accepted_survives_an_outage_and_a_kill(
    device: LiveDevice, fleet: Served, backend: Backend, tier: Tier
) -> None:
    count = tier.times(120, all=1000)
    half = count // 2
    _, port = fleet.address("mqtt")
    set_value(device, "port", free_port())
    agent = run_offline(device)
    send(device, 0, half)
    send(device, half, half + TOGETHER, kill=agent)
    run_offline(device)
    stored = waiting(device)
    assert half <= stored <= half + TOGETHER
    send(device, stored, count)
    total = waiting(device)
    assert total >= count
    device.stop()
    set_value(device, "port", port)
    began = time.monotonic()
    device.run()
    messages = [backend.next() for _ in range(total)]
    seconds = time.monotonic() - began
    assert [int(message.payload) for message in messages] == list(range(total))
    properties = [dict(message.properties.UserProperty) for message in messages]  # type: ignore[union-attr]
    assert len({each[ID_PROPERTY] for each in properties}) == total
    print(f"{total} messages after an outage in {seconds:.1f} s")
    device.call("renew")  # a rotation doubles nothing
    device.call("send", f"{UP}/last", "x", "--wait")
    assert backend.next().topic == f"{UP}/last"
    assert device.agent is not None
    assert device.agent.stop() == 0


def test_what_the_gateway_refuses_is_listed_with_its_reason(device: LiveDevice, backend: Backend) -> None:
    device.run()
    began = time.monotonic()
    device.call("send", "elsewhere/x", "secret", "--wait", "--timeout", "60", expect=1)
    assert time.monotonic() - began < 30  # at once, and not when the time is over
    [refused] = json.loads(device.call("rejected", "-o", "json"))
    assert (refused["topic"], refused["size"]) == ("elsewhere/x", 6)
    assert "Not authorized" in refused["reason"]
    status = json.loads(device.call("status", "-o", "json"))["agent"]
    assert (status["refused"], status["rejected"], status["spool"]) == (1, 1, "on")
    device.stop()
    assert "elsewhere/x  6 bytes: Not authorized" in device.call("rejected")  # of an agent that has ended
    assert device.call("rejected", "--retry") == "Queued again: 1.\n"
    device.run()
    device.call("send", f"{UP}/after", "y", "--wait", "--ttl", "60")
    message = backend.next()
    assert (message.payload, message.properties.MessageExpiryInterval) == (b"y", 60)  # type: ignore[union-attr]
    assert device.call("rejected", "--drop") == "Forgotten: 1.\n"
    assert device.call("rejected") == ""
    device.call("rejected", "--drop", "--retry", expect=2)


def test_who_waits_for_a_delivery_is_told_at_once_that_the_device_is_refused(
    device: LiveDevice, fleet: Served, backend: Backend
) -> None:
    agent = device.agent or device.run()
    run_fleet(fleet.home, "device", "suspend", DEVICE, "--reason", "test")
    agent.wait_for(lambda line: "cause=refused" in line, "that it is refused")
    began = time.monotonic()
    for number in range(2):
        done = CliRunner().invoke(cli, ["--home", str(device.home), "send", f"{UP}/s", str(number), "--wait"])
        assert done.exit_code == 1
        assert "not delivered yet: this device is suspended" in done.stderr
        assert "It stays queued" in done.stderr
    assert time.monotonic() - began < 20
    run_fleet(fleet.home, "device", "resume", DEVICE)
    assert [backend.next().payload for _ in range(2)] == [b"0", b"1"]
