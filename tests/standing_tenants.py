"""The CAs of a server in tests, as they stand for good."""

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding


class StandingTenants:
    """A `fleet.domain.ports.Tenants` with the fleet's own CAs and nobody else's."""

    def __init__(self, own: Sequence[x509.Certificate]) -> None:
        self.update = b""
        self._own = tuple(each.public_bytes(Encoding.DER) for each in own)

    def trust_update(self, tenant: str) -> bytes:
        return self.update

    def names(self) -> frozenset[str]:
        return frozenset()

    def chain_der(self, tenant: str) -> tuple[bytes, ...] | None:
        return self._own if not tenant else None
