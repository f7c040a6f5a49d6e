"""A whole EST and admin server for tests: real registry, real CA, real TLS listener on a free loopback port."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fleet.ca.authority import Certified, create_issuing, create_operators, create_root, issue_server_certificate
from fleet.ca.issuer import OPERATORS, LocalIssuer
from fleet.ca.keys import generate_key
from fleet.ca.view import CaCertificate
from fleet.domain.access import Act, Role
from fleet.domain.approval import DEFAULT_WAITING, WaitingLimits
from fleet.domain.ca_role import CaRole
from fleet.domain.device import Model
from fleet.servers.admin.app import AdminApp
from fleet.servers.admin.ca_access import CaAccess
from fleet.servers.admin.context import Context
from fleet.servers.admin.http_adapter import admin_server
from fleet.servers.est.server import build_est_server
from fleet.servers.http import HttpServer
from fleet.servers.http_connection import HttpLimits
from fleet.services import claims, inventory, operators
from fleet.services.authorization import Authorizer
from fleet.services.enrollment import RegistrationAuthority
from fleet.services.forecast import OwnCertificate
from fleet.services.notifying import Notifier
from fleet.services.retention import Policy
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.tls.contexts import ClientTrust, ContextSource, ServerIdentity, server_context
from fleet.tls.listener import Listener, listen
from fleet.wire.csr import build_csr
from fleet.wire.est import decode_body, decode_certs_only, encode_body
from fleet.wire.key_package import Sealer
from fleet.wire.names import names_of_certificate
from tests.standing_tenants import StandingTenants

COMMON_NAME = "2.5.4.3"
DEADLINE_SECONDS = 120.0

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, with its bytes as they came."""

    raw: bytes

    @property
    def head(self) -> str:
        return self.raw.partition(b"\r\n\r\n")[0].decode("latin-1")

    @property
    def status(self) -> int:
        return int(self.head.split(" ", 2)[1])

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def code(self) -> str:
        """The stable code at the end of a refusal's sentence."""
        return self.text.rstrip("\n").rpartition("(")[2].removesuffix(")")

    def header(self, name: str) -> str | None:
        """By its exact name: some clients compare the case."""
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(": ")
            if key == name:
                return value
        return None

    @property
    def certificates(self) -> list[x509.Certificate]:
        return decode_certs_only(decode_body(self.body))


@dataclass(frozen=True)
class Identity:
    """A certificate with its key, as PEM files."""

    certificate: x509.Certificate
    key: Key
    cert_file: Path
    key_file: Path


def csr_for(common_name: str, key: Key | None = None) -> bytes:
    """DER of a CSR that names a device and asks for nothing more."""
    return build_csr(key or generate_key(), ((COMMON_NAME, common_name),), ())


def basic(token: str, username: str = "") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{username}:{token}".encode()).decode()}


@dataclass
class EstHarness:
    registry: SqliteRegistry
    issuer: LocalIssuer
    root: Certified
    issuing: Certified
    folder: Path
    operators_issuer: LocalIssuer
    servers: dict[str, HttpServer] = field(default_factory=dict)
    listeners: dict[str, Listener] = field(default_factory=dict)
    now: datetime | None = None
    notifier: Notifier | None = None
    """That of the API."""
    believing: Callable[[Sequence[x509.Certificate]], None] = lambda makers: None
    """Have EST believe these makers' CAs from the next connection on."""

    def clock(self) -> datetime:
        return self.now or datetime.now(UTC)

    @property
    def ca_file(self) -> Path:
        return self.folder / "root.pem"

    @property
    def port(self) -> int:
        return self.listeners["est"].port

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    # What an operator does

    async def device(self, name: str, model: str = "cam", serial: str = "") -> None:
        await inventory.add_device(self.registry, name, model, hardware_serial=serial, act=Act("test", self.clock()))

    async def token(self, device: str | None = None, model: str | None = None, uses: int = 1) -> str:
        _, text = await inventory.create_token(
            self.registry, device=device, model=model, terms=inventory.TokenTerms(uses), act=Act("test", self.clock())
        )
        return text

    async def station(self, name: str = "line-1", models: tuple[str, ...] = ("cam",)) -> Identity:
        key = generate_key()
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        credential = await inventory.enroll_station(
            self.registry, self.issuer, inventory.NewStation(name, models, spki), act=Act("test", self.clock())
        )
        return self.identity(x509.load_der_x509_certificate(credential.der), key)

    async def claim(self, name: str = "lot-1", model: str = "cam", quota: int = 5) -> Identity:
        key, now = generate_key(), self.clock()
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        _, credential = await claims.enroll_claim(
            self.registry,
            self.issuer,
            claims.NewClaim(name, model, quota, spki, now + timedelta(days=30)),
            act=Act("test", now),
        )
        return self.identity(x509.load_der_x509_certificate(credential.der), key)

    async def operator(
        self,
        name: str,
        role: Role = Role.ADMIN,
        models: tuple[str, ...] = (),
        lifetime: timedelta = operators.OPERATOR_LIFETIME,
    ) -> Identity:
        key = generate_key()
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        act = Act("test", self.clock())
        credential = await operators.enroll_operator(
            self.registry, self.operators_issuer, operators.NewOperator(name, role, models, spki, lifetime), act=act
        )
        return self.identity(x509.load_der_x509_certificate(credential.der), key)

    def identity(self, certificate: x509.Certificate, key: Key) -> Identity:
        stem = self.folder / certificate.serial_number.to_bytes(20, "big").hex()
        cert_file, key_file = stem.with_suffix(".pem"), stem.with_suffix(".key")
        cert_file.write_bytes(certificate.public_bytes(Encoding.PEM))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Identity(certificate, key, cert_file, key_file)

    # What a client does

    async def enrolled(self, name: str = "cam-1", serial: str = "") -> Identity:
        """A device of model cam, registered and enrolled over EST."""
        await self.device(name, serial=serial)
        key = generate_key()
        answer = await self.enroll(csr_for(name, key), basic(await self.token(name)))
        assert answer.status == 200, answer.text
        return self.identity(answer.certificates[0], key)

    async def enroll(
        self, csr: bytes, headers: dict[str, str] | None = None, *, identity: Identity | None = None, label: str = ""
    ) -> Answer:
        return await self.post(f"{label}{'/' if label else ''}simpleenroll", csr, headers, identity=identity)

    async def reenroll(self, csr: bytes, identity: Identity | None, label: str = "") -> Answer:
        return await self.post(f"{label}{'/' if label else ''}simplereenroll", csr, identity=identity)

    async def post(
        self, operation: str, csr: bytes, headers: dict[str, str] | None = None, *, identity: Identity | None = None
    ) -> Answer:
        path = f"/.well-known/est/{operation}"
        headers = {"Content-Type": "application/pkcs10", **(headers or {})}
        return await self.send("POST", path, encode_body(csr), headers, identity=identity)

    async def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        identity: Identity | None = None,
        server: str = "est",
        context: ssl.SSLContext | None = None,
    ) -> Answer:
        """One request on a connection of its own."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
        given = {"User-Agent": "tests", **(headers or {})}
        if body and "Transfer-Encoding" not in given and "Content-Length" not in given:
            given = {**given, "Content-Length": str(len(body))}
        lines += [f"{name}: {value}" for name, value in given.items()]
        raw = "\r\n".join([*lines, "", ""]).encode() + body
        return Answer(await self.exchange(raw, identity=identity, server=server, context=context))

    async def exchange_all(self, *parts: bytes, identity: Identity | None = None) -> bytes:
        """As `exchange`, with each part in a TLS record of its own."""
        reader, writer = await self.connect(identity)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE_SECONDS):
            received = await reader.read()
        writer.close()
        return received

    async def exchange(
        self,
        raw: bytes,
        *,
        identity: Identity | None = None,
        server: str = "est",
        context: ssl.SSLContext | None = None,
    ) -> bytes:
        """Send `raw`, and return everything that comes until the server closes."""
        reader, writer = await self.connect(identity, server, context)
        writer.write(raw)
        async with asyncio.timeout(DEADLINE_SECONDS):
            received = await reader.read()
        writer.close()
        return received

    async def connect(
        self, identity: Identity | None = None, server: str = "est", context: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = context or self.client_context(identity)
        port = self.listeners[server].port
        return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")

    def client_context(self, identity: Identity | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if identity is not None:
            context.load_cert_chain(identity.cert_file, identity.key_file)
        return context


class KeptAlive:
    """A client that sends request after request on one connection, and opens another when the server closes it."""

    def __init__(self, est: EstHarness, identity: Identity | None, server: str = "est") -> None:
        self._est, self._context, self._server = est, est.client_context(identity), server
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if self._streams is None:
            self._streams = await self._est.connect(None, self._server, self._context)
        reader, writer = self._streams
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        async with asyncio.timeout(DEADLINE_SECONDS):
            head = Answer(await reader.readuntil(b"\r\n\r\n"))
            size = int(head.header("Content-Length") or 0) if method != "HEAD" else 0
            answer = Answer(head.raw + await reader.readexactly(size))
        if answer.header("Connection") == "close" or answer.head.startswith("HTTP/1.0") or method == "CONNECT":
            self.close()
        return answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def admin_context(
    est: EstHarness, root: x509.Certificate, operators_ca: x509.Certificate, heartbeat_seconds: float
) -> Context:
    """What the API of `est` stands on."""
    issuing = est.issuing[0]
    return Context(
        est.registry,
        lambda: CaAccess(
            operators=lambda: operators_ca,
            issuer=lambda: est.issuer,
            operators_issuer=lambda _: est.operators_issuer,
            shown=lambda: [CaCertificate(CaRole.ROOT, root), CaCertificate(CaRole.ISSUING, issuing)],
            forecasted=lambda: [OwnCertificate("root", "CN=root", root.not_valid_after_utc)],
        ),
        lambda: Policy(30, 365, 90),
        est.clock,
        status=lambda: {"est": {"200": 1}},
        notifier=lambda: est.notifier,
        tenants=lambda: ("acme",),
        heartbeat_seconds=heartbeat_seconds,
        started=est.clock(),
    )


@asynccontextmanager
async def open_est(
    folder: Path,
    limits: HttpLimits | None = None,
    heartbeat_seconds: float = 15.0,
    waiting: WaitingLimits = DEFAULT_WAITING,
    authorizer: Authorizer | None = None,
) -> AsyncIterator[EstHarness]:
    """Models cam and pump (P-384 only); EST and admin listening."""
    now = datetime.now(UTC)
    root = create_root("Acme", now)
    issuing = create_issuing("Acme", *root, now)
    registry = await SqliteRegistry.open(folder / "registry.db")
    operators_ca = create_operators("Acme", now)
    est = EstHarness(registry, LocalIssuer(*issuing), root, issuing, folder, LocalIssuer(*operators_ca, OPERATORS))
    est.ca_file.write_bytes(root[0].public_bytes(Encoding.PEM))
    await inventory.add_model(registry, Model("cam"), act=Act("test", now))
    await inventory.add_model(registry, Model("pump", key_types=("EC-P384",)), act=Act("test", now))
    server_certificate, server_key = issue_server_certificate(*issuing, ("localhost", "127.0.0.1"), now)
    identity = ServerIdentity((server_certificate, issuing[0]), server_key)

    def believing(*anchors: x509.Certificate, expired_leaf: bool = False) -> ContextSource:
        context = server_context(
            identity, ClientTrust(anchors), require_client=False, clock=est.clock, expired_leaf=expired_leaf
        )
        return ContextSource(context)

    def believe_makers(makers: Sequence[x509.Certificate]) -> None:
        fresh = server_context(
            identity,
            ClientTrust([issuing[0]], manufacturers=makers),
            require_client=False,
            clock=est.clock,
            expired_leaf=True,
        )
        contexts["est"].swap(fresh)

    est.believing = believe_makers
    contexts = {"est": believing(issuing[0], expired_leaf=True), "admin": believing(issuing[0], operators_ca[0])}
    est.servers["est"] = build_est_server(
        RegistrationAuthority(registry, est.issuer, waiting, authorizer),
        StandingTenants((root[0], issuing[0])),
        sealer=lambda: Sealer(server_certificate, server_key),
        clock=est.clock,
        limits=limits,
    )
    context = admin_context(est, root[0], operators_ca[0], heartbeat_seconds)
    est.servers["admin"] = admin_server(AdminApp(context), limits)
    for name, server in est.servers.items():
        est.listeners[name] = await listen(server, ("127.0.0.1", 0), contexts=contexts[name])
    try:
        yield est
    finally:
        for listener in est.listeners.values():
            listener.close()
        for server in est.servers.values():
            await server.shutdown(1.0)
        for listener in est.listeners.values():
            listener.abort_connections()
            await listener.wait_closed()
        await registry.close()


async def run(*command: str | Path, stdin: bytes = b"") -> tuple[int, bytes, str]:
    """A program's exit code, output and complaints."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_SECONDS):
        output, complaints = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, output, complaints.decode(errors="replace")


def renewal_csr(identity: Identity, key: Key | None = None) -> bytes:
    """A CSR with the names of `identity`, for a new key."""
    subject, alt_names = names_of_certificate(identity.certificate)
    return build_csr(key or generate_key(), subject, alt_names)
