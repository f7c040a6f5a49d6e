"""A corporate PKI, made by other means than ours: its key identifiers are SHA-1 over the key (RFC 5280, 4.2.1.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

from fleet.ca.key_identifiers import identifier_of
from fleet.ca.keys import write_key
from fleet.ca.profiles import SIGNS_CERTIFICATES
from tests.tenant_fixtures import pem

YEARS = timedelta(days=3650)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class CorporateCa:
    certificate: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes

    def signed(
        self,
        name: x509.Name | str,
        public_key: Any,
        now: datetime,
        *,
        path_length: int | None = 0,
        ca: bool = True,
        life: tuple[timedelta, timedelta] = (-timedelta(days=1), YEARS),
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> x509.Certificate:
        """A certificate for `public_key`, a CA's by default."""
        issuer = self.certificate.subject, self.key, identifier_of(self.certificate)
        constraints = x509.BasicConstraints(ca=ca, path_length=path_length if ca else None)
        validity = now + life[0], now + life[1]
        return _certificate(_named(name), public_key, issuer, validity, [(constraints, True), *extensions])

    def crl(self, now: datetime) -> x509.CertificateRevocationList:
        """Its CRL, for a day, with nothing revoked."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(now - timedelta(hours=1)).next_update(now + timedelta(days=1))
        builder = builder.add_extension(x509.CRLNumber(1), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def corporate_root(
    name: str,
    now: datetime,
    *,
    is_rsa: bool = False,
    path_length: int | None = None,
    curve: ec.EllipticCurve | None = None,
) -> CorporateCa:
    own = new_key() if curve is None else ec.generate_private_key(curve)
    key = rsa.generate_private_key(65537, 2048) if is_rsa else own
    life = now - timedelta(days=1), now + 2 * YEARS
    constraints = x509.BasicConstraints(ca=True, path_length=path_length)
    itself = _named(name), key, x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest
    return CorporateCa(_certificate(_named(name), key.public_key(), itself, life, [(constraints, True)]), key)


def below(above: CorporateCa, name: str, now: datetime, **options: Any) -> CorporateCa:
    key = new_key()
    return CorporateCa(above.signed(name, key.public_key(), now, **options), key)


def install(folder: Path, root: CorporateCa, chain: Sequence[CorporateCa]) -> None:
    """Put a hand-made chain, the issuing CA first, into the CA folder of a home, in which nothing else is kept."""
    key = chain[0].key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    (folder / "root.pem").write_bytes(pem(root.certificate))
    (folder / "root.key").unlink()
    (folder / "issuing.pem").write_bytes(pem(*(each.certificate for each in chain)))
    (folder / "issuing.key").unlink()
    write_key(folder / "issuing.key", key)
    (folder.parent / "server" / "server.pem").unlink()


def _named(name: x509.Name | str) -> x509.Name:
    return name if isinstance(name, x509.Name) else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _certificate(
    name: x509.Name,
    public_key: Any,
    issuer: tuple[x509.Name, CertificateIssuerPrivateKeyTypes, bytes],
    life: tuple[datetime, datetime],
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    is_ca = any(isinstance(each, x509.BasicConstraints) and each.ca for each, _ in extensions)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer[0]).public_key(public_key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(life[0]).not_valid_after(life[1])
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(issuer[2], None, None), critical=False)
    if is_ca:
        builder = builder.add_extension(SIGNS_CERTIFICATES, critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer[1], hashes.SHA256())
