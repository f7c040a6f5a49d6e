"""pkilint, a judge that is not ours, over a certificate of every profile and every kind of key."""

from collections import Counter
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pkilint import loader
from pkilint.pkix import certificate, extension, name
from pkilint.validation import ValidationFindingSeverity

from fleet.domain.device import KEY_TYPES
from tests.ca.certificate_kinds import KEYS, PROFILES, every_kind, every_published_kind

SEVERE = (ValidationFindingSeverity.ERROR, ValidationFindingSeverity.FATAL)

FALSE_FINDINGS = {
    # Its check is that of a web form, `validators.url`: http, https, ftp and some more are all the schemes it knows.
    # RFC 5280, 4.2.1.6 takes every scheme of RFC 3986.
    ("pkix.invalid_uri_syntax", 'Invalid URI syntax: "urn:example:cam:cam-7"'),
    ("pkix.invalid_uri_syntax", 'Invalid URI syntax: "spiffe://example.com/cam/cam-7"'),
    # RFC 5280, 4.2.1.6 leaves wildcards to applications; RFC 9525, 6.3 says how they are read.
    ("pkix.invalid_domain_name_syntax", 'Invalid domain name syntax: "*.devices.example.com"'),
}
"""(code, message): what it reports of names that are right."""

JUDGE = certificate.create_pkix_certificate_validator_container(
    certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
    [
        certificate.create_issuer_validator_container([]),
        certificate.create_validity_validator_container(),
        certificate.create_subject_validator_container([]),
        certificate.create_extensions_validator_container([]),
        certificate.create_spki_validator_container([]),
    ],
)


def findings(certificate: x509.Certificate) -> list[tuple[ValidationFindingSeverity, str, str]]:
    """(severity, code, message) of everything that it reports."""
    document = loader.load_der_certificate(certificate.public_bytes(Encoding.DER), "certificate")
    found = [f for result in JUDGE.validate(document.root) for f in result.finding_descriptions]
    return [(f.finding.severity, f.finding.code, f.message or "") for f in found]


def test_nothing_that_we_sign_has_an_error_in_it() -> None:
    summary: Counter[tuple[str, str]] = Counter()
    severe: list[tuple[str, str, str]] = []
    dismissed = set()
    judged = []
    for what, issued in every_kind(datetime.now(UTC)):
        judged.append(what)
        for severity, code, message in findings(issued):
            summary[severity.name, code] += 1
            if severity in SEVERE and (code, message) in FALSE_FINDINGS:
                dismissed.add((code, message))
            elif severity in SEVERE:
                severe.append((what, code, message))
    print(f"\npkilint: {len(judged)} certificates, {len(severe)} errors")
    for (severity_name, code), count in sorted(summary.items()):
        print(f"  {severity_name} {code}: {count}")
    assert severe == []
    assert dismissed == FALSE_FINDINGS  # one that is reported no more is one to take out
    assert len(judged) == 4 + len(KEY_TYPES) * (len(PROFILES) + 2)
    assert set(KEYS) == set(KEY_TYPES)


def test_the_judge_sees_errors() -> None:
    """It would be of no use otherwise."""
    [issued] = [c for what, c in every_kind(datetime.now(UTC)) if what == "device, usual, EC-P256"]
    der = issued.public_bytes(Encoding.DER)
    # keyUsage for a CA in a certificate that is none: the bits of digitalSignature become those of keyCertSign.
    usage = bytes.fromhex("0603551d0f0101ff040403020780")
    assert usage in der
    spoiled = x509.load_der_x509_certificate(der.replace(usage, bytes.fromhex("0603551d0f0101ff040403020204")))
    assert any(severity in SEVERE for severity, _, _ in findings(spoiled))


def test_what_names_its_places_has_no_error_in_it() -> None:
    judged = 0
    for what, issued in every_published_kind(datetime.now(UTC)):
        severe = [(what, c, m) for s, c, m in findings(issued) if s in SEVERE and (c, m) not in FALSE_FINDINGS]
        assert severe == []
        judged += 1
    assert judged == 1 + 2 * (len(PROFILES) + 1)
