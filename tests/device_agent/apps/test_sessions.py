"""Subscriptions at a broker that forgets its sessions."""

import subprocess
from typing import Any

import paho.mqtt.publish
import pytest

from device_agent import Agent
from device_agent.apps.control import ask
from tests.device_agent.fleet_parts import DEADLINE_SECONDS, Broker, Device
from tests.forks import Forked
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("forked_programs")


async def test_subscriptions_are_made_again_in_a_new_session(device: Device, broker: Broker) -> None:
    agent = device.run()
    seen = agent.wait_for("connected")
    topic = f"down/{device.device_id}"
    async with Agent(device.home) as program, program.subscribe("down/{id}") as messages:
        for number, restarts in enumerate((False, True)):
            if restarts:
                broker.stop()
                seen = agent.wait_for("disconnected", seen)
                broker.start()
                agent.wait_for("session=new", seen)
            await until(lambda: ask(device.home, {"do": "status"}, DEADLINE_SECONDS)["programs"])
            paho.mqtt.publish.single(topic, b"%d" % number, 1, port=broker.plain_port)
            assert (await anext(messages)).payload == b"%d" % number


def test_the_command_waits_for_an_agent_that_restarts(device: Device, broker: Broker) -> None:
    agent = device.run()
    agent.wait_for("connected")
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = Forked("device_agent", "--home", device.home, "subscribe", "down/{id}", "--count", "1", **streams)
    assert command.stderr
    assert command.stderr.readline() == f"Subscribed to down/{device.device_id}.\n"
    agent.kill()
    device.run().wait_for("connected")
    assert command.stderr.readline() == f"Subscribed to down/{device.device_id}.\n"
    paho.mqtt.publish.single(f"down/{device.device_id}", b"back", 1, port=broker.plain_port)
    said, _ = command.communicate(timeout=DEADLINE_SECONDS)
    assert (command.returncode, said) == (0, f"down/{device.device_id} back\n")
