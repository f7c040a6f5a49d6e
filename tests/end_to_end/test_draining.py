"""Workers that are replaced, and a server that stops: nobody is refused, no message is lost, no will is published."""

import asyncio
import base64
import contextlib
import json
import shutil
import signal
import socket
import ssl
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from fleet.wire.csr import build_csr
from fleet.wire.est import encode_body
from fleet.wire.mqtt.acks import packet_id_of
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import Connect, encode_connect
from fleet.wire.mqtt.properties import Property
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.reader import Packet, PacketReader
from fleet.wire.mqtt.subscribe import Subscribe, Subscription, encode_subscribe
from hw_bench.cpu_time import process_tree
from tests.end_to_end.serve_fixtures import healthz
from tests.end_to_end.workers_fixtures import TWO, Devices, Identity, tell, worker_pids
from tests.servers.paho_client import Paho
from tests.serving import ANY_PORTS, Served, run_fleet
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")

DRAIN_SECONDS = 0.5
STOP_DRAIN_SECONDS = 6.0
RETURN_SECONDS = 0.05  # of a client that was refused


def served(home: Path, folder: Path, words: tuple[str, ...], **settings: object) -> Served:
    """A server with these settings, by TOML key."""
    text = (home / "fleet.toml").read_text()
    for key, value in settings.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{key} = "))
        text = text.replace(f"\n{line}\n", f"\n{key} = {json.dumps(value)}\n")
    (home / "fleet.toml").write_text(text)
    return Served(home, folder / "ready.json", words).start()


@pytest.fixture(scope="module")
def shared(pristine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("drained")
    home = Path(shutil.copytree(pristine_home, folder / "home", symlinks=True))
    rates = {"connections_per_address_per_second": 0, "requests_per_credential_per_second": 0}
    rates["requests_per_address_per_second"] = 0
    queued = {"queued_messages_per_device_max": 100_000}  # the broker loses none that a busy machine has not read yet
    serving = served(home, folder, TWO, restart_drain_seconds=DRAIN_SECONDS, **rates, **queued)
    try:
        yield serving
    finally:
        serving.stop()


class Publisher:
    """A device with a session that outlives its connections: one message of QoS 1 after the other, each until it is
    acknowledged; it comes back at once when its connection ends.
    """

    def __init__(self, identity: Identity, served: Served, version: int) -> None:
        self.name, self._version = identity.name, version
        self._context, self._address = identity.context(served), served.address("mqtt")
        self.refused = Counter[str]()
        self.connects: list[float] = []
        """When it has got its CONNACK."""
        self.ends: list[bytes] = []
        """Bodies of DISCONNECT, and b"" for a connection that ended without."""
        self.sent = self.acknowledged = 0
        self.is_connected = False

    async def run(self, until_done: asyncio.Event) -> None:
        while not until_done.is_set():
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    reader, writer = await asyncio.open_connection(*self._address, ssl=self._context)
                    await self._session(reader, writer, until_done)
            except (OSError, ssl.SSLError) as error:
                self.refused[type(error).__name__] += not self.is_connected
                await asyncio.sleep(RETURN_SECONDS)
            self.is_connected = False

    async def _session(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until_done: asyncio.Event
    ) -> None:
        packets, version = PacketReader(65_536), self._version
        expiry = ((Property.SESSION_EXPIRY_INTERVAL, 600),) if version == V5 else ()
        writer.write(encode_connect(Connect(version, self.name, clean=False, keep_alive=60, properties=expiry)))
        last = b""
        try:
            while data := await reader.read(4096):
                for packet in packets.feed(data):
                    match packet.type:
                        case PacketType.CONNACK:
                            assert packet.body[1] == 0
                            self.is_connected = True
                            self.connects.append(time.monotonic())
                            self._publish(writer, again=self.sent > self.acknowledged)
                        case PacketType.PUBACK:
                            assert packet_id_of(packet.body) == self.sent % 60_000 + 1
                            self.acknowledged = self.sent
                            if until_done.is_set():
                                return
                            self._publish(writer, again=False)
                        case PacketType.DISCONNECT:
                            last = packet.body
            self.ends.append(last)
        except OSError:
            self.ends.append(last)
        finally:
            writer.transport.abort()

    def _publish(self, writer: asyncio.StreamWriter, *, again: bool) -> None:
        self.sent += not again
        topic, payload = f"devices/{self.name}/up/n", f"{self.name} {self.sent}".encode()
        message = Publish(topic, payload, qos=1, packet_id=self.sent % 60_000 + 1, dup=again)
        writer.write(encode_publish(message, self._version))


class Traffic:
    """Publishers that run, and what a subscriber at the broker has got of each."""

    def __init__(self, publishers: list[Publisher], backend: Paho, stack: contextlib.AsyncExitStack) -> None:
        self.publishers, self._backend = publishers, backend
        self._done = asyncio.Event()
        self._running = [asyncio.create_task(each.run(self._done)) for each in publishers]
        self.got: set[str] = set()
        self.doubled = 0
        stack.callback(lambda: [task.cancel() for task in self._running])

    @classmethod
    async def of(cls, devices: Devices, names: str, count: int) -> "Traffic":
        identities = [await asyncio.to_thread(devices.enroll, f"{names}-{number}") for number in range(count)]
        backend = await devices.backend("devices/+/up/n")
        publishers = [Publisher(each, devices.served, (V311, V5)[n % 2]) for n, each in enumerate(identities)]
        traffic = cls(publishers, backend, devices._stack)
        await until(lambda: all(each.acknowledged for each in publishers))
        return traffic

    async def end(self) -> None:
        self._done.set()
        await asyncio.gather(*self._running)

    async def lost(self) -> set[str]:
        """Messages that were acknowledged, and have not come."""
        sent = {f"{one.name} {number}" for one in self.publishers for number in range(1, one.acknowledged + 1)}
        names = {one.name for one in self.publishers}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not sent <= self.got:
                    message = (await self._backend.messages.get()).payload.decode()
                    if message.split()[0] in names:
                        self.doubled += message in self.got
                        self.got.add(message)
        return sent - self.got

    @property
    def refused(self) -> Counter[str]:
        return sum((each.refused for each in self.publishers), Counter[str]())


async def connects_without_end(served: Served, stack: contextlib.AsyncExitStack) -> Counter[str]:
    """Health checks, one after the other until the end of the test, each on a new connection: outcomes."""
    outcomes, done = Counter[str](), asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            try:
                status, _ = await asyncio.to_thread(healthz, served)
                outcomes[str(status)] += 1
            except OSError as error:
                outcomes[str(error)] += 1

    asking = asyncio.create_task(ask())

    async def end() -> None:
        done.set()
        await asking

    stack.push_async_callback(end)
    return outcomes


def began_enrollment(devices: Devices, name: str) -> tuple[ssl.SSLSocket, bytes]:
    """A connection on which half of a request has been sent, and the other half."""
    host, port = devices.served.address("est")
    key = ec.generate_private_key(ec.SECP256R1())
    body = encode_body(build_csr(key, (("2.5.4.3", name),), ()))
    token = run_fleet(devices.served.home, "token", "create", "--model", "default").strip()
    credentials = base64.b64encode(f"{name}:{token}".encode()).decode()
    context = ssl.create_default_context(cafile=devices.served.ca_file)
    connection = context.wrap_socket(socket.create_connection((host, port), PATIENCE_SECONDS), server_hostname=host)
    request = (
        f"POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/pkcs10\r\n"
        f"Authorization: Basic {credentials}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    connection.sendall(request[:-9])
    return connection, request[-9:]


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.long)])
async def test_workers_are_replaced_and_nobody_is_refused(devices: Devices, count: int) -> None:
    """All sessions come back, and nothing that was acknowledged is lost."""
    shared, before = devices.served, worker_pids(devices.served)
    traffic = await Traffic.of(devices, f"of{count}", count)
    outcomes = await connects_without_end(shared, devices._stack)
    wills = await devices.backend("devices/+/up/gone")
    lasting = [
        await devices.connect(
            devices.enroll(f"will-{count}-{version}"), version, f"devices/will-{count}-{version}/up/gone"
        )
        for version in (V311, V5)
    ]
    connection, rest = await asyncio.to_thread(began_enrollment, devices, f"half-{count}")
    over = shared.log.count("event=workers.replaced outcome=ok") + 1
    drained = shared.log.count("code=server-restarting")
    connected = [len(each.connects) for each in traffic.publishers]
    shared.process.send_signal(signal.SIGUSR2)
    shared.process.send_signal(signal.SIGHUP)  # both at once
    began = time.monotonic()
    await until(lambda: shared.log.count("code=server-restarting") > drained)
    await asyncio.to_thread(connection.sendall, rest)
    answer = await asyncio.to_thread(connection.recv, 65_536)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer
    assert b"\r\nConnection: close\r\n" in answer
    for client, _ in lasting:
        code = await client.got(client.disconnected)
        assert code == (Reason.SERVER_SHUTTING_DOWN if client._v5 else 128)  # of 3.1.1, paho's word for an end
    await until(lambda: shared.log.count("event=workers.replaced outcome=ok") >= over)
    await until(lambda: all(len(each.connects) > old for each, old in zip(traffic.publishers, connected, strict=True)))
    took = time.monotonic() - began
    await traffic.end()
    assert not await traffic.lost()
    assert not traffic.refused
    assert set(outcomes) == {"200"}
    assert wills.messages.empty()
    after = worker_pids(shared)
    print(
        f"\n{count} sessions back after {took:.2f} s; {sum(outcomes.values())} other connects; "
        f"{sum(each.sent for each in traffic.publishers)} messages, {traffic.doubled} of them twice; "
        f"times connected: {Counter(len(each.connects) for each in traffic.publishers)}"
    )
    ends = {end[:1] for each in traffic.publishers[1::2] for end in each.ends}
    assert ends == {bytes((Reason.SERVER_SHUTTING_DOWN,))}
    assert len(process_tree((shared.process.pid,))) >= 4
    assert not set(before.values()) & {pid for pid in after.values() if Path(f"/proc/{pid}").exists()}


async def test_a_single_worker_is_replaced_and_nobody_is_refused(home: Path, tmp_path: Path) -> None:
    """At SIGUSR2 to its supervisor, and at SIGTERM to itself; a second SIGTERM ends the drain."""
    words, rates = (*ANY_PORTS, "--workers", "1"), {"connections_per_address_per_second": 0}
    serving = served(home, tmp_path, words, supervised=True, restart_drain_seconds=DRAIN_SECONDS, **rates)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(serving.stop)
        devices = Devices(serving, tmp_path, stack)
        traffic = await Traffic.of(devices, "one", 4)
        outcomes = await connects_without_end(serving, stack)
        serving.process.send_signal(signal.SIGUSR2)
        await until(lambda: "event=worker.replaced worker=1 " in serving.log)
        tell(serving, "2", signal.SIGTERM)
        await until(lambda: "event=worker.replaced worker=2 " in serving.log)
        await until(lambda: all(each.is_connected for each in traffic.publishers))
        await traffic.end()
        assert not await traffic.lost()
        assert not traffic.refused
        assert set(outcomes) == {"200"}
        assert {end[:1] for each in traffic.publishers[1::2] for end in each.ends} == {b"\x8b"}
        (home / "fleet.toml").write_text((home / "fleet.toml").read_text().replace(f"= {DRAIN_SECONDS}\n", "= 3600\n"))
        serving.process.send_signal(signal.SIGHUP)
        await until(lambda: "changed=serve.restart_drain_seconds" in serving.log)
        client, worker = await devices.connect(devices.enroll("stays"), V5)
        ready = serving.log.count("event=worker.ready")
        tell(serving, worker, signal.SIGTERM)
        await until(lambda: serving.log.count("event=worker.ready") > ready)
        tell(serving, worker, signal.SIGTERM)
        await until(lambda: f"event=worker.replaced worker={worker} " in serving.log)
        assert await client.got(client.disconnected)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_what_connects_to_a_worker_that_has_ended_waits_for_the_next(
    devices: Devices, number: signal.Signals
) -> None:
    shared = devices.served
    traffic = await Traffic.of(devices, f"by{number}", 200)
    outcomes = await connects_without_end(shared, devices._stack)
    live = [worker for worker, pid in worker_pids(shared).items() if Path(f"/proc/{pid}").exists()]
    began, connected = time.monotonic(), sum(len(each.connects) for each in traffic.publishers)
    over = f"event=worker.{'replaced' if number is signal.SIGTERM else 'restarted'} worker={live[0]} "
    before = shared.log.count(over)
    tell(shared, live[0], number)
    await until(lambda: shared.log.count(over) > before)
    await until(lambda: all(each.is_connected for each in traffic.publishers))
    took = time.monotonic() - began
    await traffic.end()
    assert not await traffic.lost()
    back = sum(len(each.connects) for each in traffic.publishers) - connected
    print(f"\n{number.name}: {back} of 200 sessions back after {took:.2f} s; {traffic.refused} {outcomes}")
    assert back > 0
    if number is signal.SIGTERM:
        assert not traffic.refused
        assert set(outcomes) == {"200"}
    else:  # what it had accepted is lost with it
        assert not {"ConnectionRefusedError"} & set(traffic.refused)


@pytest.mark.long
async def test_successors_that_cannot_start_leave_all_as_it_was(devices: Devices) -> None:
    shared, before = devices.served, worker_pids(devices.served)
    client, _ = await devices.connect(devices.enroll("stays"), V5)
    file = shared.home / "fleet.toml"
    text = file.read_text()
    file.write_text(text.replace('webhook_ca = "system"', 'webhook_ca = "nowhere.pem"'))
    shared.process.send_signal(signal.SIGUSR2)
    await until(lambda: "event=workers.replaced outcome=failed kept=old" in shared.log)
    assert "event=settings outcome=reloaded changed=webhook.webhook_ca" in shared.log
    live = {number: pid for number, pid in before.items() if Path(f"/proc/{pid}").exists()}
    assert len(live) == 2
    assert await client.publish("devices/stays/up/n") in (0, 0x10)  # nobody may have subscribed
    ready = shared.log.count("event=worker.ready")
    tell(shared, next(iter(live)), signal.SIGKILL)  # with the settings that it had
    await until(lambda: shared.log.count("event=worker.ready") > ready)
    file.write_text(text)


@pytest.mark.long
async def test_a_worker_that_is_killed_while_it_drains_is_none_of_the_others_affair(devices: Devices) -> None:
    shared, before = devices.served, worker_pids(devices.served)
    live = {number: pid for number, pid in before.items() if Path(f"/proc/{pid}").exists()}
    traffic = await Traffic.of(devices, "killed", 20)
    drained = shared.log.count("code=server-restarting")
    over = shared.log.count("event=workers.replaced outcome=ok") + 1
    shared.process.send_signal(signal.SIGUSR2)
    await until(lambda: shared.log.count("code=server-restarting") > drained)
    killed = next(iter(live))
    tell(shared, killed, signal.SIGKILL)
    await until(lambda: shared.log.count("event=workers.replaced outcome=ok") >= over)
    assert f"event=worker.replaced worker={killed} pid={live[killed]} successor=" in shared.log
    assert 'cause="signal 9"' in shared.log
    await until(lambda: all(len(each.connects) == 2 for each in traffic.publishers))
    await traffic.end()
    assert not await traffic.lost()
    assert not traffic.refused
    successors = {number: pid for number, pid in worker_pids(shared).items() if Path(f"/proc/{pid}").exists()}
    assert len(successors) == 2
    assert not set(successors) & set(live)
    tell(shared, next(iter(successors)), signal.SIGKILL)  # and they are restarted as ever
    await until(lambda: f"event=worker.restarted worker={next(iter(successors))} " in shared.log)


def never_reads(served: Served, identity: Identity) -> ssl.SSLSocket:
    """A session that has subscribed, whose client reads no more."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.settimeout(PATIENCE_SECONDS)
    line.connect(served.address("mqtt"))
    client = identity.context(served).wrap_socket(line, server_hostname="localhost")
    client.sendall(encode_connect(Connect(V311, identity.name, keep_alive=0)))
    asked = Subscribe(1, (Subscription(f"devices/{identity.name}/down/#", 0),))
    client.sendall(encode_subscribe(asked, V311))
    packets = PacketReader(65_536)
    got: list[Packet] = []
    while len(got) < 2:
        got += packets.feed(client.recv(1024))
    assert [each.type for each in got] == [PacketType.CONNACK, PacketType.SUBACK]
    return client


async def that_never_read(devices: Devices) -> tuple[list[Identity], list[ssl.SSLSocket]]:
    """Devices whose clients have not read what fills every buffer on the way to them."""
    identities = [await asyncio.to_thread(devices.enroll, f"deaf-{number}") for number in range(8)]
    clients = [await asyncio.to_thread(never_reads, devices.served, each) for each in identities]
    backend = await devices.backend("none")
    for each in identities:
        for number in range(30):  # 6 MB: more than the buffers in between hold
            await backend.publish(f"devices/{each.name}/down/{number}", bytes(200_000), 0)
    return identities, clients


@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_clients_that_never_read_hold_no_stop_up(home: Path, tmp_path: Path, workers: str) -> None:
    serving = served(home, tmp_path, (*ANY_PORTS, "--workers", workers), stop_drain_seconds=1.0)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(serving.stop)
        _, clients = await that_never_read(Devices(serving, tmp_path, stack))
        began = time.monotonic()
        serving.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(serving.process.wait, PATIENCE_SECONDS) == 0
        print(f"\nstopped before clients that never read after {time.monotonic() - began:.2f} s")
        assert time.monotonic() - began < 10, "1 s of drain, up to 5 s of stop, and a slow machine"
        assert "event=worker.killed" not in serving.log
        for client in clients:
            client.close()


@pytest.mark.long
async def test_clients_that_never_read_hold_no_drain_up(devices: Devices) -> None:
    shared = devices.served
    identities, clients = await that_never_read(devices)
    over, killed = shared.log.count("event=workers.replaced outcome=ok") + 1, shared.log.count("event=worker.killed")
    began = time.monotonic()
    shared.process.send_signal(signal.SIGUSR2)
    await until(lambda: shared.log.count("event=workers.replaced outcome=ok") >= over)
    took = time.monotonic() - began
    print(f"\nreplaced before clients that never read after {took:.2f} s")
    assert took < 20, "a session that is stuck ends after 30 seconds"
    assert shared.log.count("event=worker.killed") == killed
    for each in identities:
        [ended] = [line for line in shared.log.splitlines() if f"event=mqtt.session device={each.name} " in line]
        assert ended.endswith("code=server-restarting")
    for client in clients:
        client.close()


@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_server_that_stops_sends_its_clients_elsewhere_first(home: Path, tmp_path: Path, workers: str) -> None:
    words = (*ANY_PORTS, "--workers", workers)
    other = "other.example:8883"
    serving = served(home, tmp_path, words, stop_drain_seconds=STOP_DRAIN_SECONDS, server_reference=other)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(serving.stop)
        devices = Devices(serving, tmp_path, stack)
        traffic = await Traffic.of(devices, "left", 2)
        wills = await devices.backend("devices/+/up/gone")
        client = devices.client(devices.enroll("will"), V5)
        client.client.will_set("devices/will/up/gone", b"gone", 1)
        assert await client.connect(*serving.address("mqtt")) == 0
        if workers == "1":
            serving.process.send_signal(signal.SIGUSR2)  # there is none to take its place
            await until(lambda: "event=workers.replaced outcome=failed kept=old" in serving.log)
        serving.process.send_signal(signal.SIGTERM)
        with pytest.raises(urllib.error.HTTPError) as caught:
            for _ in range(1000):
                healthz(serving)
        with caught.value as answer:
            assert (answer.status, json.load(answer)["code"]) == (503, "draining")
        assert devices.enroll("late").certificate.exists()  # EST goes on
        await until(lambda: all(each.ends for each in traffic.publishers))
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(serving.address("mqtt"), 5)
        assert await client.got(client.disconnected) == Reason.USE_ANOTHER_SERVER
        assert {end[:1] for each in traffic.publishers[1::2] for end in each.ends} == {b"\x9c"}
        assert all(other.encode() in end for each in traffic.publishers[1::2] for end in each.ends)
        assert not await traffic.lost()
        assert wills.messages.empty()
        serving.process.send_signal(signal.SIGTERM)  # it has waited for long enough
        assert await asyncio.to_thread(serving.process.wait, 10) == 0
