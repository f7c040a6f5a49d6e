"""A RabbitMQ that devices connect to directly, as our page configures it: it asks the fleet about each of them."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

import fleet.servers.broker_auth
from fleet.home.layout import Home
from tests.free_ports import free_ports
from tests.interop.external_brokers import BOUND_SECONDS, spread
from tests.interop.rabbitmq import PROGRAMS, names_service, rabbitmq
from tests.interop.relying_parties import listening
from tests.interop.stock_device import StockDevice, needs
from tests.serving import Served, run_fleet
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.long  # it takes twenty seconds to start

PAGE = Path(fleet.servers.broker_auth.__file__).with_name("README.md")
SECRET = "0123456789abcdef-broker"
PASSWORD = "between-them"


class Client:
    """A device's connection, of MQTT 3.1.1: RabbitMQ 3.10 has no other."""

    def __init__(self, port: int, root: Path, device: StockDevice, client_id: str = "", **login: str) -> None:
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id or device.name,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self.client.tls_set(str(root), str(device.certificate), str(device.key))
        if login:
            self.client.username_pw_set(**login)
        self.answered, self.ended, self.acknowledged = threading.Event(), threading.Event(), threading.Event()
        self.granted = threading.Event()
        self.reason: ReasonCode | None = None
        self.arrived: list[str] = []
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = lambda *_: self.ended.set()
        self.client.on_publish = lambda *_: self.acknowledged.set()
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = lambda c, u, message: self.arrived.append(message.topic)
        self.codes: list[ReasonCode] = []
        self.client.connect("localhost", port)
        self.client.loop_start()
        wait_until(lambda: self.answered.is_set() or self.ended.is_set(), "RabbitMQ answers no CONNECT")

    def _on_connect(self, client: object, userdata: object, flags: object, reason: ReasonCode, props: object) -> None:
        self.reason = reason
        self.answered.set()

    def _on_subscribe(self, c: object, u: object, mid: int, codes: list[ReasonCode], props: object) -> None:
        self.codes = codes
        self.granted.set()

    @property
    def is_admitted(self) -> bool:
        return self.reason is not None and not self.reason.is_failure

    def may_publish(self, topic: str) -> bool:
        """RabbitMQ closes the connection for a topic that is denied."""
        self.acknowledged.clear()
        self.client.publish(topic, b"21.5", qos=1)
        wait_until(lambda: self.acknowledged.is_set() or self.ended.is_set(), "RabbitMQ acknowledges nothing")
        return self.acknowledged.is_set()

    def may_subscribe(self, topic_filter: str) -> bool:
        self.granted.clear()
        self.client.subscribe(topic_filter, qos=1)
        wait_until(lambda: self.granted.is_set() or self.ended.is_set(), "RabbitMQ answers no SUBSCRIBE")
        return self.granted.is_set() and not self.codes[0].is_failure

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@dataclass
class Broker:
    """The RabbitMQ, and the fleet that it asks."""

    served: Served
    port: int
    root: Path
    folder: Path

    def device(self, name: str, model: str = "default") -> StockDevice:
        return StockDevice(self.served, name, self.folder, model)

    @contextmanager
    def connected(self, device: StockDevice, client_id: str = "", **login: str) -> Iterator[Client]:
        client = Client(self.port, self.root, device, client_id, **login)
        try:
            yield client
        finally:
            client.close()

    def fleet(self, *words: str) -> str:
        return run_fleet(self.served.home, *words)

    def audited(self, device: str) -> str:
        """The audit's rows of connections that this device was refused."""
        rows = self.fleet("audit", "list").splitlines()
        return "\n".join(row for row in rows if "mqtt.connect" in row and f"device {device}" in row)


def configuration(folder: Path, home: Path, ports: dict[str, int]) -> str:
    """The page's, with the paths and ports of this run."""
    [block] = re.findall(r"^```ini\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for shown, here in (
        ("/etc/rabbitmq/fleet-ca.pem", str(folder / "fleet-ca.pem")),
        ("/etc/rabbitmq/server.pem", str(Home(home).server_chain)),
        ("/etc/rabbitmq/server.key", str(Home(home).server_key)),
        ("ssl.default = 8883", f"ssl.default = 127.0.0.1:{ports['mqtt']}"),
        ("127.0.0.1:9181", f"127.0.0.1:{ports['auth']}"),
        ("15672", str(ports["management"])),
        ("SECRET", SECRET),
        ("PASSWORD", PASSWORD),
    ):
        assert shown in block
        block = block.replace(shown, here)
    return str(block)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    needs(*PROGRAMS)
    folder = tmp_path_factory.mktemp("rabbitmq")
    home = folder / "home"
    run_fleet(home, "init")
    ports = dict(zip(("mqtt", "auth", "management", "distribution", "names"), free_ports(5), strict=True))
    for name, line in (("broker.secret", SECRET), ("broker.password", f"_fleet:{PASSWORD}")):
        (home / name).touch(0o600)
        (home / name).write_text(line + "\n")
    settings = home / "fleet.toml"
    shown = f"""\
[broker_auth]
address = "127.0.0.1:{ports["auth"]}"
secret_file = "broker.secret"

[broker_sessions]
broker = "rabbitmq+http://127.0.0.1:{ports["management"]}"
"""
    text = settings.read_text()
    settings.write_text(text[: text.index("[broker_auth]")] + shown)
    authorities = Home(home).root_certificate.read_bytes() + Home(home).issuing_certificate.read_bytes()
    (folder / "fleet-ca.pem").write_bytes(authorities)
    (folder / "rabbitmq.conf").write_text(configuration(folder, home, ports))
    with ExitStack() as parts:
        parts.enter_context(names_service(folder, ports["names"]))
        process = parts.enter_context(rabbitmq(folder, ports["distribution"], ports["names"]))
        served = Served(home, folder / "ready.json").start()
        parts.callback(served.stop)
        wait_until(lambda: listening(ports["mqtt"]), f"RabbitMQ does not listen: {folder}", process)
        yield Broker(served, ports["mqtt"], Home(home).root_certificate, folder)


def test_a_device_may_what_its_model_allows(broker: Broker) -> None:
    device = broker.device("cam-1")
    with broker.connected(device) as client:
        assert client.is_admitted
        assert client.may_subscribe("devices/cam-1/down/#")
        assert client.may_publish("devices/cam-1/up/t")
    with broker.connected(device) as client:
        assert not client.may_publish("devices/cam-2/up/t")
    with broker.connected(device) as client:
        assert not client.may_subscribe("devices/+/down/#")


def test_an_application_reads_what_devices_send_and_writes_to_them_and_nothing_else(broker: Broker) -> None:
    broker.fleet("model", "add", "backend", "--application")
    application = broker.device("reports", "backend")
    with broker.connected(application) as client, broker.connected(broker.device("cam-8")) as device:
        assert client.may_subscribe("devices/+/up/#")
        arrived = threading.Event()
        client.client.on_message = lambda c, u, message: arrived.set()
        assert device.may_publish("devices/cam-8/up/t")
        assert arrived.wait(PATIENCE_SECONDS)
        assert device.may_subscribe("devices/cam-8/down/#")
        assert client.may_publish("devices/cam-8/down/t")
        assert not device.may_publish("devices/cam-9/down/t")
        broker.fleet("device", "suspend", "reports")
        assert client.ended.wait(PATIENCE_SECONDS)
        broker.fleet("device", "resume", "reports")
    for beyond in ("#", "devices/#", "devices/+/down/#"):
        with broker.connected(application) as client:
            assert not client.may_subscribe(beyond)
    with broker.connected(application) as client:
        assert not client.may_publish("devices/cam-8/up/t")


def test_who_is_not_let_in(broker: Broker) -> None:
    device, other = broker.device("cam-3"), broker.device("cam-4")
    with broker.connected(device, "cam-4") as client:
        assert not client.is_admitted
    assert "client-id-mismatch" in broker.audited("cam-3")
    with broker.connected(device, username="cam-4", password="guess") as client:
        assert not client.is_admitted
    assert "password-login" in broker.audited("cam-4")
    with broker.connected(device, username="guest", password="guest") as client:
        assert not client.is_admitted
    broker.fleet("device", "suspend", "cam-4")
    with broker.connected(other) as client:
        assert not client.is_admitted
    assert "device-suspended" in broker.audited("cam-4")
    broker.fleet("device", "resume", "cam-4")
    with broker.connected(other) as client:
        assert client.is_admitted


@pytest.mark.parametrize("verb", ["revoke", "suspend", "kick"])
def test_a_session_is_closed_when_its_device_may_not_go_on(broker: Broker, verb: str) -> None:
    name = f"cam-{verb}"
    device, other = broker.device(name), broker.device(f"other-{verb}")
    words = {"revoke": ("device", "revoke", name, "--reason", "keyCompromise"), "suspend": ("device", "suspend", name)}
    with broker.connected(device) as client, broker.connected(other) as remaining:
        assert client.may_publish(f"devices/{name}/up/t")
        assert remaining.may_publish(f"devices/{other.name}/up/t")
        began = time.monotonic()
        broker.fleet(*words.get(verb, ("session", "kick", name)))
        returned = time.monotonic()
        assert client.ended.wait(PATIENCE_SECONDS)
        ended = time.monotonic()
        print(f"{verb}: command {returned - began:.2f} s, closed {ended - began:.2f} s after its start")
        assert remaining.may_publish(f"devices/{other.name}/up/t")
    with broker.connected(device) as client:
        assert client.is_admitted is (verb == "kick")


def test_how_soon_a_revocation_ends_a_session(broker: Broker) -> None:
    took = []
    for number in range(15):
        name = f"soon-{number}"
        with broker.connected(broker.device(name)) as client:
            assert client.may_publish(f"devices/{name}/up/t")
            began = time.monotonic()
            broker.fleet("device", "revoke", name, "--reason", "keyCompromise")
            assert client.ended.wait(PATIENCE_SECONDS)
            took.append(time.monotonic() - began)
    print(f"\nRabbitMQ that asks us, `fleet device revoke` included: {spread(took)}")
    assert median(took) < BOUND_SECONDS


def test_a_session_is_closed_when_its_model_is_narrowed(broker: Broker) -> None:
    """RabbitMQ would let it publish to a topic that it has been told of."""
    broker.fleet("model", "add", "narrow", "--publish", "a/#", "--publish", "b/#", "--subscribe", "c/#")
    device = broker.device("narrow-1", "narrow")
    with broker.connected(device) as client, broker.connected(broker.device("narrow-2")) as other:
        assert client.may_publish("a/t")
        began = time.monotonic()
        broker.fleet("model", "set", "narrow", "--publish", "b/#")
        assert client.ended.wait(PATIENCE_SECONDS)
        print(f"\nRabbitMQ, a model narrowed, `fleet model set` included: {time.monotonic() - began:.2f} s")
        assert other.may_publish("devices/narrow-2/up/t")
    with broker.connected(device) as client:
        assert not client.may_publish("a/t")
    with broker.connected(device) as client:
        assert client.may_publish("b/t")
