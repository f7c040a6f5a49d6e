"""Emulated boards as processes of their own, and an authority without a server."""

import hashlib
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DEADLINE_SECONDS = 120.0


@contextmanager
def board(home: Path, link: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """An emulated board on `link`, there when this returns, gone when the block ends. Its serial goes with its home."""
    serial = f"EMU-{hashlib.sha256(bytes(home)).hexdigest()[:8]}"
    emulate: tuple[str | Path, ...] = ("emulate", "--pty", link, "--hardware-serial", serial, *options)
    process = subprocess.Popen(
        [sys.executable, "-m", "device_agent", "--home", home, *emulate],
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        said = read_line(process)
        assert b" is on " in said, said + process.stderr.read()
        yield process
    finally:
        process.terminate()
        process.wait(DEADLINE_SECONDS)
        process.stderr.close()


def read_line(process: subprocess.Popen[bytes]) -> bytes:
    """The first line that `process` complains."""
    assert process.stderr is not None
    readable, _, _ = select.select([process.stderr], [], [], DEADLINE_SECONDS)
    assert readable, "the board says nothing"
    return process.stderr.readline()


@dataclass
class LocalAuthority:
    """ControlHandlers as an EST server would: the same certificate for the same key."""

    lifetime: timedelta = timedelta(days=30)
    issued: dict[bytes, x509.Certificate] = field(default_factory=dict)
    labels: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._root_key = ec.generate_private_key(ec.SECP256R1())
        self._issuing_key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._sign("root", "root", self._root_key.public_key(), self._root_key, ca=True)
        self.issuing = self._sign("issuing", "root", self._issuing_key.public_key(), self._root_key, ca=True)

    def cacerts(self, label: str | None = None) -> list[x509.Certificate]:
        return [self.issuing, self.root]

    def simpleenroll(self, csr_der: bytes, label: str | None = None) -> x509.Certificate:
        self.labels.append(label)
        csr = x509.load_der_x509_csr(csr_der)
        key = csr.public_key()
        name = str(csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        index = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if index not in self.issued:
            self.issued[index] = self._sign(name, "issuing", key, self._issuing_key, ca=False)
        return self.issued[index]

    def _sign(
        self, name: str, issuer: str, key: CertificatePublicKeyTypes, by: ec.EllipticCurvePrivateKey, *, ca: bool
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + self.lifetime)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        return builder.sign(by, hashes.SHA256())
