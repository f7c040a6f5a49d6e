"""Extensions that name where relying parties find a CA's CRLs, its OCSP responder and its certificate (RFC 5280,
4.2.1.13 and 4.2.2.1): encoded once for each CA and shard.
"""

from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID

from fleet.ca.tbs import extension
from fleet.domain.distribution import OCSP_PATH, ca_name, ca_path, crl_path_of, shard_of


@dataclass(frozen=True, slots=True)
class Publication:
    """What the certificates of one CA say about where it publishes."""

    url: str
    """http://HOST[:PORT][/PATH], without a slash at its end."""
    shards: int = 1
    """Of its CRL."""
    cdp: bool = True
    """Whether its certificates name their CRL."""
    aia: bool = True
    """Whether they name the OCSP responder and the CA's certificate."""
    ocsp: bool = True
    """Whether the responder answers for them: not for the CAs below a root."""


class DistributionPoints:
    """The extensions of certificates that the CA with this subject key identifier issues, as `publication` says."""

    def __init__(self, key_identifier: bytes, publication: Publication) -> None:
        self._publication = publication
        self._ca = ca_name(key_identifier)
        self._crl_by_shard: dict[int, bytes] = {}
        self._access = extension(self._access_value(), critical=False) if publication.aia else b""

    def of(self, serial: int, *, cdp: bool, aia: bool) -> bytes:
        """DER of the extensions of the certificate `serial`, whose profile has them or not."""
        access = self._access if aia else b""
        if not (cdp and self._publication.cdp):
            return access
        shard = shard_of(serial, self._publication.shards)
        crl = self._crl_by_shard.get(shard)
        if crl is None:
            crl = self._crl_by_shard[shard] = extension(self._crl_value(serial), critical=False)
        return crl + access

    def extensions(self, serial: int) -> tuple[x509.ExtensionType, ...]:
        """Likewise, for a certificate that the library encodes."""
        crl = (self._crl_value(serial),) if self._publication.cdp else ()
        return (*crl, self._access_value()) if self._publication.aia else crl

    def _crl_value(self, serial: int) -> x509.CRLDistributionPoints:
        url = self._publication.url + crl_path_of(self._ca, serial, self._publication.shards)
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
        return x509.CRLDistributionPoints([point])

    def _access_value(self) -> x509.AuthorityInformationAccess:
        places = (
            (AuthorityInformationAccessOID.OCSP, OCSP_PATH),
            (AuthorityInformationAccessOID.CA_ISSUERS, ca_path(self._ca)),
        )
        return x509.AuthorityInformationAccess(
            [
                x509.AccessDescription(method, x509.UniformResourceIdentifier(self._publication.url + path))
                for method, path in places[not self._publication.ocsp :]
            ]
        )
