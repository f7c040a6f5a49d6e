"""One MQTT connection: against mosquitto, and against servers that are older, refuse, or break the rules."""

import base64
import contextlib
import hashlib
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.properties import VariableByteIntegers

from device_agent.core import Setback
from device_agent.errors import KeyStoreFailed, KeyStoreLost
from device_agent.link.mqtt_link import (
    MQTT_3,
    MQTT_5,
    Acknowledged,
    Connected,
    LinkEvent,
    Lost,
    MqttLink,
    Target,
)
from device_agent.link.packet_bounds import CONTROL_SIZE_MAX, PACKET_SIZE_MAX, PROPERTIES_SIZE_MAX
from device_agent.link.websocket import ANSWER_SIZE_MAX, FRAME_SIZE_MAX
from device_agent.packets import NO_EXTRAS, Extras, Received, Subscribed
from fleet.est_client.errors import BadCredentials
from fleet.est_client.server_checks import also_check
from fleet.est_client.tls import client_context
from tests.device_agent.fleet_parts import DEADLINE_SECONDS, Authority, Broker, Subscriber, have_mosquitto
from tests.device_agent.wild_servers import alerting_server, http, read_packet, read_request, tls_server
from tests.free_ports import free_port

CONNACK_5 = b"\x20\x03\x00\x00\x00"
CONNACK_3 = b"\x20\x02\x00\x00"


class Driver:
    """A link with the loop that the runner would give it."""

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext,
        protocol: int = MQTT_5,
        name: str = "link-1",
        **target: Any,
    ) -> None:
        host, keepalive, path = target.get("host", "localhost"), target.get("keepalive", 60), target.get("path", "")
        self.link = MqttLink(Target(host, port, name, keepalive, 60, path), lambda: context, protocol, lambda: None)
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


@pytest.mark.parametrize("path", ["", "/mqtt"])
def test_an_alert_before_the_server_is_authenticated_is_no_refusal(
    context: ssl.SSLContext, drive: Callable[..., Driver], path: str
) -> None:
    with alerting_server() as port:
        lost = drive(port, context, path=path).next_event()
    assert isinstance(lost, Lost)
    assert (lost.setback, "CERTIFICATE_REVOKED" in lost.reason) == (Setback.NETWORK, True)


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


def test_a_slow_key_store_does_not_hold_the_loop(broker: Broker, context: ssl.SSLContext) -> None:
    """The context, with the key in it, is made in the connecting thread."""
    called, answered = threading.Event(), threading.Event()

    def make_context() -> ssl.SSLContext:
        called.set()
        assert answered.wait(DEADLINE_SECONDS)
        return context

    target = Target("localhost", broker.port, "link-1", 60, 60)
    link = MqttLink(target, make_context, MQTT_5, answered.clear)
    link.open()
    assert called.wait(DEADLINE_SECONDS)
    link.tick()
    assert (link.socket, link.events()) == (None, [])
    link.close()
    answered.set()


@pytest.mark.parametrize(
    ("error", "setback"),
    [
        (BadCredentials("The key is gone."), Setback.NETWORK),
        (KeyStoreFailed("The key is gone."), Setback.UNUSABLE),
        (KeyStoreLost("tpm2"), None),
    ],
)
def test_a_key_that_cannot_be_loaded(error: Exception, setback: Setback | None) -> None:
    def make_context() -> ssl.SSLContext:
        raise error

    done = threading.Event()
    link = MqttLink(Target("localhost", 1, "link-1", 60, 60), make_context, MQTT_5, done.set)
    link.open()
    assert done.wait(DEADLINE_SECONDS)
    if setback is None:
        with pytest.raises(KeyStoreLost):
            link.tick()
    else:
        link.tick()
        assert link.events() == [Lost(setback, "The key is gone")]
    link.close()


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


def test_the_est_port_is_named_as_what_it_may_be(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver]
) -> None:
    with mqtt_server(
        authority, b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n" + bytes(200)
    ) as port:
        event = drive(port, context).next_event()
    assert isinstance(event, Lost)
    assert "Is it the EST port?" in event.reason


def connack_banned(said: str) -> bytes:
    """With a Reason String."""
    text = said.encode()
    return bytes((0x20, 6 + len(text), 0, 0x8A, 3 + len(text), 0x1F, 0, len(text))) + text


def test_a_refusal_says_what_it_means_and_what_to_do(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver]
) -> None:
    for answer, says in (
        (b"\x20\x03\x00\x8a\x00", ("suspended, revoked or retired", "once resumed", "(CONNACK: Banned)")),
        (b"\x20\x08\x00\x8a\x05\x1f\x00\x02No", ("enroll --again", "(CONNACK: Banned: No)")),
        (connack_banned("Device cam-7 is suspended."), ("this device is suspended: it reconnects by itself",)),
        (connack_banned("Device cam-7 is revoked."), ("this device is revoked: no token", "new id", "Device cam-7 is")),
        (connack_banned("Device cam-7 is retired."), ("this device is retired: no token",)),
        (connack_banned("The certificate presented is revoked. Enroll"), ("certificate is revoked: with a new token",)),
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
        (b"\xe0\x02\x98\x00", Setback.CLOSED),  # administrative action: whether it is for good, the next try tells
        (b"\xe0\x02\x8e\x00", Setback.REFUSED),  # session taken over: two of us must not fight
        (b"\xe0\x02\x8b\x00", Setback.CLOSED),
        (b"\xe0\x00", Setback.CLOSED),
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


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (b"\x98", "the server disconnected: Administrative action: by Ann"),
        (b"\x87", "the server disconnected: Not authorized: by Ann"),
        (b"\x8e", "uses this device's id or certificate (Session taken over: by Ann)"),
    ],
)
def test_what_the_server_says_of_its_disconnect_is_repeated(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver], code: bytes, reason: str
) -> None:
    disconnect = packet(0xE0, code + b"\x0a\x1f\x00\x07by\x1b Ann")
    with mqtt_server(authority, CONNACK_5 + disconnect) as port:
        driver = drive(port, context)
        assert isinstance(driver.next_event(), Connected)
        lost = driver.next_event()
        assert isinstance(lost, Lost)
        assert lost.reason.endswith(reason)


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


@pytest.mark.parametrize("protocol", [MQTT_5, MQTT_3])
def test_a_message_comes_again_until_it_is_acknowledged(
    broker: Broker, context: ssl.SSLContext, drive: Callable[..., Driver], protocol: int
) -> None:
    name = f"taker-{protocol}"
    extras = Extras("answers/here", b"\x00\xff", None, (("a", "b"),))
    first = drive(broker.port, context, protocol, name=name)
    assert isinstance(first.next_event(), Connected)
    packet_id = first.link.subscribe("link/down", 1)
    assert first.next_event() == Subscribed(packet_id, ("",))
    sender = drive(broker.port, context, protocol)
    assert isinstance(sender.next_event(), Connected)
    sender.link.publish("link/down", b"one", 1, extras)
    known = extras if protocol == MQTT_5 else NO_EXTRAS
    came = first.next_event()
    assert isinstance(came, Received)
    assert (came.topic, came.payload, came.qos, came.dup, came.extras) == ("link/down", b"one", 1, False, known)
    first.link.close()
    second = drive(broker.port, context, protocol, name=name)
    assert second.next_event() == Connected(True, 20 if protocol == MQTT_5 else 65535, None)
    assert second.next_event() == replace(came, dup=True)
    second.link.acknowledge(came.packet_id)
    sender.link.publish("link/down", b"two", 1)
    again = second.next_event()
    assert isinstance(again, Received)
    second.link.acknowledge(again.packet_id)
    second.link.unsubscribe("link/down")
    assert again.payload == b"two"


def test_copies_of_overlapping_filters_are_told_apart(
    broker: Broker, context: ssl.SSLContext, drive: Callable[..., Driver]
) -> None:
    taker = drive(broker.port, context)
    assert isinstance(taker.next_event(), Connected)
    filters = ("link/#", "link/over", "link/+")
    for each in filters:
        taker.link.subscribe(each, 1)
        assert isinstance(taker.next_event(), Subscribed)
    taker.link.publish("link/over", b"x", 1)
    events = [taker.next_event() for _ in range(4)]
    copies = [each for each in events if isinstance(each, Received)]
    assert [sum(copy.is_for(each) for copy in copies) for each in filters] == [1, 1, 1]
    taker.link.close()


def test_a_server_without_subscription_identifiers_is_sent_none(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver]
) -> None:
    connack = b"\x20\x05\x00\x00\x02\x29\x00"
    with mqtt_server(authority, connack, b"\x90\x04\x00\x01\x00\x01") as port:
        driver = drive(port, context)
        assert isinstance(driver.next_event(), Connected)
        assert not driver.link._identifies
        driver.link.subscribe("link/down", 1)
        assert driver.next_event() == Subscribed(1, ("",))
        driver.link.close()


@pytest.mark.parametrize(
    ("protocol", "suback", "said"),
    [
        (MQTT_5, b"\x90\x04\x00\x01\x00\x87", "model does not allow this subscription (SUBACK 0x87)"),
        (MQTT_5, b"\x90\x04\x00\x01\x00\x83", "the server refuses this subscription (SUBACK 0x83)"),
        (MQTT_3, b"\x90\x03\x00\x01\x80", "the server refuses this subscription (SUBACK 0x80)"),
        (MQTT_3, b"\x90\x03\x00\x01\x00", ""),
    ],
)
def test_a_subscription_may_be_refused(
    authority: Authority,
    context: ssl.SSLContext,
    drive: Callable[..., Driver],
    protocol: int,
    suback: bytes,
    said: str,
) -> None:
    with mqtt_server(authority, CONNACK_5 if protocol == MQTT_5 else CONNACK_3, suback) as port:
        driver = drive(port, context, protocol)
        assert isinstance(driver.next_event(), Connected)
        driver.link.subscribe("link/down", 1)
        event = driver.next_event()
        assert isinstance(event, Subscribed)
        assert event.refusals[0].endswith(said)
        assert bool(event.refusals[0]) == bool(said)
        driver.link.close()


# Half-open connections, WebSocket


@pytest.mark.parametrize("server_says", [0, 1, 30, 65535])
def test_no_server_lengthens_the_keep_alive(
    authority: Authority, drive: Callable[..., Driver], server_says: int
) -> None:
    """MQTT 5.0, 3.2.2.3.14. With 0 or 65535, a half-open connection would go unnoticed for ever, or for a day."""
    connack = b"\x20\x06\x00\x00\x03\x13" + server_says.to_bytes(2)

    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        stream.sendall(connack)
        read_packet(stream)

    with tls_server(authority, behave) as port:
        driver = drive(port, client_context(authority.ca_file))
        assert isinstance(driver.next_event(), Connected)
        assert driver.link._client._keepalive == min(server_says or 60, 60)


def test_a_half_open_connection_is_found_by_the_keep_alive(authority: Authority, drive: Callable[..., Driver]) -> None:
    """The server's machine is gone and nothing comes back: neither data nor a reset."""

    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        stream.sendall(CONNACK_5)
        while True:
            read_packet(stream)  # PINGREQ, and no answer

    with tls_server(authority, behave) as port:
        driver = drive(port, client_context(authority.ca_file), keepalive=1)
        assert isinstance(driver.next_event(), Connected)
        lost = driver.next_event()
        assert isinstance(lost, Lost)
        assert "Keep alive timeout" in lost.reason


@pytest.mark.parametrize("protocol", [MQTT_5, MQTT_3])
def test_a_subscription_that_is_ended_is_acknowledged(
    authority: Authority, broker: Broker, drive: Callable[..., Driver], protocol: int
) -> None:
    driver = drive(broker.port, client_context(authority.ca_file, authority.client("ends-1")), protocol, "ends-1")
    assert isinstance(driver.next_event(), Connected)
    driver.link.subscribe("ends/#", 1)
    assert isinstance(driver.next_event(), Subscribed)
    ended = driver.link.unsubscribe("ends/#")
    assert driver.next_event() == Subscribed(ended, ())
    driver.link.publish("ends/x", b"", 1)
    assert isinstance(driver.next_event(), Acknowledged)


@pytest.fixture(scope="module")
def websocket_port(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if not have_mosquitto():
        pytest.skip("mosquitto is not installed")
    port = free_port()
    listener = (
        f"listener {port} 127.0.0.1\nprotocol websockets\nallow_anonymous true\ncafile {authority.ca_file}\n"
        f"certfile {authority.server_file}\nkeyfile {authority.server_key_file}\nrequire_certificate true\n"
    )
    broker = Broker(authority, tmp_path_factory.mktemp("websocket"), listener)
    yield port
    broker.stop()


@pytest.mark.parametrize("protocol", [MQTT_5, MQTT_3])
def test_over_a_websocket(
    authority: Authority, websocket_port: int, drive: Callable[..., Driver], protocol: int
) -> None:
    """Subscribes to what it publishes: more than one frame, and more than the poll sees."""
    context = client_context(authority.ca_file, authority.client("ws-1"))
    driver = drive(websocket_port, context, protocol, path="/mqtt")
    assert isinstance(driver.next_event(), Connected)
    assert driver.link.local_address == "127.0.0.1"
    driver.link.subscribe("w/#", 1)
    assert isinstance(driver.next_event(), Subscribed)
    payloads = [bytes([n]) * 5000 for n in range(20)]
    for payload in payloads:
        driver.link.publish("w/x", payload, 1)
    received: list[bytes] = []
    acknowledged = 0
    while len(received) < 20 or acknowledged < 20:
        match driver.next_event():
            case Received() as message:
                received.append(message.payload)
                driver.link.acknowledge(message.packet_id)
            case Acknowledged(failure=""):
                acknowledged += 1
            case other:
                raise AssertionError(other)
    assert received == payloads


WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


def frame(payload: bytes, opcode: int = 2, announced: int | None = None) -> bytes:
    """Of a server: not masked."""
    size = len(payload) if announced is None else announced
    return bytes([0x80 | opcode]) + (bytes([size]) if size < 126 else b"\x7f" + size.to_bytes(8)) + payload


@contextmanager
def websocket_server(authority: Authority, *parts: bytes) -> Iterator[int]:
    """Sends `parts` to its client, each when the one before has left, and reads what it answers."""

    def behave(stream: ssl.SSLSocket) -> None:
        key = re.findall(rb"(?i)sec-websocket-key: *(\S+)", read_request(stream))[0]
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID, usedforsecurity=False).digest()).decode()
        upgrade = ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}"]
        stream.sendall("\r\n".join(["HTTP/1.1 101 Switching Protocols", *upgrade, "", ""]).encode())
        for part in parts:
            stream.sendall(part)
        while stream.recv(65536):
            pass

    with tls_server(authority, behave) as port:
        yield port


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (frame(b"", announced=FRAME_SIZE_MAX + 1), "frame of more than"),
        (frame(b"", announced=2**63 - 1), "frame of more than"),
        (frame(b"", opcode=1, announced=1), "none of MQTT over WebSocket"),
        (frame(b"", opcode=9, announced=126), "none of MQTT over WebSocket"),
        (b"\x82\x81", "masks"),
    ],
)
def test_a_websocket_frame_is_refused_by_its_header(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver], header: bytes, reason: str
) -> None:
    """Nothing follows it: what ends the link is the header."""
    with websocket_server(authority, frame(CONNACK_5) + header) as port:
        driver = drive(port, context, path="/mqtt")
        assert isinstance(driver.next_event(), Connected)
        lost = driver.next_event()
        assert isinstance(lost, Lost)
        assert reason in lost.reason
        driver.link.close()


def test_websocket_frames_are_read_at_every_cut(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver]
) -> None:
    """Packets cross frames [MQTT-6.0.0-2], frames of other kinds come between; one frame holds thousands of packets."""
    message = b"\x30\x06\x00\x01x\x00ab"
    many = frame(message * 40_000)
    small = frame(CONNACK_5) + frame(message[:3]) + frame(b"are you there", 9) + frame(b"") + frame(message[3:], 0)
    parts = [small[n : n + 1] for n in range(len(small))]
    with websocket_server(authority, *parts, many) as port:
        driver = drive(port, context, path="/mqtt")
        assert isinstance(driver.next_event(), Connected)
        for _ in range(1 + 40_000):
            received = driver.next_event()
            assert isinstance(received, Received)
            assert received.payload == b"ab"
        driver.link.close()


def test_a_web_server_that_knows_no_websocket(authority: Authority, drive: Callable[..., Driver]) -> None:
    def behave(stream: ssl.SSLSocket) -> None:
        read_request(stream)
        stream.sendall(http("404 Not Found"))

    with tls_server(authority, behave) as port:
        lost = drive(port, client_context(authority.ca_file), path="/mqtt").next_event()
    assert isinstance(lost, Lost)
    assert (lost.setback, lost.reached) == (Setback.NETWORK, False)
    assert "WebSocket" in lost.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"Sec-WebSocket-Accept:none\r\n", "none of a WebSocket"),
        (b"Sec-WebSocket-Accept: \xff\r\n", "none of a WebSocket"),
        (b"x" * (ANSWER_SIZE_MAX + 1), "more than"),
        (b"x: y\r\n" * ANSWER_SIZE_MAX, "more than"),
    ],
)
def test_an_answer_that_opens_no_websocket(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver], answer: bytes, reason: str
) -> None:
    """The server stays connected: what ends the attempt is the answer."""

    def behave(stream: ssl.SSLSocket) -> None:
        read_request(stream)
        stream.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + answer)
        while stream.recv(65536):
            pass

    with tls_server(authority, behave) as port:
        driver = drive(port, context, path="/mqtt")
        lost = driver.next_event()
        driver.link.close()
    assert isinstance(lost, Lost)
    assert (lost.setback, lost.reached) == (Setback.NETWORK, False)
    assert reason in lost.reason


def test_a_thread_that_cannot_be_started(
    context: ssl.SSLContext, drive: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more)
        driver = drive(free_port(), context)
    lost = driver.next_event()
    assert isinstance(lost, Lost)
    assert (lost.setback, lost.reason) == (Setback.NETWORK, "no connection: can't start new thread")


def test_ipv6(authority: Authority, drive: Callable[..., Driver]) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")

    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        stream.sendall(CONNACK_5)
        read_packet(stream)

    context = client_context(authority.ca_file)
    context.check_hostname = False  # the test's certificate names no IPv6 address
    with tls_server(authority, behave, address="::1") as port:
        driver = drive(port, context, host="::1")
        assert isinstance(driver.next_event(), Connected)
        assert driver.link.local_address == "::1"


def test_a_web_server_that_drips_keeps_neither_thread_nor_socket(
    authority: Authority, drive: Callable[..., Driver]
) -> None:
    dripping, over = threading.Event(), threading.Event()

    def behave(stream: ssl.SSLSocket) -> None:
        read_request(stream)
        stream.sendall(b"HTTP/1.1 101 Switching Protocols\r\nX: ")
        dripping.set()
        with contextlib.suppress(OSError):
            while not over.wait(0.02):
                stream.sendall(b"x")

    before = set(threading.enumerate())
    with tls_server(authority, behave) as port:
        link = drive(port, client_context(authority.ca_file), path="/mqtt").link
        [connecting] = [each for each in set(threading.enumerate()) - before if each.name == "mqtt-connect"]
        assert dripping.wait(DEADLINE_SECONDS)
        link.close()
        connecting.join(DEADLINE_SECONDS)
        over.set()
        assert not connecting.is_alive()


def test_a_server_without_a_pinned_key_is_sent_nothing(authority: Authority, drive: Callable[..., Driver]) -> None:
    packets: list[bytes] = []

    def behave(stream: ssl.SSLSocket) -> None:
        packets.append(read_packet(stream))

    context = client_context(authority.ca_file)
    also_check(context, pins=["sha256:" + "0f" * 32])
    with tls_server(authority, behave) as port:
        lost = drive(port, context).next_event()
    assert isinstance(lost, Lost)
    assert (lost.setback, lost.reached) == (Setback.UNTRUSTED, False)
    assert "among the pins" in lost.reason
    assert not any(packets)


@pytest.mark.parametrize(
    ("code", "is_temporary"), [(0x80, False), (0x83, False), (0x87, False), (0x91, True), (0x97, True)]
)
def test_which_refusals_of_a_message_are_temporary(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver], code: int, is_temporary: bool
) -> None:
    with mqtt_server(authority, CONNACK_5, b"\x40\x03\x00\x01" + bytes([code])) as port:
        driver = drive(port, context)
        assert isinstance(driver.next_event(), Connected)
        driver.link.publish("x", b"", 1)
        event = driver.next_event()
        assert isinstance(event, Acknowledged)
        assert (bool(event.failure), event.is_temporary) == (True, is_temporary)
        driver.link.close()


@pytest.mark.parametrize("protocol", [MQTT_5, MQTT_3])
def test_a_packet_that_is_announced_too_large_ends_the_connection(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver], protocol: int
) -> None:
    connects = []

    def behave(stream: ssl.SSLSocket) -> None:
        connects.append(read_packet(stream))
        stream.sendall((CONNACK_5 if protocol == MQTT_5 else CONNACK_3) + b"\x30\xff\xff\xff\x7f" + b"x" * 1000)
        while stream.recv(65536):
            pass

    with tls_server(authority, behave) as port:
        driver = drive(port, context, protocol)
        assert isinstance(driver.next_event(), Connected)
        lost = driver.next_event()
        assert isinstance(lost, Lost)
        assert f"more than {PACKET_SIZE_MAX} bytes" in lost.reason
        driver.link.close()
    # MQTT 5.0, 3.1.2.11.4
    assert (b"\x27" + PACKET_SIZE_MAX.to_bytes(4) in connects[0]) is (protocol == MQTT_5)


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + bytes(VariableByteIntegers.encode(len(body))) + body  # type: ignore[no-untyped-call]


def publish(qos: int, properties: bytes = b"") -> bytes:
    """Of the topic x, without a payload."""
    size = bytes(VariableByteIntegers.encode(len(properties)))  # type: ignore[no-untyped-call]
    return packet(0x30 | qos << 1, b"\x00\x01x" + b"\x00\x01" * (qos > 0) + size + properties)


HOSTILE = {
    "suback": (MQTT_5, packet(0x90, b"\x00\x01\x00" + b"\x00" * 2), "more topic filters"),
    "suback of 3.1.1": (MQTT_3, packet(0x90, b"\x00\x01" + b"\x00" * 2), "more topic filters"),
    "unsuback": (MQTT_5, packet(0xB0, b"\x00\x01\x00" + b"\x00" * 2), "more topic filters"),
    "large suback": (MQTT_5, b"\x90\xff\xff\x3f", f"more than {CONTROL_SIZE_MAX} bytes"),
    "large unsuback": (MQTT_3, b"\xb0\xff\xff\x3f", f"more than {CONTROL_SIZE_MAX} bytes"),
    "large puback": (MQTT_5, b"\x40\xff\xff\x3f", f"more than {CONTROL_SIZE_MAX} bytes"),
    "large disconnect": (MQTT_5, b"\xe0\xff\xff\x3f", f"more than {CONTROL_SIZE_MAX} bytes"),
    "identifiers": (MQTT_5, publish(1, b"\x0b\x01" * PROPERTIES_SIZE_MAX), "properties of more than"),
    "user properties": (MQTT_5, publish(0, b"\x26" + bytes(4) * PROPERTIES_SIZE_MAX), "properties of more than"),
    "qos 2": (MQTT_3, b"\x34\xff\xff\x3f", "message of QoS 2"),
    "second connack": (MQTT_5, CONNACK_5, "and no other, is to be a CONNACK"),
    "qos 3": (MQTT_5, b"\x36\x05", "message of QoS 3"),
    "pingreq": (MQTT_5, b"\xc0\x00", "packet of type 12"),
    "pubrel": (MQTT_5, b"\x62\x02", "packet of type 6"),
    "pubrec": (MQTT_3, b"\x50\x02", "packet of type 5"),
}
"""What a client would answer, keep, or parse at great cost; most are refused by their header alone."""


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("path", ["", "/mqtt"])
def test_what_no_server_needs_to_send_is_refused_before_it_is_parsed(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver], name: str, path: str
) -> None:
    protocol, hostile, reason = HOSTILE[name]
    connack = CONNACK_5 if protocol == MQTT_5 else CONNACK_3
    serving = (
        websocket_server(authority, frame(connack), frame(hostile))
        if path
        else mqtt_server(authority, connack + hostile)
    )
    with serving as port:
        driver = drive(port, context, protocol, path=path)
        assert isinstance(driver.next_event(), Connected)
        lost = driver.next_event()
        assert isinstance(lost, Lost)
        assert (lost.setback, reason in lost.reason) == (Setback.NETWORK, True), lost.reason
        driver.link.close()


@pytest.mark.parametrize("protocol", [MQTT_5, MQTT_3])
@pytest.mark.parametrize("first", [b"\x30\x05\x00\x01x\x00a", b"\xd0\x00", b"\x90\x04\x00\x01\x00\x00"])
def test_what_comes_before_the_connack_is_refused(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver], protocol: int, first: bytes
) -> None:
    with mqtt_server(authority, first) as port:
        lost = drive(port, context, protocol).next_event()
        assert isinstance(lost, Lost)
        assert "is to be a CONNACK" in lost.reason


@pytest.mark.parametrize("name", ["suback", "unsuback"])
def test_an_answer_for_one_filter_may_bring_properties(
    authority: Authority, context: ssl.SSLContext, drive: Callable[..., Driver], name: str
) -> None:
    answer = packet({"suback": 0x90, "unsuback": 0xB0}[name], b"\x00\x01\x05\x1f\x00\x02no\x00")
    properties = b"".join(b"\x26\x00\x01a\x00\x01b" for _ in range(256))
    with mqtt_server(authority, CONNACK_5, answer + publish(1, properties)) as port:
        driver = drive(port, context)
        assert isinstance(driver.next_event(), Connected)
        driver.link.subscribe("x", 1) if name == "suback" else driver.link.unsubscribe("x")
        assert isinstance(driver.next_event(), Subscribed)
        received = driver.next_event()
        assert isinstance(received, Received)
        assert len(received.extras.user) == 256
        driver.link.close()
