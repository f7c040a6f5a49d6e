"""Which of our CAs signed a certificate, for each of them, after a change on disk, and for bytes that are none."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from fleet.ca.keys import load_key, load_or_make_key
from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import permit_by_operator
from fleet.domain.errors import Refused
from fleet.home.layout import Home
from fleet.home.leaf_issuers import REMEMBERED_MAX, LeafIssuers
from fleet.home.reloading_ca import LiveAuthorities
from fleet.wire.spki import spki_of
from tests.serving import run_fleet

NOW = datetime.now(UTC)


def leaf(issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cam-1")])
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    builder = x509.CertificateBuilder(issuer.subject, subject, public, 7, NOW, NOW + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def issuing(home: Home, folder: Path) -> bytes:
    ca = x509.load_pem_x509_certificate((folder / "issuing.pem").read_bytes())
    return leaf(ca, load_key(folder / "issuing.key"))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    run_fleet(tmp_path / "home", "init", str(tmp_path / "home"))
    return Home(tmp_path / "home")


def test_the_tenant_of_the_ca_that_signed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveAuthorities(home)
    issuers = LeafIssuers(live)
    own = issuing(home, home.ca)
    assert issuers.tenant_of(own) == ""
    run_fleet(home.path, "tenant", "add", "acme")
    live.reread()
    theirs = issuing(home, home.tenants / "acme")
    assert (issuers.tenant_of(theirs), issuers.tenant_of(own)) == ("acme", "")
    run_fleet(home.path, "ca", "rollover")
    live.reread()
    assert issuers.tenant_of(own) == ""  # its CA is a former one
    assert issuers.tenant_of(issuing(home, home.ca)) == ""


def test_what_no_ca_of_ours_signed(home: Home) -> None:
    issuers = LeafIssuers(LiveAuthorities(home))
    ca = x509.load_pem_x509_certificate(home.issuing_certificate.read_bytes())
    forged = leaf(ca, ec.generate_private_key(ec.SECP256R1()))
    own = issuing(home, home.ca)
    root = x509.load_pem_x509_certificate(home.root_certificate.read_bytes()).public_bytes(Encoding.DER)
    for der in (forged, root, b"", b"0", own[:-1], own[:40], own + b"\0", own[:-1] + bytes([own[-1] ^ 1])):
        assert issuers.tenant_of(der) is None
    for number in range(REMEMBERED_MAX + 10):
        issuers.tenant_of(b"%d" % number)
    assert issuers.tenant_of(own) == ""


def test_no_certificate_for_a_key_of_the_fleets_own(home: Home) -> None:
    """Of its CAs, former ones too, of the operators' CA, of its server, and of what signs audit, webhooks and OCSP."""
    run_fleet(home.path, "tenant", "add", "acme", "--own-root")
    live = LiveAuthorities(home)
    for kind in ((), ("--root",), ("--tenant", "acme")):
        run_fleet(home.path, "ca", "rollover", *kind)
    run_fleet(home.path, "webhook", "key")
    load_or_make_key(home.ocsp_key)  # made when it is first needed, while the home is served
    certificates = (home.root_certificate, home.operators_certificate, home.issuing_certificate)
    public = [x509.load_pem_x509_certificate(file.read_bytes()).public_key() for file in certificates]
    keys = [load_pem_private_key(file.read_bytes(), None).public_key() for file in home.path.rglob("*.key")]
    assert len(keys) >= 10
    for own in {spki_of(each) for each in (*public, *keys)}:
        permit = permit_by_operator(CredentialKind.STATION, "line-1", own, NOW + timedelta(days=1), NOW)
        with pytest.raises(Refused) as caught:
            live.issue(permit, NOW)
        assert caught.value.code == "key-in-use"
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    spki = other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    live.issue(permit_by_operator(CredentialKind.STATION, "line-1", spki, NOW + timedelta(days=1), NOW), NOW)
