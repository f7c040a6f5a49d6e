"""Approvals under kill -9: what is approved is issued exactly once, to the key that asked, whatever dies meanwhile."""

import asyncio
import contextlib
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.domain.access import Act
from fleet.domain.approval import RequestFilter, RequestState
from fleet.domain.credential import Credential
from fleet.domain.errors import Conflict, Unavailable
from fleet.home.layout import open_registry
from fleet.services import approvals
from fleet.wire.csr import build_csr
from fleet.wire.est import decode_body, decode_certs_only, encode_body
from hw_bench.peers import postgres
from hw_bench.peers.engine import Engine, engine_of
from hw_bench.peers.home import MODEL, FleetHome
from hw_bench.peers.killable_server import KillableServer
from hw_bench.processes import pick_cores
from tests.tiers import Tier

SECONDS_MAX = 120.0
SEED = 20261127
ENGINE_SHARE = 0.3  # of the kills, where the registry has processes of its own


class Asking:
    """One device that asks with one key until it holds a certificate."""

    def __init__(self, name: str, port: int, ca_file: Path) -> None:
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.answers: Counter[int] = Counter()
        self.certificate: x509.Certificate | None = None
        self._body = encode_body(build_csr(self.key, (("2.5.4.3", name),), ()))
        self._url = f"https://localhost:{port}/.well-known/est/{MODEL}/simpleenroll"
        self._context = ssl.create_default_context(cafile=str(ca_file))
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._live)
        self.thread.start()

    def _live(self) -> None:
        while self.certificate is None and not self.stopping.is_set():
            asked = urllib.request.Request(self._url, self._body, {"Content-Type": "application/pkcs10"})
            try:
                with urllib.request.urlopen(asked, timeout=10, context=self._context) as answer:
                    self.answers[answer.status] += 1
                    body = answer.read()
                    if answer.status == 200:
                        (self.certificate,) = decode_certs_only(decode_body(body))
            except urllib.error.HTTPError as error:
                self.answers[error.code] += 1
            except OSError:
                self.answers[0] += 1  # nobody was there, or died in the midst of it
            self.stopping.wait(0.05)


def approved_some(home: FleetHome, count: int) -> bool:
    """As `approve_some`; whether the database is there, which may have been killed."""
    try:
        asyncio.run(approve_some(home, count))
    except Unavailable:
        return False
    return True


async def approve_some(home: FleetHome, count: int) -> None:
    """Say yes to so many of those that wait."""
    registry = await open_registry(home.files)
    now = datetime.now(UTC)
    try:
        for request in await registry.requests(RequestFilter(state=RequestState.PENDING), now=now, limit=count):
            with contextlib.suppress(Conflict):
                await approvals.approve(registry, request.id, act=Act("operator", now))
    finally:
        await registry.close()


async def held(home: FleetHome, count: int) -> tuple[list[Credential], dict[str, RequestState], list[str]]:
    """Certificates, requests by id, and the fingerprints that the events tell of."""
    registry = await open_registry(home.files)
    try:
        found = [c for n in range(count) for c in await registry.credentials(f"new-{n}")]
        requests = {r.id: r.state for r in await registry.requests(now=datetime.now(UTC))}
        told = [e.detail for e in await registry.events() if e.kind == "credential.issued"]
        return found, requests, told
    finally:
        await registry.close()


def kill_one(engine: Engine, serve: KillableServer, chance: random.Random) -> bool:
    if chance.random() < ENGINE_SHARE and engine.kill_one(chance):
        return True
    return serve.kill_worker(chance)


@pytest.mark.parametrize(
    "database",
    [
        "sqlite",
        pytest.param(
            "postgres",
            marks=pytest.mark.skipif(postgres.missing() is not None, reason="postgresql: not installed"),
        ),
    ],
)
def test_what_is_approved_is_issued_once(tmp_path: Path, database: str, tier: Tier) -> None:
    chance = random.Random(SEED)
    with contextlib.ExitStack() as stack:
        engine = engine_of(database)
        stack.callback(engine.stop)
        engine.start()
        load = Load(devices=tier.times(12, all=24), kills=tier.times(5, all=10))
        _hold(engine, engine.home(tmp_path / "home"), tmp_path, chance, load)


@dataclass(frozen=True)
class Load:
    devices: int
    kills: int


def _hold(engine: Engine, home: FleetHome, folder: Path, chance: random.Random, load: Load) -> None:
    home.fleet("model", "set", MODEL, "--admit", "approval")
    devices: list[Asking] = []
    with KillableServer(home, folder, 2, pick_cores().all) as serve:
        try:
            devices += [Asking(f"new-{n}", serve.est[1], home.files.root_certificate) for n in range(load.devices)]
            deadline, kills, certified = time.monotonic() + SECONDS_MAX, 0, 0
            while kills < load.kills or certified < load.devices:
                assert time.monotonic() < deadline, (kills, [(d.name, d.answers) for d in devices])
                # A database that is killed while it recovers does not come back by itself.
                is_there = approved_some(home, chance.randint(0, 3))
                certified = sum(device.certificate is not None for device in devices)
                time.sleep(chance.uniform(0, 0.05))
                if kills < load.kills and is_there and kill_one(engine, serve, chance):
                    kills += 1
        finally:
            for device in devices:
                device.stopping.set()
            for device in devices:
                device.thread.join()
        assert serve.stop() == 0
    issued, requests, told = asyncio.run(held(home, load.devices))
    assert Counter(requests.values()) == {RequestState.ISSUED: load.devices}
    assert Counter(c.grant for c in issued) == Counter(f"request {id_}" for id_ in requests)  # one each
    assert sorted(told) == sorted(c.fingerprint.hex() for c in issued)
    by_name = {c.holder: c for c in issued}
    for device in devices:
        assert device.certificate is not None
        assert device.certificate.public_bytes(Encoding.DER) == by_name[device.name].der
        spki = device.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert device.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki
        assert set(device.answers) <= {0, 200, 202, 503}
    assert sum(device.answers[202] for device in devices) >= load.devices
    home.fleet("audit", "verify")
