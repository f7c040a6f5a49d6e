"""An admin server with something of everything in it, and clients of every kind to call its admin API."""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.domain.access import Act, Role
from fleet.domain.approval import DEFAULT_WAITING, ApprovalRequest, request_id
from fleet.domain.changes import AuditEntry, Change, Event, EventKind
from fleet.domain.device import DeviceId
from fleet.domain.writes import AddRequest
from fleet.services.operators import revoke_operator
from tests.servers.est_fixtures import Answer, EstHarness, Identity, KeptAlive, Key, csr_for, open_est

LIFE = timedelta(minutes=5)


class Client:
    """Calls the admin API as one holder, on one connection."""

    def __init__(self, est: EstHarness, identity: Identity | None) -> None:
        self._connection = KeptAlive(est, identity, "admin")

    async def send(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """`body`: bytes as they are, anything else as JSON."""
        given = dict(headers or {})
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if raw and "Content-Type" not in given:
            given["Content-Type"] = "application/json"
        return await self._connection.send(method, path, raw, given)

    async def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of the answer."""
        answer = await self.send(method, path, body, headers)
        return answer.status, json.loads(answer.body or b"null")

    async def get(self, path: str) -> Any:
        """The JSON at `path`, which must be there."""
        status, value = await self.ask("GET", path)
        assert status == 200, value
        return value

    def close(self) -> None:
        self._connection.close()


def csr_text(name: str, key: Key | None = None) -> str:
    """A certificate request for `name`, PEM."""
    return x509.load_der_x509_csr(csr_for(name, key)).public_bytes(Encoding.PEM).decode()


@dataclass
class AdminHarness:
    """Models cam and pump; devices cam-1 (enrolled), cam-2, pump-1; stations line-1 (cam), line-2 (pump);
    claims lot-1 (cam), lot-2 (pump).
    """

    est: EstHarness
    device: Identity
    station: Identity
    clients: dict[str, Client]

    def client(self, identity: Identity | None) -> Client:
        made = Client(self.est, identity)
        self.clients[f"{len(self.clients)}"] = made
        return made

    async def operator(self, name: str, role: Role = Role.ADMIN, models: tuple[str, ...] = ()) -> Client:
        return self.client(await self.est.operator(name, role, models))

    async def waiting(self, device: str = "new-1", key: str = "k1", model: str = "cam") -> ApprovalRequest:
        """A request that waits for an operator."""
        now, key_sha256 = self.est.clock(), hashlib.sha256(key.encode()).digest()
        asked = ApprovalRequest(
            id=request_id(device, key_sha256),
            device_id=DeviceId(device),
            model=model,
            key_sha256=key_sha256,
            key_type="EC-P256",
            facts=f"CN={device}",
            address="192.0.2.1",
            network="192.0.2.1",
            first_seen=now,
            last_seen=now,
            expires_at=now + DEFAULT_WAITING.lifetime,
        )
        entry = AuditEntry(now, "nobody", "device.enroll", f"device {device}", "approval-pending")
        event = Event(EventKind.REQUEST_PENDING, asked.id, device)
        await self.est.registry.commit(Change(entry, (AddRequest(asked, DEFAULT_WAITING),), (event,)))
        return asked

    async def revoke(self, name: str) -> None:
        await revoke_operator(self.est.registry, name, act=Act("test", self.est.clock()))


@asynccontextmanager
async def open_admin(folder: Path, **options: Any) -> AsyncIterator[AdminHarness]:
    async with open_est(folder, **options) as est:
        device = await est.enrolled("cam-1", serial="SN 1")
        await est.device("cam-2")
        await est.device("pump-1", "pump")
        station = await est.station("line-1")
        await est.station("line-2", ("pump",))
        await est.claim("lot-1", "cam")
        await est.claim("lot-2", "pump")
        opened = AdminHarness(est, device, station, {})
        try:
            yield opened
        finally:
            for client in opened.clients.values():
                client.close()
