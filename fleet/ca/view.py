"""A CA's certificate, with what it is for."""

from dataclasses import dataclass

from cryptography import x509


@dataclass(frozen=True, slots=True)
class CaCertificate:
    """One of the fleet's CAs."""

    role: str
    """"root", "issuing"; "former root", "former" for those that sign no more; "operators"."""
    certificate: x509.Certificate
    tenant: str = ""
    """Whose it is; "" for the fleet's own."""
    key_here: bool = False
    """Whether its key is in the home."""
