"""CRLs as the library, openssl and pkilint read them."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from pkilint import loader, pkix
from pkilint.pkix import crl as pkix_crl
from pkilint.pkix import extension, name

from fleet.ca.authority import create_root
from fleet.ca.crl import LocalCrlSigner, crl_entry, issuer_of
from fleet.ca.key_identifiers import identifier_of
from fleet.domain.crl import CrlForm, CrlReason, Revocation
from tests.ca.test_pkilint import SEVERE

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CA, KEY = create_root("acme", NOW)
URL = "http://pki.example/crl/1.crl"
FORMS = {
    "plain": CrlForm(7, NOW, NOW + timedelta(days=1)),
    "full": CrlForm(7, NOW, NOW + timedelta(days=1), URL, freshest="http://pki.example/d.crl"),
    "delta": CrlForm(8, NOW, NOW + timedelta(days=1), URL, base=7),
    "after 2050": CrlForm(2**70, NOW, datetime(2051, 1, 1, tzinfo=UTC), URL),
}


JUDGE = pkix_crl.create_pkix_crl_validator_container(
    [
        pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
        pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
    ],
    [
        pkix_crl.create_issuer_validator_container([]),
        pkix_crl.create_validity_validator_container([]),
        pkix_crl.create_extensions_validator_container([]),
    ],
)


def revocation(serial: int, reason: CrlReason) -> Revocation:
    return Revocation(f"{serial:x}", NOW + timedelta(days=9), NOW - timedelta(hours=1), reason)


REVOKED = [
    revocation(1 << bits | 5, reason)
    for bits, reason in zip((3, 7, 8, 60, 126, 127, 140, 158, 30), CrlReason, strict=True)
]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("count", [0, 1, len(REVOKED)])
def test_the_library_reads_what_was_assembled(form: CrlForm, count: int) -> None:
    revoked = [each for each in REVOKED if form.base or each.reason != CrlReason.REMOVE_FROM_CRL][:count]
    crl = x509.load_der_x509_crl(LocalCrlSigner(CA, KEY).sign(form, [crl_entry(each) for each in revoked]))
    assert crl.is_signature_valid(KEY.public_key())
    assert crl.issuer == CA.subject
    assert (crl.last_update_utc, crl.next_update_utc) == (form.this_update, form.next_update)
    assert [(each.serial_number, each.revocation_date_utc, reason_of(each)) for each in crl] == [
        (int(each.serial, 16), each.revoked_at, CrlReason(each.reason).text) for each in revoked
    ]
    assert builder_made(form, revoked).tbs_certlist_bytes == crl.tbs_certlist_bytes
    in_a_row = LocalCrlSigner(CA, KEY).sign(form, [b"".join(map(crl_entry, revoked)), b""])
    assert x509.load_der_x509_crl(in_a_row).tbs_certlist_bytes == crl.tbs_certlist_bytes


def reason_of(entry: x509.RevokedCertificate) -> str:
    try:
        return entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
    except x509.ExtensionNotFound:
        return "unspecified"


def builder_made(form: CrlForm, revoked: list[Revocation]) -> x509.CertificateRevocationList:
    """The same CRL by the library's builder."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(CA.subject)
        .last_update(form.this_update)
        .next_update(form.next_update)
        .add_extension(x509.AuthorityKeyIdentifier(identifier_of(CA), None, None), critical=False)
        .add_extension(x509.CRLNumber(form.number), critical=False)
    )
    if form.base:
        builder = builder.add_extension(x509.DeltaCRLIndicator(form.base), critical=True)
    if form.url:
        name = [x509.UniformResourceIdentifier(form.url)]
        point = x509.IssuingDistributionPoint(name, None, False, False, None, False, False)
        builder = builder.add_extension(point, critical=True)
    if form.freshest:
        there = x509.DistributionPoint([x509.UniformResourceIdentifier(form.freshest)], None, None, None)
        builder = builder.add_extension(x509.FreshestCRL([there]), critical=False)
    for each in revoked:
        one = x509.RevokedCertificateBuilder(int(each.serial, 16), each.revoked_at)
        if each.reason:
            flag = x509.ReasonFlags(CrlReason(each.reason).text)
            one = one.add_extension(x509.CRLReason(flag), critical=False)
        builder = builder.add_revoked_certificate(one.build())
    return builder.sign(KEY, hashes.SHA256())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_pkilint_finds_no_error(form: CrlForm) -> None:
    revoked = [each for each in REVOKED if form.base or each.reason != CrlReason.REMOVE_FROM_CRL]
    der = LocalCrlSigner(CA, KEY).sign(form, [crl_entry(each) for each in revoked])
    document = loader.RFC5280CertificateListDocumentLoader().load_der_document(der, "crl")
    found = [f for result in JUDGE.validate(document.root) for f in result.finding_descriptions]
    assert [(f.finding.code, f.message) for f in found if f.finding.severity in SEVERE] == []


def test_openssl_reads_each_form(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(CA.public_bytes(Encoding.PEM))
    for kind, form in FORMS.items():
        file = tmp_path / "one.crl"
        file.write_bytes(LocalCrlSigner(CA, KEY).sign(form, [crl_entry(each) for each in REVOKED]))
        command = ["openssl", "crl", "-inform", "DER", "-in", str(file), "-CAfile", str(tmp_path / "ca.pem"), "-noout"]
        command.append("-text")
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "verify OK" in done.stderr, kind
        assert done.stdout.count("Serial Number:") == len(REVOKED)


def test_the_ca_of_a_certificate_is_read_from_it() -> None:
    assert issuer_of(CA.public_bytes(Encoding.DER)) == identifier_of(CA)
    assert issuer_of(b"\x30\x00") is None
