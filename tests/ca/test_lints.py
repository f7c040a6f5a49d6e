import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.ca import lints
from fleet.ca.authority import Certified
from fleet.ca.issuer import LocalIssuer
from fleet.ca.keys import generate_key
from fleet.ca.profiles import END_ENTITY, HARDWARE_TYPE, SIGNS_CERTIFICATES, SIGNS_ONLY
from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import IssuePermit
from fleet.wire.names import alt_name

Extension = tuple[x509.ExtensionType, bool]


@dataclass(frozen=True)
class Draft:
    """Everything in a certificate, free to be wrong."""

    subject: x509.Name
    issuer: x509.Name
    serial: int
    spki: bytes
    start: datetime
    end: datetime
    hash: hashes.SHA256 | hashes.SHA384
    constraints: Extension
    usage: Extension
    purposes: Extension
    authority: Extension
    own: Extension
    more: tuple[Extension, ...] = ()

    def sign(self, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name(self.issuer)
            .public_key(load_der_public_key(self.spki))  # type: ignore[arg-type]
            .serial_number(self.serial)
            .not_valid_before(self.start)
            .not_valid_after(self.end)
        )
        for extension, critical in (self.constraints, self.usage, self.purposes, self.authority, self.own, *self.more):
            builder = builder.add_extension(extension, critical)
        return builder.sign(key, self.hash)


def name(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


def purposes(*oids: x509.ObjectIdentifier) -> Extension:
    return x509.ExtendedKeyUsage(oids), False


@pytest.fixture
def permit(permit: IssuePermit) -> IssuePermit:
    return replace(permit, hardware_serial="")


@pytest.fixture
def right(issuing: Certified, permit: IssuePermit) -> Draft:
    above = issuing[0].extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return Draft(
        subject=name((NameOID.COMMON_NAME, "cam-7")),
        issuer=issuing[0].subject,
        serial=0x5 << 156,
        spki=permit.spki_der,
        start=permit.not_before,
        end=permit.not_after,
        hash=hashes.SHA256(),
        constraints=(END_ENTITY, True),
        usage=(SIGNS_ONLY, True),
        purposes=purposes(ExtendedKeyUsageOID.CLIENT_AUTH),
        authority=(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above), False),
        own=(x509.SubjectKeyIdentifier(permit.key_sha256[:20]), False),
    )


def another_key() -> bytes:
    return generate_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


HOUR = timedelta(hours=1)
SAN = x509.SubjectAlternativeName([x509.DNSName("admin.example")])
AUTHORITY = x509.BasicConstraints(ca=True, path_length=None)

WRONG: list[tuple[str, Callable[[Draft], Draft]]] = [
    ("key_is_the_permitted_one", lambda d: replace(d, spki=another_key())),
    ("serial_is_20_positive_octets", lambda d: replace(d, serial=12345)),
    ("issuer_is_ours", lambda d: replace(d, issuer=name((NameOID.COMMON_NAME, "Acme Root CA")))),
    ("signature_is_strong", lambda d: replace(d, hash=hashes.SHA384())),
    ("validity_is_permitted", lambda d: replace(d, start=d.start - HOUR)),
    ("validity_is_permitted", lambda d: replace(d, start=d.start + HOUR)),
    ("validity_is_permitted", lambda d: replace(d, end=d.end + HOUR)),
    ("validity_is_permitted", lambda d: replace(d, end=d.end + timedelta(days=20 * 365))),
    ("subject_is_the_holder", lambda d: replace(d, subject=name((NameOID.COMMON_NAME, "cam-8")))),
    ("subject_is_the_holder", lambda d: replace(d, subject=x509.Name([]))),
    (
        "subject_is_the_holder",
        lambda d: replace(d, subject=name((NameOID.COMMON_NAME, "cam-7"), (NameOID.ORGANIZATION_NAME, "Admins"))),
    ),
    ("extensions_are_exact", lambda d: replace(d, more=((SAN, False),))),
    ("extensions_are_exact", lambda d: replace(d, constraints=(END_ENTITY, False))),
    ("extensions_are_exact", lambda d: replace(d, more=((x509.OCSPNoCheck(), False),))),
    ("is_no_authority", lambda d: replace(d, constraints=(AUTHORITY, True))),
    ("is_no_authority", lambda d: replace(d, usage=(SIGNS_CERTIFICATES, True))),
    ("is_for_clients_only", lambda d: replace(d, purposes=purposes(ExtendedKeyUsageOID.SERVER_AUTH))),
    ("is_for_clients_only", lambda d: replace(d, purposes=purposes(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE))),
    (
        "is_for_clients_only",
        lambda d: replace(
            d, purposes=purposes(ExtendedKeyUsageOID.CLIENT_AUTH, x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28"))
        ),
    ),
    ("key_identifiers_agree", lambda d: replace(d, own=(x509.SubjectKeyIdentifier(b"x" * 20), False))),
    ("key_identifiers_agree", lambda d: replace(d, authority=(x509.AuthorityKeyIdentifier(b"x", None, None), False))),
]


@pytest.mark.parametrize(("rule", "spoil"), WRONG, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(WRONG)])
def test_each_rule_stops_what_breaks_it(
    right: Draft, permit: IssuePermit, issuing: Certified, rule: str, spoil: Callable[[Draft], Draft]
) -> None:
    lints.check(right.sign(issuing[1]), permit, issuing[0])
    with pytest.raises(lints.LintFailed, match=rule):
        lints.check(spoil(right).sign(issuing[1]), permit, issuing[0])


def test_every_other_rule_is_broken_below() -> None:
    assert {rule for rule, _ in WRONG} == {lint.__name__ for lint in lints.LINTS} - {
        "alt_names_are_the_profiles",
        "key_is_strong",
        "subject_is_plain_text",
    }


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024),  # noqa: S505  the very point
        rsa.generate_private_key(3, 2048),
        ec.generate_private_key(ec.SECP224R1()),
        ec.generate_private_key(ec.SECP256K1()),
        dsa.generate_private_key(2048),
    ],
    ids=["RSA-1024", "RSA-e3", "P-224", "secp256k1", "DSA"],
)
def test_a_weak_key_stays_here_even_when_it_was_permitted(
    right: Draft, permit: IssuePermit, issuing: Certified, key: CertificateIssuerPrivateKeyTypes
) -> None:
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = hashlib.sha256(spki).digest()
    permitted = replace(permit, spki_der=spki, key_sha256=digest)
    draft = replace(right, spki=spki, own=(x509.SubjectKeyIdentifier(digest[:20]), False))
    with pytest.raises(lints.LintFailed, match="key_is_strong"):
        lints.check(draft.sign(issuing[1]), permitted, issuing[0])


@pytest.mark.parametrize("holder", ["cam\u202e7", "cam 7", "cam/7", "-cam"])
def test_a_name_out_of_the_charset_stays_here_even_when_it_was_permitted(
    right: Draft, permit: IssuePermit, issuing: Certified, holder: str
) -> None:
    draft = replace(right, subject=name((NameOID.COMMON_NAME, holder)))
    with pytest.raises(lints.LintFailed, match="subject_is_plain_text"):
        lints.check(draft.sign(issuing[1]), replace(permit, holder=holder), issuing[0])


HARDWARE = alt_name(f"HW:{HARDWARE_TYPE}:{b'SN1'.hex()}")
NAMES = [HARDWARE, x509.DNSName("cam-7.example.com"), x509.UniformResourceIdentifier("urn:example:cam:cam-7")]
ELSE = [
    NAMES[:2],
    NAMES[1:],
    [*NAMES[:2], x509.UniformResourceIdentifier("urn:example:cam:cam-8")],
    [NAMES[0], x509.DNSName("cam-8.example.com"), NAMES[2]],
    [alt_name(f"HW:{HARDWARE_TYPE}:{b'SN2'.hex()}"), *NAMES[1:]],
    [alt_name(f"HW:1.3.6.1.4.1.99999:{b'SN1'.hex()}"), *NAMES[1:]],
    [*NAMES, x509.DNSName("localhost")],
    [*NAMES, x509.RFC822Name("a@b.c")],
    [NAMES[1], NAMES[0], NAMES[2]],
]


def test_the_san_holds_what_the_profile_says_and_nothing_else(
    right: Draft, permit: IssuePermit, issuing: Certified, issuer: LocalIssuer, now: datetime
) -> None:
    profile = replace(permit.profile, dns_name="{id}.example.com", uris=("urn:example:{model}:{id}",))
    known = replace(permit, hardware_serial="SN1", model="cam", profile=profile)
    lints.check(x509.load_der_x509_certificate(issuer.issue(known, now).der), known, issuing[0])
    subject = name((NameOID.COMMON_NAME, "cam-7"), (NameOID.SERIAL_NUMBER, "SN1"))
    whole = replace(right, subject=subject, more=((x509.SubjectAlternativeName(NAMES), False),))
    lints.check(whole.sign(issuing[1]), known, issuing[0])
    for names in ELSE:
        wrong = replace(whole, more=((x509.SubjectAlternativeName(names), False),))
        with pytest.raises(lints.LintFailed, match="alt_names_are_the_profiles"):
            lints.check(wrong.sign(issuing[1]), known, issuing[0])
    critical = replace(whole, more=((x509.SubjectAlternativeName(NAMES), True),))
    with pytest.raises(lints.LintFailed, match="extensions_are_exact"):
        lints.check(critical.sign(issuing[1]), known, issuing[0])


def test_the_usages_are_those_of_the_profile(right: Draft, permit: IssuePermit, issuing: Certified) -> None:
    mail = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.4")
    both = replace(permit, profile=replace(permit.profile, extended_key_usages=("clientAuth", "emailProtection")))
    draft = replace(right, purposes=purposes(ExtendedKeyUsageOID.CLIENT_AUTH, mail))
    lints.check(draft.sign(issuing[1]), both, issuing[0])
    for certificate, permitted in ((draft, permit), (right, both)):
        with pytest.raises(lints.LintFailed, match="is_for_clients_only"):
            lints.check(certificate.sign(issuing[1]), permitted, issuing[0])
    # A profile that came to say so all the same would still make no server of a device.
    server = replace(permit, profile=replace(permit.profile, extended_key_usages=("clientAuth", "serverAuth")))
    with pytest.raises(lints.LintFailed, match="is_for_clients_only"):
        lints.check(
            replace(right, purposes=purposes(ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)).sign(
                issuing[1]
            ),
            server,
            issuing[0],
        )


def test_a_device_is_no_station(right: Draft, permit: IssuePermit, issuing: Certified) -> None:
    with pytest.raises(lints.LintFailed, match="is_for_clients_only"):
        lints.check(right.sign(issuing[1]), replace(permit, kind=CredentialKind.STATION), issuing[0])
