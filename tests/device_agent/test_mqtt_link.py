"""One MQTT connection: against mosquitto, and against servers that are older, refuse, or break the rules."""

import select
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from device_agent.core import Setback
from device_agent.mqtt_link import MQTT_3, MQTT_5, Acknowledged, Connected, LinkEvent, Lost, MqttLink, Target
from fleet.est_client.tls import client_context
from tests.device_agent.fleet_parts import DEADLINE_SECONDS, Authority, Broker, Subscriber
from tests.device_agent.wild_servers import read_packet, tls_server
from tests.free_ports import free_port

CONNACK_5 = b"\x20\x03\x00\x00\x00"
CONNACK_3 = b"\x20\x02\x00\x00"


class Driver:
    """A link with the loop that the runner would give it."""

    def __init__(self, port: int, context: ssl.SSLContext, protocol: int = MQTT_5, name: str = "link-1") -> None:
        self.link = MqttLink(Target("localhost", port, name, 60, 60), context, protocol, lambda: None)
        self.link.open()
        self._events: list[LinkEvent] = []

    def next_event(self) -> LinkEvent:
        """The next event, once it is there."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self._events:
            assert time.monotonic() < deadline, "nothing happened"
            poll = select.poll()
            if self.link.socket is not None:
                poll.register(self.link.socket, select.POLLIN | (select.POLLOUT if self.link.wants_write else 0))
            for _, ready in poll.poll(5):
                self.link.handle_io(bool(ready & ~select.POLLOUT), bool(ready & select.POLLOUT))
            self.link.tick()
            self._events += self.link.events()
        return self._events.pop(0)


@pytest.fixture
def drive() -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def make(*given: object, **named: object) -> Driver:
        drivers.append(Driver(*given, **named))  # type: ignore[arg-type]
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.link.close()


@pytest.fixture
def context(authority: Authority) -> ssl.SSLContext:
    return client_context(authority.ca_file, authority.client("link-1"))


@contextmanager
def mqtt_server(authority: Authority, *answers: bytes) -> Iterator[int]:
    """ControlHandlers the packets of a connection one by one, then waits until the client leaves."""

    def behave(stream: ssl.SSLSocket) -> None:
        for answer in answers:
            read_packet(stream)
            stream.sendall(answer)
        while stream.recv(65536):
            pass

    with tls_server(authority, behave) as port:
        yield port


@pytest.mark.parametrize("protocol", [MQTT_5, MQTT_3])
def test_connect_publish_acknowledge(
    broker: Broker, subscriber: Subscriber, context: ssl.SSLContext, drive: Callable[..., Driver], protocol: int
) -> None:
    driver = drive(broker.port, context, protocol)
    assert isinstance(driver.next_event(), Connected)
    packet_id = driver.link.publish("link/x", b"payload", 1)
    assert driver.next_event() == Acknowledged(packet_id, "")
    subscriber.wait_until(lambda messages: ("link/x", b"payload") in messages)


def test_a_broker_wants_our_certificate(broker: Broker, authority: Authority, drive: Callable[..., Driver]) -> None:
    event = drive(broker.port, client_context(authority.ca_file)).next_event()
    assert isinstance(event, Lost)
    assert event.setback in (Setback.REFUSED, Setback.NETWORK)  # the alert may lose the race against the reset


def test_a_certificate_of_another_ca_is_refused_by_alert(
    authority: Authority, tmp_path: Path, drive: Callable[..., Driver]
) -> None:
    other = Authority(tmp_path, "other")
    stranger = client_context(authority.ca_file, other.client("link-1"))

    def wait(stream: ssl.SSLSocket) -> None:
        stream.recv(100)

    with tls_server(authority, wait, client_ca=authority) as port:
        event = drive(port, stranger).next_event()
    assert isinstance(event, Lost)
    assert event.setback in (Setback.REFUSED, Setback.NETWORK)


def test_a_server_of_another_ca_is_not_spoken_to(
    authority: Authority, tmp_path: Path, context: ssl.SSLContext, drive: Callable[..., Driver]
) -> None:
    with mqtt_server(Authority(tmp_path, "other")) as port:
        event = drive(port, context).next_event()
    assert isinstance(event, Lost)
    assert event.setback is Setback.UNTRUSTED
    assert not event.reached


def test_nobody_there(context: ssl.SSLContext, drive: Callable[..., Driver]) -> None:
    event = drive(free_port(), context).next_event()
    assert isinstance(event, Lost)
    assert event.setback is Setback.NETWORK


@pytest.mark.parametrize(
    ("protocol", "answer", "setback"),
    [
        (MQTT_5, b"\x20\x03\x00\x84\x00", Setback.PROTOCOL),
        (MQTT_5, b"\x20\x02\x00\x01", Setback.PROTOCOL),  # a 3.1.1 server's words for the same
        (MQTT_5, b"\x20\x03\x00\x87\x00", Setback.REFUSED),
        (MQTT_5, b"\x20\x03\x00\x8a\x00", Setback.REFUSED),
        (MQTT_5, b"\x20\x03\x00\x85\x00", Setback.REFUSED),
        (MQTT_5, b"\x20\x03\x00\x88\x00", Setback.NETWORK),  # server unavailable: try again soon
        (MQTT_5, b"\x20\x03\x00\x89\x00", Setback.NETWORK),
        (MQTT_3, b"\x20\x02\x00\x01", Setback.NETWORK),  # there is nothing older to fall back to
        (MQTT_3, b"\x20\x02\x00\x05", Setback.REFUSED),
        (MQTT_3, b"\x20\x02\x00\x03", Setback.NETWORK),
    ],
)
def test_what_a_refusal_means(
    authority: Authority,
    context: ssl.SSLContext,
    drive: Callable[..., Driver],
    protocol: int,
    answer: bytes,
    setback: Setback,
) -> None:
    with mqtt_server(authority, answer) as port:
        event = drive(port, context, protocol).next_event()
        assert isinstance(event, Lost)
        assert event.setback is setback, event
        assert event.reached


def test_a_refusal_says_what_it_means_and_what_to_do(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver]
) -> None:
    for answer, says in (
        (b"\x20\x03\x00\x8a\x00", ("suspended, revoked or retired", "once resumed", "(CONNACK: Banned)")),
        (b"\x20\x03\x00\x87\x00", ("did not authorize this certificate", "enroll again", "(CONNACK: Not authorized)")),
        (b"\x20\x03\x00\x88\x00", ("CONNACK: Server unavailable",)),
    ):
        with mqtt_server(authority, answer) as port:
            event = drive(port, context).next_event()
        assert isinstance(event, Lost)
        for words in says:
            assert words in event.reason, event.reason


@pytest.mark.parametrize(
    ("packet", "setback"),
    [
        (b"\xe0\x02\x98\x00", Setback.NETWORK),  # administrative action: whether it is for good, the next try tells
        (b"\xe0\x02\x8e\x00", Setback.REFUSED),  # session taken over: two of us must not fight
        (b"\xe0\x02\x8b\x00", Setback.NETWORK),
        (b"\xe0\x00", Setback.NETWORK),
        (b"\x00\x00", Setback.NETWORK),
        (b"\x40\x01\x00", Setback.NETWORK),
        (b"\xff\xff\xff\xff\xff", Setback.NETWORK),
        (b"\x20\x02", Setback.NETWORK),
    ],
)
def test_after_the_connack_anything_can_come(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver], packet: bytes, setback: Setback
) -> None:
    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        stream.sendall(CONNACK_5)
        read_packet(stream)
        stream.sendall(packet)

    with tls_server(authority, behave) as port:
        driver = drive(port, context)
        assert isinstance(driver.next_event(), Connected)
        driver.link.publish("x", b"", 0)
        event = driver.next_event()
        while isinstance(event, Acknowledged):  # paho's for the QoS 0 message
            event = driver.next_event()
        assert isinstance(event, Lost)
        assert event.setback is setback, event
        assert event.answered


def test_the_servers_limits_are_heard(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver]
) -> None:
    properties = b"\x21\x00\x07" + b"\x27\x00\x00\x04\x00"  # Receive Maximum 7, Maximum Packet Size 1024
    with mqtt_server(authority, bytes([0x20, 3 + len(properties), 1, 0, len(properties)]) + properties) as port:
        assert drive(port, context).next_event() == Connected(True, 7, 1024)


def test_a_message_may_be_refused_alone(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver]
) -> None:
    with mqtt_server(authority, CONNACK_5, b"\x40\x03\x00\x01\x87") as port:
        driver = drive(port, context)
        driver.next_event()
        assert driver.link.publish("x", b"", 1) == 1
        assert driver.next_event() == Acknowledged(1, "Not authorized")


def test_closing_while_it_opens_leaves_nothing_behind(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver]
) -> None:
    with mqtt_server(authority, CONNACK_5) as port:
        driver = drive(port, context)
        driver.link.close()
        driver.link.tick()
        assert driver.link.events() == []
        assert driver.link.socket is None


def test_a_session_is_kept_from_one_link_to_the_next(
    broker: Broker, context: ssl.SSLContext, drive: Callable[..., Driver]
) -> None:
    first = drive(broker.port, context, name="keeper")
    assert first.next_event() == Connected(False, 20, None)
    second = drive(broker.port, context, name="keeper")
    event = second.next_event()
    assert isinstance(event, Connected)
    assert event.session_present
    assert isinstance(first.next_event(), Lost)  # taken over
