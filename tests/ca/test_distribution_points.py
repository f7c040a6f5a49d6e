"""What certificates say about where their CA publishes: as the CA and the profile say, and nothing else is released."""

import re
from dataclasses import replace
from datetime import datetime

import pytest
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID
from msgspec import structs

from fleet.ca import lints
from fleet.ca.assembly import ExpectedAssembly
from fleet.ca.authority import Certified, renewed_server_certificate
from fleet.ca.distribution import DistributionPoints, Publication
from fleet.ca.issuer import OPERATORS, LocalIssuer
from fleet.ca.key_identifiers import identifier_of
from fleet.ca.keys import generate_key
from fleet.ca.profiles import serial_number
from fleet.ca.tbs import extension
from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import IssuePermit

AT = "http://pki.example.com/fleet"
WHOLE = Publication(AT)
PUBLICATIONS = {
    "whole": WHOLE,
    "of 128 shards": Publication(AT, 128),
    "of 4096 shards": Publication(AT, 4096),
    "CRL alone": Publication(AT, 16, aia=False),
    "OCSP alone": Publication(AT, cdp=False),
    "neither": Publication(AT, cdp=False, aia=False),
}


def is_ca(certificate: x509.Certificate) -> bool:
    return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def named(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """URLs of CRLs; those of the OCSP responder, but for a CA's certificate, and of the CA's certificate."""
    crls: list[str] = []
    places: list[str] = []
    for each in certificate.extensions:
        if isinstance(each.value, x509.CRLDistributionPoints):
            crls += [name.value for point in each.value for name in point.full_name or ()]
        elif isinstance(each.value, x509.AuthorityInformationAccess):
            methods = [access.access_method for access in each.value]
            wanted = [AuthorityInformationAccessOID.OCSP, AuthorityInformationAccessOID.CA_ISSUERS]
            assert methods == wanted[is_ca(certificate) :]
            places += [access.access_location.value for access in each.value]
    return crls, places


def issued(issuer: LocalIssuer, permit: IssuePermit, now: datetime) -> x509.Certificate:
    return x509.load_der_x509_certificate(issuer.issue(permit, now).der)


@pytest.mark.parametrize("name", PUBLICATIONS)
@pytest.mark.parametrize("kind", CredentialKind)
def test_each_kind_names_what_its_ca_publishes(
    issuing: Certified, permit: IssuePermit, now: datetime, name: str, kind: CredentialKind
) -> None:
    publication = PUBLICATIONS[name]
    ca = identifier_of(issuing[0]).hex()
    permit = permit if kind is CredentialKind.DEVICE else structs.replace(permit, kind=kind, hardware_serial="")
    issuer = LocalIssuer(*issuing, OPERATORS if kind is CredentialKind.OPERATOR else set(CredentialKind), publication)
    certificate = issued(issuer, permit, now)
    crls, places = named(certificate)
    assert places == ([f"{AT}/ocsp", f"{AT}/ca/{ca}.cer"] if publication.aia else [])
    assert len(crls) == publication.cdp
    if crls and publication.shards == 1:
        assert crls == [f"{AT}/crl/{ca}.crl"]
    elif crls:
        found = re.fullmatch(rf"{AT}/crl/{ca}/(\d+)-of-(\d+)\.crl", crls[0])
        assert found is not None
        assert int(found[2]) == publication.shards
        assert int(found[1]) == (certificate.serial_number % 65536) * publication.shards // 65536
    expected = ExpectedAssembly(issuing[0], publication)
    der = issuer.issue(permit, now).der
    assert expected.matches(der, permit)  # the comparison is in use, not only the lints
    lints.check(x509.load_der_x509_certificate(der), permit, issuing[0], publication)


@pytest.mark.parametrize(("cdp", "aia"), [(True, False), (False, True), (False, False)])
def test_a_profile_may_go_without(
    issuing: Certified, permit: IssuePermit, now: datetime, *, cdp: bool, aia: bool
) -> None:
    profile = structs.replace(permit.profile, cdp=cdp, aia=aia)
    crls, places = named(
        issued(LocalIssuer(*issuing, publication=WHOLE), structs.replace(permit, profile=profile), now)
    )
    assert (bool(crls), bool(places)) == (cdp, aia)


def test_every_shard_is_named_by_its_serials(issuing: Certified) -> None:
    points = DistributionPoints(b"k" * 20, Publication(AT, 7))
    at = datetime(2026, 1, 1).astimezone()
    seen = set()
    for low in range(0, 65536, 97):
        serial = serial_number(at, low.to_bytes(14))
        der = points.of(serial, cdp=True, aia=True)
        (value, _) = points.extensions(serial)
        assert value.public_bytes() in der
        seen.add(der)
    assert len(seen) == 7


def test_the_servers_certificate_names_them_too(issuing: Certified, now: datetime) -> None:
    for publication in (None, *PUBLICATIONS.values()):
        made = renewed_server_certificate(issuing, ("localhost",), generate_key(), now, publication)
        crls, places = named(made)
        assert (bool(crls), bool(places)) == (
            publication is not None and publication.cdp,
            publication is not None and publication.aia,
        )
        assert all(not each.critical for each in made.extensions if each.oid in lints._POINTS)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(WHOLE, url="http://elsewhere.example.com"),
        replace(WHOLE, shards=2),
        replace(WHOLE, cdp=False),
        replace(WHOLE, aia=False),
        None,
    ],
)
def test_the_issuer_releases_none_that_names_another_place(
    issuing: Certified, permit: IssuePermit, now: datetime, wrong: Publication | None
) -> None:
    issuer = LocalIssuer(*issuing, publication=WHOLE)
    issuer._points = DistributionPoints(identifier_of(issuing[0]), wrong) if wrong else None
    with pytest.raises(lints.LintFailed, match="points_are_the_cas"):
        issuer.issue(permit, now)
    silent = LocalIssuer(*issuing)  # of a CA that publishes nothing
    silent._points = DistributionPoints(identifier_of(issuing[0]), WHOLE)
    with pytest.raises(lints.LintFailed, match="points_are_the_cas"):
        silent.issue(permit, now)
    bare = structs.replace(permit, profile=structs.replace(permit.profile, cdp=False, aia=False))
    silent.issue(bare, now)


def test_every_octet_of_them_is_compared(issuing: Certified, permit: IssuePermit, now: datetime) -> None:
    publication = PUBLICATIONS["of 128 shards"]
    der = LocalIssuer(*issuing, publication=publication).issue(permit, now).der
    expected = ExpectedAssembly(issuing[0], publication)
    begin = der.index(bytes.fromhex("0603551d1f"))
    end = der.index(b".cer") + 4
    for at in range(begin, end):
        for flip in (0x01, 0x80, 0xFF):
            spoiled = bytearray(der)
            spoiled[at] ^= flip
            assert not expected.matches(bytes(spoiled), permit), at
    serial = der.index(b"\x02\x14") + 20  # the octets that choose the shard
    for at in (serial, serial + 1):
        spoiled = bytearray(der)
        spoiled[at] ^= 0x80
        assert expected.matches(bytes(spoiled), permit) == (at == serial + 1)


def test_a_critical_one_is_not_released(issuing: Certified, permit: IssuePermit, now: datetime) -> None:
    issuer = LocalIssuer(*issuing, publication=WHOLE)
    assert issuer._points is not None
    issuer._points._access = extension(issuer._points._access_value(), critical=True)
    with pytest.raises(lints.LintFailed, match="extensions_are_exact"):
        issuer.issue(permit, now)
