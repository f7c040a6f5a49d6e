"""A CA's certificate, with what it is for."""

from dataclasses import dataclass

from cryptography import x509

from fleet.domain.ca_role import CaRole


@dataclass(frozen=True, slots=True)
class CaCertificate:
    """One of the fleet's CAs."""

    role: CaRole
    certificate: x509.Certificate
    tenant: str = ""
    """Whose it is; "" for the fleet's own."""
    key_here: bool = False
    """Whether its key is in the home."""
