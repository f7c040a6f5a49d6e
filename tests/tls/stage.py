"""What the tests of this room stand on: a small PKI, clients without a socket, and a listening server."""

import asyncio
import contextlib
import functools
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from fleet.domain.peer import Peer
from fleet.tls import engine
from fleet.tls.contexts import ClientTrust, ContextSource, ServerIdentity, TlsContext, server_context
from fleet.tls.listener import Listener, ListenerLimits, listen
from fleet.tls.session import TlsSession
from tests.waiting import PATIENCE_SECONDS

DAY = timedelta(days=1)
NOW = datetime.now(UTC).replace(microsecond=0)

TLS12, TLS13 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION
CLIENT_AUTH, SERVER_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def write(self, stem: Path, *chain: "Pair") -> tuple[str, str]:
        """Paths of the PEM certificate, with `chain` after it, and of the PEM key."""
        pem = b"".join(p.certificate.public_bytes(serialization.Encoding.PEM) for p in (self, *chain))
        stem.with_suffix(".pem").write_bytes(pem)
        stem.with_suffix(".key").write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return str(stem.with_suffix(".pem")), str(stem.with_suffix(".key"))


def issue(
    name: str,
    issuer: Pair | None = None,
    *,
    ca: bool = False,
    usages: list[x509.ObjectIdentifier] | None = None,
    begins: datetime = NOW - DAY,
    ends: datetime = NOW + 30 * DAY,
) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
    )
    if usages is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return Pair(builder.sign((issuer.key if issuer else key), hashes.SHA256()), key)


class Pki:
    """A root, an issuing CA and one certificate of each kind that a client may come with."""

    def __init__(self) -> None:
        self.root = issue("root", ca=True, begins=NOW - 1000 * DAY, ends=NOW + 1000 * DAY)
        self.issuing = issue("issuing", self.root, ca=True, begins=NOW - 1000 * DAY, ends=NOW + 1000 * DAY)
        self.foreign_root = issue("foreign root", ca=True)
        self.server = issue("server", self.issuing, usages=[SERVER_AUTH])
        client = functools.partial(issue, "client", self.issuing)
        self.good = client(usages=[CLIENT_AUTH])
        self.bad = {
            "foreign": issue("client", self.foreign_root, usages=[CLIENT_AUTH]),
            "self-signed": issue("client", usages=[CLIENT_AUTH]),
            "expired": client(usages=[CLIENT_AUTH], begins=NOW - 10 * DAY, ends=NOW - DAY),
            "not-yet-valid": client(usages=[CLIENT_AUTH], begins=NOW + DAY, ends=NOW + 10 * DAY),
            "server-only": client(usages=[SERVER_AUTH]),
            "no-usage": client(),
            "signed-by-a-leaf": issue("client", self.server, usages=[CLIENT_AUTH]),
        }

    @property
    def identity(self) -> ServerIdentity:
        return ServerIdentity((self.server.certificate, self.issuing.certificate), self.server.key)

    @property
    def anchors(self) -> list[x509.Certificate]:
        return [self.root.certificate, self.issuing.certificate]

    def context(self, *, require_client: bool = True, now: datetime = NOW) -> TlsContext:
        return server_context(
            self.identity, ClientTrust(self.anchors), require_client=require_client, clock=lambda: now
        )


@functools.cache
def pki() -> Pki:
    """Made once a process: nothing ever changes it."""
    return Pki()


# Clients without a socket


def client_context(
    pair: Pair | None, version: int | None = None, *, chain: tuple[Pair, ...] = (), groups: bytes | None = None
) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if version is not None:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    if pair is not None:
        context.use_certificate(pair.certificate)
        context.use_privatekey(pair.key)
        for link in chain:
            context.add_extra_chain_cert(link.certificate)
    if groups is not None:
        assert engine.set_groups(context, groups)
    return context


class MemoryClient:
    """A TLS client that is stepped by hand."""

    def __init__(self, context: SSL.Context, session: SSL.Session | None = None) -> None:
        self.connection = SSL.Connection(context)
        self.connection.set_connect_state()
        if session is not None:
            self.connection.set_session(session)

    def take(self) -> bytes:
        """What it wants to send."""
        parts = []
        with contextlib.suppress(SSL.WantReadError):
            while True:
                parts.append(self.connection.bio_read(1 << 20))
        return b"".join(parts)

    def give(self, data: bytes) -> None:
        if data:
            self.connection.bio_write(data)

    def handshake(self) -> bool:
        try:
            self.connection.do_handshake()
        except SSL.WantReadError:
            return False
        return True

    def read(self) -> bytes:
        parts = []
        with contextlib.suppress(SSL.WantReadError, SSL.ZeroReturnError):
            while True:
                parts.append(self.connection.recv(1 << 16))
        return b"".join(parts)

    def last_flight(self, session: TlsSession) -> bytes:
        """Run the handshake up to the client's last flight, and return that instead of giving it to `session`."""
        self.handshake()
        while True:
            session.feed(self.take())
            self.give(session.outgoing())
            # TLS 1.3: done when Finished is written; TLS 1.2: its Finished is the flight before the last.
            done = self.handshake()
            if done or self.connection.get_finished():
                return self.take()


def join(client: MemoryClient, session: TlsSession) -> None:
    """Shake hands until both are done."""
    for _ in range(6):
        done = client.handshake()
        if sent := client.take():
            session.feed(sent)
        if done and session.peer is not None:
            break
        client.give(session.outgoing())
    assert session.peer is not None


# A listening server and what it hears


class Bell:
    """Rung after anything that a test may wait for."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        # Only at the end of this turn of the loop, when all that belongs to the event has been done.
        self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, condition: Callable[[], object]) -> None:
        """Looks again at every ring, and now and then for what rings no bell. Raises: TimeoutError."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                future = self._loop.create_future()
                self._waiting.add(future)
                await asyncio.wait({future}, timeout=0.02)
                self._waiting.discard(future)


@dataclass(eq=False)
class Recorder(asyncio.Protocol):
    """An application that keeps what happened to it."""

    peer: Peer
    heard: bytearray = field(default_factory=bytearray)
    batches: int = 0
    ended: bool = False
    lost_with: list[Exception | None] = field(default_factory=list)
    transport: Any = None
    half_open: bool = False
    writing_paused: int = 0
    writing_resumed: int = 0
    bell: Bell = field(default_factory=Bell)
    on_data: Callable[["Recorder", bytes], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.bell.ring()

    def data_received(self, data: bytes) -> None:
        self.heard += data
        self.batches += 1
        if self.on_data:
            self.on_data(self, data)
        self.bell.ring()

    def eof_received(self) -> bool:
        self.ended = True
        self.bell.ring()
        return self.half_open

    def pause_writing(self) -> None:
        self.writing_paused += 1
        self.bell.ring()

    def resume_writing(self) -> None:
        self.writing_resumed += 1
        self.bell.ring()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost_with.append(exc)
        self.bell.ring()

    async def lost(self) -> Exception | None:
        """Wait for the end; what `connection_lost` was told."""
        await self.bell.until(lambda: self.lost_with)
        (error,) = self.lost_with
        return error


@dataclass
class Stage:
    """A running listener, the applications it made and the refusals it told of."""

    listener: Listener
    source: ContextSource
    applications: list[Recorder]
    refused: list[tuple[str, str]]
    bell: Bell

    @property
    def port(self) -> int:
        return self.listener.port

    async def application(self, index: int = 0) -> Recorder:
        await self.bell.until(lambda: len(self.applications) > index)
        return self.applications[index]

    async def refusal(self, index: int = 0) -> str:
        await self.bell.until(lambda: len(self.refused) > index)
        return self.refused[index][1]


@contextlib.asynccontextmanager
async def serving(
    make: Callable[[Peer], Recorder] = Recorder,
    *,
    context: TlsContext | None = None,
    limits: ListenerLimits | None = None,
    close_deadline_s: float = 10.0,
) -> AsyncIterator[Stage]:
    bell = Bell()
    applications: list[Recorder] = []
    refused: list[tuple[str, str]] = []

    def factory(peer: Peer) -> Recorder:
        applications.append(make(peer))
        applications[-1].bell = bell
        return applications[-1]

    def on_refused(address: str, reason: str) -> None:
        refused.append((address, reason))
        bell.ring()

    source = ContextSource(context or pki().context())
    listener = await listen(
        factory,
        ("127.0.0.1", 0),
        contexts=source,
        limits=replace(limits or ListenerLimits(), close_deadline_s=close_deadline_s),
        on_refused=on_refused,
    )
    try:
        yield Stage(listener, source, applications, refused, bell)
    finally:
        listener.close()
        listener.abort_connections()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await listener.wait_closed()


def echo(recorder: Recorder, data: bytes) -> None:
    recorder.transport.write(data)


def echoing(peer: Peer) -> Recorder:
    return Recorder(peer, on_data=echo)


def stdlib_client(directory: Path, pair: Pair | None, *, chain: tuple[Pair, ...] = ()) -> ssl.SSLContext:
    """A context of Python's own `ssl`, which trusts our root."""
    root, _ = pki().root.write(directory / "root")
    context = ssl.create_default_context(cafile=root)
    if pair is not None:
        context.load_cert_chain(*pair.write(directory / "client", *chain))
    return context


class WireClient:
    """A MemoryClient on a real socket: what travels can be counted, withheld and spoiled."""

    def __init__(self, tls: MemoryClient, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tls = tls
        self.reader = reader
        self.writer = writer
        self.records = 0
        """Records received since the handshake."""
        self._partial = b""

    @classmethod
    async def connect(cls, port: int, version: int | None = None, *, receive_buffer: int | None = None) -> "WireClient":
        """`receive_buffer` bounds what the kernel holds for a client that does not read."""
        raw = socket.socket()
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=raw, limit=1 << 14)
        return cls(MemoryClient(client_context(pki().good, version)), reader, writer)

    async def shake_hands(self) -> None:
        while not self.tls.handshake():
            self.send_now()
            self.tls.give(await self.receive_raw())

    async def receive_raw(self) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.reader.read(1 << 16)

    def send_now(self) -> None:
        if data := self.tls.take():
            self.writer.write(data)

    def send(self, plain: bytes) -> None:
        self.tls.connection.sendall(plain)
        self.send_now()

    async def receive(self, size: int) -> bytes:
        """That much plaintext, or less when the server ends first."""
        got = self.tls.read()
        while len(got) < size and (data := await self.receive_raw()):
            self._count(data)
            self.tls.give(data)
            got += self.tls.read()
        return got

    def _count(self, data: bytes) -> None:
        self._partial += data
        while len(self._partial) >= 5 and len(self._partial) >= (size := 5 + int.from_bytes(self._partial[3:5])):
            self.records += 1
            self._partial = self._partial[size:]

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
