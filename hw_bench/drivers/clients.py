"""Many MQTT clients on mutual TLS in one process: connect all at once, stay idle, publish at a rate, be cut off.

Their sockets are non-blocking and share one epoll, so that thousands of handshakes can be under way together, as after
a power cut. A message's payload begins with the time at which it was due, so that the subscriber at the broker can tell
how long it took; a driver that falls behind its rate counts as latency.
"""

import contextlib
import errno
import resource
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from OpenSSL import SSL

from hw_bench.drivers.command_loop import Command, Handler, serve
from hw_bench.drivers.handshake import NO_LINGER, client_context
from hw_bench.drivers.publish import Subscriber, connect_packet, publish_packet

CONNACK_ACCEPTED = b"\x20\x02\x00\x00"
READ_SIZE = 4096
WAIT_SECONDS = 0.2  # at the most between two looks at the clock
END_SECONDS_MAX = 10.0  # from DISCONNECT to the end of the connection
DISCONNECT = b"\xe0\x00"
STAMP = struct.Struct("d")


class Client:
    """One client. `advance` is called whenever its socket is ready, until `connected` or `ended`."""

    def __init__(self, identity: Mapping[str, str], config: Command) -> None:
        self.name: str = identity["name"]
        self.connected = self.ended = False
        self.received = b""
        self._config = config
        self._context = client_context(identity["certificate"], identity["key"], config["tls"])
        self._sent = False

    def start(self) -> None:
        """Begin to connect. Raises: OSError."""
        self.connected = self.ended = self._sent = False
        self.received = b""
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        status = self.socket.connect_ex((self._config["host"], self._config["port"]))
        if status not in (0, errno.EINPROGRESS):
            raise OSError(status, "connect")
        self._tls = SSL.Connection(self._context, self.socket)
        self._tls.set_connect_state()

    def advance(self) -> int:
        """As far as it goes without waiting; returns the events of epoll to wait for."""
        try:
            if not self._sent:
                self._tls.do_handshake()
                if self._config["mqtt"]:
                    self._tls.send(connect_packet(self.name))
                self._sent = True
                self.connected = not self._config["mqtt"]
            self.received += self._tls.recv(READ_SIZE)
            self.connected = self.received == CONNACK_ACCEPTED
            self.ended = not self.connected and len(self.received) >= len(CONNACK_ACCEPTED)
        except SSL.WantReadError:
            return select.EPOLLIN
        except SSL.WantWriteError:
            return select.EPOLLOUT
        except SSL.Error:
            self.connected, self.ended = False, True
        return select.EPOLLIN

    def publish(self, packet: bytes) -> None:
        """Send one packet. Raises: SSL.Error, also when the socket takes no more."""
        self._tls.send(packet)

    def await_end(self) -> None:
        """Raises: TimeoutError: the server does not close the connection."""
        self.socket.settimeout(END_SECONDS_MAX)
        with contextlib.suppress(ConnectionError):
            while self.socket.recv(READ_SIZE):
                pass

    def close(self) -> None:
        """Cut it off, as a power cut would: TCP RST, no DISCONNECT, no close_notify."""
        self.socket.close()


class TimedSubscriber(Subscriber):
    """Counts what comes, and how long each was under way."""

    latencies: list[float]

    def take(self, messages: memoryview, count: int) -> None:
        now = time.monotonic()
        for number in range(count):
            (due,) = STAMP.unpack_from(messages, number * self.size + self.marks_at)
            self.latencies.append(now - due)


class Clients:
    """All clients of one driver."""

    def __init__(self, config: Command) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._config = config
        self._all = [Client(identity, config) for identity in config["devices"]]
        self._poll = select.epoll()
        self._by_handle: dict[int, Client] = {}
        self._subscriber: TimedSubscriber | None = None

    def connect(self, seconds_max: float, at_once: int, retry_seconds: float) -> dict[str, Any]:
        """Connect all: {"times", "refused", "retries", "wall"}.

        `times` are the seconds from each one's first SYN to its CONNACK. Who is refused tries again after
        `retry_seconds`; 0 for never. `refused` counts those who are not connected at the end.
        """
        begun = time.monotonic()
        waiting, retrying, first = deque(self._all), deque[tuple[float, Client]](), dict[str, float]()
        times: list[float] = []
        under_way = retries = 0
        while (waiting or retrying or under_way) and time.monotonic() - begun < seconds_max:
            while retrying and retrying[0][0] <= time.monotonic():
                waiting.append(retrying.popleft()[1])
            while waiting and under_way < at_once:
                client = waiting.popleft()
                first.setdefault(client.name, time.monotonic())
                self._start(client)
                under_way += 1
            for client in self._advanced():
                if not client.connected and not client.ended:
                    continue
                under_way -= 1
                self._settle(client)
                if client.connected:
                    times.append(time.monotonic() - first[client.name])
                elif retry_seconds:
                    retries += 1
                    retrying.append((time.monotonic() + retry_seconds, client))
        for client in list(self._by_handle.values()):  # their time is up
            client.ended = True
            self._settle(client)
        wall = time.monotonic() - begun
        return {"times": times, "refused": len(self._all) - len(times), "retries": retries, "wall": wall}

    def _start(self, client: Client) -> None:
        client.start()
        handle = client.socket.fileno()
        self._by_handle[handle] = client
        self._poll.register(handle, select.EPOLLOUT)

    def _advanced(self) -> list[Client]:
        found = []
        for handle, _ in self._poll.poll(WAIT_SECONDS):
            client = self._by_handle[handle]
            self._poll.modify(handle, client.advance())
            found.append(client)
        return found

    def _settle(self, client: Client) -> None:
        """It is watched no longer; what was refused is closed."""
        handle = client.socket.fileno()
        self._poll.unregister(handle)
        del self._by_handle[handle]
        if client.ended:
            client.close()

    def still_open(self) -> int:
        """How many are connected, with nothing received since."""
        for client in self._all:
            if client.connected and not client.ended:
                client.advance()
        return sum(client.connected and not client.ended for client in self._all)

    def cut(self) -> None:
        """Close all at once."""
        for client in self._all:
            client.close()
            client.connected = False

    def leave(self, *, cut: bool) -> None:
        """Each publishes a message, and then disconnects and waits for the end of its connection, or is `cut` off."""
        for number, client in enumerate(self._all):
            message = self._message(number, time.monotonic())
            client.publish(message if cut else message + DISCONNECT)
        for client in self._all:
            if not cut:
                client.await_end()
            client.close()
            client.connected = False

    def publish(self, rate: float, seconds: float) -> dict[str, Any]:
        """One message after the other, device by device, `rate` a second in all; 0 for as fast as they arrive.

        {"operations", "failed", "wall", "latencies" in seconds}.
        """
        subscriber = self._subscriber = self._subscriber or self._subscribe()
        subscriber.latencies = []
        arriving = select.poll()  # select() takes no more than 1,024 files
        arriving.register(subscriber.socket, select.POLLIN)
        before, begun = subscriber.received, time.monotonic()
        sent = 0
        end = begun + seconds
        while (now := time.monotonic()) < end:
            due = round((now - begun) * rate) if rate else subscriber.received - before + self._config["under_way"]
            for number in range(sent, due):
                stamp = begun + number / rate if rate else time.monotonic()
                self._all[number % len(self._all)].publish(self._message(number % len(self._all), stamp))
            sent = max(sent, due)
            pause = max(0.0, begun + sent / rate - time.monotonic()) if rate else WAIT_SECONDS
            if arriving.poll(1000 * min(pause, WAIT_SECONDS)):
                subscriber.read()
        with contextlib.suppress(TimeoutError):  # the rest is lost
            while subscriber.received - before < sent:
                subscriber.read()
        arrived = subscriber.received - before
        wall = time.monotonic() - begun
        return {"operations": arrived, "failed": sent - arrived, "wall": wall, "latencies": subscriber.latencies}

    def _message(self, number: int, stamp: float) -> bytes:
        payload = STAMP.pack(stamp).ljust(self._config["size"], b".")
        return publish_packet(f"devices/{self._all[number].name}/up/{self._config['topic']}", payload, None)

    def _subscribe(self) -> TimedSubscriber:
        example = self._message(0, 0.0)
        config = self._config
        topics = f"devices/+/up/{config['topic']}"
        return TimedSubscriber(config["broker"], config["user"], topics, example, len(example) - config["size"])


def prepare(config: Command) -> Mapping[str, Handler]:
    clients = Clients(config)

    def cut(command: Command) -> dict[str, Any]:
        clients.cut()
        return {}

    def leave(command: Command) -> dict[str, Any]:
        clients.leave(cut=bool(command["cut"]))
        return {}

    handlers: dict[str, Callable[[Command], dict[str, Any]]] = {
        "connect": lambda command: clients.connect(command["seconds"], command["at_once"], command["retry"]),
        "open": lambda command: {"open": clients.still_open()},
        "cut": cut,
        "leave": leave,
        "publish": lambda command: clients.publish(command["rate"], command["seconds"]),
    }
    return handlers


if __name__ == "__main__":
    serve(prepare)
