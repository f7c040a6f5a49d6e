"""OCSP over plain HTTP: openssl, GnuTLS and Go as clients, revocation and hold, and everything that is no request."""

import asyncio
import base64
import hashlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from msgspec.structs import replace

from fleet.ca.crl import make_entries
from fleet.ca.issuer import LocalIssuer
from fleet.ca.key_identifiers import identifier_of, spki_sha256
from fleet.ca.keys import generate_key, load_key
from fleet.config.settings import Settings
from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change, Event, EventKind
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.device import Device, DeviceState, device_id
from fleet.domain.enrollment import IssuePermit
from fleet.domain.lease import Lease
from fleet.domain.published_file import PublishedFile
from fleet.domain.writes import AddCredential, Insert, Write
from fleet.home.authorities import new_issuing_key, new_tenant, read_authorities
from fleet.home.creation import create_home
from fleet.home.layout import Home, open_registry
from fleet.home.pki import load_operators_issuer
from fleet.home.relying_parties import OcspResponders
from fleet.servers.publish.ocsp import CACHED_FOR, VALIDITY, OcspHandler
from fleet.services import revocation
from fleet.services.event_follower import EventFollower
from fleet.services.retention import Mode, Policy, Retention
from fleet.services.revocation import end_certificates
from fleet.storage.engines import Engine
from fleet.storage.journals.archive import Archive
from fleet.storage.journals.event_marks import EventMarks
from fleet.wire.ocsp import REQUEST_SIZE_MAX, REQUEST_TYPE
from tests.servers.publish_fixtures import Answer, Client, connected, serving
from tests.waiting import PATIENCE_SECONDS

START = datetime.now(UTC)
ACT = Act("user alice", START)


@dataclass
class Fleet:
    """A home with devices, and its OCSP handler."""

    home: Home
    registry: Engine
    now: datetime = START
    handler: OcspHandler = field(init=False)

    def __post_init__(self) -> None:
        responders = OcspResponders(self.home, partial(read_authorities, self.home), lambda: self.now)
        self.handler = OcspHandler(self.registry, responders, lambda: self.now)

    def ca(self, tenant: str = "") -> x509.Certificate:
        found = read_authorities(self.home).of(tenant)
        assert found is not None
        return found.issuing

    def permit(self, name: str) -> IssuePermit:
        """For a new key."""
        key = generate_key().public_key()
        return IssuePermit(
            kind=CredentialKind.DEVICE,
            holder=name,
            hardware_serial="",
            spki_der=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            key_sha256=spki_sha256(key),
            not_before=START - timedelta(hours=1),
            not_after=START + timedelta(days=90),
            grant="token t1",
        )

    async def enroll(self, name: str, tenant: str = "") -> x509.Certificate:
        """A new device's certificate."""
        return await self._certify(name, tenant, Insert(Device(device_id(name), "default", DeviceState.ACTIVE, START)))

    async def renew(self, name: str) -> x509.Certificate:
        """Another one, of the fleet's own CA, for a device that is there."""
        return await self._certify(name, "")

    async def _certify(self, name: str, tenant: str, *more: Write) -> x509.Certificate:
        authority = read_authorities(self.home).of(tenant)
        assert authority is not None
        permit = self.permit(name)
        made: Credential = LocalIssuer(authority.issuing, load_key(authority.key_file)).issue(permit, START)
        entry = AuditEntry(START, "user alice", "device.enroll", f"device {name}", "ok")
        await self.registry.commit(Change(entry, (*more, AddCredential(made))))
        return x509.load_der_x509_certificate(made.der)

    async def status(self, asked: bytes) -> ocsp.OCSPResponse:
        return ocsp.load_der_ocsp_response((await self.handler.answer(asked)).der)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that each test copies."""
    return asyncio.run(create_home(tmp_path_factory.mktemp("template") / "home", Settings(), START)).path


@pytest.fixture
async def fleet(template: Path, tmp_path: Path) -> AsyncIterator[Fleet]:
    home = Home(Path(shutil.copytree(template, tmp_path / "home")))
    registry = await open_registry(home)
    try:
        yield Fleet(home, registry)
    finally:
        await registry.close()


@asynccontextmanager
async def served(fleet: Fleet) -> AsyncIterator[tuple[Client, str]]:
    """A client, and the responder's URL."""

    async def find(path: str) -> PublishedFile | None:
        return None

    async with serving(find, START, ocsp=fleet.handler.handle) as listener, connected(listener) as client:
        yield client, f"http://127.0.0.1:{listener.port}/ocsp"


def asked(
    certificate: x509.Certificate,
    ca: x509.Certificate,
    *,
    nonce: bytes = b"",
    algorithm: hashes.HashAlgorithm | None = None,
) -> bytes:
    algorithm = algorithm or hashes.SHA1()  # noqa: S303  what clients name a CA by
    point = ca.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)[-65:]  # of P-256
    name, key = (hashlib.new(algorithm.name, part).digest() for part in (ca.subject.public_bytes(), point))
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(name, key, certificate.serial_number, algorithm)
    if nonce:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


async def said_by(*words: str) -> str:
    program = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        output, _ = await program.communicate()
    return output.decode()


async def post(client: Client, body: bytes, *headers: str) -> Answer:
    return await client.ask("POST", "/ocsp", f"Content-Type: {REQUEST_TYPE}", *headers, body=body)


async def test_openssl_and_gnutls_ask_with_and_without_a_nonce(fleet: Fleet, tmp_path: Path) -> None:
    good, gone, held = [await fleet.enroll(name) for name in ("cam-1", "cam-2", "cam-3")]
    await revocation.revoke(fleet.registry, "cam-2", act=ACT)
    await revocation.suspend(fleet.registry, "cam-3", act=ACT)
    unknown = await fleet.enroll("cam-9")
    files = {"good": good, "gone": gone, "held": held, "issuing": fleet.ca()}
    for stem, each in files.items():
        (tmp_path / f"{stem}.pem").write_bytes(each.public_bytes(Encoding.PEM))
    issuing, root = str(tmp_path / "issuing.pem"), str(fleet.home.root_certificate)
    certificates = [word for stem in ("good", "gone", "held") for word in ("-cert", str(tmp_path / f"{stem}.pem"))]
    never = str(unknown.serial_number ^ 1)
    async with served(fleet) as (_, url):
        for nonce in ("-nonce", "-no_nonce"):
            said = await said_by(
                *("openssl", "ocsp", "-url", url, "-CAfile", root, "-issuer", issuing, nonce),
                *certificates, *("-serial", never),
            )  # fmt: skip
            assert "Response verify OK" in said, said
            assert "WARNING" not in said, said
            assert "good.pem: good" in said
            assert "gone.pem: revoked" in said
            assert "held.pem: revoked" in said
            assert "Reason: certificateHold" in said
            assert f"{never}: unknown" in said.lower()
        if shutil.which("ocsptool"):
            for stem, wanted in (("good", "Certificate Status: good"), ("gone", "Certificate Status: revoked")):
                said = await said_by(
                    *("ocsptool", f"--ask={url}", "--nonce", "--load-trust", issuing, "--load-issuer", issuing),
                    *("--load-cert", str(tmp_path / f"{stem}.pem")),
                )  # fmt: skip
                assert wanted in said, said
                assert "Verifying OCSP Response: Success" in said, said


async def test_a_hold_ends_and_a_revocation_does_not(fleet: Fleet) -> None:
    certificate = await fleet.enroll("cam-1")
    question = asked(certificate, fleet.ca())
    for act, expected, reason in (
        (revocation.suspend, ocsp.OCSPCertStatus.REVOKED, x509.ReasonFlags.certificate_hold),
        (revocation.resume, ocsp.OCSPCertStatus.GOOD, None),
        (revocation.revoke, ocsp.OCSPCertStatus.REVOKED, None),
    ):
        await act(fleet.registry, "cam-1", act=replace_now(ACT, fleet.now))
        found = await fleet.status(question)
        assert (found.certificate_status, found.revocation_reason) == (expected, reason)
        if expected is ocsp.OCSPCertStatus.REVOKED:
            assert found.revocation_time_utc == fleet.now.replace(microsecond=0)
        fleet.now += timedelta(minutes=1)


async def test_a_device_that_was_revoked_before_the_registry_went_back_is_not_good(fleet: Fleet) -> None:
    question = asked(await fleet.enroll("cam-1"), fleet.ca())
    assert (await fleet.status(question)).certificate_status is ocsp.OCSPCertStatus.GOOD
    fleet.registry.revoked.on_event(Event(EventKind.DEVICE_STATE, "cam-1", "revoked"))  # as the journal has it
    assert (await fleet.status(question)).certificate_status is ocsp.OCSPCertStatus.REVOKED


async def test_once_its_entry_is_dropped_a_revoked_certificate_is_not_good(fleet: Fleet) -> None:
    ended, held, good = [await fleet.enroll(name) for name in ("cam-1", "cam-2", "cam-3")]
    await end_certificates(fleet.registry, {ended.fingerprint(hashes.SHA256()): "cam-1"}, act=ACT)
    await revocation.suspend(fleet.registry, "cam-2", act=ACT)
    fleet.now = START + timedelta(days=91)
    lease = Lease("crl", "node-1", fleet.now + timedelta(seconds=10))
    waiting = await fleet.registry.pending_revocations(9)
    await fleet.registry.store_entries(make_entries(waiting), lease, fleet.now)
    issuer = identifier_of(fleet.ca())
    await fleet.registry.drop_revoked(fleet.now, issuer, 0, lease, fleet.now)
    assert await fleet.registry.revocation(f"{held.serial_number:x}") is None
    for certificate, expected in (
        (ended, ocsp.OCSPCertStatus.UNKNOWN),
        (held, ocsp.OCSPCertStatus.UNKNOWN),
        (good, ocsp.OCSPCertStatus.GOOD),
    ):
        assert (await fleet.status(asked(certificate, fleet.ca()))).certificate_status is expected


def replace_now(act: Act, now: datetime) -> Act:
    return Act(act.actor, now)


async def test_unknown_is_what_this_ca_has_not_issued(fleet: Fleet) -> None:
    with new_tenant(fleet.home, "acme", own_root=False, now=START):
        pass
    ours, theirs = await fleet.enroll("cam-1"), await fleet.enroll("cam-2", "acme")
    stranger = x509.load_pem_x509_certificate(fleet.home.root_certificate.read_bytes())
    unknown, good = ocsp.OCSPCertStatus.UNKNOWN, ocsp.OCSPCertStatus.GOOD
    for certificate, ca, algorithm, expected in (
        (ours, fleet.ca(), hashes.SHA1(), good),  # noqa: S303
        (ours, fleet.ca(), hashes.SHA256(), good),
        (ours, fleet.ca(), hashes.SHA512(), good),
        (ours, fleet.ca(), hashes.SHA224(), unknown),  # a hash that no CA is found by
        (theirs, fleet.ca("acme"), hashes.SHA1(), good),  # noqa: S303
        (theirs, fleet.ca(), hashes.SHA1(), unknown),  # noqa: S303  of another CA of ours
        (ours, fleet.ca("acme"), hashes.SHA1(), unknown),  # noqa: S303
        (ours, stranger, hashes.SHA256(), unknown),  # a CA that has no responder here
        (stranger, fleet.ca(), hashes.SHA256(), unknown),  # a serial number that nobody knows
    ):
        found = await fleet.status(asked(certificate, ca, algorithm=algorithm))
        assert found.certificate_status is expected
        signer = ca if ca in (fleet.ca(), fleet.ca("acme")) and not isinstance(algorithm, hashes.SHA224) else fleet.ca()
        found.certificates[0].verify_directly_issued_by(signer)
    negative = ocsp.OCSPRequestBuilder().add_certificate(ours, fleet.ca(), hashes.SHA1()).build()  # noqa: S303
    spoiled = negative.public_bytes(Encoding.DER).replace(ours.serial_number.to_bytes(20), b"\x80" + b"x" * 19)
    assert (await fleet.status(spoiled)).certificate_status is unknown


async def test_retention_makes_no_certificate_unknown_before_its_end(fleet: Fleet, tmp_path: Path) -> None:
    old, new = await fleet.enroll("cam-1"), await fleet.renew("cam-1")
    before, after = fleet.now + timedelta(days=90, hours=-1), fleet.now + timedelta(days=92)
    for fleet.now, expected in ((before, ocsp.OCSPCertStatus.GOOD), (after, ocsp.OCSPCertStatus.UNKNOWN)):
        marks, policy = EventMarks(tmp_path / "marks.jsonl"), Policy(0, 0, expired_credentials_days=1)
        with Archive(tmp_path / "archive").held() as archive:
            await Retention(fleet.registry, archive, marks, policy, Mode("retention")).run(noted=0, now=fleet.now)
        assert (await fleet.status(asked(old, fleet.ca()))).certificate_status is expected
        # the newest of a device in service is not archived
        assert (await fleet.status(asked(new, fleet.ca()))).certificate_status is ocsp.OCSPCertStatus.GOOD


async def test_the_servers_own_certificate_is_good_and_the_one_before_it_is_not_known(fleet: Fleet) -> None:
    server = x509.load_pem_x509_certificate(fleet.home.server_chain.read_bytes())
    found = await fleet.status(asked(server, fleet.ca()))
    assert found.certificate_status is ocsp.OCSPCertStatus.GOOD


async def test_a_ca_before_a_rollover_answers_and_is_signed_for_by_itself(fleet: Fleet) -> None:
    before, certificate = fleet.ca(), await fleet.enroll("cam-1")
    new_issuing_key(fleet.home, "", START)
    after = await fleet.enroll("cam-2")
    for device, ca in ((certificate, before), (after, fleet.ca())):
        found = await fleet.status(asked(device, ca))
        assert found.certificate_status is ocsp.OCSPCertStatus.GOOD
        found.certificates[0].verify_directly_issued_by(ca)
    assert before != fleet.ca()
    # Of two CAs in one request, none can answer for both.
    both = _joined(asked(certificate, before), asked(after, fleet.ca()))
    assert (await fleet.status(both)).response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED


def _joined(*requests: bytes) -> bytes:
    """One request of several, each of one certificate and without extensions."""
    singles = b"".join(each[6:] for each in requests)
    assert all(len(each) < 128 and each[0] == each[2] == each[4] == 0x30 for each in requests)
    listed = bytes((0x30, 0x81, len(singles))) + singles
    tbs = bytes((0x30, 0x81, len(listed))) + listed
    return bytes((0x30, 0x81, len(tbs))) + tbs


async def test_operators_certificates_are_answered_for_by_their_ca(fleet: Fleet) -> None:
    issuer = load_operators_issuer(fleet.home, START)
    permit = replace(fleet.permit("bob"), kind=CredentialKind.OPERATOR)
    made = issuer.issue(permit, START)
    entry = AuditEntry(START, "user alice", "operator.add", "operator bob", "ok")
    await fleet.registry.commit(Change(entry, (AddCredential(made),)))
    question = asked(x509.load_der_x509_certificate(made.der), issuer.certificate)
    assert (await fleet.status(question)).certificate_status is ocsp.OCSPCertStatus.GOOD
    await revocation.revoke_certificates(fleet.registry, CredentialKind.OPERATOR, "bob", act=ACT, reason="")
    found = await fleet.status(question)
    assert found.certificate_status is ocsp.OCSPCertStatus.REVOKED
    found.certificates[0].verify_directly_issued_by(issuer.certificate)


async def test_without_its_key_nobody_answers_for_a_ca(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    question = asked(await fleet.enroll("cam-1"), fleet.ca())
    fleet.home.issuing_key.unlink()
    for _ in range(3):
        assert (await fleet.status(question)).response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED
    assert "outcome=not-delegated" in caplog.text


async def test_nodes_with_a_copy_of_the_home_answer_each_with_a_certificate_of_its_own(fleet: Fleet) -> None:
    question = asked(await fleet.enroll("cam-1"), fleet.ca())
    other = Fleet(fleet.home, fleet.registry)
    answers = [await each.status(question) for each in (fleet, other)]
    certificates = [answer.certificates[0] for answer in answers]
    assert certificates[0] != certificates[1]
    for each in certificates:
        each.verify_directly_issued_by(fleet.ca())
        assert each.public_key() == certificates[0].public_key()


async def test_several_certificates_are_answered_in_their_order(fleet: Fleet) -> None:
    first, second = await fleet.enroll("cam-1"), await fleet.enroll("cam-2")
    await revocation.revoke(fleet.registry, "cam-2", act=ACT)
    found = await fleet.status(_joined(asked(first, fleet.ca()), asked(second, fleet.ca())))
    states = [(each.serial_number, each.certificate_status) for each in found.responses]
    assert states == [
        (first.serial_number, ocsp.OCSPCertStatus.GOOD),
        (second.serial_number, ocsp.OCSPCertStatus.REVOKED),
    ]


async def test_get_in_every_form_and_what_caches_are_told(fleet: Fleet) -> None:
    question = asked(await fleet.enroll("cam-1"), fleet.ca())
    text = base64.b64encode(question).decode()
    async with served(fleet) as (client, _):
        for path in (text, quote(text, safe=""), quote(text), f"/{text}"):
            found = await client.ask("GET", f"/ocsp/{path}")
            answer = ocsp.load_der_ocsp_response(found.body)
            assert (found.status, answer.certificate_status) == (200, ocsp.OCSPCertStatus.GOOD)
            assert found.headers["Content-Type"] == "application/ocsp-response"
            assert found.headers["Cache-Control"].startswith("max-age=60, public")
        again = await client.ask("GET", f"/ocsp/{text}", f"If-None-Match: {found.headers['ETag']}")
        assert again.status in (200, 304)
        with_nonce = base64.b64encode(asked(await fleet.enroll("cam-2"), fleet.ca(), nonce=b"\xff" * 32)).decode()
        assert "////" in with_nonce
        found = await client.ask("GET", f"/ocsp/{with_nonce}")
        assert found.headers["Cache-Control"] == "no-store"
        assert ocsp.load_der_ocsp_response(found.body).extensions.get_extension_for_class(x509.OCSPNonce)


async def test_what_is_no_request(fleet: Fleet) -> None:
    for body, status in (
        (b"garbage", 200),
        (b"\x30\x03\x0a\x01\x01", 200),
        (b"\x30" * REQUEST_SIZE_MAX, 200),
        (b"\x30" * (REQUEST_SIZE_MAX + 1), 413),
        (b"\0" * 1_000_000, 413),
    ):
        async with served(fleet) as (client, _):
            found = await post(client, body)
            assert (found.status, found.headers["Cache-Control"]) == (status, "no-store")
            assert status == 413 or is_malformed(found)
    async with served(fleet) as (client, _):
        assert is_malformed(await post(client, b"", "Content-Length: 0"))


def is_malformed(found: Answer) -> bool:
    response = ocsp.load_der_ocsp_response(found.body)
    return response.response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


async def test_other_methods_and_paths(fleet: Fleet) -> None:
    async with served(fleet) as (client, _):
        for method, path, status in (
            ("GET", "/ocsp", 405),
            ("PUT", "/ocsp", 405),
            ("POST", "/ocsp/", 405),
            ("DELETE", "/ocsp/MFQ=", 405),
            ("GET", "/ocspx", 404),
            ("GET", "/ocsp/", 200),
            ("GET", "/ocsp/****", 200),
            ("GET", "/ocsp/MFQ", 200),
            ("GET", "/ocsp/M", 200),
            ("GET", "/ocsp/%", 200),
            ("GET", "/ocsp/%4D%46%51%3D", 200),
            ("GET", "/ocsp/MFQ=?x=1", 200),
            ("GET", "/ocsp/" + "M" * 3000, 200),
        ):
            found = await client.ask(method, path)
            assert (found.status, found.headers["Cache-Control"]) == (status, "no-store"), path
            assert status != 200 or is_malformed(found)


async def test_a_media_type_that_is_none_of_ocsp(fleet: Fleet) -> None:
    async with served(fleet) as (client, _):
        found = await client.ask("POST", "/ocsp", "Content-Type: application/pkcs10", body=b"x")
        assert found.status == 415
        found = await client.ask("POST", "/ocsp", f"Content-Type: {REQUEST_TYPE.upper()}; a=b", body=b"x")
        assert found.status == 200


async def test_a_request_cut_at_every_byte(fleet: Fleet) -> None:
    whole = asked(await fleet.enroll("cam-1"), fleet.ca(), nonce=b"n" * 32)
    assert (await fleet.status(whole)).certificate_status is ocsp.OCSPCertStatus.GOOD
    for end in range(len(whole)):
        assert (await fleet.status(whole[:end])).response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


async def test_nonces_at_their_bounds(fleet: Fleet) -> None:
    certificate = await fleet.enroll("cam-1")
    for size in (1, 32, 33, 128):
        found = await fleet.status(asked(certificate, fleet.ca(), nonce=b"x" * size))
        assert found.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"x" * size
    found = await fleet.status(asked(certificate, fleet.ca(), nonce=b"x" * 129))
    assert found.response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


async def test_answers_are_kept_until_an_event_ends_them(fleet: Fleet) -> None:
    certificate = await fleet.enroll("cam-1")
    question = asked(certificate, fleet.ca())
    handler = fleet.handler
    await handler.answer(question)
    assert len(handler.cache) == 0, "without the events nothing is kept"
    suspended = asyncio.Event()

    async def on_event(event: Event) -> None:
        await handler.cache.on_event(event)
        if event.detail == "suspended":
            suspended.set()

    follower = EventFollower(fleet.registry, on_event, 5.0, handler.cache.clear)
    following = asyncio.create_task(follower.run())
    try:
        await follower.started()
        handler.feed_is_up = follower.reliable
        first = await handler.answer(question)
        assert await handler.answer(question) is first
        assert await handler.answer(asked(certificate, fleet.ca(), nonce=b"n")) is not first
        fleet.now += CACHED_FOR
        second = await handler.answer(question)
        assert second is not first
        assert CACHED_FOR < VALIDITY
        await revocation.suspend(fleet.registry, "cam-1", act=replace_now(ACT, fleet.now))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await suspended.wait()
        assert (await fleet.status(question)).certificate_status is ocsp.OCSPCertStatus.REVOKED
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
