"""Durability: messages that were acknowledged to a device and are lost after a kill -9 of the broker.

An application is offline, and its session at our own mosquitto collects what a device publishes with QoS 1. The broker
is killed; when it is back, the application takes what is there.
"""

import contextlib
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from OpenSSL import SSL

from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V311, PacketType
from fleet.wire.mqtt.connect import Connect, decode_connack, encode_connect
from fleet.wire.mqtt.fields import encode_packet, encode_string
from fleet.wire.mqtt.reader import Packet, PacketReader
from fleet.wire.mqtt.subscribe import Subscribe, Subscription, encode_subscribe
from hw_bench.certificates import Identity
from hw_bench.cpu_time import PROC, process_tree
from hw_bench.drivers.handshake import client_context, connect
from hw_bench.peers.contract import Environment
from hw_bench.peers.home import Served, enroll_devices, make_home, serve
from hw_bench.processes import BenchError
from hw_bench.report import Figure, Report
from hw_bench.scenarios.contract import Findings, conclude, file_system, new_environment
from hw_bench.turns import Plan, Progress

USER, APPLICATION = "_backend", "offline-application"
END = "end"
READ_SIZE = 65_536
BACK_SECONDS_MAX = 20.0
LOSS_SECONDS_MAX = 1.0
PUBLISH_QOS1 = PacketType.PUBLISH << 4 | 2


@dataclass(frozen=True, slots=True)
class BrokerCrash:
    """The same kills with and without `durable = true`."""

    name: str = "broker-crash"
    window: int = 40
    """Messages sent and not acknowledged."""
    per_second: int = 400
    """At most: what is sent between two kills must fit into the session's 2,000."""
    life_seconds: tuple[float, float] = (0.5, 2.5)
    """From the first message to the kill: at least, at most."""

    def description(self) -> str:
        return (
            "kill -9 of our own mosquitto while a device publishes with QoS 1 to a session that is offline: messages "
            "that were acknowledged to the device and are not there afterwards, and how long before the kill the first "
            "of them was acknowledged"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        seed = random.SystemRandom().randrange(1 << 32) if plan.seed is None else plan.seed
        figures = list[Figure]()
        for durable in (False, True):
            with new_environment() as environment:
                found = self._kill_many(durable, environment, plan.kills, seed, progress)
                cores, disk = environment.cores, file_system(environment.folder)
            figures += found.figures(_setting(durable), 0 if durable else None, 0.0 if durable else LOSS_SECONDS_MAX)
        checks = (f"{plan.kills} kills each; seed {seed}", f"the broker's database is on {disk}")
        return replace(conclude(self, plan, (), Findings("kills", cores, {}, checks=checks)), figures=tuple(figures))

    def _kill_many(self, durable: bool, environment: Environment, kills: int, seed: int, progress: Progress) -> "Found":
        home = make_home(environment)
        text = home.files.settings_file.read_text("utf-8")
        home.files.settings_file.write_text(re.sub("durable = .*", _setting(durable), text), "utf-8")
        chance = random.Random(seed)  # noqa: S311  reproducible draws, not secrets
        found = Found()
        with serve(home, environment, "--upstream", "mosquitto") as served:
            (device,) = enroll_devices(home, served, environment, 1)
            Application(served, device).close()
            for number in range(1, kills + 1):
                found.add(self._kill_once(served, device, chance.uniform(*self.life_seconds)))
                if number % 5 == 0 or number == kills:
                    progress(f"{_setting(durable)}: {number} of {kills} kills, {found.words()}")
        return found

    def _kill_once(self, served: Served, device: Identity, seconds: float) -> "Kill":
        publisher = Publisher(served, device, self.window, self.per_second)
        killed = list[float]()

        def kill() -> None:
            os.kill(_broker_of(served), signal.SIGKILL)
            killed.append(time.monotonic())

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            publisher.run()
        finally:
            timer.join()
        application = Application(served, device)
        there = application.take_all()
        application.close()
        lost = [at for payload, at in publisher.acknowledged.items() if payload not in there]
        waits = [at - publisher.sent[payload] for payload, at in publisher.acknowledged.items()]
        return Kill(len(publisher.acknowledged), len(lost), killed[0] - min(lost) if lost else 0.0, waits)


@dataclass(frozen=True, slots=True)
class Kill:
    acknowledged: int
    lost: int
    loss_seconds: float
    waits: list[float]
    """Seconds from each message to its acknowledgement."""


@dataclass(slots=True)
class Found:
    """All kills with one setting."""

    kills: list[Kill] = field(default_factory=list)

    def add(self, kill: Kill) -> None:
        self.kills.append(kill)

    def words(self) -> str:
        return f"{sum(k.lost for k in self.kills):,} of {sum(k.acknowledged for k in self.kills):,} messages lost"

    def figures(self, setting: str, lost_max: int | None, seconds_max: float) -> Iterator[Figure]:
        waits = sorted(1000 * wait for kill in self.kills for wait in kill.waits) or [0.0]
        yield Figure(f"{setting}: acknowledged", sum(kill.acknowledged for kill in self.kills), "messages")
        yield Figure(f"{setting}: lost", sum(kill.lost for kill in self.kills), "messages", at_most=lost_max)
        longest = max(kill.loss_seconds for kill in self.kills)
        yield Figure(f"{setting}: acknowledged before the kill and lost", longest, "s", at_most=seconds_max)
        yield Figure(f"{setting}: acknowledgement, p50", waits[len(waits) // 2], "ms")
        yield Figure(f"{setting}: acknowledgement, p99", waits[int(len(waits) * 0.99)], "ms")


class Publisher:
    """A device that publishes until its session ends."""

    def __init__(self, served: Served, device: Identity, window: int, per_second: int) -> None:
        self.sent: dict[bytes, float] = {}
        self.acknowledged: dict[bytes, float] = {}
        self._window, self._per_second = window, per_second
        self._topic = encode_string(f"devices/{device.name}/up/t")
        self._reader = PacketReader()
        context = client_context(str(device.certificate), str(device.key), "TLSv1.3")
        deadline = time.monotonic() + BACK_SECONDS_MAX
        while True:  # the broker has just come back
            self._tls = SSL.Connection(context, connect(served.mqtt))
            self._tls.set_connect_state()
            with contextlib.suppress(SSL.Error):
                self._tls.sendall(encode_connect(Connect(V311, device.name)))
                packet = self._read()[0]
                if packet.type is PacketType.CONNACK and decode_connack(packet.body, V311).code == 0:
                    return
            if time.monotonic() > deadline:
                raise BenchError(f"{device.name} was not admitted again.")
            time.sleep(0.1)

    def run(self) -> None:
        started_at, number, open_ids = time.monotonic(), 0, dict[int, bytes]()
        with contextlib.suppress(SSL.Error):
            while True:
                while len(open_ids) < self._window and number < (time.monotonic() - started_at) * self._per_second + 1:
                    number += 1
                    payload, packet_id = os.urandom(16), number % 65_535 + 1
                    body = self._topic + packet_id.to_bytes(2, "big") + payload
                    self._tls.sendall(encode_packet(PUBLISH_QOS1, body))
                    open_ids[packet_id] = payload
                    self.sent[payload] = time.monotonic()
                if not open_ids:
                    time.sleep(1 / self._per_second)
                    continue
                for packet in self._read():
                    if packet.type is PacketType.PUBACK:
                        payload = open_ids.pop(int.from_bytes(packet.body[:2], "big"))
                        self.acknowledged[payload] = time.monotonic()

    def _read(self) -> list[Packet]:
        return list(self._reader.feed(self._tls.recv(READ_SIZE)))


class Application:
    """The session that is offline meanwhile, by the broker's own socket. The constructor connects it."""

    def __init__(self, served: Served, device: Identity) -> None:
        self._reader = PacketReader()
        self._packets = list[Packet]()
        self._topic = f"devices/{device.name}/up/"
        path = served.home.files.run / "broker.sock"
        deadline = time.monotonic() + BACK_SECONDS_MAX
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(BACK_SECONDS_MAX)
            try:
                self._socket.connect(os.fspath(path))
                self._socket.sendall(encode_connect(Connect(V311, APPLICATION, clean=False, username=USER)))
                self._next()
                break
            except OSError as error:
                self._socket.close()
                if time.monotonic() > deadline:
                    raise BenchError("The broker did not come back.") from error
                time.sleep(0.02)
        subscription = Subscription(f"{self._topic}#", 1)
        self._socket.sendall(encode_subscribe(Subscribe(1, (subscription,)), V311))

    def take_all(self) -> set[bytes]:
        """The payloads that are there, each acknowledged."""
        body = encode_string(self._topic + END) + (2).to_bytes(2, "big") + END.encode()
        self._socket.sendall(encode_packet(PUBLISH_QOS1, body))  # it comes back behind all others
        found = set[bytes]()
        while True:
            packet = self._next()
            if packet.type is not PacketType.PUBLISH:
                continue
            size = 2 + int.from_bytes(packet.body[:2], "big")
            packet_id, payload = packet.body[size : size + 2], packet.body[size + 2 :]
            self._socket.sendall(acks.acknowledge(acks.PUBACK, int.from_bytes(packet_id, "big"), V311))
            if payload == END.encode():
                return found
            found.add(payload)

    def close(self) -> None:
        self._socket.sendall(acks.disconnect(V311))
        while self._socket.recv(READ_SIZE):
            pass
        self._socket.close()

    def _next(self) -> Packet:
        while not self._packets:
            data = self._socket.recv(READ_SIZE)
            if not data:
                raise ConnectionResetError("the broker has closed the connection")
            self._packets += self._reader.feed(data)
        return self._packets.pop(0)


def _setting(durable: bool) -> str:
    return f"durable = {str(durable).lower()}"


def _broker_of(served: Served) -> int:
    """The process id of the broker that `served` runs."""
    for pid in process_tree(served.pids):
        with contextlib.suppress(OSError):
            if b"mosquitto.conf" in (PROC / str(pid) / "cmdline").read_bytes():
                return pid
    raise BenchError("The broker is not running.")
