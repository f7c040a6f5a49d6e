import hashlib
import shutil
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from asn1crypto import x509 as judge  # type: ignore[import-untyped, unused-ignore]
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from msgspec.structs import replace

from fleet.ca.authority import Certified, create_issuing, create_operators, create_root
from fleet.ca.issuer import OPERATORS, LocalIssuer
from fleet.ca.keys import generate_key
from fleet.ca.profiles import HARDWARE_TYPE, SIGNS_CERTIFICATES, SIGNS_ONLY
from fleet.domain.credential import CredentialKind, CredentialState
from fleet.domain.enrollment import IssuePermit
from fleet.domain.errors import Invalid, Refused


def test_a_device_certificate_holds_what_its_profile_says(
    issuer: LocalIssuer, permit: IssuePermit, now: datetime
) -> None:
    credential = issuer.issue(permit, now)
    # Read by a decoder that shares no code with the one that wrote it.
    body = judge.Certificate.load(credential.der)["tbs_certificate"]
    assert list(body["subject"].native.items()) == [("common_name", "cam-7"), ("serial_number", "SN 0012/A")]
    extensions = {e["extn_id"].native: (e["critical"].native, e["extn_value"].parsed) for e in body["extensions"]}
    assert {name: critical for name, (critical, _) in extensions.items()} == {
        "basic_constraints": True,
        "key_usage": True,
        "extended_key_usage": False,
        "authority_key_identifier": False,
        "key_identifier": False,
        "subject_alt_name": False,
    }
    assert extensions["basic_constraints"][1].native == {"ca": False, "path_len_constraint": None}
    assert extensions["key_usage"][1].native == {"digital_signature"}
    assert extensions["extended_key_usage"][1].native == ["client_auth"]
    other = extensions["subject_alt_name"][1][0].chosen
    assert other["type_id"].native == "1.3.6.1.5.5.7.8.4"
    hardware = other["value"].parsed
    assert hardware[0].native == HARDWARE_TYPE
    assert hardware[1].native == b"SN 0012/A"


def test_the_credential_says_what_the_certificate_says(
    issuer: LocalIssuer, issuing: Certified, permit: IssuePermit, now: datetime
) -> None:
    credential = issuer.issue(permit, now)
    certificate = x509.load_der_x509_certificate(credential.der)
    certificate.verify_directly_issued_by(issuing[0])
    assert credential.fingerprint == certificate.fingerprint(hashes.SHA256())
    assert credential.serial == f"{certificate.serial_number:x}"
    assert credential.not_before == certificate.not_valid_before_utc
    assert credential.not_after == certificate.not_valid_after_utc
    assert (credential.kind, credential.holder) == (CredentialKind.DEVICE, "cam-7")
    assert (credential.state, credential.issued_at) == (CredentialState.ISSUED, now)
    assert credential.key_sha256 == permit.key_sha256


def test_without_a_hardware_serial_there_is_no_san(issuer: LocalIssuer, permit: IssuePermit, now: datetime) -> None:
    certificate = x509.load_der_x509_certificate(issuer.issue(replace(permit, hardware_serial=""), now).der)
    assert [a.oid for a in certificate.subject] == [NameOID.COMMON_NAME]
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_a_station_is_a_registration_authority(issuer: LocalIssuer, permit: IssuePermit, now: datetime) -> None:
    station = replace(permit, kind=CredentialKind.STATION, holder="line-1", hardware_serial="")
    certificate = x509.load_der_x509_certificate(issuer.issue(station, now).der)
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [oid.dotted_string for oid in usages] == ["1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.28"]
    assert certificate.subject.rfc4514_string() == "CN=line-1"


def test_a_claim_is_a_client_and_nothing_more(issuer: LocalIssuer, permit: IssuePermit, now: datetime) -> None:
    claim = replace(permit, kind=CredentialKind.CLAIM, holder="batch-1", hardware_serial="")
    certificate = x509.load_der_x509_certificate(issuer.issue(claim, now).der)
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [oid.dotted_string for oid in usages] == ["1.3.6.1.5.5.7.3.2"]
    assert certificate.subject.rfc4514_string() == "CN=batch-1"


def test_each_ca_signs_for_its_own_doors_alone(issuer: LocalIssuer, permit: IssuePermit, now: datetime) -> None:
    bob = replace(permit, kind=CredentialKind.OPERATOR, holder="bob", hardware_serial="")
    operators = LocalIssuer(*create_operators("Acme", now), OPERATORS)
    certificate = x509.load_der_x509_certificate(operators.issue(bob, now).der)
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [oid.dotted_string for oid in usages] == ["1.3.6.1.5.5.7.3.2"]
    assert certificate.subject.rfc4514_string() == "CN=bob"
    certificate.verify_directly_issued_by(operators.certificate)
    for wrong, refused in (
        (issuer, bob),
        (operators, permit),
        (operators, replace(bob, kind=CredentialKind.STATION)),
        (operators, replace(bob, kind=CredentialKind.CLAIM)),
    ):
        with pytest.raises(Refused, match="signs nothing for"):
            wrong.issue(refused, now)


def test_serials_are_random_and_use_all_twenty_octets(issuer: LocalIssuer, permit: IssuePermit, now: datetime) -> None:
    serials = {issuer.issue(permit, now).serial for _ in range(100)}
    assert len(serials) == 100
    assert {len(serial) for serial in serials} == {40}
    assert len({serial[:12] for serial in serials}) == 1
    assert len({serial[12:20] for serial in serials}) == 100


def test_a_later_serial_is_a_larger_one(issuer: LocalIssuer, permit: IssuePermit, now: datetime) -> None:
    """So that new ones stand at the end of an index."""
    moments = [now + timedelta(seconds=n) for n in (0, 1, 59, 3600)]
    serials = [issuer.issue(replace(permit, not_after=at + timedelta(days=1)), at).serial for at in moments]
    assert serials == sorted(serials)
    assert {serial[0] for serial in serials} <= set("4567")


def test_validity_is_dated_back_a_little_and_ends_with_the_issuer(permit: IssuePermit, now: datetime) -> None:
    root = create_root("Old", now - timedelta(days=20 * 365 - 30))
    issuing = create_issuing("Old", *root, now)
    credential = LocalIssuer(*issuing).issue(permit, now)
    assert credential.not_before == (now - timedelta(minutes=5)).replace(microsecond=0)
    assert credential.not_after == root[0].not_valid_after_utc < permit.not_after


def test_validity_never_begins_before_the_issuer(permit: IssuePermit, now: datetime) -> None:
    issuing = create_issuing("New", *create_root("New", now), now)
    early = replace(permit, not_before=issuing[0].not_valid_before_utc + timedelta(seconds=3))
    assert LocalIssuer(*issuing).issue(early, now).not_before == issuing[0].not_valid_before_utc


def test_an_expired_issuer_issues_nothing(issuer: LocalIssuer, permit: IssuePermit, now: datetime) -> None:
    later = now + timedelta(days=11 * 365)
    with pytest.raises(Refused) as refused:
        issuer.issue(replace(permit, not_before=later, not_after=later + timedelta(days=1)), later)
    assert refused.value.code == "issuer-expired"


@pytest.mark.parametrize("serial", ["ü", "a\0b", "x" * 65, "under_score", "a\n"])
def test_a_hardware_serial_that_cannot_stand_in_a_subject_is_refused(
    issuer: LocalIssuer, permit: IssuePermit, now: datetime, serial: str
) -> None:
    with pytest.raises(Refused) as refused:
        issuer.issue(replace(permit, hardware_serial=serial), now)
    assert refused.value.code == "bad-hardware-serial"


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "Ed25519", "RSA"],
)
def test_every_kind_of_key_that_a_model_may_allow_is_certified(
    issuer: LocalIssuer,
    permit: IssuePermit,
    now: datetime,
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey,
) -> None:
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    credential = issuer.issue(replace(permit, spki_der=spki, key_sha256=hashlib.sha256(spki).digest()), now)
    assert x509.load_der_x509_certificate(credential.der).public_key() == key.public_key()


def test_an_issuer_must_hold_the_key_of_its_certificate_and_be_one(issuing: Certified, now: datetime) -> None:
    with pytest.raises(Invalid, match="do not belong together"):
        LocalIssuer(issuing[0], generate_key())
    key = generate_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    base = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    with pytest.raises(Invalid, match="lacks basicConstraints"):
        LocalIssuer(base.sign(key, hashes.SHA256()), key)
    leaf = (
        base.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(SIGNS_ONLY, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    with pytest.raises(Invalid, match="may not sign"):
        LocalIssuer(leaf.sign(key, hashes.SHA256()), key)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_accepts_the_chain_strictly(
    issuer: LocalIssuer, root: Certified, issuing: Certified, permit: IssuePermit, now: datetime, tmp_path: Path
) -> None:
    leaf = x509.load_der_x509_certificate(issuer.issue(permit, now).der)
    for name, certificate in (("root", root[0]), ("issuing", issuing[0]), ("leaf", leaf)):
        (tmp_path / name).write_bytes(certificate.public_bytes(Encoding.PEM))
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-attime", str(int(now.timestamp()))]
    command += ["-CAfile", str(tmp_path / "root"), "-untrusted", str(tmp_path / "issuing"), str(tmp_path / "leaf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _self_signed(
    key: ec.EllipticCurvePrivateKey, now: datetime, *, ca: bool = True, usage: x509.KeyUsage = SIGNS_CERTIFICATES
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def test_an_issuer_is_a_p256_ca_that_signs_certificates(now: datetime) -> None:
    key, longer = generate_key(), ec.generate_private_key(ec.SECP384R1())
    LocalIssuer(_self_signed(key, now), key)
    for certificate, wrong_key in (
        (_self_signed(key, now), generate_key()),
        (_self_signed(longer, now), longer),
        (_self_signed(key, now, ca=False, usage=SIGNS_ONLY), key),
        (_self_signed(key, now, usage=SIGNS_ONLY), key),
    ):
        with pytest.raises(Invalid) as refused:
            LocalIssuer(certificate, wrong_key)
        assert refused.value.code == "bad-issuer"
