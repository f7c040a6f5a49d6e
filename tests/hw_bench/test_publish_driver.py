"""The publish driver: its packets by their octets, its counting at every cut, and both ends at a real mosquitto."""

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hw_bench.drivers.publish import (
    Fleet,
    Subscriber,
    connect_packet,
    packet,
    publish_packet,
    releases_of,
    subscribe_packet,
)
from hw_bench.peers import mosquitto
from hw_bench.scenarios.contract import new_environment

pytestmark = pytest.mark.usefixtures("forked_programs")
CONNACK, SUBACK = b"\x20\x02\x00\x00", b"\x90\x03\x00\x01\x00"


def test_packets() -> None:
    assert connect_packet("d1") == bytes.fromhex("100e 0004 4d515454 04 02 0e10 0002 6431")
    assert connect_packet("d1", "u") == bytes.fromhex("1011 0004 4d515454 04 82 0e10 0002 6431 0001 75")
    assert subscribe_packet("a/#") == bytes.fromhex("8208 0001 0003 612f23 00")
    assert publish_packet("a", b"xy", None) == bytes.fromhex("3005 0001 61 7879")
    assert publish_packet("a", b"xy", 7) == bytes.fromhex("3207 0001 61 0007 7879")
    assert packet(0x30, bytes(127))[:2] == b"\x30\x7f"
    assert packet(0x30, bytes(128))[:3] == b"\x30\x80\x01"
    assert packet(0x30, bytes(16384))[:4] == b"\x30\x80\x80\x01"


@contextlib.contextmanager
def subscriber(folder: Path, message: bytes, marks_at: int) -> Iterator[tuple[Subscriber, socket.socket]]:
    """A Subscriber and the broker's end of its connection, both subscribed."""
    path = str(folder / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        broker: list[socket.socket] = []

        def answer() -> None:
            connection, _ = listener.accept()
            broker.append(connection)
            expected = connect_packet("bench-subscriber-#", "u") + subscribe_packet("t/#")
            connection.sendall(CONNACK + SUBACK)
            assert connection.recv(len(expected), socket.MSG_WAITALL) == expected

        thread = threading.Thread(target=answer)
        thread.start()
        made = Subscriber(path, "u", "t/#", message, marks_at)
        thread.join()
        with broker[0], made.socket:
            yield made, broker[0]


def test_counting_is_the_same_wherever_the_stream_is_cut(tmp_path: Path) -> None:
    messages = [
        publish_packet("t/1", bytes([device, place]) + b"....", None) for device, place in ((3, 0), (3, 1), (9, 0))
    ]
    stream = b"".join(messages)
    with subscriber(tmp_path, messages[0], len(messages[0]) - 6) as (counter, broker):
        for step in range(1, len(stream) + 1):
            before = counter.received
            for at in range(0, len(stream), step):
                broker.sendall(stream[at : at + step])
                counter.read()
            assert counter.received - before == 3, step
            assert counter.marks() == Counter({(3, 0): 1, (3, 1): 1, (9, 0): 1}), step


def test_a_broker_that_goes_away_is_an_error(tmp_path: Path) -> None:
    with subscriber(tmp_path, b"0123456789", 8) as (counter, broker):
        broker.close()
        with pytest.raises(ConnectionError):
            counter.read()


@pytest.fixture(scope="module")
def config() -> Iterator[dict[str, Any]]:
    """A driver's configuration for three devices at a mosquitto of their own."""
    reason = mosquitto.missing()
    if reason is not None:
        pytest.skip(reason)
    with new_environment(devices=3) as environment, mosquitto.start(environment) as server:
        host, port = server.address
        devices = [
            {"name": one.name, "certificate": str(one.certificate), "key": str(one.key)}
            for one in environment.certificates.devices
        ]
        yield {
            "host": host,
            "port": port,
            "tls": "TLSv1.3",
            "broker": server.broker,
            "user": mosquitto.SUBSCRIBER,
            "size": 64,
            "burst": 4,
            "under_way": 40,
            "devices": devices,
        }


def test_what_was_received_is_released() -> None:
    assert publish_packet("a", b"xy", 7, 2) == bytes.fromhex("3407 0001 61 0007 7879")
    assert releases_of(bytes.fromhex("5002 0007 7002 0008 5002 0109")) == [
        bytes.fromhex("6202 0007"),
        bytes.fromhex("6202 0109"),
    ]
    assert releases_of(b"") == []


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_all_that_is_published_arrives(config: dict[str, Any], qos: int) -> None:
    with contextlib.closing(Fleet(config | {"qos": qos, "topic": f"q{qos}"})) as fleet:
        for _ in range(2):
            outcome = fleet.run(0.1)
            assert outcome["operations"] >= 12  # each device one burst at least
            assert outcome["operations"] % 4 == 0
            assert outcome["failed"] == 0


def test_what_the_broker_drops_is_counted_as_lost(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hw_bench.drivers.publish.DRAIN_SECONDS_MAX", 0.2)
    renamed = [one | {"name": f"other{one['name'][5:]}"} for one in config["devices"]]
    # The certificate decides the name that mosquitto knows: another one's topics are not theirs to publish to.
    settings = config | {"devices": renamed, "qos": 0, "topic": "lost", "under_way": 1000}
    with contextlib.closing(Fleet(settings)) as fleet:
        outcome = fleet.run(0.0)
    assert outcome["operations"] == 0
    assert outcome["failed"] == 12
