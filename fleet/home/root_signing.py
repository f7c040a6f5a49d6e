"""What a root signs by hand, in a home that may have no network: other homes' issuing CAs, other roots, its own CRL."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.authority import Certified, certify_issuing, certify_root
from fleet.ca.authority_request import read_authority_request
from fleet.ca.chain import has_signed
from fleet.domain.errors import Invalid
from fleet.home.authorities import key_of_root, read_authorities, require_unique_ca_name
from fleet.home.home_cas import root_that_has_signed
from fleet.home.layout import Home, settings_of
from fleet.home.publication import publication_of_root
from fleet.wire.encodings.reading import read
from fleet.wire.errors import WireError


def sign_authority(home: Home, request: bytes, days: int, now: datetime) -> tuple[x509.Certificate, bytes]:
    """The issuing CA that `request` asks for, and the answer that goes back, PEM: it, the root, and what links that to
    roots before it.

    Raises: Invalid (`bad-csr`, `bad-name`, `issuer-expired`). Conflict (`name-taken`). Refused (`root-key-away`).
    OSError.
    """
    name, key = read_authority_request(request)
    known = read_authorities(home)
    root = _root(home)
    publication = publication_of_root(settings_of(home), "")
    made = certify_issuing(name, key, root, timedelta(days=days), now, publication)
    require_unique_ca_name(made, known)
    former = known.own.former_roots
    links = [link for each in former for link in (each.new_with_old, each.old_with_new) if link is not None]
    return made, b"".join(each.public_bytes(Encoding.PEM) for each in (made, root[0], *links))


def cross_sign(home: Home, data: bytes, now: datetime) -> x509.Certificate:
    """The root CA in `data` (PEM, DER, PKCS#7), signed by this home's root too.

    Raises: Invalid (`bad-ca-certificate`, `issuer-expired`). Refused (`root-key-away`). OSError.
    """
    other = _only_certificate(data)
    root = _root(home)
    if other.public_key() == root[0].public_key():
        raise Invalid("bad-ca-certificate", "It is this home's own root.", "Give the other one's.")
    if not has_signed(other, other):
        raise Invalid("bad-ca-certificate", "It is no root: another CA has signed it.", "Give the root above it.")
    return certify_root(other, *root, now)


def read_revoked(home: Home, files: Sequence[bytes]) -> list[x509.Certificate]:
    """CA certificates, one a file. Raises: Invalid (`bad-ca-certificate`): no root of `home` has signed them all."""
    certificates = [_only_certificate(data) for data in files]
    root_that_has_signed(home, certificates)
    return certificates


def _root(home: Home) -> Certified:
    return read_authorities(home).own.root, key_of_root(Path(home.root_key))


def _only_certificate(data: bytes) -> x509.Certificate:
    try:
        certificates = read(data).certificates
    except WireError as error:
        raise Invalid("bad-ca-certificate", str(error)) from None
    if len(certificates) != 1:
        raise Invalid("bad-ca-certificate", f"The file holds {len(certificates)} certificates, not one.")
    return certificates[0]
