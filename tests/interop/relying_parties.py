"""Programs of others that let devices in by certificate and CRL, each run on loopback as our page configures it."""

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Protocol

from tests.free_ports import free_ports
from tests.interop.stock_device import StockDevice, needs
from tests.waiting import wait_until

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "fleet" / "RELYING_PARTIES.md"
DEADLINE_SECONDS = 240.0  # RabbitMQ takes twenty to start, and more on a busy machine


@dataclass(frozen=True)
class Published:
    """What a relying party has: the folder that `fleet publish` writes, and a server certificate of its own."""

    folder: Path
    certificate: Path
    key: Path
    root: Path


class Party(Protocol):
    """A running program that verifies devices."""

    def accepts(self, device: StockDevice) -> bool: ...

    def read_crls(self) -> None:
        """Have it read the published CRLs again; return when it has."""


class ResumingParty(Party, Protocol):
    """One to which TLS sessions may be offered again."""

    def sessions(self, device: StockDevice) -> "Sessions": ...


@dataclass(frozen=True)
class Person:
    """Who has the `.p12` that our page makes, and the name that an EAP-TLS identity has."""

    pkcs12: Path
    password: str
    identity: str


class EapParty(Party, Protocol):
    """An authentication server of a network."""

    def lets_in(self, person: Person) -> bool: ...


def shown_on_page(language: str, published: Published, port: int, page: Path = PAGE) -> str:
    """The page's configuration for a program, with the paths and the port of this run."""
    [block] = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    places = {
        "/var/lib/fleet-pki": str(published.folder),
        "/etc/ssl/server.pem": str(published.certificate),
        "/etc/ssl/server.key": str(published.key),
        "listen 443": f"listen 127.0.0.1:{port}",
        "bind :443": f"bind 127.0.0.1:{port}",
        "listener 8883": f"listener {port} 127.0.0.1",
    }
    for shown, here in places.items():
        block = block.replace(shown, here)
    return str(block)


def listening(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def running(folder: Path, *words: str | Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program with its output in `folder`/output, ended with SIGTERM and, if that does not help, SIGKILL."""
    with (folder / "output").open("ab") as output:
        process = subprocess.Popen(
            words, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | environment
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def done(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        env=os.environ | environment,
        check=False,
    )


def _answered_200(port: int, published: Published, device: StockDevice) -> bool:
    """Whether an HTTPS request on a new connection is answered 200 with the device's name, in a header or the body."""
    common = ("curl", "--silent", "--include", "--cacert", published.root, "--write-out", "\n%{http_code}")
    asked = done(*common, "--cert", device.certificate, "--key", device.key, f"https://localhost:{port}/")
    body, _, status = asked.stdout.rpartition("\n")
    return status == "200" and device.name in body


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 200"
CONNECT = bytes.fromhex("101000044d5154540402003c000474657374"), b"\x20\x02\x00\x00"
"""What a device sends, and how an answer begins that lets it in."""


class Sessions:
    """TLS sessions of one device with a server, by version, each used for a request and offered again afterwards."""

    def __init__(self, port: int, published: Published, device: StockDevice, asks: tuple[bytes, bytes] = GET) -> None:
        self._port = port
        self._request, self._answer = asks
        self._contexts: list[ssl.SSLContext] = []
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.create_default_context(cafile=published.root)
            context.minimum_version = context.maximum_version = version
            context.load_cert_chain(device.certificate, device.key)
            self._contexts.append(context)
        self._sessions = [self._asked(context)[1] for context in self._contexts]

    def answers(self) -> list[tuple[bool, bool]]:
        """For each, offered again: whether it was resumed, and whether the device was let in."""
        found = []
        for context, session in zip(self._contexts, self._sessions, strict=True):
            is_let_in, _, resumed = self._asked(context, session)
            found.append((resumed, is_let_in))
        return found

    def _asked(
        self, context: ssl.SSLContext, session: ssl.SSLSession | None = None
    ) -> tuple[bool, ssl.SSLSession | None, bool]:
        is_let_in, resumed = False, False
        with (
            suppress(OSError),  # refused
            socket.create_connection(("localhost", self._port), timeout=DEADLINE_SECONDS) as raw,
            context.wrap_socket(raw, server_hostname="localhost", session=session) as tls,
        ):
            resumed = bool(tls.session_reused)
            tls.sendall(self._request)
            is_let_in = tls.recv(4096).startswith(self._answer)
            session = tls.session  # with TLS 1.3 it comes behind the handshake
        return is_let_in, session, resumed


@contextmanager
def nginx(folder: Path, published: Published) -> Iterator[ResumingParty]:
    needs("nginx", "curl")
    [port] = free_ports(1)
    temporary = " ".join(
        f"{kind}_temp_path {folder}/t;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    shown = shown_on_page("nginx", published, port)
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process on;\npid {folder}/pid;\nerror_log {folder}/error.log notice;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}\n{shown}}}\n"
    )
    words = ("nginx", "-e", folder / "error.log", "-c", folder / "nginx.conf")

    class Nginx:
        def sessions(self, device: StockDevice) -> Sessions:
            return Sessions(port, published, device)

        def accepts(self, device: StockDevice) -> bool:
            return _answered_200(port, published, device)

        def read_crls(self) -> None:
            generations = self._workers()
            assert done(*words, "-s", "reload").returncode == 0
            wait_until(lambda: not generations & self._workers(), "nginx's workers were never replaced", process)

        def _workers(self) -> set[str]:
            """Process ids of the workers that live."""
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            return set(children.read_text().split())

    with running(folder, *words) as process:
        wait_until(lambda: listening(port), "nginx does not listen", process)
        yield Nginx()


@contextmanager
def haproxy(folder: Path, published: Published) -> Iterator[ResumingParty]:
    needs("haproxy", "curl")
    [port] = free_ports(1)
    beside = published.certificate.with_name(published.certificate.name + ".key")
    shutil.copyfile(published.key, beside)
    config = folder / "haproxy.cfg"
    admin = folder / "admin"
    config.write_text(f"global\n    stats socket {admin} level admin\n" + shown_on_page("haproxy", published, port))

    class Haproxy:
        def sessions(self, device: StockDevice) -> Sessions:
            return Sessions(port, published, device)

        def accepts(self, device: StockDevice) -> bool:
            return _answered_200(port, published, device)

        def read_crls(self) -> None:
            crls = published.folder / "crl.pem"
            self._command(f"set ssl crl-file {crls} <<\n{crls.read_text()}\n")
            assert "Success" in self._command(f"commit ssl crl-file {crls}\n")

        def _command(self, text: str) -> str:
            with socket.socket(socket.AF_UNIX) as control:
                control.settimeout(DEADLINE_SECONDS)
                control.connect(str(admin))
                control.sendall(text.encode())
                return b"".join(iter(lambda: control.recv(65536), b"")).decode()

    with running(folder, "haproxy", "-db", "-f", config) as process:
        wait_until(lambda: listening(port), "haproxy does not listen", process)
        yield Haproxy()


_ENVOY = """node: {{ id: envoy, cluster: envoy }}
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: devices
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
          route_config:
            virtual_hosts:
            - name: devices
              domains: ["*"]
              routes:
              - match: {{ prefix: / }}
                direct_response: {{ status: 200 }}
                response_headers_to_add: [ {{ header: {{ key: x-subject, value: "%DOWNSTREAM_PEER_SUBJECT%" }} }} ]
{shown}"""


@contextmanager
def envoy(folder: Path, published: Published) -> Iterator[Party]:
    needs("envoy", "curl")
    port, admin = free_ports(2)
    secret, config = folder / "devices.yaml", folder / "envoy.yaml"
    secret.write_text(shown_on_page("sds", published, port))
    shown = shown_on_page("envoy", published, port).replace("/etc/envoy/devices.yaml", str(secret))
    config.write_text(_ENVOY.format(port=port, admin=admin, shown=indent(shown, " " * 6)))

    class Envoy:
        read = 0

        def accepts(self, device: StockDevice) -> bool:
            return _answered_200(port, published, device)

        def read_crls(self) -> None:
            """It does so by itself; once for each time that the files change."""
            before = self.read
            wait_until(lambda: self.times_read() > before, "envoy has not read the CRL")
            self.read = self.times_read()

        def times_read(self) -> int:
            said = done("curl", "--silent", f"http://127.0.0.1:{admin}/stats?filter=ssl_context_update_by_sds")
            return int(said.stdout.rpartition(":")[2])

    with running(folder, "envoy", "-c", config, "--use-dynamic-base-id", "--concurrency", "1") as process:
        wait_until(lambda: listening(port), "envoy does not listen", process)
        party = Envoy()
        party.read = party.times_read()
        yield party


@contextmanager
def mosquitto(folder: Path, published: Published) -> Iterator[ResumingParty]:
    needs("mosquitto", "mosquitto_pub")
    [port] = free_ports(1)
    config = folder / "mosquitto.conf"
    config.write_text(shown_on_page("mosquitto", published, port) + "log_dest stderr\nuser root\n")

    class Mosquitto:
        def sessions(self, device: StockDevice) -> Sessions:
            return Sessions(port, published, device, CONNECT)

        def accepts(self, device: StockDevice) -> bool:
            identity = ("--cafile", published.root, "--cert", device.certificate, "--key", device.key)
            message = ("-q", "1", "-t", "alive", "-m", device.name)
            return done("mosquitto_pub", "-h", "localhost", "-p", str(port), *identity, *message).returncode == 0

        def read_crls(self) -> None:
            process.send_signal(signal.SIGHUP)  # it acts on it before it accepts the next connection
            wait_until(
                lambda: "Reloading config" in output.read_text(),
                "mosquitto did not read its configuration again",
                process,
            )

    output = folder / "output"
    with running(folder, "mosquitto", "-v", "-c", config) as process:
        wait_until(lambda: listening(port), "mosquitto does not listen", process)
        yield Mosquitto()


_RADIUSD = """prefix = /usr
libdir = /usr/lib/freeradius
run_dir = {folder}
pidfile = {folder}/pid
security {{
    reject_delay = 0
}}
modules {{
{eap}}}
server default {{
    listen {{
        type = auth
        ipaddr = 127.0.0.1
        port = {port}
    }}
    client switch {{
        ipaddr = 127.0.0.1
        secret = between-us
    }}
    authorize {{
        eap
    }}
    authenticate {{
        eap
    }}
}}
"""


@contextmanager
def freeradius(folder: Path, published: Published) -> Iterator[EapParty]:
    needs("freeradius", "eapol_test")
    [port] = free_ports(1)
    eap = shown_on_page("radius", published, port)
    (folder / "radiusd.conf").write_text(_RADIUSD.format(folder=folder, port=port, eap=eap))

    class Freeradius:
        process: subprocess.Popen[bytes] | None = None

        def start(self) -> None:
            words = ("freeradius", "-f", "-l", "stdout", "-xx", "-d", folder, "-n", "radiusd")
            with (folder / "output").open("wb") as output:
                self.process = subprocess.Popen(words, stdout=output, stderr=output)
            wait_until(
                lambda: "Ready to process requests" in (folder / "output").read_text(),
                "freeradius is not ready",
                self.process,
            )

        def stop(self) -> None:
            if self.process:
                self.process.terminate()
                self.process.wait(DEADLINE_SECONDS)

        def read_crls(self) -> None:
            self.stop()
            self.start()

        def accepts(self, device: StockDevice) -> bool:
            return self._lets_in(device.name, f'client_cert="{device.certificate}"\nprivate_key="{device.key}"')

        def lets_in(self, person: Person) -> bool:
            return self._lets_in(
                person.identity, f'private_key="{person.pkcs12}"\nprivate_key_passwd="{person.password}"'
            )

        def _lets_in(self, identity: str, files: str) -> bool:
            network = folder / "network.conf"
            network.write_text(
                f'network={{\nkey_mgmt=IEEE8021X\neap=TLS\nidentity="{identity}"\nca_cert="{published.root}"\n'
                f"{files}\n}}\n"
            )
            said = done("eapol_test", "-c", network, "-a", "127.0.0.1", "-p", str(port), "-s", "between-us", "-t", "20")
            return said.stdout.splitlines()[-1:] == ["SUCCESS"]

    party = Freeradius()
    try:
        party.start()
        yield party
    finally:
        party.stop()


_CHARON = """charon-systemd {{
    load = random nonce openssl pem pkcs1 pkcs8 x509 revocation constraints kdf kernel-netlink socket-default vici
    port = {port}
    port_nat_t = {port_nat_t}
    plugins {{
        vici {{
            socket = unix://{folder}/vici
        }}
    }}
}}
"""


_CLIENT = """connections {{
    {name} {{
        version = 2
        remote_addrs = 127.0.0.1
        remote_port = {remote_port}
        local_port = {local_port}
        childless = force
        keyingtries = 1
        local {{
            auth = pubkey
            certs = {name}.pem
        }}
        remote {{
            auth = pubkey
            id = localhost
        }}
    }}
}}
"""


class Charon:
    """One strongSwan daemon on ports of its own; without a tunnel, so that no network device is made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, port_nat_t = free_ports(2)
        for kind in ("x509", "x509ca", "x509crl", "private"):
            (folder / kind).mkdir(parents=True)
        self.environment = {"STRONGSWAN_CONF": str(folder / "strongswan.conf"), "SWANCTL_DIR": str(folder)}
        (folder / "strongswan.conf").write_text(_CHARON.format(port=self.port, port_nat_t=port_nat_t, folder=folder))

    def swanctl(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return done("swanctl", *words, "--uri", f"unix://{self.folder}/vici", **self.environment)

    def install(self, certificate: Path, key: Path, name: str) -> None:
        shutil.copyfile(certificate, self.folder / "x509" / f"{name}.pem")
        shutil.copyfile(key, self.folder / "private" / f"{name}.key")

    def trust(self, published: Published) -> None:
        parts = re.findall(r"-----BEGIN.*?-----END[^\n]*\n", (published.folder / "ca.pem").read_text(), re.DOTALL)
        for number, part in enumerate(parts):
            (self.folder / "x509ca" / f"{number}.pem").write_text(part)

    @contextmanager
    def up(self) -> Iterator[None]:
        with running(self.folder, "charon-systemd", **self.environment) as process:
            wait_until(lambda: self.swanctl("--stats").returncode == 0, "charon does not answer", process)
            yield


@contextmanager
def strongswan(folder: Path, published: Published) -> Iterator[Party]:
    needs("swanctl", "charon-systemd")
    gateway, client = Charon(folder / "gateway"), Charon(folder / "client")
    for each in (gateway, client):
        each.trust(published)
    gateway.install(published.certificate, published.key, "server")
    alone = "childless = force\n        local_addrs = 127.0.0.1\n        local {\n            id = localhost"
    shown = shown_on_page("swanctl", published, gateway.port).replace("local {", alone)
    (gateway.folder / "swanctl.conf").write_text(shown)

    class Strongswan:
        def accepts(self, device: StockDevice) -> bool:
            client.install(device.certificate, device.key, device.name)
            (client.folder / "swanctl.conf").write_text(
                _CLIENT.format(name=device.name, remote_port=gateway.port, local_port=client.port)
            )
            assert client.swanctl("--load-all").returncode == 0
            reached = client.swanctl("--initiate", "--ike", device.name, "--timeout", "20").returncode == 0
            client.swanctl("--terminate", "--ike", device.name, "--timeout", "20")
            return reached

        def read_crls(self) -> None:
            for crl in (published.folder / "crl").rglob("*.crl"):
                name = "-".join(crl.relative_to(published.folder / "crl").parts)
                shutil.copyfile(crl, gateway.folder / "x509crl" / name)
            loaded = gateway.swanctl("--load-creds", "--clear")
            assert loaded.returncode == 0, loaded.stderr

    with gateway.up(), client.up():
        party = Strongswan()
        party.read_crls()
        assert gateway.swanctl("--load-all").returncode == 0
        yield party


class _Command:
    """A program that verifies one certificate with the published files, and ends."""

    def __init__(self, *words: str | Path) -> None:
        self._words = words

    def accepts(self, device: StockDevice) -> bool:
        return done(*self._words, device.certificate).returncode == 0

    def read_crls(self) -> None:
        """It reads them each time."""


@contextmanager
def openssl(folder: Path, published: Published) -> Iterator[Party]:
    needs("openssl")
    files = ("-CAfile", published.folder / "ca.pem", "-CRLfile", published.folder / "crl.pem")
    yield _Command("openssl", "verify", "-crl_check_all", *files)


@contextmanager
def go(folder: Path, published: Published) -> Iterator[Party]:
    needs("go")
    program = folder / "verify_device"
    subprocess.run(["go", "build", "-o", program, Path(__file__).parent / "verify_device.go"], check=True, timeout=300)
    yield _Command(program, published.folder)


PARTIES = {each.__name__: each for each in (openssl, go, nginx, haproxy, envoy, mosquitto, freeradius, strongswan)}
