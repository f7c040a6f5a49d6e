"""CA certificates of a served home, as relying parties fetch them to build a chain (AIA; RFC 5280, 4.2.2.1)."""

from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.key_identifiers import identifier_of
from fleet.domain.distribution import ca_name, ca_path
from fleet.domain.published_file import CA_CERTIFICATE, PublishedFile
from fleet.home.authorities import Authorities
from fleet.home.home_cas import home_cas
from fleet.home.layout import Home
from fleet.home.reloading_ca import LiveAuthorities, derived

FRESH = timedelta(days=1)  # a CA's certificate changes when it is signed anew


class PublishedCertificates:
    """Certificates of every root and issuing CA of `home`, present and former, at their paths."""

    def __init__(self, home: Home, authorities: LiveAuthorities) -> None:
        self._files = derived(lambda: authorities.recent, lambda current: certificate_files(home, current))

    async def find(self, path: str) -> PublishedFile | None:
        """The certificate at `path`."""
        return self._files().get(path)


def certificate_files(home: Home, authorities: Authorities) -> dict[str, PublishedFile]:
    """The certificate of every CA of `home`, by its path."""
    # Of two with one key, the one that is listed first is published.
    return dict(_published(ca.certificate) for ca in reversed(home_cas(home, authorities)))


def _published(certificate: x509.Certificate) -> tuple[str, PublishedFile]:
    identifier = identifier_of(certificate)
    file = PublishedFile(
        certificate.public_bytes(Encoding.DER), CA_CERTIFICATE, certificate.not_valid_before_utc, FRESH
    )
    return ca_path(ca_name(identifier)), file
