"""kill -9 of `fleet serve` in the midst of enrollments: every certificate that a client received is in the registry."""

import asyncio
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.domain.device import Place
from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import EstError
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.wire.csr import build_csr
from hw_bench.peers.home import disable_rate_limits
from tests.serving import Served, run_fleet, same_ports
from tests.tiers import Tier
from tests.waiting import PATIENCE_SECONDS

RECEIVED_BEFORE_A_KILL = 15
CLIENTS = 4


class Enrolling:
    """Clients that enroll one new device after the other until told to stop; they take refusals of connection."""

    def __init__(self, served: Served, token: str) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.kept_out = 0
        self.stopping = threading.Event()
        self._progress = threading.Condition()
        self._served, self._token = served, token
        self._threads = [threading.Thread(target=self._enroll, args=(n,)) for n in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _enroll(self, client: int) -> None:
        number = 0
        while not self.stopping.is_set():
            device = f"d-{client}-{number}"
            key = ec.generate_private_key(ec.SECP256R1())
            csr = build_csr(key, (("2.5.4.3", device),), ())
            try:
                policy = Policy(patience_seconds=0)
                est = EstClient(self._served.est, self._served.ca_file, basic=(device, self._token), policy=policy)
                certificate = est.simpleenroll(csr)
            except EstError:
                self.kept_out += 1
                self.stopping.wait(0.1)  # the server is being restarted; the number is tried once only
            else:
                with self._progress:
                    self.received.append((device, certificate.public_bytes(Encoding.DER)))
                    self._progress.notify_all()
            number += 1

    def wait_for(self, count: int) -> None:
        with self._progress:
            assert self._progress.wait_for(lambda: len(self.received) >= count, PATIENCE_SECONDS), len(self.received)

    def stop(self) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    home = tmp_path / "home"
    run_fleet(home, "init", str(home))
    disable_rate_limits(home / "fleet.toml")  # all load comes from one address
    serving = Served(home, tmp_path / "ready.json", same_ports()).start()
    yield serving
    serving.stop()


async def registry_of(home: Path) -> tuple[dict[str, set[bytes]], int]:
    """Fingerprints by device, and the number of credentials."""
    registry = await SqliteRegistry.open(home / "registry.db", create=False)
    try:
        found: dict[str, set[bytes]] = {}
        after = ""
        while page := await registry.devices(after=Place(after)):
            for device in page:
                found[device.id] = {c.fingerprint for c in await registry.credentials(device.id)}
            after = page[-1].id
        return found, sum(map(len, found.values()))
    finally:
        await registry.close()


def test_every_certificate_that_was_received_is_in_the_registry(served: Served, tier: Tier) -> None:
    token = run_fleet(served.home, "token", "create", "--model", "default", "--uses", "10000").strip()
    clients = Enrolling(served, token)
    try:
        for _ in range(tier.times(3, all=60)):
            clients.wait_for(len(clients.received) + RECEIVED_BEFORE_A_KILL)
            served.kill()
            served.start()
        clients.wait_for(len(clients.received) + RECEIVED_BEFORE_A_KILL)
    finally:
        clients.stop()
    assert served.stop() == 0

    known, issued = asyncio.run(registry_of(served.home))
    lost = [device for device, der in clients.received if hashlib.sha256(der).digest() not in known.get(device, set())]
    assert lost == []
    token_row = next(t for t in json.loads(run_fleet(served.home, "token", "list", "-o", "json")))
    assert int(token_row["uses"]) == issued >= len(clients.received)
    run_fleet(served.home, "audit", "verify")
    assert not list(served.home.glob("*.tmp"))
    shutil.rmtree(served.home)
