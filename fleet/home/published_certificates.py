"""CA certificates of a served home, as relying parties fetch them to build a chain (AIA; RFC 5280, 4.2.2.1)."""

from collections.abc import Iterator
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.authority import identifier_of
from fleet.ca.root_crl import number_of
from fleet.domain.crl import Crl, CrlHead
from fleet.domain.distribution import ca_name, ca_path, full_crl_path, plain_crl_path
from fleet.domain.published_file import CA_CERTIFICATE, CRL, PublishedFile
from fleet.home.authorities import Authorities
from fleet.home.imported_ca import ROOT_CRL, root_crl_in
from fleet.home.layout import Home, certificate_in
from fleet.home.reloading_ca import LiveAuthorities

NUMBER_MAX = (1 << 63) - 1  # that our records hold; another CA's may have 20 octets (RFC 5280, 5.2.3)
FRESH = timedelta(days=1)  # a CA's certificate changes when it is signed anew


class PublishedCertificates:
    """Certificates of every root and issuing CA of `home`, present and former, at their paths."""

    def __init__(self, home: Home, authorities: LiveAuthorities) -> None:
        self._home, self._authorities = home, authorities
        self._read: Authorities | None = None
        self._files: dict[str, PublishedFile] = {}

    async def find(self, path: str) -> PublishedFile | None:
        """The certificate at `path`."""
        current = self._authorities.recent
        if current is not self._read:
            self._files = certificate_files(self._home, current)
            self._read = current
        return self._files.get(path)


def certificate_files(home: Home, authorities: Authorities) -> dict[str, PublishedFile]:
    """The certificate of every CA of `home`, by its path, and the CRLs of roots whose keys are elsewhere."""
    files = dict(map(_published, reversed(list(_certificates(home, authorities)))))
    for crl in offline_crls(authorities):
        files[crl.head.path] = PublishedFile(crl.der, CRL, crl.head.this_update, FRESH, crl.head.next_update)
    return files


def offline_crls(authorities: Authorities) -> Iterator[Crl]:
    """The CRLs of roots whose keys are elsewhere, each at both paths of a full CRL."""
    for each in authorities.all:
        crl = root_crl_in(each.key_file.with_name(ROOT_CRL), each.root)
        if crl is None or crl.next_update_utc is None:
            continue
        times, number = (crl.last_update_utc, crl.next_update_utc), min(number_of(crl), NUMBER_MAX)
        issuer, der = identifier_of(each.root), crl.public_bytes(Encoding.DER)
        for path in (full_crl_path(ca_name(issuer)), plain_crl_path(ca_name(issuer))):
            yield Crl(CrlHead(path, issuer, number, 0, *times, len(crl)), der)


def _certificates(home: Home, authorities: Authorities) -> Iterator[x509.Certificate]:
    """Of two with one key, the one to publish is first."""
    for each in authorities.all:
        yield from (
            each.root,
            *each.issuers,
            *each.above,
            *each.above_former,
            *(root.certificate for root in each.former_roots),
        )
    if home.operators_certificate.exists():
        yield certificate_in(home.operators_certificate)


def _published(certificate: x509.Certificate) -> tuple[str, PublishedFile]:
    identifier = identifier_of(certificate)
    file = PublishedFile(
        certificate.public_bytes(Encoding.DER), CA_CERTIFICATE, certificate.not_valid_before_utc, FRESH
    )
    return ca_path(ca_name(identifier)), file
