"""Which of our issuing CAs signed a certificate that another program's TLS has accepted."""

from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from msgspec import Struct

from fleet.ca.chain import has_signed
from fleet.domain.recent import Recent
from fleet.home.authorities import Authorities
from fleet.home.reloading_ca import LiveAuthorities, derived

REMEMBERED_MAX = 4096  # certificates: a device shows the same one at each request

# All that the library raises for bytes that are no certificate, or one of a kind that it does not know.
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


class LeafIssuers:
    """Follows the CAs on disk, as the TLS listeners do."""

    def __init__(self, authorities: LiveAuthorities) -> None:
        self._known = derived(lambda: authorities.recent, _Known.of)

    def tenant_of(self, der: bytes) -> str | None:
        """The tenant of the CA that signed the certificate in `der`, "" for the fleet's own; None: none of ours did."""
        known = self._known()
        if der not in known.tenants:
            known.tenants.put(der, known.verified(der))
        return known.tenants[der]


class _Known(Struct, frozen=True):
    """Issuing CAs, and the tenants of certificates that were verified by them."""

    issuers: Sequence[tuple[x509.Certificate, str]]
    tenants: Recent[bytes, str | None]

    @classmethod
    def of(cls, authorities: Authorities) -> "_Known":
        return cls([(ca, each.tenant) for each in authorities.all for ca in each.issuers], Recent(REMEMBERED_MAX))

    def verified(self, der: bytes) -> str | None:
        try:
            leaf = x509.load_der_x509_certificate(der)
            issuer = leaf.issuer
        except _UNREADABLE:
            return None
        return next((tenant for ca, tenant in self.issuers if ca.subject == issuer and has_signed(ca, leaf)), None)
