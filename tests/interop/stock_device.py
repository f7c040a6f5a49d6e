"""An enrolled device whose key and certificate stock clients use."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fleet.est_client.client import EstClient
from fleet.wire.csr import build_csr
from tests.serving import Served, run_fleet


def needs(*names: str) -> None:
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"{name}: not installed")


class StockDevice:
    """A device without an agent of ours: what it has are two files."""

    def __init__(self, served: Served, name: str, folder: Path, model: str = "default") -> None:
        self.name, self.served = name, served
        self.certificate, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        run_fleet(served.home, "device", "add", name, "--model", model)
        token = run_fleet(served.home, "token", "create", "--device", name).strip()
        self._private = ec.generate_private_key(ec.SECP256R1())
        self.key.write_bytes(self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        est = EstClient(served.est, served.ca_file, basic=(name, token))
        self._install(est.simpleenroll(self._csr()))

    def renew(self) -> None:
        """A new certificate for the same key, in place of the old one; no connection is made with it."""
        est = EstClient(self.served.est, self.served.ca_file, certificate=(self.certificate, self.key))
        self._install(est.simplereenroll(self._csr()))

    def seconds_left(self) -> float:
        """Until the end of the certificate that is installed."""
        ends = x509.load_pem_x509_certificate(self.certificate.read_bytes()).not_valid_after_utc
        return (ends - datetime.now(UTC)).total_seconds()

    def _csr(self) -> bytes:
        return build_csr(self._private, (("2.5.4.3", self.name),), ())

    def _install(self, certificate: x509.Certificate) -> None:
        fresh = self.certificate.with_suffix(".new")
        fresh.write_bytes(certificate.public_bytes(Encoding.PEM))
        fresh.replace(self.certificate)
