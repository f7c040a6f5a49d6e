"""A maker of devices, with a CA of its own and certificates as makers issue them (IEEE 802.1AR)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fleet.wire.names import alt_name
from tests.servers.est_fixtures import Identity

Key = ec.EllipticCurvePrivateKey
NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # IEEE 802.1AR, 8.7: 99991231235959Z

SIGNS = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
AGREES = x509.KeyUsage(False, False, False, False, True, False, False, False, False)
ISSUES = x509.KeyUsage(False, False, False, False, False, True, True, False, False)


@dataclass(frozen=True)
class Maker:
    certificate: x509.Certificate
    key: Key
    above: tuple[x509.Certificate, ...] = ()
    """What its devices send along: the CAs between theirs and the root, nearest first."""

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def below(self, name: str, path_length: int | None = None) -> "Maker":
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, "", key, self, ca=True, usage=ISSUES, path_length=path_length)
        return Maker(certificate, key, (certificate, *self.above))

    def device(
        self,
        folder: Path,
        serial: str = "",
        *,
        hardware: bytes = b"",
        key: Key | None = None,
        usage: x509.KeyUsage | None = SIGNS,
        usages: Sequence[x509.ObjectIdentifier] = (),
        ca: bool | None = None,
        begins: datetime | None = None,
        ends: datetime = NO_END,
    ) -> Identity:
        """A device's certificate with its key, as files; the CAs between are in the file as well."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        names = [alt_name(f"HW:1.3.6.1.4.1.99999.1:{hardware.hex()}")] if hardware else []
        certificate = _certificate(
            "A fine device", serial, key, self, ca=ca, usage=usage, usages=usages, names=names, begins=begins, ends=ends
        )
        stem = folder / f"maker-{certificate.serial_number:x}"
        cert_file, key_file = stem.with_suffix(".pem"), stem.with_suffix(".key")
        chain = (certificate, *self.above)
        cert_file.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Identity(certificate, key, cert_file, key_file)


def new_maker(
    name: str = "Acme Devices CA",
    *,
    path_length: int | None = None,
    key: Key | None = None,
    subject: x509.Name | None = None,
) -> Maker:
    key = key or ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(name, "", key, None, ca=True, usage=ISSUES, path_length=path_length, subject=subject)
    return Maker(certificate, key)


def _certificate(
    name: str,
    serial: str,
    key: Key,
    issuer: Maker | None,
    *,
    ca: bool | None = None,
    usage: x509.KeyUsage | None = None,
    usages: Sequence[x509.ObjectIdentifier] = (),
    names: Sequence[x509.GeneralName] = (),
    path_length: int | None = None,
    subject: x509.Name | None = None,
    begins: datetime | None = None,
    ends: datetime = NO_END,
) -> x509.Certificate:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    attributes += [x509.NameAttribute(NameOID.SERIAL_NUMBER, serial)] if serial else []
    subject = subject or x509.Name(attributes)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins or datetime.now(UTC) - timedelta(days=400))
        .not_valid_after(ends)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer.key if issuer else key, hashes.SHA256())
