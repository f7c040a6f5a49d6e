"""HAProxy and nginx in front of a served fleet, as the page configures them: it knows the device's address."""

import base64
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from msgspec.structs import replace
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Request

import fleet
from fleet.config.addresses import Address
from fleet.config.settings_file import read_settings
from fleet.config.template import render
from fleet.home.layout import Home
from fleet.wire.csr import build_csr
from fleet.wire.est import decode_body, decode_certs_only, encode_body
from fleet.wire.mqtt.codes import V5, Reason
from fleet.wire.mqtt.connect import Connect, decode_connack, encode_connect
from fleet.wire.mqtt.reader import PacketReader
from hw_bench.processes import accepts, running, wait_until
from tests.free_ports import free_ports
from tests.serving import Served, run_fleet
from tests.waiting import PATIENCE_SECONDS

[FLEET] = fleet.__path__
PAGE = Path(FLEET, "BALANCERS.md").read_text()
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
LISTENERS = {"est": 8443, "mqtt": 8883, "http": 8444, "wss": 8884}
BALANCER, DEVICE = "127.0.0.1", "127.0.0.77"


@dataclass(frozen=True)
class Site:
    served: Served
    folder: Path

    @property
    def ca(self) -> Path:
        return self.served.ca_file

    def rows(self, **where: str) -> list[Any]:
        words = [word for name, value in where.items() for word in (f"--{name}", value)]
        found: list[Any] = json.loads(run_fleet(self.served.home, "audit", "list", *words, "-o", "json"))
        return found

    def session(self, device: str) -> Any:
        """Its one session, once it is recorded."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            shown = json.loads(run_fleet(self.served.home, "session", "show", device, "-o", "json"))
            if shown["sessions"]:
                [session] = shown["sessions"]
                return session
        raise AssertionError(f"no session of {device}")


@pytest.fixture(scope="module")
def site(pristine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    home = Path(shutil.copytree(pristine_home, folder / "home", symlinks=True))
    settings = Home(home).settings_file
    behind = replace(read_settings(settings), wss=Address("127.0.0.1", 0), proxy_trusted=(ip_network(BALANCER),))
    settings.write_text(render(behind))
    served = Served(home, folder / "ready.json").start()
    yield Site(served, folder)
    assert served.stop() == 0


@dataclass(frozen=True)
class Balancer:
    ports: dict[str, int]
    """By listener, and of the one that chooses by ALPN."""


def adapted(language: str, site: Site, ports: dict[str, int], folder: Path) -> str:
    """The page's configuration with this machine's ports and paths."""
    text: str
    [text] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for name, port in LISTENERS.items():
        text = text.replace(f"10.0.0.11:{port}", "{}:{}".format("127.0.0.1", site.served.address(name)[1]))
        text = text.replace(f"bind :{port}", f"bind 127.0.0.1:{ports[name]}")
        text = text.replace(f"listen {port}", f"listen 127.0.0.1:{ports[name]}")
    text = text.replace("port 8444", f"port {site.served.address('http')[1]}")
    text = text.replace("bind :443", f"bind 127.0.0.1:{ports['443']}").replace(
        "listen 443", f"listen 127.0.0.1:{ports['443']}"
    )
    return text.replace("/etc/haproxy/fleet-ca.pem", str(folder / "fleet-ca.pem"))


@contextmanager
def balancing(argv: list[str], ports: dict[str, int], folder: Path) -> Iterator[Balancer]:
    log = folder / "balancer.log"
    with running(argv, cores=tuple(os.sched_getaffinity(0)), log=log) as process:
        wait_until(lambda: accepts(("127.0.0.1", ports["est"])), argv[0], process, log)
        yield Balancer(ports)


def some_ports() -> dict[str, int]:
    return dict(zip((*LISTENERS, "443"), free_ports(len(LISTENERS) + 1), strict=True))


@contextmanager
def haproxy(site: Site, folder: Path) -> Iterator[Balancer]:
    ports = some_ports()
    authorities = site.ca.read_bytes() + Home(site.served.home).issuing_certificate.read_bytes()
    (folder / "fleet-ca.pem").write_bytes(authorities)
    logged = "global\n    log stderr format raw local0\ndefaults\n    log global\n    option log-health-checks\n"
    shown = adapted("haproxy", site, ports, folder).replace("defaults\n", logged)
    (folder / "haproxy.cfg").write_text(shown)
    with balancing(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], ports, folder) as balancer:
        yield balancer


@contextmanager
def nginx(site: Site, folder: Path) -> Iterator[Balancer]:
    ports = some_ports()
    module = f"load_module {STREAM_MODULE};\n" if STREAM_MODULE.exists() else ""
    (folder / "nginx.conf").write_text(
        f"{module}daemon off; user root; worker_processes 1; pid {folder}/nginx.pid;\nevents {{}}\n"
        + adapted("nginx", site, ports, folder)
    )
    argv = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    with balancing(argv, ports, folder) as balancer:
        yield balancer


BALANCERS = [
    pytest.param(
        balancer,
        id=balancer.__name__,
        marks=pytest.mark.skipif(not is_there, reason=f"{balancer.__name__} is not installed"),
    )
    for balancer, is_there in (
        (haproxy, shutil.which("haproxy")),
        (nginx, shutil.which("nginx") and STREAM_MODULE.exists()),
    )
]


@dataclass
class Device:
    """A device at DEVICE, which comes through a balancer."""

    site: Site
    name: str
    pem: Path = field(init=False)

    def context(self, *alpn: str, certificate: bool = True) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.site.ca))
        if alpn:
            context.set_alpn_protocols(alpn)
        if certificate:
            context.load_cert_chain(self.pem)
        return context

    def enroll(self, port: int) -> None:
        run_fleet(self.site.served.home, "device", "add", self.name, "--model", "default")
        token = run_fleet(self.site.served.home, "token", "create", "--device", self.name).strip()
        key = ec.generate_private_key(ec.SECP256R1())
        secret = base64.b64encode(f"{self.name}:{token}".encode()).decode()
        headers = {"Content-Type": "application/pkcs10", "Authorization": f"Basic {secret}"}
        csr = encode_body(build_csr(key, (("2.5.4.3", self.name),), ()))
        asked = ("POST", "/.well-known/est/simpleenroll", csr, headers)
        status, body = self.ask(port, asked, self.context(certificate=False))
        assert status == 200
        [certificate] = decode_certs_only(decode_body(body))
        self.pem = self.site.folder / f"{self.name}.pem"
        self.pem.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + certificate.public_bytes(Encoding.PEM)
        )

    def ask(self, port: int, request: tuple[Any, ...], context: ssl.SSLContext) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=PATIENCE_SECONDS, context=context, source_address=(DEVICE, 0)
        )
        connection.request(*request)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body

    def dial(self, port: int, *alpn: str) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS, source_address=(DEVICE, 0))
        return self.context(*alpn).wrap_socket(raw, server_hostname="localhost")


def connack(data: bytes) -> int:
    [packet] = PacketReader().feed(data)
    return decode_connack(packet.body, V5).code


def refused_connect(stream: ssl.SSLSocket, client_id: str) -> None:
    with stream:
        stream.sendall(encode_connect(Connect(V5, client_id)))
        assert connack(stream.recv(4096)) == Reason.CLIENT_IDENTIFIER_NOT_VALID


def refused_connect_over_websocket(stream: ssl.SSLSocket, client_id: str) -> None:
    with stream:
        client = WSConnection(ConnectionType.CLIENT)
        stream.sendall(client.send(Request("localhost", "/mqtt", subprotocols=["mqtt"])))
        client.receive_data(stream.recv(4096))
        [accepted] = client.events()
        assert isinstance(accepted, AcceptConnection)
        assert accepted.subprotocol == "mqtt"
        stream.sendall(client.send(BytesMessage(encode_connect(Connect(V5, client_id)))))
        client.receive_data(stream.recv(4096))
        answer = next(client.events())
        assert isinstance(answer, BytesMessage)
        assert connack(bytes(answer.data)) == Reason.CLIENT_IDENTIFIER_NOT_VALID


@pytest.mark.parametrize("balancer", BALANCERS)
def test_audit_and_log_have_the_devices_address(
    site: Site, tmp_path: Path, balancer: Callable[[Site, Path], AbstractContextManager[Balancer]]
) -> None:
    name = balancer.__name__
    device = Device(site, f"{name}-1")
    with balancer(site, tmp_path) as front:
        device.enroll(front.ports["est"])
        [row] = site.rows(subject=f"device {device.name}", action="device.enroll")
        assert (row["outcome"], row["address"]) == ("ok", DEVICE)
        assert device.ask(front.ports["http"], ("GET", "/v1/devices"), device.context())[0] == 403
        with device.dial(front.ports["mqtt"]) as stream:
            stream.sendall(encode_connect(Connect(V5, device.name)))
            assert stream.recv(4)[:1] == b"\x20"
            assert site.session(device.name)["address"] == DEVICE
        refused_connect(device.dial(front.ports["mqtt"]), f"{name}-tcp")
        stream = device.dial(front.ports["wss"], "h2", "http/1.1")  # as browsers do
        assert stream.selected_alpn_protocol() == "http/1.1"
        refused_connect_over_websocket(stream, f"{name}-wss")
        stream = device.dial(front.ports["443"], "x-amzn-mqtt-ca")
        assert stream.selected_alpn_protocol() == "x-amzn-mqtt-ca"
        refused_connect(stream, f"{name}-alpn")
        assert device.ask(front.ports["443"], ("GET", "/.well-known/est/cacerts"), device.context())[0] == 200
        for client_id in ("tcp", "wss", "alpn"):
            line = rf"event=mqtt\.connect device={device.name} .*client_id={name}-{client_id} address={DEVICE} "
            site.served.wait_for_line(f"client_id={name}-{client_id}")
            assert re.search(line, site.served.log)
        rows = site.rows(actor=f"device {device.name}")  # of the API and of CONNECT
        assert {row["address"] for row in rows} == {DEVICE}
        assert {row["action"] for row in rows} == {"api.call", "credential.first-use", "mqtt.connect"}
        if balancer is haproxy:  # it asks with LOCAL
            site.served.wait_for_line("event=admin.health")
            assert re.search(rf"event=admin\.health .*code=ok .*address={BALANCER}\b", site.served.log)


def test_nobody_else_may_say_an_address_and_the_balancer_must(site: Site) -> None:
    _, port = site.served.address("mqtt")
    header = b"PROXY TCP4 198.51.100.7 127.0.0.1 1 2\r\n"
    for source, sent, code in (
        ("127.0.0.9", header, "proxy-header-from-untrusted-address"),
        (BALANCER, b"\x16\x03\x01", "no-proxy-header"),
        (BALANCER, b"PROXY UNKNOWN\r\n", "bad-proxy-header: The PROXY header does not say the client's address."),
    ):
        with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS, source_address=(source, 0)) as raw:
            raw.sendall(sent)
            try:
                while raw.recv(4096):
                    pass
            except ConnectionError:
                pass
        site.served.wait_for_line(code)
        assert re.search(rf'event=tls\.refused address={re.escape(source)} code="?{re.escape(code)}', site.served.log)
