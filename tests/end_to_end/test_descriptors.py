"""A served fleet that may open few files: sessions stay, and newcomers get the place of those who are silent."""

import contextlib
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.keys import generate_key, write_key
from fleet.domain.issuance_context import COMMON_NAME
from fleet.est_client.client import EstClient
from fleet.wire.csr import build_csr
from fleet.wire.mqtt.codes import V311
from fleet.wire.mqtt.connect import Connect, encode_connect
from tests import serving
from tests.forks import executed
from tests.serving import Served, program, run_fleet
from tests.waiting import PATIENCE_SECONDS, wait_until

FILES = 512  # of which 128 are left for connections
PING, PONG = b"\xc0\x00", b"\xd0\x00"


@pytest.fixture
def few_files(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The number of files that programs started from here may open."""

    def limit(files: int) -> None:
        lower = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (min(files, 256), files))
        monkeypatch.setattr(serving, "Forked", partial(executed, preexec_fn=lower))

    return limit


class Device:
    """An enrolled device and its MQTT connection."""

    def __init__(self, served: Served, folder: Path, name: str, token: str) -> None:
        self._served, self._name = served, name
        client, key = EstClient(served.est, served.ca_file, basic=(name, token)), generate_key()
        certificate = client.simpleenroll(build_csr(key, ((COMMON_NAME, name),), ()))
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        write_key(folder / f"{name}.key", key)
        self._context = ssl.create_default_context(cafile=served.ca_file)
        self._context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")

    def connect(self) -> None:
        host, port = self._served.address("mqtt")
        self.tls = self._context.wrap_socket(
            socket.create_connection((host, port), PATIENCE_SECONDS), server_hostname=host
        )
        self.tls.sendall(encode_connect(Connect(V311, self._name, keep_alive=600)))
        assert self.tls.recv(4) == b"\x20\x02\x00\x00"

    def is_connected(self) -> bool:
        self.tls.sendall(PING)
        return self.tls.recv(2) == PONG

    def close(self) -> None:
        self.tls.close()


@contextlib.contextmanager
def silent(address: tuple[str, int], count: int) -> Iterator[None]:
    """Connections from five addresses, on which nothing is sent."""
    held = []
    for number in range(count):
        held.append(
            socket.create_connection(address, PATIENCE_SECONDS, source_address=(f"127.0.1.{number % 5 + 1}", 0))
        )
    try:
        yield
    finally:
        for one in held:
            one.close()


def files_of(served: Served) -> int:
    return len(list(Path(f"/proc/{served.process.pid}/fd").iterdir()))


@pytest.mark.parametrize("listener", ["mqtt", "est"])
def test_strangers_take_no_descriptor_from_devices(
    home: Path, tmp_path: Path, few_files: Callable[[int], None], listener: str
) -> None:
    few_files(FILES)
    served = Served(home, tmp_path / "ready.json").start()
    try:
        token = run_fleet(home, "token", "create", "--model", "default", "--uses", "20").strip()
        devices = [Device(served, tmp_path, f"cam-{number}", token) for number in range(12)]
        established, newcomers = devices[:6], devices[6:]
        idle = files_of(served)
        for device in established:
            device.connect()
        with silent(served.address(listener), 600):
            for device in newcomers:
                device.connect()
            assert all(device.is_connected() for device in devices)
            assert files_of(served) < FILES
        for device in devices:
            device.close()
        wait_until(lambda: files_of(served) <= idle)
    finally:
        code = served.stop()
    assert code == 0
    assert "event=descriptors.too-few limit=512 workers=1 configured=9000 sessions_max=48" in served.log
    assert "event=descriptors.full limit=512 connections=128" in served.log


def test_a_limit_that_leaves_nothing_is_refused(home: Path, few_files: Callable[[int], None]) -> None:
    few_files(400)
    done = program("fleet", "serve", "--home", str(home), expect=1)
    assert "this process may open 400 files, which leaves too few for connections." in done.stderr
    assert "too-few-descriptors" in done.stderr
    assert "448 or more" in done.stderr
