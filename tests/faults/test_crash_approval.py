"""Approvals under kill -9: what is approved is issued exactly once, to the key that asked, whatever dies meanwhile."""

import asyncio
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.domain.access import Act
from fleet.domain.approval import RequestFilter, RequestState
from fleet.domain.credential import Credential
from fleet.domain.errors import Conflict
from fleet.home import open_registry
from fleet.services import approvals
from fleet.wire.csr import build_csr
from fleet.wire.est import decode_body, decode_certs_only, encode_body
from hw_bench.peers.home import MODEL, FleetHome
from hw_bench.peers.mortal import MortalServe
from hw_bench.processes import pick_cores

DEVICES = 24
KILLS = 15
SECONDS_MAX = 120.0
SEED = 20261127


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
            time.sleep(0.05)


async def approve_some(home: FleetHome, count: int) -> int:
    """Say yes to so many of those that wait; how many it was."""
    registry = await open_registry(home.files)
    now, done = datetime.now(UTC), 0
    try:
        for request in await registry.requests(RequestFilter(state=RequestState.PENDING), now=now, limit=count):
            try:
                await approvals.approve(registry, request.id, act=Act("operator", now))
                done += 1
            except Conflict:
                pass
    finally:
        await registry.close()
    return done


async def held(home: FleetHome) -> tuple[list[Credential], dict[str, RequestState], list[str]]:
    """Certificates, requests by id, and the fingerprints that the events tell of."""
    registry = await open_registry(home.files)
    try:
        found = [c for n in range(DEVICES) for c in await registry.credentials(f"new-{n}")]
        requests = {r.id: r.state for r in await registry.requests(now=datetime.now(UTC))}
        told = [e.detail for e in await registry.events() if e.kind == "credential.issued"]
        return found, requests, told
    finally:
        await registry.close()


def test_what_is_approved_is_issued_once(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    home = FleetHome(tmp_path / "home")
    home.fleet("init", str(home.path))
    home.fleet("model", "set", MODEL, "--admit", "approval")
    devices: list[Asking] = []
    with MortalServe(home, tmp_path, 2, pick_cores().all) as serve:
        try:
            devices += [Asking(f"new-{n}", serve.est[1], home.files.root_certificate) for n in range(DEVICES)]
            deadline, kills, approved = time.monotonic() + SECONDS_MAX, 0, 0
            while kills < KILLS or approved < DEVICES:
                assert time.monotonic() < deadline, (kills, approved)
                approved += asyncio.run(approve_some(home, chance.randint(0, 3)))
                time.sleep(chance.uniform(0, 0.05))
                if kills < KILLS and serve.kill_worker(chance):
                    kills += 1
            while any(device.certificate is None for device in devices):
                assert time.monotonic() < deadline, [(d.name, d.answers) for d in devices if d.certificate is None]
                time.sleep(0.05)
        finally:
            for device in devices:
                device.stopping.set()
            for device in devices:
                device.thread.join()
        assert serve.stop() == 0
    issued, requests, told = asyncio.run(held(home))
    assert Counter(requests.values()) == {RequestState.ISSUED: DEVICES}
    assert Counter(c.grant for c in issued) == Counter(f"request {id_}" for id_ in requests)  # one each
    assert sorted(told) == sorted(c.fingerprint.hex() for c in issued)
    by_name = {c.holder: c for c in issued}
    for device in devices:
        assert device.certificate is not None
        assert device.certificate.public_bytes(Encoding.DER) == by_name[device.name].der
        spki = device.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert device.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki
        assert set(device.answers) <= {0, 200, 202, 503}
    assert sum(device.answers[202] for device in devices) >= DEVICES
    home.fleet("audit", "verify")
