"""Stations and operators as commands see them, and the certificates that they are given."""

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.domain.credential import CredentialState
from fleet.wire.csr import build_csr

_COMMON_NAME = "2.5.4.3"


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest certificate of somebody, in short."""

    serial: str
    state: CredentialState
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that has just been made."""

    chain: tuple[x509.Certificate, ...]
    """It, and the CA that has signed it."""

    @property
    def serial(self) -> str:
        return f"{self.chain[0].serial_number:x}"

    @property
    def not_after(self) -> datetime:
        return self.chain[0].not_valid_after_utc


def request_for(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """DER of a certificate request for `name`: all that leaves this place of a key that is made here."""
    return build_csr(key, ((_COMMON_NAME, name),), ())
