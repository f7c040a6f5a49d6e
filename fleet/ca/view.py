"""A CA's certificate, with what it is for."""

from pathlib import Path

from cryptography import x509
from msgspec import Struct

from fleet.domain.ca_role import CaRole


class CaCertificate(Struct, frozen=True):
    """One of the fleet's CAs."""

    role: CaRole
    certificate: x509.Certificate
    key_file: Path | None = None
    """May be absent: the key is elsewhere. None: it has no place in the home."""
    tenant: str = ""
    """Whose it is; "" for the fleet's own."""

    @property
    def key_here(self) -> Path | None:
        """The file of its key, if that is in the home."""
        return self.key_file if self.key_file is not None and self.key_file.exists() else None
