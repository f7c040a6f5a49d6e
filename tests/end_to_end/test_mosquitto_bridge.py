"""A mosquitto on the device, bridged to a served fleet by the configuration that the agent makes: beside the agent, and
beside a program of the device's.
"""

import getpass
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from tests.end_to_end.apps_fixtures import Backend
from tests.end_to_end.live_device import DEVICE, LiveDevice
from tests.free_ports import free_port
from tests.serving import Served, run_fleet
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")
UP, DOWN = f"devices/{DEVICE}/up", f"devices/{DEVICE}/down"
MESSAGES = 200


@pytest.fixture
def device(served: Served, tmp_path: Path) -> Iterator[LiveDevice]:
    run_fleet(served.home, "model", "set", "default", "--client-id", "prefix")
    live = LiveDevice(served, tmp_path)
    yield live
    live.stop()


class LocalBroker:
    """mosquitto with the bridge's configuration included."""

    def __init__(self, folder: Path, bridge: Path) -> None:
        self.port = free_port()
        config = folder / "mosquitto.conf"
        config.write_text(
            f"user {getpass.getuser()}\nlistener {self.port} 127.0.0.1\nallow_anonymous true\n"
            f"max_queued_messages 10000\ninclude_dir {bridge}\n"
        )
        self.log = folder / "mosquitto.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([str(mosquitto_program()), "-v", "-c", config], stdout=log, stderr=log)
        self.await_connections(1)

    def await_connections(self, times: int) -> None:
        """Returns once the fleet has granted the bridge what it subscribes to so many times: once a connection."""
        wait_until(lambda: self.subscriptions() == times, f"that the bridge is connected {times} times", self.process)

    def subscriptions(self) -> int:
        return self.log.read_bytes().count(b"Received SUBACK from local.")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def renew(device: LiveDevice, copy: Path) -> None:
    """Renew, and return once the agent has replaced the copy. The fleet then ends the bridge's session."""
    before = copy.read_bytes()
    device.call("renew")
    wait_until(lambda: copy.read_bytes() != before, "that the new certificate is copied")
    run_fleet(device.served.home, "session", "kick", DEVICE, "--client-id", f"{DEVICE}/bridge")


def connected(served: Served) -> set[str]:
    """The device's client ids that are."""
    shown = json.loads(run_fleet(served.home, "session", "show", DEVICE, "-o", "json"))["sessions"]
    return {each["client_id"] for each in shown if each["state"] == "connected"}


def publish_beside(device: LiveDevice, copies: Path) -> None:
    """A message of a third client of the device, which comes and goes."""
    host, port = device.served.address("mqtt")
    tls = ("--cafile", device.served.ca_file, "--cert", copies / "cert.pem", "--key", copies / "key.pem")
    to = ("-h", host, "-p", str(port), "-i", f"{DEVICE}/meter", "-q", "1", "-t", f"{UP}/meter", "-m", "7")
    subprocess.run(["mosquitto_pub", *to, *tls], check=True, timeout=PATIENCE_SECONDS)


@pytest.mark.long
def test_no_message_is_lost_over_two_renewals(served: Served, device: LiveDevice, tmp_path: Path) -> None:
    folder = tmp_path / "bridge"
    device.call("bridge", "mosquitto", "--out", str(folder), "--user", getpass.getuser())
    device.run()
    broker = LocalBroker(tmp_path, folder)
    local = paho.Client(CallbackAPIVersion.VERSION2, "app")
    down: list[int] = []
    local.on_message = lambda _client, _data, message: down.append(int(message.payload))
    up: list[int] = []
    try:
        with Backend(served.home, f"{UP}/#") as backend:
            local.connect("127.0.0.1", broker.port)
            local.loop_start()
            local.subscribe(f"{DOWN}/#", 1)
            for renewal in range(3):
                if renewal:
                    broker.await_connections(renewal)
                    renew(device, folder / "cert.pem")
                for number in range(renewal * MESSAGES, (renewal + 1) * MESSAGES):
                    local.publish(f"{UP}/n", b"%d" % number, 1).wait_for_publish(60)
                    backend.publish(f"{DOWN}/n", b"%d" % number)
            while len(set(up)) < 3 * MESSAGES:
                up.append(int(backend.next().payload))
            wait_until(lambda: len(set(down)) == 3 * MESSAGES, "that every command has arrived")
            assert broker.subscriptions() == 3
            publish_beside(device, folder)
            assert (message := backend.next()).topic == f"{UP}/meter", message.topic
            wait_until(lambda: {DEVICE, f"{DEVICE}/bridge"} <= connected(served), "that both are connected")
            serial = json.loads(device.call("status", "-o", "json"))["serial"]
            assert f"serial={serial} client_id={DEVICE}/bridge" in served.log  # with the new certificate
            print(f"{3 * MESSAGES} each way over two renewals; copies up {len(up)}, down {len(down)}")
    finally:
        local.disconnect()
        local.loop_stop()
        broker.stop()
