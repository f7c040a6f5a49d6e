"""What the tests of the gateway stand on: a registry with devices, a broker, doors, and a client that can misbehave.

A door is a plain TCP port behind which the TLS handshake has already proved one peer: the gateway never sees TLS
itself. test_gateway_tls.py goes through the real one.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fleet.domain.changes import AuditEntry, Change, Event
from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.model_rules import ModelRules
from fleet.domain.peer import Peer
from fleet.domain.writes import AddCredential, Insert, SetModel, Write
from fleet.servers.gateway import Gateway, GatewayOptions
from fleet.servers.gateway.broker.header_first import Factory
from fleet.servers.gateway.broker.upstream import UpstreamAccess
from fleet.servers.gateway.close_reasons import CloseReason
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType
from fleet.wire.mqtt.connect import Connack, Connect, Will, decode_connack, encode_connect
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.reader import Packet, PacketReader
from tests.waiting import PATIENCE_SECONDS

MODEL = Model(
    "cam2", publish=("devices/{id}/up/#", "all/{model}"), subscribe=("devices/{id}/down/#", "news/+"), retain=True
)


def now() -> datetime:
    return datetime.now(UTC)


def credential(
    holder: str, state: CredentialState = CredentialState.ACTIVE, ends: datetime | None = None
) -> Credential:
    der = os.urandom(32)
    return Credential(
        fingerprint=hashlib.sha256(der).digest(),
        serial=f"{int.from_bytes(os.urandom(20)):x}",
        kind=CredentialKind.DEVICE,
        holder=holder,
        key_sha256=os.urandom(32),
        not_before=now() - timedelta(days=1),
        not_after=ends or now() + timedelta(days=30),
        state=state,
        issued_at=now() - timedelta(hours=1),
        der=der,
        grant="certificate 5d",
    )


def device(name: str, state: DeviceState = DeviceState.ACTIVE) -> Device:
    return Device(DeviceId(name), MODEL.name, state, now())


def peer_of(held: Credential) -> Peer:
    return Peer("127.0.0.1", certificate_der=held.der, fingerprint=held.fingerprint)


def operator(action: str) -> AuditEntry:
    return AuditEntry(now(), "operator", action, "test", "ok")


async def populate(registry: SqliteRegistry, *names: str, state: DeviceState = DeviceState.ACTIVE) -> list[Credential]:
    """A certificate in use for each of `names`, all of MODEL."""
    held = [credential(name) for name in names]
    writes: list[Write] = [] if await registry.model(MODEL.name) else [Insert(MODEL)]
    writes += [Insert(device(name, state)) for name in names]
    writes += [AddCredential(one) for one in held]
    await registry.commit(Change(operator("populate"), tuple(writes)))
    return held


@dataclass
class FakeBroker:
    """An Upstream that accepts everybody, keeps what it was sent, and says what a test makes it say."""

    speaks_v5: bool = True
    is_ours: bool = False
    access = UpstreamAccess()
    sessions: "asyncio.Queue[BrokerSide]" = field(default_factory=asyncio.Queue)
    models: list[Model] = field(default_factory=list)
    hurdle: asyncio.Event | None = None
    """When set, connections wait for it."""
    error: OSError | None = None

    async def connect(self, factory: Factory, header: bytes = b"") -> None:
        if self.hurdle is not None:
            await self.hurdle.wait()
        if self.error is not None:
            raise self.error
        server_end = BrokerSide()
        ready = asyncio.Event()
        server = await asyncio.get_running_loop().create_server(lambda: server_end, "127.0.0.1", 0)
        server_end.made = ready
        await asyncio.get_running_loop().create_connection(factory, *server.sockets[0].getsockname()[:2])
        await ready.wait()
        server.close()
        self.sessions.put_nowait(server_end)

    async def set_models(self, models: Sequence[Model]) -> None:
        self.models = list(models)

    @property
    def address(self) -> str:
        return "unix:fake"

    def describe(self) -> str:
        return "a fake"

    async def close(self) -> None:
        pass


class Wire(asyncio.Protocol):
    """One end of a connection, with everything that came in, raw and as packets."""

    def __init__(self) -> None:
        self.made: asyncio.Event | None = None
        self.raw = bytearray()
        self.packets: asyncio.Queue[Packet | None] = asyncio.Queue()
        self.closed = asyncio.Event()
        self.transport: asyncio.Transport
        self._reader = PacketReader()
        self._grown = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.made is not None:
            self.made.set()

    def data_received(self, data: bytes) -> None:
        self.raw += data
        self._grown.set()
        for packet in self._reader.feed(data):
            self.packets.put_nowait(packet)

    def connection_lost(self, exc: Exception | None) -> None:
        self.packets.put_nowait(None)
        self.closed.set()
        self._grown.set()

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    async def packet(self) -> Packet:
        """The next one. Fails when the connection ends instead."""
        found = await asyncio.wait_for(self.packets.get(), PATIENCE_SECONDS)
        assert found is not None, "the connection was closed"
        return found

    async def until_closed(self) -> list[Packet]:
        """The packets that still came before the end."""
        await asyncio.wait_for(self.closed.wait(), PATIENCE_SECONDS)
        left = []
        while (packet := self.packets.get_nowait()) is not None:
            left.append(packet)
        return left

    async def received(self, size: int) -> bytes:
        """Everything that has come so far, once that is at least `size` bytes."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.raw) < size:
                assert not self.closed.is_set(), "the connection was closed"
                self._grown.clear()
                await self._grown.wait()
        return bytes(self.raw)


class BrokerSide(Wire):
    """The broker's end of one session."""


class Bell(logging.Handler):
    """Rings for every line."""

    def __init__(self, event: asyncio.Event) -> None:
        super().__init__()
        self._event = event

    def emit(self, record: logging.LogRecord) -> None:
        self._event.set()


@dataclass
class GatewayHarness:
    """One gateway with what is around it."""

    registry: SqliteRegistry
    gateway: Gateway
    broker: FakeBroker
    run: "asyncio.Task[None]"
    noted: asyncio.Event
    """Set with every line that the gateway logs: each thing that it counts is one."""
    servers: list[asyncio.Server] = field(default_factory=list)

    async def door(self, peer: Peer | Credential) -> int:
        """The port behind which TLS has proved `peer`."""
        proved = peer_of(peer) if isinstance(peer, Credential) else peer
        server = await asyncio.get_running_loop().create_server(lambda: self.gateway.protocol(proved), "127.0.0.1", 0)
        self.servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def dial(self, peer: Peer | Credential) -> Wire:
        """A connection on which nothing has been said."""
        _, wire = await asyncio.get_running_loop().create_connection(Wire, "127.0.0.1", await self.door(peer))
        return wire

    async def connect(
        self, held: Credential, version: int = V311, *, will: Will | None = None, client_id: str | None = None
    ) -> tuple[Wire, Connack]:
        """Dial, CONNECT and the answer to it."""
        wire = await self.dial(held)
        wire.send(encode_connect(Connect(version, client_id or held.holder, will=will)))
        packet = await wire.packet()
        assert packet.type is PacketType.CONNACK
        return wire, decode_connack(packet.body, version)

    async def live(self, held: Credential, version: int = V311, **more: Will | None) -> tuple[Wire, BrokerSide]:
        """Both ends of a session behind the FakeBroker, past CONNACK."""
        wire = await self.dial(held)
        wire.send(encode_connect(Connect(version, held.holder, will=more.get("will"))))
        side = await asyncio.wait_for(self.broker.sessions.get(), PATIENCE_SECONDS)
        assert (await side.packet()).type is PacketType.CONNECT
        side.raw.clear()
        side.send(b"\x20\x03\x00\x00\x00" if version == 5 else b"\x20\x02\x00\x00")
        connack = await wire.packet()
        assert connack.type is PacketType.CONNACK
        assert decode_connack(connack.body, version).code == 0
        wire.raw.clear()
        return wire, side

    async def set_model(self, **changes: tuple[str, ...] | int | ModelRules) -> None:
        model = replace(MODEL, **changes)
        event = Event("model.changed", MODEL.name)
        await self.registry.commit(Change(operator("model.set"), (SetModel(model),), (event,)))

    async def count(self, counter: str, at_least: int = 1) -> None:
        """Returns when `counter` has got there."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.gateway.stats.get(counter, 0) < at_least:
                self.noted.clear()
                await self.noted.wait()


@asynccontextmanager
async def open_gateway(
    path: Path,
    upstream: object | None = None,
    *,
    clock: Callable[[], datetime] = now,
    registry: SqliteRegistry | None = None,
    **options: Any,
) -> AsyncIterator[GatewayHarness]:
    """A running gateway with these GatewayOptions on `upstream`, a FakeBroker when it is None."""
    own = registry or await SqliteRegistry.open(path / "registry.db")
    broker = upstream if upstream is not None else FakeBroker()
    gateway = Gateway(own, broker, clock=clock, options=GatewayOptions(**options))  # type: ignore[arg-type]
    run = asyncio.create_task(gateway.run())
    await asyncio.wait_for(gateway.following(), PATIENCE_SECONDS)
    built = GatewayHarness(own, gateway, broker, run, asyncio.Event())  # type: ignore[arg-type]
    bell = Bell(built.noted)
    logger = logging.getLogger("fleet.gateway")
    logger.setLevel(logging.INFO)
    logger.addHandler(bell)
    try:
        yield built
    finally:
        logger.removeHandler(bell)
        for server in built.servers:
            server.close()
        await gateway.close()
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        await own.close()


async def refused(wire: Wire, version: int) -> int:
    """The code of the CONNACK that is the last thing to come."""
    (packet,) = await wire.until_closed()
    assert packet.type is PacketType.CONNACK
    return decode_connack(packet.body, version).code


def last_words(reason: CloseReason) -> bytes:
    """The DISCONNECT that a 5.0 device gets for `reason`."""
    assert reason.disconnect is not None
    assert reason.text
    return acks.disconnect(V5, reason.disconnect, reason.text)


def up(device: str, payload: bytes = b"x", version: int = V311, qos: int = 0) -> bytes:
    """A PUBLISH that the device may send."""
    return encode_publish(Publish(f"devices/{device}/up/t", payload, qos, 1 if qos else 0), version)
