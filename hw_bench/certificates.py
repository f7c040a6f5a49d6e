"""Certificates of one run: the same files for every measured server.

Shaped like a fleet's own: root -> issuing CA -> server and devices, P-256 throughout. A server sends its leaf and the
issuing CA and trusts both CAs; a device sends its leaf alone. A second, unrelated CA makes the stranger's certificate.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.ca.authority import create_issuing, create_root, issue_server_certificate
from fleet.ca.keys import generate_key, write_key

HOSTS = ("localhost", "127.0.0.1", "::1")
LIFETIME = timedelta(days=2)  # longer than any run, too short to be misused


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate file (leaf first, its chain after it) and the key file that belongs to it, both PEM."""

    name: str
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Certificates:
    """Certificates and keys of both ends of a measured connection."""

    anchors: Path
    """Root and issuing CA: trust anchors of a server."""
    root: Path
    server: Identity
    devices: tuple[Identity, ...]
    stranger: Identity
    """Signed by an untrusted CA."""


def make_certificates(folder: Path, devices: int = 1) -> Certificates:
    """New certificates in the new folder `folder`, with `devices` devices called bench-0000, bench-0001, ..."""
    folder.mkdir(mode=0o700)
    now = datetime.now(UTC)
    root, root_key = create_root("Bench", now)
    issuing, issuing_key = create_issuing("Bench", root, root_key, now)
    (folder / "root.pem").write_bytes(_pem(root))
    (folder / "anchors.pem").write_bytes(_pem(root) + _pem(issuing))
    server, server_key = issue_server_certificate(issuing, issuing_key, HOSTS, now)
    foreign, foreign_key = create_root("Stranger", now)
    return Certificates(
        anchors=folder / "anchors.pem",
        root=folder / "root.pem",
        server=_write(folder, "server", (server, issuing), server_key),
        devices=tuple(_device(folder, f"bench-{number:04d}", issuing, issuing_key) for number in range(devices)),
        stranger=_device(folder, "stranger", foreign, foreign_key),
    )


def _device(folder: Path, name: str, issuing: x509.Certificate, issuing_key: ec.EllipticCurvePrivateKey) -> Identity:
    key = generate_key()
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuing.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuing.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
        .sign(issuing_key, hashes.SHA256())
    )
    return _write(folder, name, (certificate,), key)


def _write(folder: Path, name: str, chain: tuple[x509.Certificate, ...], key: ec.EllipticCurvePrivateKey) -> Identity:
    identity = Identity(name, folder / f"{name}.pem", folder / f"{name}.key")
    identity.certificate.write_bytes(b"".join(map(_pem, chain)))
    write_key(identity.key, key)
    return identity


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
