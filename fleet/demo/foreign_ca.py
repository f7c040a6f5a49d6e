"""Foreign CA: issues a certificate like a device's outside the fleet's PKI."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.authority import create_issuing, create_root
from fleet.ca.issuer import LocalIssuer
from fleet.ca.key_identifiers import spki_sha256
from fleet.ca.keys import generate_key, write_key
from fleet.demo.devices import Pair
from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import IssuePermit
from fleet.wire.spki import spki_of


def make_foreign_certificate(folder: Path, device: str) -> Pair:
    """Write a certificate that names `device`, like the fleet's but under another root."""
    folder.mkdir()
    now = datetime.now(UTC)
    root, root_key = create_root("demo", now)
    issuing, issuing_key = create_issuing("demo", root, root_key, now)
    key = generate_key()
    public = key.public_key()
    credential = LocalIssuer(issuing, issuing_key).issue(
        IssuePermit(
            kind=CredentialKind.DEVICE,
            holder=device,
            hardware_serial="",
            spki_der=spki_of(public),
            key_sha256=spki_sha256(public),
            not_before=now,
            not_after=now + timedelta(days=1),
            grant="nobody",
        ),
        now,
    )
    chain = x509.load_der_x509_certificate(credential.der).public_bytes(Encoding.PEM)
    certificate_file, key_file = folder / "cert.pem", folder / "key.pem"
    certificate_file.write_bytes(chain + issuing.public_bytes(Encoding.PEM))
    write_key(key_file, key)
    return certificate_file, key_file
