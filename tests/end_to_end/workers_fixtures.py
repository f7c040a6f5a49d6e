"""`fleet serve --workers 2`: its workers, and devices before them."""

import contextlib
import os
import re
import signal
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fleet.est_client.client import EstClient
from fleet.servers.gateway.broker.mosquitto import BACKEND, mosquitto_program
from fleet.wire.csr import build_csr
from fleet.wire.mqtt.codes import V5, V311
from hw_bench.cpu_time import process_tree
from tests.servers.paho_client import Paho
from tests.serving import ANY_PORTS, Served, run_fleet
from tests.waiting import until

TWO = (*ANY_PORTS, "--workers", "2")
TRIES_MAX = 60  # at a worker that the kernel's dice choose: 2^-60 is never
needs_mosquitto = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")


def worker_pids(served: Served) -> dict[str, int]:
    """Number -> pid, of those that listen now."""
    found = re.findall(r"event=worker\.ready worker=(\d+) pid=(\d+)", served.log)
    return {number: int(pid) for number, pid in found}


def tell(served: Served, worker: str, number: signal.Signals) -> None:
    """Send a worker a signal: it is no child of ours, but it must be one of the supervisor's."""
    pid = worker_pids(served)[worker]
    assert process_tree((served.process.pid,))[pid].parent == served.process.pid
    os.kill(pid, number)


@contextlib.asynccontextmanager
async def by_both(served: Served, event: str) -> AsyncIterator[None]:
    """Each of both workers has logged `event` at the end of the block: more than once, if it had more causes."""
    lines = [f"worker={number} event={event}" for number in (1, 2)]
    before = [served.log.count(line) for line in lines]
    yield
    await until(lambda: all(served.log.count(line) > count for line, count in zip(lines, before, strict=True)))


@dataclass(frozen=True, slots=True)
class Identity:
    name: str
    certificate: Path
    key: Path

    def context(self, served: Served) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=served.ca_file)
        context.load_cert_chain(self.certificate, self.key)
        return context


class Devices:
    """Devices of one model before a pair of workers; their connections end with the test."""

    def __init__(self, served: Served, folder: Path, stack: contextlib.AsyncExitStack, model: str = "default") -> None:
        self.served, self._folder, self._stack = served, folder, stack
        self._token = run_fleet(served.home, "token", "create", "--model", model, "--uses", "1000").strip()
        self.others: dict[str, Paho] = {}
        self._seen: dict[str, int] = {}

    def enroll(self, name: str) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        est = EstClient(self.served.est, self.served.ca_file, basic=(name, self._token))
        certificate = est.simpleenroll(build_csr(key, (("2.5.4.3", name),), ()))
        identity = Identity(name, self._folder / f"{name}.pem", self._folder / f"{name}.key")
        identity.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        identity.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return identity

    def client(self, identity: Identity, version: int) -> Paho:
        client = Paho(identity.name, version)
        client.client.tls_set_context(identity.context(self.served))
        self._stack.push_async_callback(client.close)
        return client

    async def connect(self, identity: Identity, version: int, will: str = "") -> tuple[Paho, str]:
        """A live session, and the number of the worker that holds it."""
        before = len(self.sessions_of(identity.name))
        client = self.client(identity, version)
        if will:
            client.client.will_set(will, b"gone", 1)
        assert await client.connect(*self.served.address("mqtt")) == 0
        await until(lambda: len(self.sessions_of(identity.name)) > before)
        return client, self.sessions_of(identity.name)[-1]

    async def beside(self, identity: Identity, client_id: str, listener: str = "mqtt") -> tuple[int, str]:
        """A session of another client id, which outlives its connection: the answer to it, and the worker."""
        transport = "websockets" if listener == "wss" else "tcp"
        client = Paho(client_id, V5, clean=False, transport=transport)
        client.client.tls_set_context(identity.context(self.served))
        self._stack.push_async_callback(client.close)
        self.others[client_id] = client
        code = await client.connect(*self.served.address(listener))
        found = rf"worker=(\d+) event=mqtt\.connect device={identity.name} .*client_id={client_id} .* code=(\S+)"
        seen = self._seen.setdefault(client_id, 0)
        await until(lambda: len(re.findall(found, self.served.log)) > seen)
        worker, _ = re.findall(found, self.served.log)[seen]
        self._seen[client_id] += 1
        return code, worker

    def sessions_of(self, name: str) -> list[str]:
        """The worker of each session that the device ever had, in order."""
        return re.findall(rf"worker=(\d+) event=mqtt\.connect device={name} .* code=ok", self.served.log)

    def ended(self, name: str) -> int:
        return len(re.findall(rf"event=mqtt\.session device={name} ", self.served.log))

    async def backend(self, *filters: str) -> Paho:
        client = Paho(f"backend of {' '.join(filters)}", V311, transport="unix")
        client.client.username_pw_set(BACKEND)
        assert await client.connect_unix(self.served.home / "run" / "broker.sock") == 0
        self._stack.push_async_callback(client.close)
        await client.subscribe(*filters)
        return client
