"""Root CA rollover (RFC 7030, 4.1.3; RFC 4210, 4.4): which new roots a device may trust. Needs `cryptography`.

A new root is trusted only if a trusted root has certified its key: NewWithOld.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from device_agent.store.atomic_files import read_file
from fleet.est_client.certificate_checks import has_issued, is_root
from fleet.est_client.errors import BadConfig
from fleet.wire.ca_file import ca_pem
from fleet.wire.errors import WireError

ANCHORS_MAX = 8  # a root is valid for years: more rollovers than this are a mistake


def load_anchors(file: Path) -> list[x509.Certificate]:
    """The roots that `file` holds: PEM, DER or PKCS#7. Raises: BadConfig. OSError."""
    try:
        return x509.load_pem_x509_certificates(ca_pem(read_file(file)).encode("ascii", "replace"))
    except (ValueError, WireError) as error:
        raise BadConfig(f"{file} cannot be read as certificates.") from error


def new_roots(
    anchors: Sequence[x509.Certificate], offered: Sequence[x509.Certificate], now: datetime
) -> tuple[x509.Certificate, ...]:
    """Those of `offered` that one of `anchors` has certified as its successors; () if none, or too many."""
    found: list[x509.Certificate] = []
    for root in offered:
        known = [*anchors, *found]
        if root not in known and is_root(root) and any(_leads_to(link, root, known, now) for link in offered):
            found.append(root)
    return tuple(found) if len(anchors) + len(found) <= ANCHORS_MAX else ()


def _leads_to(
    link: x509.Certificate, root: x509.Certificate, anchors: Sequence[x509.Certificate], now: datetime
) -> bool:
    return (
        link.subject == root.subject
        and has_issued(root, root, now)  # a CA that has not expired
        and any(has_issued(anchor, link, now) and is_predecessor(anchor, root) for anchor in anchors)
        and has_issued(link, root, now)  # its signer is a CA that has not expired either
        and _spki(link) == _spki(root)  # last: a key that has verified a signature can be read
    )


def is_predecessor(anchor: x509.Certificate, root: x509.Certificate) -> bool:
    """Whether `anchor` is a root before `root`: of its name, and of an earlier beginning."""
    # OldWithNew looks alike, and would lead back to a root that may have been replaced because of a compromise.
    return anchor.subject == root.subject and anchor.not_valid_before_utc < root.not_valid_before_utc


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
