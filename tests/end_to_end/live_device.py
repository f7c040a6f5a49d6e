"""A device with its agent at a real server, and connections with its certificate."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fleet.demo.harness import AGENT, Running
from fleet.est_client.client import EstClient, Policy
from fleet.wire.csr import build_csr
from fleet.wire.mqtt.codes import V311
from tests.serving import Served, run_agent, run_fleet, start
from tests.waiting import PATIENCE_SECONDS

DEVICE = "cam-7"


class LiveDevice:
    """An enrolled device and its running agent."""

    def __init__(self, served: Served, folder: Path, name: str = DEVICE) -> None:
        self.served, self.name, self.home = served, name, folder / name
        host, port = served.address("mqtt")
        run_fleet(served.home, "device", "add", name, "--model", "default")
        token = run_fleet(served.home, "token", "create", "--device", name)
        words = ["--device-id", name, "--est", served.est, "--mqtt", f"{host}:{port}", "--ca", str(served.ca_file)]
        self.call("init", *words)
        self.call("enroll", give=token)
        settings = self.home / "agent.toml"  # asks again at once, where a device in the field would wait a minute
        text = settings.read_text()
        assert "refused_seconds = 60.0" in text
        settings.write_text(text.replace("refused_seconds = 60.0", "refused_seconds = 0.2"))
        self.agent: Running | None = None

    def call(self, *words: str, expect: int | None = 0, give: str | None = None) -> str:
        return run_agent(self.home, *words, expect=expect, give=give)

    def run(self) -> Running:
        self.agent = start("agent", *AGENT, "--home", str(self.home), "run", "--stdin")
        self.agent.wait_for(lambda line: " connected " in line, "that it is connected")
        return self.agent

    def pair(self, place: str = "current") -> tuple[Path, Path]:
        return self.home / place / "cert.pem", self.home / place / "key.pem"

    def stop(self) -> None:
        if self.agent is not None:
            self.agent.stop()


def mqtt_answer(served: Served, pair: tuple[Path, Path], client_id: str) -> int:
    """The return code of CONNACK (MQTT 3.1.1, 3.2.2.3) for a connection with this certificate."""
    with mqtt_connected(served, pair, client_id) as (_, code):
        return code


@contextmanager
def mqtt_connected(served: Served, pair: tuple[Path, Path], client_id: str) -> Iterator[tuple[ssl.SSLSocket, int]]:
    """A connection with this certificate, and the return code of its CONNACK."""
    host, port = served.address("mqtt")
    context = ssl.create_default_context(cafile=served.ca_file)
    context.load_cert_chain(*pair)
    body = b"\x00\x04MQTT" + bytes((V311,)) + b"\x02\x00\x3c" + len(client_id).to_bytes(2, "big") + client_id.encode()
    with (
        socket.create_connection((host, port), PATIENCE_SECONDS) as raw,
        context.wrap_socket(raw, server_hostname=host) as tls,
    ):
        tls.sendall(b"\x10" + bytes((len(body),)) + body)
        answer = tls.recv(4)
        assert answer[:1] == b"\x20"
        yield tls, answer[3]


def renewal_with(served: Served, pair: tuple[Path, Path]) -> EstClient:
    return EstClient(served.est, served.ca_file, certificate=pair, policy=Policy(patience_seconds=0))


def csr_for(name: str) -> bytes:
    return build_csr(ec.generate_private_key(ec.SECP256R1()), (("2.5.4.3", name),), ())
