"""A served fleet in this process with tenants: a (under the fleet's root), b (under a root of its own)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.keys import generate_key, load_key
from fleet.config.addresses import Address
from fleet.config.settings import Settings
from fleet.domain.access import Act
from fleet.domain.device import Model
from fleet.domain.model_rules import ModelRules
from fleet.home.authorities import new_tenant, tenant_names
from fleet.home.creation import create_home
from fleet.home.layout import Home, certificate_in, open_registry
from fleet.home.pki import load_issuer, load_operators_issuer
from fleet.runtime.supervision import Alone
from fleet.runtime.worker import Worker, WorkerPlace, run_worker
from fleet.services import inventory
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.tls.listener import Listener
from fleet.wire.mqtt.codes import V5
from fleet.wire.mqtt.connect import Connect, decode_connack, encode_connect
from fleet.wire.mqtt.reader import PacketReader
from tests.servers.est_fixtures import EstHarness, Identity, basic, csr_for
from tests.servers.gateway_fixtures import BrokerSide, FakeBroker
from tests.waiting import PATIENCE_SECONDS

ANY = Address("127.0.0.1", 0)
MODELS = {"cam": "", "a-cam": "a", "a-pump": "a", "b-cam": "b"}


@dataclass(frozen=True)
class Door:
    port: int


@dataclass
class TenantsHarness(EstHarness):
    """The fleet `Fleet`, with a model for itself, two for tenant a and one for tenant b."""

    home: Home = field(default_factory=lambda: Home(Path()))
    worker: Worker | None = None
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def member(self, name: str, model: str, *, label: str = "") -> Identity:
        """A device of `model`, registered and enrolled over EST by a token of its own."""
        await self.device(name, model)
        return await self.joined(name, label=label)

    async def joined(self, name: str, *, label: str = "") -> Identity:
        key = generate_key()
        answer = await self.enroll(csr_for(name, key), basic(await self.token(name), name), label=label)
        assert answer.status == 200, answer.text
        return self.identity(answer.certificates[0], key)

    async def add_tenant(self, name: str, *, own_root: bool = False) -> None:
        with new_tenant(self.home, name, own_root=own_root, now=self.clock()):
            pass

    async def set_model(self, name: str, rules: ModelRules) -> None:
        old = await self.registry.model(name)
        assert old is not None
        new = Model(name, rules=rules, revision=old.revision)
        await inventory.set_model(self.registry, new, act=Act("test", self.clock()), tenants=tenant_names(self.home))

    async def connect_mqtt(self, identity: Identity, client_id: str) -> tuple[int, asyncio.StreamReader | None]:
        """The CONNACK's code, 0 for a welcome; and, then, the stream that stays open."""
        try:
            reader, writer = await self.connect(identity, "mqtt")
            self.writers.append(writer)  # it lives as long as the server
            writer.write(encode_connect(Connect(V5, client_id)))
            packets = PacketReader()
            async with asyncio.timeout(PATIENCE_SECONDS):
                while data := await reader.read(4096):
                    for packet in packets.feed(data):
                        code = decode_connack(bytes(packet.body), V5).code
                        return code, reader if code == 0 else None
        except OSError:  # refused in the handshake: TLS 1.3 tells at the first read
            pass
        return -1, None

    async def whoami(self, identity: Identity) -> int:
        try:
            return (await self.send("GET", "/v1/whoami", identity=identity, server="http")).status
        except OSError:
            return -1


class Welcoming(FakeBroker):
    """Accepts every session."""

    async def connect(self, factory, header=b"") -> None:  # type: ignore[no-untyped-def]
        await super().connect(factory, header)
        side: BrokerSide = await self.sessions.get()
        self.greeter = asyncio.create_task(_greet(side))


async def _greet(side: BrokerSide) -> None:
    await side.packet()
    side.send(bytes((0x20, 3, 0, 0, 0)))


@asynccontextmanager
async def open_tenants(folder: Path) -> AsyncIterator[TenantsHarness]:
    now = datetime.now(UTC)
    settings = Settings(name="Fleet", est=ANY, mqtt=ANY, http=ANY)
    home = await create_home(folder / "home", settings, now)
    for name in ("a", "b"):
        with new_tenant(home, name, own_root=name == "b", now=now):
            pass
    registry = await open_registry(home)
    try:
        for model, tenant in MODELS.items():
            rules = ModelRules(tenant=tenant)
            await inventory.add_model(registry, Model(model, rules=rules), act=Act("test", now), tenants={"a", "b"})
        tenants = TenantsHarness(
            registry=cast(SqliteRegistry, registry),
            issuer=load_issuer(home),
            root=(certificate_in(home.root_certificate), load_key(home.root_key)),
            issuing=(certificate_in(home.issuing_certificate), load_key(home.issuing_key)),
            folder=folder,
            operators_issuer=load_operators_issuer(home, now),
            home=home,
        )
        tenants.ca_file.write_bytes(tenants.root[0].public_bytes(Encoding.PEM))
        place = WorkerPlace(Alone(lambda: settings))
        async with run_worker(home, settings, registry, Welcoming(), clock=tenants.clock, place=place) as worker:
            tenants.worker = worker
            for door in ("est", "mqtt", "http"):
                port = urlsplit(getattr(worker.endpoints, door)).port
                tenants.listeners[door] = cast(Listener, Door(port or 0))
            yield tenants
    finally:
        await registry.close()


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)
