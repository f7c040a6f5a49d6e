"""A home whose CRLs are published to a registry, with devices and a clock of the test's own."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.ca.distribution import Publication
from fleet.ca.issuer import LocalIssuer
from fleet.ca.key_identifiers import identifier_of, spki_sha256
from fleet.ca.keys import load_key
from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.crl import CrlHead
from fleet.domain.device import Device, DeviceId, DeviceState
from fleet.domain.distribution import ca_name, full_crl_path
from fleet.domain.enrollment import IssuePermit
from fleet.domain.ports import Registry
from fleet.domain.published_file import PublishedFile
from fleet.domain.writes import AddCredential, Insert
from fleet.home.authorities import read_authorities
from fleet.home.crl_issuing import noting
from fleet.home.home_cas import crl_authorities
from fleet.home.layout import Home, certificate_in
from fleet.home.relying_parties import certificate_files
from fleet.services import revocation
from fleet.services.crl_publishing import CrlPolicy, CrlPublisher
from fleet.services.published_crls import PublishedCrls

NOW = datetime.now(UTC).replace(microsecond=0)
URL = "http://pki.example"


@dataclass
class CrlFleet:
    """See above; `now` moves on by hand."""

    home: Home
    registry: Registry
    policy: CrlPolicy = field(default_factory=CrlPolicy)
    node: str = "node-1"
    now: datetime = NOW
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.publisher = CrlPublisher(self.registry, self.policy, self.node, noting(self.home), self._tick)
        self.crls = PublishedCrls(self.registry, fresh_for=self.policy.max_delay)
        self.issuing = ca_name(identifier_of(certificate_in(self.home.issuing_certificate)))

    @property
    def act(self) -> Act:
        return Act("user alice", self.now)

    def _tick(self) -> float:
        self.seconds += 0.01
        return self.seconds

    async def publish(self, *, at_once: bool = False, soon: bool = False) -> dict[str, CrlHead]:
        """One round; `soon` after the last, when a full CRL that has just been made is not made again."""
        self.seconds += 0 if soon else 60
        made = await self.publisher.publish_due(crl_authorities(self.home), self.now, at_once=at_once)
        return {head.path: head for head in made}

    async def enroll(
        self,
        name: str,
        *,
        lifetime: timedelta = timedelta(days=90),
        is_new: bool = True,
        publication: Publication | None = None,
    ) -> Credential:
        """A certificate of the fleet's CA for the device `name`."""
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        times = (self.now - timedelta(minutes=1), self.now + lifetime)
        permit = IssuePermit(CredentialKind.DEVICE, name, "", spki, spki_sha256(key), *times, "token t1")
        certificate, key_file = certificate_in(self.home.issuing_certificate), self.home.issuing_key
        issuer = LocalIssuer(certificate, load_key(key_file), publication=publication)
        credential = issuer.issue(permit, self.now)
        added = (Insert(Device(DeviceId(name), "default", DeviceState.ACTIVE, self.now)),) if is_new else ()
        await self.registry.commit(
            Change(AuditEntry(self.now, "test", "test", "", "ok"), (*added, AddCredential(credential)))
        )
        return credential

    async def move(self, verb: str, name: str) -> None:
        await revocation.move(verb, self.registry, name, act=self.act)

    async def file(self, path: str) -> PublishedFile:
        certificates = certificate_files(self.home, read_authorities(self.home))
        found = certificates.get(path) or await self.crls.find(path)
        assert found is not None, path
        return found

    async def crl(self, path: str = "") -> x509.CertificateRevocationList:
        """The one published at `path`; the full one of the fleet's issuing CA."""
        return x509.load_der_x509_crl((await self.file(path or full_crl_path(self.issuing))).body)

    async def listed(self, path: str = "") -> dict[int, str]:
        """Reasons by serial number."""
        return {each.serial_number: reason_of(each) for each in await self.crl(path)}


def reason_of(entry: x509.RevokedCertificate) -> str:
    try:
        return entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
    except x509.ExtensionNotFound:
        return "unspecified"


def number_of(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def serial(credential: Credential) -> int:
    return int(credential.serial, 16)


def openssl_verify(home: Home, folder: Path, certificate: Credential, crls: Sequence[bytes], *more: str) -> str:
    """What `openssl verify -crl_check_all` says: "OK", or its errors."""
    leaf, revoked = folder / "leaf.pem", folder / "crls.pem"
    leaf.write_bytes(x509.load_der_x509_certificate(certificate.der).public_bytes(Encoding.PEM))
    revoked.write_bytes(b"".join(x509.load_der_x509_crl(each).public_bytes(Encoding.PEM) for each in crls))
    command = ["openssl", "verify", "-crl_check_all", "-extended_crl", "-CAfile", str(home.root_certificate)]
    command += ["-untrusted", str(home.issuing_certificate), "-CRLfile", str(revoked), *more, str(leaf)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "OK" if done.returncode == 0 else done.stderr
