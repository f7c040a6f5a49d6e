"""Which of our issuing CAs signed a certificate that another program's TLS has accepted."""

from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from fleet.domain.recent import Recent
from fleet.home.authorities import Authorities
from fleet.home.reloading_ca import LiveAuthorities

REMEMBERED_MAX = 4096  # certificates: a device shows the same one at each request

# All that the library raises for bytes that are no certificate, or one of a kind that it does not know.
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


class LeafIssuers:
    """Follows the CAs on disk, as the TLS listeners do."""

    def __init__(self, authorities: LiveAuthorities) -> None:
        self._live = authorities
        self._of: Authorities | None = None
        self._issuers: Sequence[tuple[x509.Certificate, str]] = ()
        self._tenants: Recent[bytes, str | None] = Recent(REMEMBERED_MAX)

    def tenant_of(self, der: bytes) -> str | None:
        """The tenant of the CA that signed the certificate in `der`, "" for the fleet's own; None: none of ours did."""
        self._live.look_if_due()
        current = self._live.last_read
        if current is not self._of:
            self._issuers = [(ca, authority.tenant) for authority in current.all for ca in authority.issuers]
            self._of = current
            self._tenants.clear()
        if der not in self._tenants:
            self._tenants.put(der, self._verified(der))
        return self._tenants[der]

    def _verified(self, der: bytes) -> str | None:
        try:
            leaf = x509.load_der_x509_certificate(der)
            issuer = leaf.issuer
        except _UNREADABLE:
            return None
        return next((tenant for ca, tenant in self._issuers if ca.subject == issuer and _signed_by(leaf, ca)), None)


def _signed_by(leaf: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(ca)
    except (InvalidSignature, *_UNREADABLE):
        return False
    return True
