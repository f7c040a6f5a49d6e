"""A mosquitto that devices connect to directly: its dynamic-security plugin follows the registry."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from tests.free_ports import free_ports
from tests.interop.relying_parties import PROJECT, Published, done, listening, running, shown_on_page
from tests.interop.stock_device import StockDevice, needs
from tests.serving import ANY_PORTS, Served, program, run_fleet
from tests.waiting import PATIENCE_SECONDS, wait_until

PAGE = PROJECT / "fleet" / "dynamic_security" / "README.md"
PLUGIN = Path("/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so")
PASSWORD = "between-them"


@dataclass
class Client:
    """A connected device."""

    client: mqtt.Client
    ended: threading.Event

    def publish(self, topic: str) -> bool:
        """Whether a message is acknowledged with success."""
        answered, codes = threading.Event(), []

        def on_publish(client: mqtt.Client, userdata: object, mid: int, reason: ReasonCode, props: object) -> None:
            codes.append(reason)
            answered.set()

        self.client.on_publish = on_publish
        self.client.publish(topic, b"21.5", qos=1)
        assert answered.wait(PATIENCE_SECONDS)
        return not codes[0].is_failure


def receiving(client: mqtt.Client, topic: str) -> "list[str]":
    """Subscribe; the topics of what arrives from now on."""
    answered, arrived = threading.Event(), list[str]()
    client.on_subscribe = lambda *_: answered.set()
    client.on_message = lambda c, u, message: arrived.append(message.topic)
    client.subscribe(topic, qos=1)
    assert answered.wait(PATIENCE_SECONDS)
    return arrived


@dataclass
class Broker:
    """The mosquitto with its plugin, and the fleet that it follows."""

    served: Served
    port: int
    root: Path
    folder: Path
    control: int

    def device(self, name: str, model: str = "default") -> StockDevice:
        return StockDevice(self.served, name, self.folder, model)

    def connect(self, device: StockDevice) -> Client:
        """A connection of the device, whose certificate is verified."""
        client = mqtt.Client(CallbackAPIVersion.VERSION2, device.name, protocol=MQTTProtocolVersion.MQTTv5)
        client.tls_set(str(self.root), str(device.certificate), str(device.key))
        answered, ended = threading.Event(), threading.Event()
        client.on_connect = lambda *_: answered.set()
        client.on_disconnect = lambda *_: ended.set()
        client.connect("localhost", self.port)
        client.loop_start()
        assert answered.wait(PATIENCE_SECONDS)
        return Client(client, ended)

    @contextmanager
    def connected(self, device: StockDevice) -> Iterator[Client]:
        client = self.connect(device)
        try:
            yield client
        finally:
            client.client.disconnect()
            client.client.loop_stop()

    def fleet(self, *words: str) -> None:
        run_fleet(self.served.home, *words)

    def until_it_may(self, device: StockDevice, topic: str, *, may: bool = True) -> None:
        """Return when the plugin lets `device` publish to `topic`, or does so no more."""
        with self.connected(device) as client:
            wait_until(
                lambda: client.publish(topic) is may, f"{device.name} may{' not' if may else ''} publish to {topic}"
            )


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    needs("mosquitto", "mosquitto_ctrl")
    if not PLUGIN.exists():
        pytest.skip("mosquitto's dynamic-security plugin is not installed")
    folder = tmp_path_factory.mktemp("dynsec")
    home, plugin_file = folder / "home", folder / "dynamic-security.json"
    run_fleet(home, "init")
    run_fleet(home, "crl", "issue")
    run_fleet(home, "publish", str(folder / "published"))
    assert done("mosquitto_ctrl", "dynsec", "init", plugin_file, "_fleet", PASSWORD).returncode == 0
    port, control = free_ports(2)
    (home / "dynsec.password").write_text(PASSWORD + "\n")
    (home / "dynsec.password").chmod(0o600)
    settings = home / "fleet.toml"
    settings.write_text(settings.read_text().replace('broker = "off"', f'broker = "mqtt://127.0.0.1:{control}"', 1))
    server = home / "server"
    published = Published(folder / "published", server / "server.pem", server / "server.key", home / "ca" / "root.pem")
    shown = shown_on_page("mosquitto", published, port, PAGE).replace("listener 1883", f"listener {control}")
    config = folder / "mosquitto.conf"
    config.write_text(shown.replace("/var/lib/mosquitto/dynamic-security.json", str(plugin_file)) + "user root\n")
    with running(folder, "mosquitto", "-v", "-c", config) as process:
        wait_until(lambda: listening(port), "mosquitto does not listen", process)
        served = Served(home, folder / "ready.json").start()
        try:
            yield Broker(served, port, published.root, folder, control)
        finally:
            served.stop()


def test_a_device_may_what_its_model_allows_and_is_cut_off_when_it_is_revoked(broker: Broker) -> None:
    device = broker.device("cam-1")
    broker.until_it_may(device, "devices/cam-1/up/t")
    with broker.connected(device) as client:
        assert not client.publish("devices/cam-2/up/t")
        broker.fleet("device", "revoke", "cam-1", "--reason", "keyCompromise")
        assert client.ended.wait(PATIENCE_SECONDS)
    broker.until_it_may(device, "devices/cam-1/up/t", may=False)


def test_a_suspended_device_is_disconnected_and_may_again_when_it_is_resumed(broker: Broker) -> None:
    device = broker.device("cam-3")
    broker.until_it_may(device, "devices/cam-3/up/t")
    with broker.connected(device) as client:
        broker.fleet("device", "suspend", "cam-3")
        assert client.ended.wait(PATIENCE_SECONDS)
    broker.until_it_may(device, "devices/cam-3/up/t", may=False)
    broker.fleet("device", "resume", "cam-3")
    broker.until_it_may(device, "devices/cam-3/up/t")


def test_a_distrusted_device_is_refused_until_it_has_renewed_or_the_distrust_is_undone(broker: Broker) -> None:
    broker.fleet("model", "add", "leaky", "--publish", "devices/{id}/up/#")
    first, second = broker.device("leak-1", "leaky"), broker.device("leak-2", "leaky")
    topics = {each: f"devices/{each.name}/up/t" for each in (first, second)}
    for device, topic in topics.items():
        broker.until_it_may(device, topic)
    with broker.connected(first) as client:
        broker.fleet("distrust", "--model", "leaky", "--count", "2")
        assert client.ended.wait(PATIENCE_SECONDS)
    for device, topic in topics.items():
        broker.until_it_may(device, topic, may=False)
    first.renew()
    broker.until_it_may(first, topics[first])
    broker.until_it_may(second, topics[second], may=False)
    [rule] = json.loads(run_fleet(broker.served.home, "distrust", "list", "-o", "json"))
    broker.fleet("distrust", "undo", rule["id"])
    broker.until_it_may(second, topics[second])


def test_a_change_of_the_model_is_followed(broker: Broker) -> None:
    broker.fleet("model", "add", "meter", "--publish", "meters/all")
    device = broker.device("meter-1", "meter")
    broker.until_it_may(device, "meters/all")
    broker.fleet("model", "set", "meter", "--publish", "meters/{id}")
    broker.until_it_may(device, "meters/meter-1")
    broker.until_it_may(device, "meters/all", may=False)


def test_an_application_reads_what_devices_send_and_writes_to_them_and_nothing_else(broker: Broker) -> None:
    broker.fleet("model", "add", "backend", "--application")
    application, device = broker.device("reports", "backend"), broker.device("cam-7")
    broker.until_it_may(application, "devices/cam-7/down/t")
    broker.until_it_may(device, "devices/cam-7/up/t")
    with broker.connected(application) as client, broker.connected(device) as other:
        arrived = receiving(client.client, "$share/g/devices/+/up/#")
        assert not client.publish("devices/cam-7/up/t")
        assert not other.publish("devices/cam-8/down/t")
        receiving(other.client, "devices/+/up/#")
        down = receiving(other.client, "devices/cam-7/down/#")
        assert other.publish("devices/cam-7/up/t")
        wait_until(lambda: len(arrived) == 1, "the message does not arrive")
        assert client.publish("devices/cam-7/down/t")
        wait_until(lambda: bool(down), "the message does not arrive")
        assert len(down) == 1
        broker.fleet("device", "revoke", "reports")
        assert client.ended.wait(PATIENCE_SECONDS)


def test_what_changed_while_it_did_not_follow_is_found_at_the_next_start(broker: Broker) -> None:
    kept, gone = broker.device("cam-4"), broker.device("cam-5")
    broker.until_it_may(gone, "devices/cam-5/up/t")
    broker.served.stop()
    broker.fleet("device", "revoke", "cam-5", "--reason", "keyCompromise")
    broker.until_it_may(gone, "devices/cam-5/up/t")  # nobody has told the broker
    broker.served.start()
    broker.until_it_may(gone, "devices/cam-5/up/t", may=False)
    broker.until_it_may(kept, "devices/cam-4/up/t")


def test_what_a_narrowed_model_may_not_receive_any_more_does_not_arrive(broker: Broker) -> None:
    broker.fleet("model", "add", "screen", *("--publish", "news/#"), *("--subscribe", "news/#"))
    reader, writer = broker.device("screen-1", "screen"), broker.device("screen-2", "screen")
    broker.until_it_may(writer, "news/a")
    broker.until_it_may(reader, "news/a")
    with broker.connected(reader) as client, broker.connected(writer) as other:
        arrived = receiving(client.client, "news/#")
        assert other.publish("news/a")
        wait_until(lambda: len(arrived) == 1, "the message does not arrive")
        broker.fleet("model", "set", "screen", "--subscribe", "news/public")

        def it_arrives() -> bool:
            """Before what is allowed, which is published after it."""
            arrived.clear()
            assert other.publish("news/a")
            assert other.publish("news/public")
            wait_until(lambda: "news/public" in arrived, "what is allowed does not arrive")
            return "news/a" in arrived

        wait_until(lambda: not it_arrives(), "it still arrives")


def test_a_client_of_others_whose_name_a_device_could_have_is_reported_and_not_taken(broker: Broker) -> None:
    control = ("mosquitto_ctrl", "-h", "127.0.0.1", "-p", str(broker.control), "-u", "_fleet", "-P", PASSWORD, "dynsec")
    assert done(*control, "createClient", "app", "-p", "its-own").returncode == 0
    broker.served.stop()
    broker.served.start()
    broker.served.wait_for_line("outcome=impersonable client=app")
    named_so, other = broker.device("app"), broker.device("cam-6")
    broker.until_it_may(other, "devices/cam-6/up/t")
    broker.until_it_may(named_so, "devices/app/up/t", may=False)


def test_an_administrator_whose_name_a_device_could_have_refuses_the_start(tmp_path: Path) -> None:
    home = tmp_path / "home"
    run_fleet(home, "init")
    settings = home / "fleet.toml"
    text = settings.read_text().replace('broker = "off"', 'broker = "mqtt://127.0.0.1:1"', 1)
    settings.write_text(text.replace('"_fleet"', '"admin"'))
    said = program("fleet", "serve", *ANY_PORTS, home=home, expect=1).stderr
    assert "a device could have the id 'admin'" in said
