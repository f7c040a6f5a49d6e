"""Devices that publish as fast as possible, and a subscriber at the broker that counts what arrives.

Each device has its own TLS connection and sends `burst` messages at a time, each in a separate TLS record, as real
devices do. With QoS 1 and 2 it waits for the acknowledgements of a burst before the next one.
All devices together wait while more than `under_way` messages have not arrived yet: without a limit, the figure would
be of how fast messages can be thrown into buffers, and a broker drops what a subscriber is too slow for.

The packets are made before the turn, and all have one length: a message counts when its last byte has arrived, and
counting takes no parsing. Two bytes of the payload name the device and the place in the burst; after
the turn each (device, place) is compared with what was sent, so that one lost and one duplicated do not cancel out.
"""

import contextlib
import os
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from OpenSSL import SSL

from hw_bench.drivers.command_loop import Command, Handler, serve
from hw_bench.drivers.handshake import client_context, connect

READ_SIZE = 256 * 1024
DRAIN_SECONDS_MAX = 10.0  # for the last messages to arrive; without them, they are lost
KEEP_ALIVE_SECONDS = 3600  # longer than any run: no PINGREQ needed
ACK_SIZE = 4  # of PUBACK, PUBREC and PUBCOMP
PUBREC, PUBREL = 0x50, b"\x62\x02"
MARKS_SIZE = 2  # device and place, at the start of each payload
DEVICES_MAX = 256  # a device's number is one byte


def packet(kind: int, body: bytes) -> bytes:
    """An MQTT control packet whose fixed header begins with the byte `kind`."""
    length, size = bytearray(), len(body)
    while True:
        size, digit = divmod(size, 128)
        length.append(digit | (0x80 if size else 0))
        if not size:
            return bytes([kind]) + length + body


def text(value: str) -> bytes:
    encoded = value.encode()
    return len(encoded).to_bytes(2, "big") + encoded


def connect_packet(client_id: str, user: str = "") -> bytes:
    """MQTT 3.1.1, clean session, no will, no password."""
    head = text("MQTT") + bytes([4, 0x82 if user else 0x02]) + KEEP_ALIVE_SECONDS.to_bytes(2, "big")
    return packet(0x10, head + text(client_id) + (text(user) if user else b""))


def subscribe_packet(topic_filter: str) -> bytes:
    """At most QoS 0: what the broker has accepted it hands on over a local socket once."""
    return packet(0x82, (1).to_bytes(2, "big") + text(topic_filter) + bytes([0]))


def publish_packet(topic: str, payload: bytes, packet_id: int | None, qos: int = 1) -> bytes:
    """QoS 0 without `packet_id`."""
    if packet_id is None:
        return packet(0x30, text(topic) + payload)
    return packet(0x30 | qos << 1, text(topic) + packet_id.to_bytes(2, "big") + payload)


def releases_of(acknowledgements: bytes) -> list[bytes]:
    """A PUBREL for each PUBREC in them."""
    each = (acknowledgements[at : at + ACK_SIZE] for at in range(0, len(acknowledgements), ACK_SIZE))
    return [PUBREL + one[2:] for one in each if one[0] == PUBREC]


def connect_unix(path: Path) -> socket.socket:
    """A connection to the socket at `path`, however long: an address holds 108 bytes, so it goes by the folder."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(folder)
    return connection


class Device:
    """One publishing connection, connected when it is made."""

    def __init__(self, number: int, identity: Mapping[str, str], config: Command) -> None:
        self.number = number
        self.unacknowledged = 0
        context = client_context(identity["certificate"], identity["key"], config["tls"])
        self.socket = connect((config["host"], config["port"]))
        self._tls = SSL.Connection(context)
        self._tls.set_connect_state()
        topic = f"devices/{identity['name']}/up/{config['topic']}"
        qos: int = config["qos"]
        self.packets = [
            publish_packet(topic, _payload(number, place, config["size"]), place + 1 if qos else None, qos)
            for place in range(config["burst"])
        ]
        self._acks = qos  # for each message
        self._acked = b""  # the beginning of one
        self._open(identity["name"])

    def _open(self, client_id: str) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except SSL.WantReadError:
                self._exchange()
        self._send([connect_packet(client_id)])
        answer = b""
        while len(answer) < 4:
            try:
                answer += self._tls.recv(16)
            except SSL.WantReadError:
                self._exchange()
        if answer[:4] != b"\x20\x02\x00\x00":
            raise ConnectionError(f"{client_id} was refused: CONNACK {answer.hex()}")

    def _exchange(self) -> None:
        self._flush()
        received = self.socket.recv(READ_SIZE)
        if not received:
            raise ConnectionError("the server closed the connection")
        self._tls.bio_write(received)

    def _flush(self) -> None:
        with contextlib.suppress(SSL.WantReadError):  # nothing to send
            self.socket.sendall(self._tls.bio_read(READ_SIZE))

    def _send(self, packets: list[bytes]) -> None:
        for one in packets:
            self._tls.send(one)
        self.socket.sendall(self._tls.bio_read(READ_SIZE))

    def burst(self) -> None:
        """Send every packet once."""
        self._send(self.packets)
        self.unacknowledged = self._acks * len(self.packets)

    def read_acknowledgements(self) -> None:
        """Take what has come, and release what was received; `unacknowledged` is less by the acknowledgements in it.

        Raises: ConnectionError.
        """
        received = self.socket.recv(READ_SIZE)
        if not received:
            raise ConnectionError(f"device {self.number} was disconnected")
        self._tls.bio_write(received)
        came = self._acked
        # Stops at the last one that is due, to spare itself the engine's "nothing more".
        while len(came) < self.unacknowledged * ACK_SIZE:
            try:
                came += self._tls.recv(READ_SIZE)
            except SSL.WantReadError:
                break
        whole = len(came) - len(came) % ACK_SIZE
        self._acked = came[whole:]
        self.unacknowledged -= whole // ACK_SIZE
        if self._acks == 2 and (releases := releases_of(came[:whole])):
            self._send(releases)


class Subscriber:
    """A plain MQTT connection to the broker's Unix socket, and the count of what has come on it."""

    def __init__(self, path: str, user: str, topic_filter: str, message: bytes, marks_at: int) -> None:
        """`message` is an example of what will arrive: all have its length, with the marks at offset `marks_at`."""
        self.socket = connect_unix(Path(path))
        self.socket.settimeout(DRAIN_SECONDS_MAX)
        self.received = 0
        self.size = len(message)
        self.marks_at = marks_at
        self._buffer = bytearray(READ_SIZE + len(message))
        self._kept = 0
        self._marks: list[tuple[bytes, bytes]] = []
        self.socket.sendall(connect_packet(f"bench-subscriber-{topic_filter.rpartition('/')[2]}", user))
        self._expect(b"\x20\x02\x00\x00")
        self.socket.sendall(subscribe_packet(topic_filter))
        self._expect(b"\x90\x03\x00\x01\x00")

    def _expect(self, answer: bytes) -> None:
        got = self.socket.recv(len(answer), socket.MSG_WAITALL)
        if got != answer:
            raise ConnectionError(f"the broker answered {got.hex()} instead of {answer.hex()}")

    def read(self) -> None:
        """Wait for something to come and count it. Raises: TimeoutError, ConnectionError."""
        view = memoryview(self._buffer)
        got = self.socket.recv_into(view[self._kept : self._kept + READ_SIZE])
        if not got:
            raise ConnectionError("the broker closed the subscriber's connection")
        end = self._kept + got
        whole = end - end % self.size
        self.take(view[:whole], whole // self.size)
        self.received += whole // self.size
        self._kept = end - whole
        self._buffer[: self._kept] = self._buffer[whole:end]

    def take(self, messages: memoryview, count: int) -> None:
        """Note `count` whole messages that have come."""
        devices, places = (bytes(messages[self.marks_at + place :: self.size]) for place in range(MARKS_SIZE))
        self._marks.append((devices, places))

    def marks(self) -> Counter[tuple[int, int]]:
        """(device, place) -> how often it has come since the last call."""
        counts: Counter[tuple[int, int]] = Counter()
        for devices, places in self._marks:
            counts.update(zip(devices, places, strict=True))
        self._marks.clear()
        return counts


class Fleet:
    """All devices of one driver, and the subscriber."""

    def __init__(self, config: Command) -> None:
        identities = config["devices"]
        if len(identities) > DEVICES_MAX:
            raise ValueError(f"at most {DEVICES_MAX} devices")
        self._qos: int = config["qos"]
        self._under_way: int = config["under_way"]
        topic = f"devices/{identities[0]['name']}/up/{config['topic']}"
        arriving = publish_packet(topic, bytes(config["size"]), None)
        marks_at = len(arriving) - config["size"]
        topics = f"devices/+/up/{config['topic']}"
        self._subscriber = Subscriber(config["broker"], config["user"], topics, arriving, marks_at)
        self._devices = [Device(number, identity, config) for number, identity in enumerate(identities)]
        self._sent: Counter[int] = Counter()

    def run(self, seconds: float) -> dict[str, Any]:
        """Publish for `seconds`, then wait for what is under way: {"operations", "failed", "wall"}."""
        self._sent.clear()
        start = time.monotonic()
        before = self._subscriber.received
        if self._qos:
            self._publish_acknowledged(start + seconds, before)
        else:
            self._publish_unacknowledged(start + seconds, before)
        expected = before + self._messages_sent()
        try:
            while self._subscriber.received < expected:
                self._subscriber.read()
        except TimeoutError:
            pass  # the rest is lost, and counted as such below
        wall = time.monotonic() - start
        return {"operations": self._subscriber.received - before, "failed": self._wrong(), "wall": wall}

    def close(self) -> None:
        """Close every connection."""
        for connection in (self._subscriber.socket, *(device.socket for device in self._devices)):
            connection.close()

    def _messages_sent(self) -> int:
        return sum(self._sent.values()) * len(self._devices[0].packets)

    def _publish_unacknowledged(self, end: float, before: int) -> None:
        subscriber, size, sent = self._subscriber, len(self._devices[0].packets), 0
        while True:
            for device in self._devices:
                while sent + size - (subscriber.received - before) > self._under_way:
                    subscriber.read()
                device.burst()
                self._sent[device.number] += 1
                sent += size
            if time.monotonic() >= end:
                return

    def _publish_acknowledged(self, end: float, before: int) -> None:
        size, sent = len(self._devices[0].packets), 0
        waiting = deque(self._devices)
        poll = select.epoll()
        try:
            by_handle = {device.socket.fileno(): device for device in self._devices}
            for handle in (self._subscriber.socket.fileno(), *by_handle):
                poll.register(handle, select.EPOLLIN)
            busy = 0
            while True:
                while waiting and sent + size - (self._subscriber.received - before) <= self._under_way:
                    self._burst(waiting.popleft())
                    busy, sent = busy + 1, sent + size
                if not busy and not waiting:
                    return
                events = poll.poll(DRAIN_SECONDS_MAX)
                if not events:
                    raise TimeoutError(f"{busy} devices got no acknowledgement")
                for handle, _ in events:
                    if handle not in by_handle:
                        self._subscriber.read()
                        continue
                    device = by_handle[handle]
                    device.read_acknowledgements()
                    if device.unacknowledged:
                        continue
                    busy -= 1
                    if time.monotonic() < end:
                        waiting.append(device)
        finally:
            poll.close()

    def _burst(self, device: Device) -> None:
        device.burst()
        self._sent[device.number] += 1

    def _wrong(self) -> int:
        """Number of messages lost, duplicated or of unknown origin."""
        places = range(len(self._devices[0].packets))
        sent = Counter({(number, place): count for number, count in self._sent.items() for place in places})
        came = self._subscriber.marks()
        return (sent - came).total() + (came - sent).total()


def _payload(number: int, place: int, size: int) -> bytes:
    return bytes([number, place]).ljust(size, b".")


def prepare(config: Command) -> Mapping[str, Handler]:
    fleet = Fleet(config)
    return {"run": lambda command: fleet.run(command["seconds"])}


if __name__ == "__main__":
    serve(prepare)
