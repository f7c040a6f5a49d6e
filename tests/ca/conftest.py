from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.ca.authority import Certified, create_issuing, create_root
from fleet.ca.issuer import LocalIssuer
from fleet.ca.key_identifiers import spki_sha256
from fleet.ca.keys import generate_key
from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import IssuePermit


@pytest.fixture(scope="session")
def now() -> datetime:
    return datetime(2026, 3, 1, 12, 0, 0, 654321, tzinfo=UTC)


@pytest.fixture(scope="session")
def root(now: datetime) -> Certified:
    return create_root("Acme", now)


@pytest.fixture(scope="session")
def issuing(root: Certified, now: datetime) -> Certified:
    return create_issuing("Acme", *root, now)


@pytest.fixture
def issuer(issuing: Certified) -> LocalIssuer:
    return LocalIssuer(*issuing)


@pytest.fixture
def permit(now: datetime) -> IssuePermit:
    """For a device whose hardware serial is known, 90 days, a new P-256 key."""
    key = generate_key().public_key()
    return IssuePermit(
        kind=CredentialKind.DEVICE,
        holder="cam-7",
        hardware_serial="SN 0012/A",
        spki_der=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        key_sha256=spki_sha256(key),
        not_before=now,
        not_after=now + timedelta(days=90),
        grant="token t1",
    )
