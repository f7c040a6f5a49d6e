"""The gateway before an external mosquitto, NATS server and RabbitMQ: one suite of behaviours for all of them. What
each does is a row of the table on the gateway's page, which is what this suite expects.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median

import pytest

import fleet.servers.gateway
from fleet.domain.access import Act
from fleet.domain.credential import Credential
from fleet.servers.gateway.broker.upstream import AddressUpstream, UpstreamAccess
from fleet.servers.gateway.broker.visit import purge_session
from fleet.services import revocation
from fleet.wire.mqtt.codes import V5, V311
from tests.interop.external_brokers import ADMINISTRATOR, BOUND_SECONDS, KINDS, Broker, spread, table_of
from tests.servers.gateway_fixtures import GatewayHarness, now, open_gateway, populate
from tests.servers.gateway_fixtures import device as fixture_device
from tests.servers.paho_client import Paho
from tests.tiers import Tier
from tests.waiting import PATIENCE_SECONDS, until

PAGE = Path(fleet.servers.gateway.__file__).with_name("README.md")
TABLE = table_of(PAGE, "Behind the gateway")
BROKERS = [
    pytest.param(kind, marks=[] if kind == "mosquitto" else pytest.mark.long)  # the others take seconds to start
    for kind in KINDS
]
NAMES = (f"cam-{number}" for number in count(1))
RETURN_CODES = {0x84: 1, 0x85: 2, 0x88: 3, 0x86: 4, 0x87: 5}
"""Return code of MQTT 3.1.1 by the reason code that paho makes of it."""


@dataclass(frozen=True)
class Street:
    """A gateway before a broker, with clients that are closed at the end."""

    harness: GatewayHarness
    broker: Broker
    upstream: AddressUpstream
    stack: AsyncExitStack

    async def certificate(self, *, is_known: bool = True) -> Credential:
        """Of a device that no other test has."""
        name = next(NAMES)
        if is_known:
            await asyncio.to_thread(self.broker.introduce, name)
        [held] = await populate(self.harness.registry, name)
        return held

    async def client(self, held: Credential, version: int = V311, *, clean: bool = True, will: str = "") -> Paho:
        client = Paho(held.holder, version, clean=clean)
        if will:
            client.client.will_set(will, b"gone", 1)
        self.stack.push_async_callback(client.close)
        return client

    async def answer(self, held: Credential, version: int = V311) -> int:
        client = await self.client(held, version)
        code = await client.connect("127.0.0.1", await self.harness.door(held))
        return code if version == V5 else RETURN_CODES.get(code, code)

    async def device(self, held: Credential, version: int = V311, *, clean: bool = True, will: str = "") -> Paho:
        client = await self.client(held, version, clean=clean, will=will)
        assert await client.connect("127.0.0.1", await self.harness.door(held)) == 0
        return client

    async def pair(self) -> tuple[str, Paho, Paho]:
        """A device's name, its client, and a backend that gets what it publishes."""
        held = await self.certificate()
        device = await self.device(held)
        return held.holder, device, await self.backend(f"devices/{held.holder}/up/#")

    async def backend(self, *filters: str, qos: int = 1) -> Paho:
        client = Paho(f"backend-{next(NAMES)}", V311)
        if self.broker.password is not None:
            client.client.username_pw_set(ADMINISTRATOR, self.broker.password.decode())
        assert await client.connect("127.0.0.1", self.broker.port) == 0
        self.stack.push_async_callback(client.close)
        if filters:
            await client.subscribe(*filters, qos=qos)
        return client

    async def count(self, code: str) -> None:
        await until(lambda: any(name.endswith(f".{code}") for name in self.harness.gateway.stats))

    @property
    def stats(self) -> dict[str, int]:
        return dict(self.harness.gateway.stats)


Behaviour = Callable[[Street], Awaitable[str]]
BEHAVIOURS: dict[str, Behaviour] = {}
"""What a test finds, in the words of the page's table, by row."""


def row(name: str) -> Callable[[Behaviour], Behaviour]:
    def add(behaviour: Behaviour) -> Behaviour:
        BEHAVIOURS[name] = behaviour
        return behaviour

    return add


@pytest.fixture(scope="module", params=BROKERS)
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with KINDS[request.param](tmp_path_factory.mktemp("broker")) as broker:
        broker.start()
        try:
            yield broker
        finally:
            broker.stop()


@pytest.fixture
async def street(tmp_path: Path, broker: Broker) -> AsyncIterator[Street]:
    upstream = AddressUpstream("127.0.0.1", broker.port, UpstreamAccess(password=broker.password))
    async with AsyncExitStack() as stack:
        harness = await stack.enter_async_context(open_gateway(tmp_path, upstream))
        yield Street(harness, broker, upstream, stack)


def test_the_table_has_a_row_for_each_behaviour() -> None:
    assert list(TABLE) == list(BEHAVIOURS)
    assert all(list(cells) == list(KINDS) for cells in TABLE.values())


@pytest.mark.parametrize("version", [V311, V5])
async def test_no_topic_has_a_dot_where_they_are_refused(street: Street, version: int) -> None:
    """Of two devices `a` and `a.down`, at RabbitMQ one could have got messages of the other."""
    if version == V5 and street.broker.kind != "mosquitto":
        pytest.skip(f"{street.broker.kind} speaks MQTT 3.1.1 alone")
    street.upstream.access = replace(street.upstream.access, refuses_dots=True)
    held = await street.certificate()
    device = await street.device(held, version)
    backend = await street.backend(f"devices/{held.holder}/#", f"devices/{held.holder}/up/#")
    failure = 0x83 if version == V5 else 0x80
    assert await device.subscribe(f"devices/{held.holder}/down/a.b", f"devices/{held.holder}/down/#") == [failure, 1]
    await device.publish(f"devices/{held.holder}/up/a.b", b"dot")
    await device.publish(f"devices/{held.holder}/up/last", b"own")
    assert await backend.message() == (f"devices/{held.holder}/up/last", b"own")
    [dotted] = await populate(street.harness.registry, f"{held.holder}.down")
    assert await street.answer(dotted, version) == (0x85 if version == V5 else 2)
    will = await street.client(held, version, will=f"devices/{held.holder}/up/w.x")
    assert await will.connect("127.0.0.1", await street.harness.door(held)) == 0x87


@pytest.mark.parametrize("name", TABLE)
async def test_it_is_as_the_page_says(street: Street, name: str) -> None:
    assert await BEHAVIOURS[name](street) == TABLE[name][street.broker.kind]


async def test_how_soon_a_revocation_ends_a_session(street: Street, tier: Tier) -> None:
    took = []
    for _ in range(tier.times(5, all=30)):
        held = await street.certificate()
        device = await street.device(held)
        began = time.monotonic()
        await revoke(street, held)
        await device.got(device.disconnected)
        took.append(time.monotonic() - began)
    print(f"\ngateway before {street.broker.kind}: {spread(took)}")
    assert median(took) < BOUND_SECONDS


@row("CONNECT of MQTT 3.1.1")
async def connect_311(street: Street) -> str:
    return await answered(street, V311)


@row("CONNECT of MQTT 5.0")
async def connect_5(street: Street) -> str:
    return await answered(street, V5)


@row("CONNECT of a device that the broker has no user for")
async def connect_unknown(street: Street) -> str:
    return await answered(street, V311, is_known=False)


async def answered(street: Street, version: int, *, is_known: bool = True) -> str:
    code = await street.answer(await street.certificate(is_known=is_known), version)
    if not code:
        return "served"
    [reason] = [name for name in street.stats if name.startswith("mqtt.connect.")]
    return f"0x{code:02X} (`{reason.removeprefix('mqtt.connect.')}`)"


@row("QoS 0 and 1, both ways")
async def qos_0_and_1(street: Street) -> str:
    name, device, backend = await street.pair()
    assert await device.subscribe(f"devices/{name}/down/#") == [1]
    for qos in (0, 1):
        await device.publish(f"devices/{name}/up/t", b"%d" % qos, qos)
        assert await backend.message() == (f"devices/{name}/up/t", b"%d" % qos)
        await backend.publish(f"devices/{name}/down/t", b"%d" % qos, qos)
        assert await device.message() == (f"devices/{name}/down/t", b"%d" % qos)
    return "delivered"


@row("PUBLISH of QoS 2")
async def publish_qos_2(street: Street) -> str:
    name, device, backend = await street.pair()
    device.client.publish(f"devices/{name}/up/t", b"2", 2)
    done, _ = await first_of(device.got(device.pubacks), device.got(device.disconnected))
    if done:
        await street.count("broker-lost")
        return "the session closes (`broker-lost`)"
    assert (await backend.message())[1] == b"2"
    return "delivered"


async def first_of(*waits: Awaitable[object]) -> tuple[int, object]:
    """Which of `waits` was first, and with what."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    [first, *_] = [number for number, task in enumerate(tasks) if task.done()]
    for task in tasks:
        task.cancel()
    return first, tasks[first].result()


@row("SUBSCRIBE with QoS 2")
async def subscribe_qos_2(street: Street) -> str:
    name, device, _ = await street.pair()
    [granted] = await device.subscribe(f"devices/{name}/down/#", qos=2)
    return f"granted QoS {granted}"


@row("what the model denies")
async def denied(street: Street) -> str:
    name, device, backend = await street.pair()
    other = await street.backend("devices/other/#", f"devices/{name}/#")
    assert await device.subscribe("#", "devices/other/down/#") == [0x80, 0x80]
    await device.publish("devices/other/up/t", b"forged")
    await device.publish(f"devices/{name}/up/t", b"own")
    assert await other.message() == await backend.message() == (f"devices/{name}/up/t", b"own")
    return "refused"


@row("a level `*` or `>` in a filter")
async def wildcards(street: Street) -> str:
    name, device, backend = await street.pair()
    assert await device.subscribe("news/>", "news/*", f"devices/{name}/down/#") == [1, 1, 1]
    for topic in ("news/a/b", "news/c", f"devices/{name}/down/last"):
        await backend.publish(topic, topic.encode())
    arrived = set()
    while f"devices/{name}/down/last" not in arrived:
        arrived.add((await device.message())[0])
    assert "news/a/b" not in arrived, "what the model does not allow"
    return "a wildcard, within what the model allows" if "news/c" in arrived else "is itself"


@row("a dot in a topic")
async def dots(street: Street) -> str:
    name, device, backend = await street.pair()
    device.client.publish(f"devices/{name}/up/a.b", b"dot", 1)
    which, _ = await first_of(device.got(device.pubacks), device.got(device.disconnected))
    if which:
        return "the session closes (`broker-lost`)"
    topic, _ = await backend.message()
    return {f"devices/{name}/up/a.b": "is itself", f"devices/{name}/up/a/b": "becomes a slash"}[topic]


@row("retained message, by its topic")
async def retained(street: Street) -> str:
    name, device, _ = await street.pair()
    await device.publish(f"devices/{name}/up/r", b"kept", retain=True)
    return await is_kept(street, name, f"devices/{name}/up/r")


@row("retained message, by a wildcard")
async def retained_by_wildcard(street: Street) -> str:
    name, device, _ = await street.pair()
    await device.publish(f"devices/{name}/up/r", b"kept", retain=True)
    return await is_kept(street, name, f"devices/{name}/up/+")


async def is_kept(street: Street, name: str, topic_filter: str) -> str:
    backend = await street.backend(topic_filter)
    await backend.subscribe(f"devices/{name}/end")
    await backend.publish(f"devices/{name}/end", b"end")
    return "delivered" if (await backend.message())[1] == b"kept" else "not delivered"


@row("will of a connection that is lost")
async def will(street: Street) -> str:
    held = await street.certificate()
    backend = await street.backend(f"devices/{held.holder}/up/#")
    device = await street.device(held, will=f"devices/{held.holder}/up/will")
    device.vanish()
    assert await backend.message() == (f"devices/{held.holder}/up/will", b"gone")
    return "published"


@row("will of a device that is revoked")
async def will_of_revoked(street: Street) -> str:
    held = await street.certificate()
    backend = await street.backend(f"devices/{held.holder}/up/#")
    device = await street.device(held, will=f"devices/{held.holder}/up/will")
    await revoke(street, held)
    await device.got(device.disconnected)
    await until(lambda: not street.harness.gateway.sessions)
    await backend.publish(f"devices/{held.holder}/up/end", b"end")
    return "not published" if (await backend.message())[1] == b"end" else "published"


async def revoke(street: Street, held: Credential) -> None:
    await revocation.revoke(street.harness.registry, held.holder, act=Act("operator", now()))


@row("messages for a device that is away")
async def away(street: Street) -> str:
    held = await street.certificate()
    device = await street.device(held, clean=False)
    await device.subscribe(f"devices/{held.holder}/down/#")
    await device.close()
    backend = await street.backend()
    await backend.publish(f"devices/{held.holder}/down/t", b"kept")
    again = await street.device(held, clean=False)
    assert await again.message() == (f"devices/{held.holder}/down/t", b"kept")
    return "wait for it"


@row("the same once it is revoked")
async def purged(street: Street) -> str:
    held = await street.certificate()
    device = await street.device(held, clean=False)
    await device.subscribe(f"devices/{held.holder}/down/#")
    await device.close()
    backend = await street.backend()
    await backend.publish(f"devices/{held.holder}/down/t", b"kept")
    assert await purge_session(street.upstream, fixture_device(held.holder))
    again = await street.device(held, clean=False)
    await again.subscribe(f"devices/{held.holder}/down/#")
    await backend.publish(f"devices/{held.holder}/down/t", b"new")
    return "are purged" if (await again.message())[1] == b"new" else "are kept"


@row("a second connection of a device")
async def takeover(street: Street) -> str:
    held = await street.certificate()
    first = await street.device(held)
    second = await street.device(held)
    await first.got(first.disconnected)
    await second.publish(f"devices/{held.holder}/up/t", b"x")
    return "takes the session over"


@row("`$share/GROUP/FILTER`")
async def shared(street: Street) -> str:
    devices = [await street.device(await street.certificate()) for _ in range(2)]
    for device in devices:
        assert await device.subscribe("$share/g/news/s", "news/end") == [1, 1]
    backend = await street.backend()
    for number in range(10):
        await backend.publish("news/s", b"%d" % number)
    await backend.publish("news/end", b"end")
    arrived = []
    for device in devices:
        while (found := (await device.message())[1]) != b"end":
            arrived.append(found)
    if not arrived:
        return "granted, and nothing arrives"
    assert sorted(arrived) == [b"%d" % number for number in range(10)]
    return "each message to one of the group"


@row("payload of 1 MiB")
async def payload_1(street: Street) -> str:
    return await payload(street, 1)


@row("payload of 4 MiB")
async def payload_4(street: Street) -> str:
    return await payload(street, 4)


async def payload(street: Street, size_mib: int) -> str:
    name, device, backend = await street.pair()
    body = bytes(size_mib << 20)
    device.client.publish(f"devices/{name}/up/blob", body, 1)
    which, _ = await first_of(device.got(device.pubacks), device.got(device.disconnected))
    if which:
        await street.count("broker-lost")
        return "the session closes (`broker-lost`)"
    assert (await backend.message())[1] == body
    return "delivered"


@row("revocation")
async def revoked(street: Street) -> str:
    held, other = await street.certificate(), await street.certificate()
    device, remaining = await street.device(held), await street.device(other)
    await revoke(street, held)
    await device.got(device.disconnected)
    assert await street.answer(held) == 5
    await remaining.publish(f"devices/{other.holder}/up/t", b"x")
    return "ends the session"


@row("the broker stops, and is back")
async def restart(street: Street) -> str:
    held = await street.certificate()
    device = await street.device(held)
    await asyncio.to_thread(street.broker.stop)
    await device.got(device.disconnected)
    assert await street.answer(held) == 3
    await asyncio.to_thread(street.broker.start)
    again = await returned(street, held)
    await again.subscribe(f"devices/{held.holder}/down/#")
    backend = await street.backend()
    await backend.publish(f"devices/{held.holder}/down/t", b"back")
    assert await again.message() == (f"devices/{held.holder}/down/t", b"back")
    return "sessions close; 0x03 meanwhile; then served"


async def returned(street: Street, held: Credential) -> Paho:
    """The device, once the broker serves it again."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        client = await street.client(held)
        if await client.connect("127.0.0.1", await street.harness.door(held)) == 0:
            return client
        assert time.monotonic() < end
