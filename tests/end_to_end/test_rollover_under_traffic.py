"""Issuing CA and root are replaced, the fleet's own or a corporate one, while devices enroll, renew, connect and
publish: clients with any one of the roots go on, and both chains are accepted until the former is retired.
"""

import contextlib
import json
import shutil
import socket
import ssl
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from fleet.ca.key_identifiers import identifier_of
from fleet.domain.distribution import ca_name, plain_crl_path
from fleet.est_client.client import EstClient
from fleet.home.ca_store import fingerprint
from fleet.home.layout import Home, certificate_in
from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from fleet.wire.csr import build_csr
from fleet.wire.mqtt.codes import V5, PacketType
from fleet.wire.mqtt.connect import Connect, encode_connect
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.reader import Packet, PacketReader
from tests.free_ports import free_port
from tests.home.corporate import CorporateCa, below, corporate_root
from tests.serving import ANY_PORTS, Served, run_fleet
from tests.tenant_fixtures import pem
from tests.waiting import PATIENCE_SECONDS, wait_until

PAUSE_SECONDS = 0.05  # between two devices: the machine is others' too

pytestmark = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")


@dataclass(frozen=True)
class Member:
    """A device, its certificate and key in one file, and the root that it trusts."""

    name: str
    file: Path
    root: Path

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.file.read_bytes())

    @property
    def issuer(self) -> str:
        return self.certificate.issuer.rfc4514_string()

    def renewed(self, est: str) -> "Member":
        key = load_pem_private_key(self.file.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        issued = EstClient(est, self.root, certificate=(self.file, self.file)).simplereenroll(_csr(self.name, key))
        return _member(self.name, self.file.with_suffix(".renewed.pem"), self.root, issued, key)


def _csr(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    return build_csr(key, (("2.5.4.3", name),), ())


def _member(
    name: str, file: Path, root: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> Member:
    file.write_bytes(
        certificate.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return Member(name, file, root)


class Session:
    """One MQTT connection, from its CONNACK on."""

    def __init__(self, address: tuple[str, int], member: Member) -> None:
        context = ssl.create_default_context(cafile=member.root)
        context.load_cert_chain(member.file)
        raw = socket.create_connection(address, PATIENCE_SECONDS)
        self._stream = context.wrap_socket(raw, server_hostname="localhost")
        self._packets, self._waiting = PacketReader(65_536), list[Packet]()
        self._topic = f"devices/{member.name}/up/n"
        self._stream.sendall(encode_connect(Connect(V5, member.name)))
        answer = self._next()
        assert answer is not None, f"{member.name}: closed before CONNACK"
        assert (answer.type, answer.body[1]) == (PacketType.CONNACK, 0), answer

    def publish(self) -> None:
        """Returns when it is acknowledged."""
        self._stream.sendall(encode_publish(Publish(self._topic, b"x", qos=1, packet_id=1), V5))
        answer = self._next()
        assert answer is not None, f"{self._topic}: closed"
        assert answer.type == PacketType.PUBACK, answer

    def is_ended(self) -> bool:
        """By the server, with what it says or without; waits for it."""
        with contextlib.suppress(OSError):
            answer = self._next()
            return answer is None or answer.type == PacketType.DISCONNECT
        return True

    def _next(self) -> Packet | None:
        while not self._waiting:
            data = self._stream.recv(4096)
            if not data:
                return None
            self._waiting += self._packets.feed(data)
        return self._waiting.pop(0)

    def close(self) -> None:
        self._stream.close()


@dataclass
class Traffic:
    """Devices that come one after the other, each trusting one of the roots: it enrolls, connects, publishes, renews,
    and connects with the new certificate. What fails is in `failures`.
    """

    served: Served
    folder: Path
    roots: list[Path]
    failures: list[str] = field(default_factory=list)
    members: dict[str, list[Member]] = field(default_factory=dict)
    """Those that have been through all of it, by the name of the issuer of their present certificate."""

    def __post_init__(self) -> None:
        self._done, self._number = threading.Event(), 0
        words = ("token", "create", "--model", "default", "--uses", "100000")
        self._token = run_fleet(self.served.home, *words).strip()
        self._thread = threading.Thread(target=self._run)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._done.is_set():
            for root in list(self.roots):
                self._done.wait(PAUSE_SECONDS)
                try:
                    self._comes(root)
                except Exception as error:
                    self.failures.append(f"{root.stem}: {error!r}")
                    self._done.set()

    def _comes(self, root: Path) -> None:
        self._number += 1
        member = self.enrolled(f"cam-{self._number}", root)
        self.connects(member)
        member = member.renewed(self.served.est)
        self.connects(member)
        self.members.setdefault(member.issuer, []).append(member)

    def enrolled(self, name: str, root: Path) -> Member:
        key = ec.generate_private_key(ec.SECP256R1())
        issued = EstClient(self.served.est, root, basic=(name, self._token)).simpleenroll(_csr(name, key))
        return _member(name, self.folder / f"{name}.pem", root, issued, key)

    def session(self, member: Member) -> Session:
        return Session(self.served.address("mqtt"), member)

    def connects(self, member: Member) -> None:
        session = self.session(member)
        session.publish()
        session.close()

    def issues(self, ca: x509.Certificate) -> None:
        """Returns when two devices for each root have been through all of it with certificates of `ca`."""

        def done() -> bool:
            trusted = Counter(each.root for each in self.members.get(_name(ca), ()))
            return bool(self.failures) or all(trusted[root] > 1 for root in self.roots)

        wait_until(done, f"{_name(ca)} does not issue for each root")
        assert self.failures == []

    def latest(self, ca: x509.Certificate) -> Member:
        """A device with a certificate of `ca`, another each time."""
        return self.members[_name(ca)].pop()


def _name(ca: x509.Certificate) -> str:
    return ca.subject.rfc4514_string()


@dataclass(frozen=True)
class Corporate:
    """A home whose issuing CA is signed elsewhere."""

    home: Home
    folder: Path

    def imports(self, *above: CorporateCa) -> x509.Certificate:
        """Has the next issuing CA signed by the first of these, imports it, and returns it."""
        asked = x509.load_pem_x509_csr(run_fleet(self.home.path, "ca", "csr").encode())
        now = datetime.now(UTC)
        made = above[0].signed(asked.subject, asked.public_key(), now)
        answer = self.folder / "answer.pem"
        crls = [each.crl(now).public_bytes(Encoding.PEM) for each in above]
        answer.write_bytes(pem(made, *(each.certificate for each in above)) + b"".join(crls))
        run_fleet(self.home.path, "ca", "import", str(answer))
        return made

    def listed(self, publish: str, issuer: x509.Certificate) -> set[int]:
        """Serial numbers in the CRL of `issuer`, as relying parties get it."""
        url = publish + plain_crl_path(ca_name(identifier_of(issuer)))
        with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
            crl = x509.load_der_x509_crl(answer.read())
        assert crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
        return {entry.serial_number for entry in crl}


@pytest.fixture
def corporate(home: Path, tmp_path: Path) -> Corporate:
    text = home.joinpath("fleet.toml").read_text()
    before, publish, behind = text.partition("[publish]")
    port = free_port()
    behind = behind.replace('address = "off"', f'address = "127.0.0.1:{port}"', 1)
    behind = behind.replace('url = ""', f'url = "http://127.0.0.1:{port}"', 1)
    text = before + publish + behind.replace("max_delay = 5.0", "max_delay = 1.0")
    for limit in ("connections_per_address", "requests_per_address", "requests_per_credential"):
        line = next(line for line in text.splitlines() if line.startswith(f"{limit}_per_second"))
        text = text.replace(line, f"{limit}_per_second = 0")
    home.joinpath("fleet.toml").write_text(text)
    shutil.copy(home / "ca/root.pem", tmp_path / "first.pem")
    return Corporate(Home(home), tmp_path)


def test_issuing_ca_and_corporate_root_are_replaced_under_traffic(corporate: Corporate, tmp_path: Path) -> None:
    now, home = datetime.now(UTC), corporate.home
    root = corporate_root("Corp Root", now, is_rsa=True)
    policy = below(root, "Corp Policy CA", now, path_length=1)
    first = corporate.imports(policy, root)
    home.ca.joinpath("roots/1-root.key").unlink()  # as the runbook has it
    (tmp_path / "corp.pem").write_bytes(pem(root.certificate))
    served = Served(home.path, tmp_path / "ready.json", ANY_PORTS).start()
    try:
        traffic = Traffic(served, tmp_path, [tmp_path / "first.pem", tmp_path / "corp.pem"])
        held = [traffic.enrolled(f"held-{file.stem}", file) for file in traffic.roots]
        sessions = [traffic.session(each) for each in held]
        with traffic.running():
            traffic.issues(first)
            second = corporate.imports(policy, root)
            traffic.issues(second)
            _both_are_accepted(traffic, held, sessions)
            _crls_of_all_are_served(corporate, traffic, first, second)

            new = corporate_root("Corp Root 2026", now)
            link = root.signed(new.certificate.subject, new.key.public_key(), now, path_length=None)
            third = corporate.imports(new, CorporateCa(link, new.key))
            (tmp_path / "new.pem").write_bytes(pem(new.certificate))
            traffic.roots.append(tmp_path / "new.pem")
            traffic.issues(third)
            _both_are_accepted(traffic, held, sessions)
            _crls_of_all_are_served(corporate, traffic, first, second, third)
            _the_former_is_retired(corporate, traffic, first, held, sessions)
    finally:
        assert served.stop() == 0
    assert traffic.failures == []


def test_the_fleets_own_issuing_ca_and_root_are_replaced_under_traffic(corporate: Corporate, tmp_path: Path) -> None:
    home = corporate.home
    first = certificate_in(home.issuing_certificate)
    served = Served(home.path, tmp_path / "ready.json", ANY_PORTS).start()
    try:
        traffic = Traffic(served, tmp_path, [tmp_path / "first.pem"])
        held = [traffic.enrolled("held", traffic.roots[0])]
        sessions = [traffic.session(each) for each in held]
        with traffic.running():
            traffic.issues(first)
            for words in (("rollover",), ("rollover", "--root")):
                run_fleet(home.path, "ca", *words)
                if "--root" in words:
                    run_fleet(home.path, "ca", "export", str(tmp_path / "second.pem"))
                    traffic.roots.append(tmp_path / "second.pem")
                present = certificate_in(home.issuing_certificate)
                traffic.issues(present)
                _both_are_accepted(traffic, held, sessions)
            _crls_of_all_are_served(corporate, traffic, first, present)
            _the_former_is_retired(corporate, traffic, first, held, sessions)
    finally:
        assert served.stop() == 0
    assert traffic.failures == []


def _both_are_accepted(traffic: Traffic, held: list[Member], sessions: list[Session]) -> None:
    """Sessions from before live, and certificates from before open further ones: this takes the sessions' places."""
    for number, member in enumerate(held):
        sessions[number].publish()
        fresh = traffic.session(member)
        assert sessions[number].is_ended()  # taken over by its device
        fresh.publish()
        sessions[number] = fresh


def _crls_of_all_are_served(corporate: Corporate, traffic: Traffic, *cas: x509.Certificate) -> None:
    """A device of each CA, revoked, is in the CRL of its CA; what certificates name is there and right."""
    members = {ca: traffic.latest(ca) for ca in cas}
    names = [each.name for each in members.values()]
    run_fleet(corporate.home.path, "device", "revoke", *names, "--crl-reason", "keyCompromise")
    for ca, member in members.items():
        _is_listed(corporate, traffic, ca, member)
    _ca_check_is_ok(corporate)


def _ca_check_is_ok(corporate: Corporate) -> None:
    rows = json.loads(run_fleet(corporate.home.path, "ca", "check", "-o", "json"))
    assert {row["state"] for row in rows} == {"ok"}, rows


def _is_listed(corporate: Corporate, traffic: Traffic, issuer: x509.Certificate, member: Member) -> None:
    """Once a CRL is due that lists it."""
    serial, publish = member.certificate.serial_number, traffic.served.endpoints["publish"]
    wait_until(lambda: serial in corporate.listed(publish, issuer), f"{_name(issuer)} does not list {member.name}")


def _the_former_is_retired(
    corporate: Corporate, traffic: Traffic, former: x509.Certificate, held: list[Member], sessions: list[Session]
) -> None:
    """Not while a certificate of it is in use, unless forced; then its sessions end, and relying parties hear of it."""
    sha256 = fingerprint(former)
    run_fleet(corporate.home.path, "ca", "forget", sha256, expect=1)
    run_fleet(corporate.home.path, "ca", "forget", sha256, "--force")
    listed = corporate.listed(traffic.served.endpoints["publish"], former)
    for member, session in zip(held, sessions, strict=True):
        assert session.is_ended()
        with pytest.raises((OSError, AssertionError)):
            traffic.connects(member)
        assert member.certificate.serial_number in listed
    _ca_check_is_ok(corporate)
