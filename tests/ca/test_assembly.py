"""A wrong certificate never leaves the issuer, whichever part of its assembly goes wrong."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import structs

from fleet.ca import issuer as issuer_module
from fleet.ca import lints, tbs
from fleet.ca.assembly import ExpectedAssembly
from fleet.ca.authority import Certified, create_issuing, create_root
from fleet.ca.issuer import OPERATORS, LocalIssuer
from fleet.ca.profiles import CLIENT_AUTH
from fleet.ca.profiles import PROFILES as ISSUED_PROFILES
from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import IssuePermit
from tests.ca.certificate_kinds import KEYS, PROFILES, permit_for


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("profile", PROFILES)
def test_what_the_issuer_assembles_is_what_was_expected(
    issuer: LocalIssuer, issuing: Certified, now: datetime, key: str, profile: str
) -> None:
    """The comparison is in use for each kind of certificate, not only the lints behind it."""
    expected = ExpectedAssembly(issuing[0])
    permit = permit_for(KEYS[key], now, PROFILES[profile])
    for each in (permit, structs.replace(permit, hardware_serial="")):
        assert expected.matches(issuer.issue(each, now).der, each)
    for kind in (CredentialKind.STATION, CredentialKind.CLAIM):
        by_hand = structs.replace(permit, kind=kind, holder="line-1", hardware_serial="")
        assert expected.matches(issuer.issue(by_hand, now).der, by_hand)
    operator = structs.replace(permit, kind=CredentialKind.OPERATOR, holder="bob", hardware_serial="")
    assert expected.matches(LocalIssuer(*issuing, OPERATORS).issue(operator, now).der, operator)


@pytest.mark.parametrize("usages", [(), ("emailProtection",)])
def test_a_permit_without_client_authentication_is_left_to_the_lints(
    issuer: LocalIssuer, permit: IssuePermit, now: datetime, usages: tuple[str, ...]
) -> None:
    odd = structs.replace(permit, profile=structs.replace(permit.profile, extended_key_usages=usages))
    with pytest.raises((lints.LintFailed, ValueError)):
        issuer.issue(odd, now)


def test_a_key_that_is_written_in_another_way_is_left_to_the_lints(
    issuer: LocalIssuer, permit: IssuePermit, now: datetime
) -> None:
    point = (
        ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    )
    spki = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    with pytest.raises(lints.LintFailed):
        issuer.issue(structs.replace(permit, spki_der=spki, key_sha256=hashlib.sha256(spki).digest()), now)


def test_whatever_matches_passes_every_lint(issuer: LocalIssuer, issuing: Certified, now: datetime) -> None:
    expected = ExpectedAssembly(issuing[0])
    permit = permit_for(KEYS["EC-P256"], now, PROFILES["everything"])
    der = issuer.issue(permit, now).der
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    signature_at = der.rindex(algorithm) + len(algorithm)
    matched = 0
    for at in range(signature_at):
        for flip in (0x01, 0x80, 0xFF):
            spoiled = bytearray(der)
            spoiled[at] ^= flip
            if expected.matches(bytes(spoiled), permit):
                matched += 1
                lints.check(x509.load_der_x509_certificate(bytes(spoiled)), permit, issuing[0])
    for at in range(signature_at, signature_at + 4):  # tag, length, unused bits, and the SEQUENCE in it
        for bit in range(8):
            spoiled = bytearray(der)
            spoiled[at] ^= 1 << bit
            assert not expected.matches(bytes(spoiled), permit), (at - signature_at, bit)
    # 19 octets of the serial number may be any others, its first within bounds, and a digit or two of the times.
    assert matched <= 20 * 3 + 6


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 40, -1])
def test_a_certificate_that_is_cut_off_or_goes_on_does_not_match(
    issuer: LocalIssuer, issuing: Certified, now: datetime, cut: int
) -> None:
    permit = permit_for(KEYS["EC-P256"], now)
    der = issuer.issue(permit, now).der
    expected = ExpectedAssembly(issuing[0])
    assert not expected.matches(der[:cut], permit)
    assert not expected.matches(der + b"\0", permit)


def _fill(**wrong: Any) -> Callable[..., bytes]:
    whole = tbs.Template.fill

    def fill(self: tbs.Template, **parts: Any) -> bytes:
        return whole(self, **{**parts, **{name: spoil(parts[name]) for name, spoil in wrong.items()}})

    return fill


def _profile(**wrong: Any) -> dict[CredentialKind, Any]:
    return {kind: replace(profile, **wrong) for kind, profile in ISSUED_PROFILES.items()}


HOUR = timedelta(hours=1)
ANOTHER_SPKI = permit_for(KEYS["Ed25519"], datetime(2026, 3, 1, tzinfo=UTC)).spki_der

TAMPERED: list[tuple[str, Callable[[pytest.MonkeyPatch], None]]] = [
    ("key_is_the_permitted_one", lambda m: m.setattr(tbs.Template, "fill", _fill(spki=lambda _: ANOTHER_SPKI))),
    ("serial_is_20_positive_octets", lambda m: m.setattr(tbs.Template, "fill", _fill(serial=lambda s: s >> 8))),
    ("validity_is_permitted", lambda m: m.setattr(tbs.Template, "fill", _fill(not_after=lambda t: t + HOUR))),
    ("validity_is_permitted", lambda m: m.setattr(tbs.Template, "fill", _fill(not_before=lambda t: t - HOUR))),
    ("validity_is_permitted", lambda m: m.setattr(tbs.Template, "fill", _fill(not_before=lambda t: t + HOUR))),
    (
        "subject_is_the_holder",
        lambda m: m.setattr(
            issuer_module, "PROFILES", _profile(subject=lambda p: tbs.name((b"\x06\x03\x55\x04\x03", 0x0C, "cam-8")))
        ),
    ),
    (
        "is_for_clients_only",
        lambda m: m.setattr(
            issuer_module,
            "PROFILES",
            _profile(extended_key_usages=lambda p: ("1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.1")),
        ),
    ),
    ("extensions_are_exact", lambda m: m.setattr(issuer_module, "PROFILES", _profile(alt_names=lambda p: None))),
    ("key_identifiers_agree", lambda m: m.setattr(issuer_module, "key_identifier", lambda digest: digest[12:])),
    ("signature_is_strong", lambda m: m.setattr(tbs, "ECDSA_WITH_SHA256", bytes.fromhex("300a06082a8648ce3d040303"))),
]


@pytest.mark.parametrize(("rule", "tamper"), TAMPERED, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(TAMPERED)])
def test_the_issuer_releases_no_certificate_that_breaks_a_rule(
    issuer: LocalIssuer,
    permit: IssuePermit,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
    tamper: Callable[[pytest.MonkeyPatch], None],
) -> None:
    issuer.issue(permit, now)
    fresh = LocalIssuer(issuer.certificate, issuer._key)
    tamper(monkeypatch)
    with pytest.raises(lints.LintFailed, match=rule):
        fresh.issue(permit, now)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("300c0603551d130101ff04023000", "300f0603551d130101ff040530030101ff"),  # cA TRUE
        ("300e0603551d0f0101ff040403020780", "300e0603551d0f0101ff040403020284"),  # and keyCertSign
    ],
)
def test_no_certificate_of_an_authority_is_released(
    issuer: LocalIssuer, permit: IssuePermit, now: datetime, right: str, wrong: str
) -> None:
    """Also when the parts that an issuer encodes once are wrong."""
    template = issuer._template((CLIENT_AUTH,))
    assert bytes.fromhex(right) in template.extensions
    extensions = template.extensions.replace(bytes.fromhex(right), bytes.fromhex(wrong))
    issuer._templates[(CLIENT_AUTH,)] = replace(template, extensions=extensions)
    with pytest.raises(lints.LintFailed, match="is_no_authority"):
        issuer.issue(permit, now)


def test_no_certificate_names_another_issuer(issuer: LocalIssuer, permit: IssuePermit, now: datetime) -> None:
    template = issuer._template((CLIENT_AUTH,))
    name = tbs.name((b"\x06\x03\x55\x04\x03", 0x0C, "Evil CA"))
    issuer._templates[(CLIENT_AUTH,)] = replace(template, issuer=name)
    with pytest.raises(lints.LintFailed, match="issuer_is_ours"):
        issuer.issue(permit, now)


def test_a_long_organisation_is_compared_as_well(issuer: LocalIssuer, issuing: Certified, now: datetime) -> None:
    """In UTF-8 it takes more octets than a length of one octet can say."""
    permit = permit_for(KEYS["EC-P256"], now, structs.replace(PROFILES["usual"], organisation="€" * 64))
    assert ExpectedAssembly(issuing[0]).matches(issuer.issue(permit, now).der, permit)


@pytest.mark.parametrize("first", [0x00, 0x80, 0xFF])
def test_a_serial_number_that_is_not_positive_or_too_short_does_not_match(
    issuer: LocalIssuer, issuing: Certified, permit: IssuePermit, now: datetime, first: int
) -> None:
    der = bytearray(issuer.issue(permit, now).der)
    at = der.index(b"\x02\x14") + 2
    expected = ExpectedAssembly(issuing[0])
    for positive in (0x01, 0x7F):
        der[at] = positive
        assert expected.matches(bytes(der), permit)
    der[at] = first
    assert not expected.matches(bytes(der), permit)


def test_years_from_2050_on_are_left_to_the_lints() -> None:
    """RFC 5280, 4.1.2.5: GeneralizedTime from then on; a UTCTime would say 1953."""
    then = datetime(2045, 3, 1, tzinfo=UTC)
    issuing = create_issuing("Late", *create_root("Late", then), then)
    permit = structs.replace(permit_for(KEYS["EC-P256"], then), not_after=then + timedelta(days=8 * 365))
    credential = LocalIssuer(*issuing).issue(permit, then)
    assert not ExpectedAssembly(issuing[0]).matches(credential.der, permit)
    assert x509.load_der_x509_certificate(credential.der).not_valid_after_utc == permit.not_after
    sooner = structs.replace(permit, not_after=datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert ExpectedAssembly(issuing[0]).matches(LocalIssuer(*issuing).issue(sooner, then).der, sooner)


def test_a_validity_outside_the_permits_does_not_match(
    issuer: LocalIssuer, issuing: Certified, permit: IssuePermit, now: datetime
) -> None:
    der, expected = issuer.issue(permit, now).der, ExpectedAssembly(issuing[0])
    assert expected.matches(der, permit)
    assert not expected.matches(der, structs.replace(permit, not_after=permit.not_after - HOUR))
    assert not expected.matches(der, structs.replace(permit, not_before=permit.not_before + HOUR))
    assert not expected.matches(der, structs.replace(permit, not_before=permit.not_before - HOUR))
    assert not expected.matches(der, structs.replace(permit, key_sha256=b"x" * 32))
    assert not expected.matches(der, structs.replace(permit, holder="cam 7"))
