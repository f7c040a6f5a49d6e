"""Real parts for the agent's tests: a CA, an EST server on the real registry and TLS, a mosquitto with mutual TLS."""

import asyncio
import getpass
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import paho.mqtt.client as paho
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from paho.mqtt.enums import CallbackAPIVersion

from device_agent.cli import cli
from fleet.ca.authority import create_issuing, create_root, issue_server_certificate
from fleet.ca.issuer import LocalIssuer
from fleet.domain.access import Act
from fleet.domain.approval import DEFAULT_WAITING, WaitingLimits
from fleet.domain.device import Model
from fleet.servers.est.server import build_est_server
from fleet.services import inventory
from fleet.services.enrollment import RegistrationAuthority
from fleet.services.revocation import suspend
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.tls.contexts import ClientTrust, ContextSource, ServerIdentity, server_context
from fleet.tls.listener import Listener, listen
from fleet.wire.key_package import Sealer
from tests import server_logs
from tests.free_ports import free_ports
from tests.standing_tenants import StandingTenants

DEADLINE_SECONDS = 120.0
HOSTS = ("localhost", "127.0.0.1")
T = TypeVar("T")


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Authority:
    """A root, an issuing CA below it, and a server certificate for localhost, all as files too."""

    def __init__(self, folder: Path, name: str = "test", *, made_days_ago: int = 0) -> None:
        now = datetime.now(UTC) - timedelta(days=made_days_ago)
        folder.mkdir(parents=True, exist_ok=True)
        self.root, self.root_key = create_root(name, now)
        self.issuing, self.issuing_key = create_issuing(name, self.root, self.root_key, now)
        self.server, self.server_key = issue_server_certificate(self.issuing, self.issuing_key, HOSTS, now)
        self.folder = folder
        self.ca_file = self._write("root.pem", pem(self.root))
        self.server_file = self._write("server.pem", pem(self.server, self.issuing))
        self.server_key_file = self._write("server.key", key_pem(self.server_key))

    @property
    def issuer(self) -> LocalIssuer:
        return LocalIssuer(self.issuing, self.issuing_key)

    def issue(self, name: str, **given: Any) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """A client certificate of the issuing CA; `given`: begin, end, usage, key."""
        key = given.get("key") or ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.issuing.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(given.get("begin", now - timedelta(minutes=5)))
            .not_valid_after(given.get("end", now + timedelta(days=1)))
            .add_extension(x509.BasicConstraints(given.get("ca", False), None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([given.get("usage", ExtendedKeyUsageOID.CLIENT_AUTH)]), critical=False)
        )
        return builder.sign(self.issuing_key, hashes.SHA256()), key

    def client(self, name: str) -> tuple[Path, Path]:
        """A client certificate, with its chain, and its key, as files."""
        certificate, key = self.issue(name)
        return (
            self._write(f"{name}.pem", pem(certificate, self.issuing)),
            self._write(f"{name}.key", key_pem(key)),
        )

    def _write(self, name: str, data: bytes) -> Path:
        (self.folder / name).write_bytes(data)
        return self.folder / name


class EstServer:
    """EST on the real registry and the real TLS listener, in a thread with an event loop of its own."""

    def __init__(self, authority: Authority, database: Path, waiting: WaitingLimits = DEFAULT_WAITING) -> None:
        self.authority = authority
        self._waiting = waiting
        self.shift = timedelta(0)
        """Added to the server's clock: what it issues is older or younger by that."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.registry = self.call(SqliteRegistry.open(database))
        self.port = 0
        self._listener: Listener | None = None
        self.open()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_SECONDS)

    def open(self) -> None:
        """Listen, on the port of before when there was one."""

        async def start() -> Listener:
            authority = self.authority
            chain = (authority.root, authority.issuing)
            identity = ServerIdentity((authority.server, authority.issuing), authority.server_key)
            context = server_context(identity, ClientTrust(chain), require_client=False, clock=_now)
            est = build_est_server(
                RegistrationAuthority(self.registry, authority.issuer, self._waiting),
                StandingTenants(chain),
                sealer=lambda: Sealer(authority.server, authority.server_key),
                clock=self.clock,
            )
            return await listen(est, ("127.0.0.1", self.port), contexts=ContextSource(context))

        self._listener = self.call(start())
        self.port = self._listener.port

    def shut(self) -> None:
        """Stop listening: connections are refused."""

        async def stop(listener: Listener) -> None:
            listener.close()
            listener.abort_connections()
            await listener.wait_closed()

        if self._listener is not None:
            self.call(stop(self._listener))
            self._listener = None

    def clock(self) -> datetime:
        return _now() + self.shift

    def token(self, device: str, **model: Any) -> str:
        """A one-time token for a device, which is registered with a model of its own."""

        async def make() -> str:
            now = _now()
            kind = f"of-{device}".replace(":", ".")
            if await self.registry.model(kind) is None:
                await inventory.add_model(self.registry, Model(kind, **model), act=Act("test", now))
                await inventory.add_device(self.registry, device, kind, act=Act("test", now))
            _, text = await inventory.create_token(self.registry, device=device, act=Act("test", now))
            return text

        return self.call(make())

    def suspend(self, device: str) -> None:
        self.call(suspend(self.registry, device, act=Act("test", _now()), reason="test"))

    def close(self) -> None:
        self.shut()
        self.call(self.registry.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_SECONDS)
        self._loop.close()


class Broker:
    """mosquitto: one listener with mutual TLS for devices, one plain one on loopback for the test's subscriber."""

    def __init__(self, authority: Authority, folder: Path, extra: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._authority = authority
        self.port, self.plain_port = free_ports(2)
        self._process: subprocess.Popen[str] | None = None
        self.extra = extra
        self.start()

    def start(self) -> None:
        # With its own user named, mosquitto started by root stays root, and can read root's private folders.
        config = self._folder / "mosquitto.conf"
        authority = self._authority
        config.write_text(
            f"user {getpass.getuser()}\nper_listener_settings true\nset_tcp_nodelay true\npersistence false\n"
            "max_queued_messages 0\n"  # it loses none that a busy machine's subscriber has not read yet
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\ncafile {authority.ca_file}\n"
            f"certfile {authority.server_file}\nkeyfile {authority.server_key_file}\n"
            f"require_certificate true\nuse_identity_as_username true\n{self.extra}\n"
            f"listener {self.plain_port} 127.0.0.1\nallow_anonymous true\n"
        )
        self._process = subprocess.Popen(
            ["mosquitto", "-v", "-c", config], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        said: list[str] = []
        process = self._process
        server_logs.add("mosquitto", lambda: "".join(said), lambda: process.returncode is None)
        assert process.stderr
        for line in process.stderr:
            said.append(line)
            if line.rstrip().endswith("running"):
                break
        else:
            self.stop()
            raise AssertionError("mosquitto did not start")
        # Nobody may block it by not reading its log.
        threading.Thread(target=said.extend, args=(process.stderr,), daemon=True).start()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(DEADLINE_SECONDS)
            self._process = None


class Subscriber:
    """Everything that arrives at the broker, in order."""

    def __init__(self, port: int) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self._changed = threading.Condition()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="subscriber")
        self._client.on_message = self._on_message
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_connect = self._on_connect
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert subscribed.wait(DEADLINE_SECONDS)

    def wait_for(self, count: int) -> list[tuple[str, bytes]]:
        """The messages, once there are `count`."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.messages) >= count, DEADLINE_SECONDS), len(self.messages)
            return list(self.messages)

    def wait_until(self, reached: Callable[[list[tuple[str, bytes]]], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: reached(self.messages), DEADLINE_SECONDS)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, *_: object) -> None:
        self._client.subscribe("#", qos=1)

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.messages.append((message.topic, bytes(message.payload)))
            self._changed.notify_all()


class Device:
    """One device's home, and the agent's commands on it, run as a person would run them."""

    def __init__(self, home: Path, est: EstServer, mqtt_port: int, device_id: str = "cam-7") -> None:
        self.home = home
        self.device_id = device_id
        self.est = est
        self._mqtt_port = mqtt_port
        self._agents: list[Agent] = []

    def init(self) -> "Device":
        ca_file = str(self.est.authority.ca_file)
        mqtt = f"localhost:{self._mqtt_port}"
        self.call("init", "--device-id", self.device_id, "--est", self.est.url, "--mqtt", mqtt, "--ca", ca_file)
        # Waits that suit a test; what they are is tested where they are computed.
        self.set("base_seconds", "0.1")
        self.set("cap_seconds", "0.5")
        self.set("refused_seconds", "0.3")
        return self

    def enrolled(self, **model: Any) -> "Device":
        """Initialized and enrolled."""
        self.init()
        self.call("enroll", give=self.est.token(self.device_id, **model))
        return self

    def set(self, key: str, value: str) -> None:
        """Change one setting in agent.toml."""
        file = self.home / "agent.toml"
        text, found = re.subn(rf"^{key} = .*$", f"{key} = {value}", file.read_text(), flags=re.MULTILINE)
        assert found == 1, f"agent.toml has {found} lines that set {key}"
        file.write_text(text)

    def call(self, *words: str, expect: int | None = 0, give: str | None = "") -> Result:
        """One command to its end, in this process; what it starts are processes."""
        done = CliRunner().invoke(cli, ["--home", str(self.home), *words], input=give)
        assert expect is None or done.exit_code == expect, f"{words}: {done.exit_code}\n{done.output}"
        return done

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.call("status", "-o", "json", expect=None).stdout)
        return found

    def run(self, *words: str, through: tuple[str, ...] = ()) -> "Agent":
        """Started, by the program `through` that becomes it, if there is one."""
        agent = Agent(self.home, words, through)
        self._agents.append(agent)
        return agent

    def close(self) -> None:
        for agent in self._agents:
            agent.kill()


class Agent:
    """A running `device-agent run`; its log is read as it is written."""

    def __init__(self, home: Path, words: tuple[str, ...], through: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*through, sys.executable, "-m", "device_agent", "--home", home, "run", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        server_logs.add("device-agent run", lambda: "\n".join(self.lines), lambda: self.process.returncode is None)
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, text: str, since: int = 0) -> int:
        """The number of the log line after the first one that has `text`, counted from line `since`."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        with self._changed:
            while True:
                for number, line in enumerate(self.lines[since:], since):
                    if text in line:
                        return number + 1
                left = deadline - time.monotonic()
                over = left <= 0 or self._ended
                assert not over, f"{text!r} was never said:\n" + "\n".join(self.lines)
                self._changed.wait(left)

    def say(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end_input(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def wait(self) -> int:
        """Its exit code."""
        code = self.process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        return code

    def stop(self) -> int:
        self.process.terminate()
        return self.wait()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        for stream in (self.process.stdin, self.process.stderr):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def device_id_for(test: str) -> str:
    """A device id from a test's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", test.removeprefix("test_"))[:60].strip("-")


def have_mosquitto() -> bool:
    return shutil.which("mosquitto") is not None


def _now() -> datetime:
    return datetime.now(UTC)
