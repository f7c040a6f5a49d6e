"""A root that takes the place of one that this device trusts (RFC 7030, 4.1.3; RFC 4210, 4.4). Needs `cryptography`.

The old root itself says so, by a certificate of its own for the new root's key: NewWithOld. Nothing less makes a device
trust anything new, whoever hands it out.
"""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.est_client.certificate_checks import has_issued, is_root

ANCHORS_MAX = 8  # of a device; a root lives for years, and one that is replaced more often is somebody's mistake


def new_roots(
    anchors: Sequence[x509.Certificate], offered: Sequence[x509.Certificate], now: datetime
) -> tuple[x509.Certificate, ...]:
    """Those of `offered` that one of `anchors` has made its successors; () when there is none, or too many already."""
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
        and _spki(link) == _spki(root)
        and has_issued(root, root, now)  # a CA, and not at its end
        and any(has_issued(anchor, link, now) and _is_older(anchor, root) for anchor in anchors)
        and has_issued(link, root, now)  # what signed it may sign certificates, and is not at its end either
    )


def _is_older(anchor: x509.Certificate, root: x509.Certificate) -> bool:
    # OldWithNew looks alike, and would lead back to a root that may have been replaced for a reason.
    return anchor.subject == root.subject and anchor.not_valid_before_utc < root.not_valid_before_utc


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
