"""Programs on a device at a served fleet: messages down, answers up, through the agent that runs there."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import MQTTMessage

from device_agent import Agent
from device_agent.apps.control import ask
from device_agent.errors import NotRunning, RequestFailed, SendRefused, SubscriptionRefused
from fleet.est_client.errors import ClientError
from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from tests.end_to_end.apps_fixtures import Backend
from tests.end_to_end.live_device import DEVICE, LiveDevice
from tests.forks import Forked
from tests.serving import Served
from tests.tiers import Tier
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")
DOWN, UP = f"devices/{DEVICE}/down", f"devices/{DEVICE}/up"


@pytest.fixture(scope="module")
def fleet(pristine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("apps")
    home = Path(shutil.copytree(pristine_home, folder / "a home", symlinks=True))
    serving = Served(home, folder / "ready.json").start()
    yield serving
    serving.stop()


@pytest.fixture(scope="module")
def device(fleet: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDevice]:
    live = LiveDevice(fleet, tmp_path_factory.mktemp("device"))
    live.run()
    yield live
    live.stop()


@pytest.fixture
def backend(fleet: Served) -> Iterator[Backend]:
    with Backend(fleet.home, f"{UP}/#") as backend:
        yield backend


def block(kind: str) -> str:
    """The program that the page shows."""
    page = (Path(__file__).parents[2] / "device_agent" / "apps" / "README.md").read_text()
    found = re.search(rf"^```{kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def properties_of(message: MQTTMessage) -> Any:
    return message.properties


def device_is_subscribed(device: LiveDevice) -> None:
    """Return once there is a program on this device with subscriptions, all granted."""
    wait_until(lambda: ask(device.home, {"do": "status"}, PATIENCE_SECONDS)["programs"])


class Command:
    """A command of the agent that runs until it has what it wants."""

    def __init__(self, device: LiveDevice, *words: str) -> None:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = Forked("device_agent", "--home", str(device.home), *words, **streams)

    def has_subscribed(self) -> None:
        assert self._process.stderr
        line = self._process.stderr.readline()
        assert line.startswith("Subscribed to "), line + self._process.stderr.read()

    def output(self, expect: int = 0) -> str:
        said, errors = self._process.communicate(timeout=PATIENCE_SECONDS)
        assert self._process.returncode == expect, errors
        return said if expect == 0 else errors


def test_a_message_from_the_fleet_is_printed(device: LiveDevice, backend: Backend) -> None:
    command = Command(device, "subscribe", "devices/{id}/down/#", "--count", "2", "--keep", "0")
    command.has_subscribed()
    backend.publish(f"{DOWN}/x", b"hello")
    backend.publish(f"{DOWN}/y", b"two\nlines\x1b[2J")
    assert command.output() == f"{DOWN}/x hello\n{DOWN}/y two\\nlines\\x1b[2J\n"


def test_a_refused_subscription_says_which_and_why(device: LiveDevice) -> None:
    said = Command(device, "subscribe", "devices/+/down/#").output(expect=1)
    assert "devices/+/down/#: the device's model does not allow this subscription (SUBACK 0x87)" in said


def test_a_command_gets_each_message_and_its_output_answers(
    device: LiveDevice, backend: Backend, tmp_path: Path
) -> None:
    (tmp_path / "answer").write_text('#!/bin/sh\nread -r word\necho "$MQTT_TOPIC $word"\nexit "${word%%[a-z]*}"\n')
    (tmp_path / "answer").chmod(0o755)
    command = Command(device, "subscribe", "devices/{id}/down/exec", "--exec", str(tmp_path / "answer"))
    command.has_subscribed()
    backend.publish(f"{DOWN}/exec", b"0ok\n", f"{UP}/answer", b"\x02")
    answer = backend.next()
    assert (answer.topic, answer.payload) == (f"{UP}/answer", f"{DOWN}/exec 0ok\n".encode())
    assert properties_of(answer).CorrelationData == b"\x02"
    backend.publish(f"{DOWN}/exec", b"0ok\n", "devices/another/up/answer")
    backend.publish(f"{DOWN}/exec", b"0ok\n", f"{UP}/answer")
    assert backend.next().topic == f"{UP}/answer"
    backend.publish(f"{DOWN}/exec", b"3bad\n", "", b"\x03")
    said = command.output(expect=1)
    assert "The response was refused: The message to devices/another/up/answer was not delivered" in said
    assert "exit code 3" in said
    again = Command(device, "subscribe", "devices/{id}/down/exec", "--count", "1", "--keep", "0", "-o", "json")
    shown = json.loads(again.output())
    assert (shown["payload"], shown["correlation"]) == ("3bad\n", "Aw==")  # it was not taken


def test_a_request_gets_its_response(device: LiveDevice, backend: Backend) -> None:
    command = Command(device, "request", "devices/{id}/up/question", "how much?")
    asked = backend.next()
    assert (asked.topic, asked.payload) == (f"{UP}/question", b"how much?")
    response_topic, correlation = properties_of(asked).ResponseTopic, properties_of(asked).CorrelationData
    backend.publish(response_topic, b"of another", correlation=b"unknown")
    backend.publish(response_topic, b"a lot", "", correlation)
    assert command.output() == "a lot\n"
    late = device.call("request", "devices/{id}/up/question", "-5.2", "--timeout", "0.1", expect=1)
    assert late == ""
    assert backend.next().payload == b"-5.2"


def test_the_python_program_of_the_page_answers_commands(device: LiveDevice, backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(block("python"))
    environment = os.environ | {"DEVICE_HOME": str(device.home)}
    app = subprocess.Popen([sys.executable, tmp_path / "app.py"], env=environment)
    try:
        started = backend.next()
        assert (started.topic, started.payload[:18]) == (f"{UP}/started", b"certificate until ")
        # It may not have subscribed yet.
        device_is_subscribed(device)
        backend.publish(f"{DOWN}/command/echo", b"refused", "devices/another/up/answer", b"7")
        backend.publish(f"{DOWN}/command/echo", b"\x00\xff", f"{UP}/answer", b"7")
        answer = backend.next()
        assert (answer.topic, answer.payload) == (f"{UP}/answer", b"\x00\xff")
        backend.publish(f"{DOWN}/command/dance", b"", f"{UP}/answer")
        assert backend.next().payload == b"unknown command: dance"
    finally:
        app.kill()
        app.wait()


async def test_overlapping_filters_bring_each_of_them_one_copy(device: LiveDevice, backend: Backend) -> None:
    """Through the gateway: the copies that mosquitto sends carry the identifiers of their subscriptions."""
    topic = f"{DOWN}/over/a"
    async with asyncio.timeout(PATIENCE_SECONDS), Agent(device.home) as first, Agent(device.home) as second:
        filters = (f"{DOWN}/over/#", topic)
        async with (
            first.subscribe(filters[0], keep_seconds=0) as wide,
            first.subscribe(filters[1], keep_seconds=0) as narrow,
            second.subscribe(f"{DOWN}/over/+", keep_seconds=0) as other,
        ):
            for payload in (b"1", b"2"):
                backend.publish(topic, payload)
            for messages in (wide, narrow, other):
                assert [(await anext(messages)).payload for _ in range(2)] == [b"1", b"2"]
            assert not any(messages._queue for messages in (wide, narrow, other))


@pytest.mark.parametrize(("kind", "program"), [("c", "gcc"), ("shell", "socat")])
def test_the_examples_of_the_page_send_and_receive(
    device: LiveDevice, backend: Backend, tmp_path: Path, kind: str, program: str
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    (tmp_path / f"example.{kind}").write_text(block(kind))
    words = ["sh", "-e", f"example.{kind}"]
    if kind == "c":
        options = ("-std=gnu99", "-Wall", "-Wextra", "-Werror", "-o", "example")
        subprocess.run(["gcc", *options, "example.c"], cwd=tmp_path, check=True)
        words = ["./example"]
    environment = os.environ | {"DEVICE_HOME": str(device.home)}
    example = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        came = backend.next()
        assert (came.topic, came.payload) == (f"{UP}/{kind}", b"hello")
        device_is_subscribed(device)
        backend.publish(f"{DOWN}/{kind}", b"world")
        said, _ = example.communicate(timeout=PATIENCE_SECONDS)
        assert kind == "c" or json.loads(said.splitlines()[0]) == {"ok": True}
        assert said.splitlines()[-1] == ("d29ybGQ=" if kind == "c" else "world")
    finally:
        example.kill()
        example.wait()


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"do": "send", "topic": "a", "payload": "x"}, "not base64"),
        ({"do": "send", "topic": "a", "payload": "\u00e9"}, "not base64"),
        ({"do": "send", "topic": "a", "payload": 7}, "not base64"),
        ({"do": "send", "topic": "a/#"}, "not a topic"),
        ({"do": "send", "topic": "a", "qos": 2}, "QoS"),
        ({"do": "send", "topic": "a", "qos": [1]}, "QoS"),
        ({"do": "send", "topic": "a", "response_topic": "+"}, "not a topic"),
        ({"do": "send", "topic": "a", "correlation": "?"}, "not base64"),
        ({"do": "send", "topic": "a", "correlation": "AAAA" * 500}, "longer than"),
        ({"do": "subscribe", "topic": ""}, "not a topic filter"),
        ({"do": "subscribe", "topic": "a/#/b"}, "not a topic filter"),
        ({"do": "subscribe", "topic": "a\ud800"}, "not a topic filter"),
        ({"do": "subscribe", "topic": "a" * 1025}, "longer than"),
        ({"do": "subscribe", "topic": "a", "qos": 2}, "QoS"),
        ({"do": "subscribe", "topic": "a", "keep_seconds": 1e9}, "keep_seconds"),
        ({"do": "subscribe", "topic": "a", "keep_seconds": "1"}, "keep_seconds"),
        ({"do": "unsubscribe", "topic": "a"}, "no subscription"),
        ({"do": "request", "topic": "a", "timeout_seconds": -1}, "timeout_seconds"),
        ({"do": "request", "topic": "a", "timeout_seconds": float("nan")}, "timeout_seconds"),
    ],
)
def test_what_is_no_proper_request_is_refused(device: LiveDevice, request_: dict[str, object], said: str) -> None:
    with pytest.raises(ClientError, match=said):
        ask(device.home, request_, PATIENCE_SECONDS)


async def test_no_command_is_lost_over_renewals_and_a_killed_agent(fleet: Served, tmp_path: Path, tier: Tier) -> None:
    device = LiveDevice(fleet, tmp_path, "cam-8")
    device.run()
    renewals, count = tier.times(1, all=3), 50
    rounds = renewals + 2
    received: list[int] = []

    def publish(number: int, backend: Backend) -> None:
        for each in range(number * count, (number + 1) * count):
            backend.publish("devices/cam-8/down/n", b"%d" % each)

    try:
        with Backend(fleet.home) as backend:
            async with Agent(device.home) as agent, agent.subscribe("devices/{id}/down/n") as messages:
                before = await agent.identity()

                async def receive() -> None:
                    async for message in messages:
                        received.append(int(message.payload))
                        if len(set(received)) == rounds * count:
                            return

                receiving = asyncio.create_task(receive())
                for number in range(rounds):
                    publishing = asyncio.create_task(asyncio.to_thread(publish, number, backend))
                    if number < renewals:
                        renewed = asyncio.create_task(agent.wait_renewed())
                        await asyncio.to_thread(device.call, "renew")
                        assert (await renewed).serial != before.serial
                        before = await agent.identity()
                    elif number == renewals:
                        assert device.agent is not None
                        device.agent.process.kill()
                        await asyncio.to_thread(device.agent.process.wait)
                        await asyncio.to_thread(device.run)
                    await publishing
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await receiving
    finally:
        device.stop()
    assert set(received) == set(range(rounds * count))
    print(f"{len(received)} received of {rounds * count} over {renewals} renewals and a SIGKILL")


async def test_two_programs_publish_and_a_refused_one_hears_why(device: LiveDevice, backend: Backend) -> None:
    async with Agent(device.home) as first, Agent(device.home) as second:
        assert first.device_id == DEVICE
        await asyncio.gather(
            first.publish(f"{UP}/a", "1", ttl=60), second.publish("devices/{id}/up/b", b"2", wait=False)
        )
        assert {backend.next().payload, backend.next().payload} == {b"1", b"2"}
        with pytest.raises(SubscriptionRefused, match=r"devices/\+/down/#: the device's model does not allow"):
            await anext(first.subscribe("devices/+/down/#"))
        with pytest.raises(RequestFailed, match="did not accept"):
            await first.request("devices/other/up/x", b"", timeout=20)
        with pytest.raises(SendRefused):
            await second.publish("devices/other/up/x", b"")


async def test_where_there_is_no_agent_the_api_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEVICE_HOME", raising=False)
    with pytest.raises(NotRunning, match="no device's home"):
        Agent()
    with pytest.raises(NotRunning, match="No agent answers"):
        async with Agent(tmp_path, start_seconds=0.01):
            pass
