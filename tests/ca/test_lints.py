import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, mldsa, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import structs

from fleet.ca import lints
from fleet.ca.authority import Certified
from fleet.ca.issuer import LocalIssuer
from fleet.ca.keys import generate_key
from fleet.ca.profiles import END_ENTITY, HARDWARE_TYPE, SIGNS_CERTIFICATES, SIGNS_ONLY
from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import IssuePermit
from fleet.domain.model_rules import EXTENDED_KEY_USAGES
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
    return structs.replace(permit, hardware_serial="")


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
HARDWARE_DER = "06146981dda6deb1b7c1cab8bfa5f2f284d2c793a445"
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
    "make_key",
    [
        partial(rsa.generate_private_key, 65537, 1024),
        partial(rsa.generate_private_key, 3, 2048),
        partial(ec.generate_private_key, ec.SECP224R1()),
        partial(ec.generate_private_key, ec.SECP256K1()),
        partial(dsa.generate_private_key, 2048),
    ],
    ids=["RSA-1024", "RSA-e3", "P-224", "secp256k1", "DSA"],
)
def test_a_weak_key_stays_here_even_when_it_was_permitted(
    right: Draft,
    permit: IssuePermit,
    issuing: Certified,
    make_key: Callable[[], CertificateIssuerPrivateKeyTypes],
) -> None:
    spki = make_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = hashlib.sha256(spki).digest()
    permitted = structs.replace(permit, spki_der=spki, key_sha256=digest)
    draft = replace(right, spki=spki, own=(x509.SubjectKeyIdentifier(digest[:20]), False))
    with pytest.raises(lints.LintFailed, match="key_is_strong"):
        lints.check(draft.sign(issuing[1]), permitted, issuing[0])


@pytest.mark.parametrize("holder", ["cam\u202e7", "cam 7", "cam/7", "-cam"])
def test_a_name_out_of_the_charset_stays_here_even_when_it_was_permitted(
    right: Draft, permit: IssuePermit, issuing: Certified, holder: str
) -> None:
    draft = replace(right, subject=name((NameOID.COMMON_NAME, holder)))
    with pytest.raises(lints.LintFailed, match="subject_is_plain_text"):
        lints.check(draft.sign(issuing[1]), structs.replace(permit, holder=holder), issuing[0])


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
    profile = structs.replace(permit.profile, dns_name="{id}.example.com", uris=("urn:example:{model}:{id}",))
    known = structs.replace(permit, hardware_serial="SN1", model="cam", profile=profile)
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


def test_the_san_of_a_person(right: Draft, permit: IssuePermit, issuing: Certified) -> None:
    profile = structs.replace(permit.profile, hardware_module_name=False, email="{id}@b.c", upn="{id}@d.e")
    person = structs.replace(permit, profile=profile)
    mail = x509.RFC822Name("cam-7@b.c")

    def principal(value: bytes, oid: str = "1.3.6.1.4.1.311.20.2.3") -> x509.OtherName:
        return x509.OtherName(x509.ObjectIdentifier(oid), value)

    exact = principal(b"\x0c\x09cam-7@d.e")

    def judged(*names: x509.GeneralName) -> None:
        more = ((x509.SubjectAlternativeName(names), False),)
        lints.check(replace(right, more=more).sign(issuing[1]), person, issuing[0])

    judged(mail, exact)
    for names in (
        (mail,),
        (exact, mail),
        (x509.RFC822Name("cam-8@b.c"), exact),
        (mail, principal(b"\x0c\x09cam-8@d.e")),
        (mail, principal(b"\x13\x09cam-7@d.e")),
        (mail, principal(b"\x0c\x09cam-7@d.e", "1.3.6.1.4.1.311.20.2.4")),
    ):
        with pytest.raises(lints.LintFailed, match="alt_names_are_the_profiles"):
            judged(*names)


def test_a_server_has_a_name_of_its_own(right: Draft, permit: IssuePermit, issuing: Certified) -> None:
    both = purposes(ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
    for template, dns, passes in (("{id}.b.c", "cam-7.b.c", True), ("a.b.c", "a.b.c", False)):
        profile = structs.replace(permit.profile, hardware_module_name=False, dns_name=template, service=True)
        more = ((x509.SubjectAlternativeName([x509.DNSName(dns)]), False),)
        made = replace(right, purposes=both, more=more).sign(issuing[1])
        service = structs.replace(permit, profile=profile)
        if passes:
            lints.check(made, service, issuing[0])
            continue
        with pytest.raises(lints.LintFailed, match="is_for_clients_only"):
            lints.check(made, service, issuing[0])


def test_the_usages_are_those_of_the_profile(right: Draft, permit: IssuePermit, issuing: Certified) -> None:
    mail = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.4")
    both = structs.replace(
        permit, profile=structs.replace(permit.profile, extended_key_usages=("clientAuth", "emailProtection"))
    )
    draft = replace(right, purposes=purposes(ExtendedKeyUsageOID.CLIENT_AUTH, mail))
    lints.check(draft.sign(issuing[1]), both, issuing[0])
    for certificate, permitted in ((draft, permit), (right, both)):
        with pytest.raises(lints.LintFailed, match="is_for_clients_only"):
            lints.check(certificate.sign(issuing[1]), permitted, issuing[0])
    # A profile that came to say so all the same would still make no server of a device.
    server = structs.replace(
        permit, profile=structs.replace(permit.profile, extended_key_usages=("clientAuth", "serverAuth"))
    )
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
        lints.check(right.sign(issuing[1]), structs.replace(permit, kind=CredentialKind.STATION), issuing[0])


@pytest.mark.parametrize(("bits", "is_right"), [(0, False), (152, False), (153, True), (159, True), (160, False)])
def test_a_serial_number_takes_20_octets_and_is_positive(
    permit: IssuePermit, issuing: Certified, bits: int, is_right: bool
) -> None:
    stub = cast(x509.Certificate, SimpleNamespace(serial_number=1 << bits >> 1))
    assert lints.serial_is_20_positive_octets(stub, permit, issuing[0]) is is_right


SLACK = timedelta(minutes=5, seconds=1)
TICK = timedelta(microseconds=1)


def test_the_validity_stays_within_the_permit_and_the_issuer(permit: IssuePermit) -> None:
    since, until = permit.not_before, permit.not_after
    wide = (since - timedelta(days=9), until + timedelta(days=9))

    def is_right(start: datetime, end: datetime, issuer: tuple[datetime, datetime] = wide) -> bool:
        return lints.is_permitted_validity((start, end), permit, issuer)

    assert is_right(since, until)
    assert is_right(since - SLACK, until)
    assert not is_right(since - SLACK - TICK, until)
    assert not is_right(since + TICK, until)
    assert not is_right(since, until + TICK)
    assert is_right(since, since + TICK)
    assert not is_right(since, since)
    assert is_right(since, until, (since, until))
    assert not is_right(since, until, (since + TICK, until))
    assert not is_right(since, until, (since, until - TICK))


@rsa.RSAPublicKey.register
@dataclass
class StubKey:
    """An RSA key of any size and form: generating one takes seconds."""

    key_size: int = 2048
    modulus: int = 3
    exponent: int = 65537

    def public_numbers(self) -> rsa.RSAPublicNumbers:
        return rsa.RSAPublicNumbers(self.exponent, self.modulus)


@pytest.mark.parametrize(
    ("key", "is_right"),
    [
        (StubKey(), True),
        (StubKey(8192), True),
        (StubKey(2047), False),
        (StubKey(8193), False),
        (StubKey(modulus=4), False),
        (StubKey(exponent=65536), False),
        (StubKey(exponent=65535), False),
        (StubKey(exponent=65538), False),
        (StubKey(exponent=65539), True),
    ],
)
def test_rsa_keys_are_bounded(key: StubKey, is_right: bool) -> None:
    assert lints.is_strong(cast(rsa.RSAPublicKey, key)) is is_right


@pytest.mark.parametrize("key", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_ec_keys_on_nist_curves_are_strong(key: ec.EllipticCurve) -> None:
    assert lints.is_strong(ec.generate_private_key(key).public_key())


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey,
        ed448.Ed448PrivateKey,
        mldsa.MLDSA44PrivateKey,
        mldsa.MLDSA65PrivateKey,
        mldsa.MLDSA87PrivateKey,
    ],
)
def test_keys_that_sign_are_strong(key: type[ed25519.Ed25519PrivateKey]) -> None:
    assert lints.is_strong(key.generate().public_key())
    assert not lints.is_strong(x25519.X25519PrivateKey.generate().public_key())


USAGES = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign")


@pytest.mark.parametrize("usage", USAGES)
def test_no_other_key_usage_is_let_through(right: Draft, permit: IssuePermit, issuing: Certified, usage: str) -> None:
    bits = dict.fromkeys((*USAGES, "encipher_only", "decipher_only"), False)
    for wrong in ({"digital_signature": True, usage: True}, {"digital_signature": False, usage: True}):
        draft = replace(right, usage=(x509.KeyUsage(**{**bits, **wrong}), True))
        with pytest.raises(lints.LintFailed, match="is_no_authority"):
            lints.check(draft.sign(issuing[1]), permit, issuing[0])


@pytest.mark.parametrize(
    "value",
    [
        "30050403534e31",  # no hardware type
        "301d" + HARDWARE_DER + "0403534e310500",
        "301c" + HARDWARE_DER + "0404534e3131",
        "301b" + HARDWARE_DER + "0c03534e31",  # a UTF8String in its place
        "311b" + HARDWARE_DER + "0403534e31",
    ],
)
def test_a_hardware_name_of_another_form_stays_here(
    right: Draft, permit: IssuePermit, issuing: Certified, value: str
) -> None:
    known = structs.replace(permit, hardware_serial="SN1")
    subject = name((NameOID.COMMON_NAME, "cam-7"), (NameOID.SERIAL_NUMBER, "SN1"))

    def draft(encoded: bytes) -> Draft:
        other = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4"), encoded)
        return replace(right, subject=subject, more=((x509.SubjectAlternativeName([other]), False),))

    lints.check(draft(bytes.fromhex("301b" + HARDWARE_DER + "0403534e31")).sign(issuing[1]), known, issuing[0])
    with pytest.raises(lints.LintFailed, match="alt_names_are_the_profiles"):
        lints.check(draft(bytes.fromhex(value)).sign(issuing[1]), known, issuing[0])


@pytest.mark.parametrize("length", [1, 64, 65])
def test_a_hardware_serial_has_at_most_64_characters(
    right: Draft, permit: IssuePermit, issuing: Certified, length: int
) -> None:
    serial = "S" * length
    hardware = alt_name(f"HW:{HARDWARE_TYPE}:{serial.encode().hex()}")
    try:
        subject = name((NameOID.COMMON_NAME, "cam-7"), (NameOID.SERIAL_NUMBER, serial))
    except ValueError:
        pytest.skip("the library refuses such a subject itself")
    draft = replace(right, subject=subject, more=((x509.SubjectAlternativeName([hardware]), False),))
    known = structs.replace(permit, hardware_serial=serial)
    if length <= 64:
        lints.check(draft.sign(issuing[1]), known, issuing[0])
    else:
        with pytest.raises(lints.LintFailed):
            lints.check(draft.sign(issuing[1]), known, issuing[0])


@pytest.mark.parametrize(("organisation", "is_right"), [("A" * 64, True), ("A" * 65, False), ("A\u202eB", False)])
def test_an_organisation_is_plain_text(permit: IssuePermit, organisation: str, is_right: bool) -> None:
    profile = structs.replace(permit.profile, organisation=organisation)
    assert lints.is_plain_subject(structs.replace(permit, profile=profile)) is is_right
    assert lints.is_plain_subject(structs.replace(permit, hardware_serial="SN_1")) is False


def test_a_subject_with_two_attributes_in_one_rdn_stays_here(
    right: Draft, permit: IssuePermit, issuing: Certified
) -> None:
    both = [x509.NameAttribute(NameOID.COMMON_NAME, "cam-7"), x509.NameAttribute(NameOID.SERIAL_NUMBER, "SN1")]
    known = structs.replace(
        permit, hardware_serial="SN1", profile=structs.replace(permit.profile, hardware_module_name=False)
    )
    flat = replace(right, subject=x509.Name(both))
    lints.check(flat.sign(issuing[1]), known, issuing[0])
    joined = replace(right, subject=x509.Name([x509.RelativeDistinguishedName(both)]))
    with pytest.raises(lints.LintFailed, match="subject_is_the_holder"):
        lints.check(joined.sign(issuing[1]), known, issuing[0])


def test_an_organisation_is_a_devices_alone(permit: IssuePermit) -> None:
    of_acme = structs.replace(permit, profile=structs.replace(permit.profile, organisation="Acme"))
    assert [value for _, value in lints.expected_subject(of_acme)] == ["Acme", "cam-7"]
    for kind in (CredentialKind.STATION, CredentialKind.OPERATOR, CredentialKind.CLAIM):
        assert [value for _, value in lints.expected_subject(structs.replace(of_acme, kind=kind))] == ["cam-7"]
        assert lints.expected_alt_names(structs.replace(of_acme, kind=kind, hardware_serial="SN1")) == []


def test_the_extended_key_usages_of_each_kind(permit: IssuePermit) -> None:
    client, ra = "1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.28"
    kinds = {
        CredentialKind.DEVICE: (client,),
        CredentialKind.STATION: (client, ra),
        CredentialKind.CLAIM: (client,),
        CredentialKind.OPERATOR: (client,),
    }
    for kind, usages in kinds.items():
        assert lints.expected_usages(structs.replace(permit, kind=kind)) == usages
    every = structs.replace(
        permit, profile=structs.replace(permit.profile, extended_key_usages=tuple(EXTENDED_KEY_USAGES))
    )
    assert lints.expected_usages(every) == tuple(EXTENDED_KEY_USAGES.values())


def test_the_permits_hash_is_of_the_permits_key(permit: IssuePermit) -> None:
    assert lints.is_permitted_key(permit.spki_der, permit)
    assert not lints.is_permitted_key(permit.spki_der, structs.replace(permit, key_sha256=b"x" * 32))
    assert not lints.is_permitted_key(another_key(), permit)
