"""A registry behind a local listener that others ask about devices: forward authentication, broker authentication."""

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from fleet.config.addresses import parse_local_address
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.credential import Credential, CredentialState
from fleet.domain.device import DeviceState, Model
from fleet.domain.writes import AddCredential, Insert
from fleet.runtime.local_listener import LocalListener, bound
from fleet.servers.delegated_auth import AuthContext
from fleet.servers.http import HttpServer
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.servers.gateway_fixtures import MODEL, credential, device, operator


def certificate(name: str) -> bytes:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime(2026, 3, 1, tzinfo=UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def held(name: str, state: CredentialState = CredentialState.ACTIVE) -> Credential:
    der = certificate(name)
    return replace(credential(name, state), der=der, fingerprint=hashlib.sha256(der).digest())


@dataclass
class AuthHouse:
    """A served registry; `ours` are the certificates that our CA signed."""

    registry: SqliteRegistry
    server: HttpServer
    path: Path
    ours: set[bytes] = field(default_factory=set)
    feed: bool = True

    async def enroll(self, name: str, model: Model = MODEL, state: DeviceState = DeviceState.ACTIVE) -> Credential:
        one = held(name)
        added = [] if await self.registry.model(model.name) else [Insert(model)]
        owner = replace(device(name, state), model=model.name, hardware_serial=f"SN {name}")
        await self.registry.commit(Change(operator("add"), (*added, Insert(owner), AddCredential(one))))
        self.ours.add(one.der)
        return one

    async def audited(self, action: str) -> list[AuditEntry]:
        return [row.entry for row in await self.registry.audit() if row.entry.action == action]


H = TypeVar("H", bound=AuthHouse)


@asynccontextmanager
async def opened_as(house_class: type[H], build: Callable[[AuthContext], HttpServer], folder: Path) -> AsyncIterator[H]:
    registry = await SqliteRegistry.open(folder / "registry.db")
    house: H | None = None

    def tenant_of(der: bytes) -> str | None:
        return "" if house is not None and der in house.ours else None

    server = build(AuthContext(registry, tenant_of, lambda: house is None or house.feed, lambda: datetime.now(UTC)))
    listener = LocalListener(server)
    with bound("local", parse_local_address("unix:auth.sock"), folder) as taken:
        assert taken is not None
        await listener.open(taken)
        house = house_class(registry, server, folder / "auth.sock")
        try:
            yield house
        finally:
            listener.close()
            await server.shutdown(1.0)
            await registry.close()
