"""Certificates as a model's profile wants them, read by a decoder that is not ours."""

import time
from datetime import datetime
from typing import Any

import pytest
from asn1crypto import x509 as judge
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from msgspec.structs import replace

from fleet.ca.issuer import LocalIssuer
from fleet.domain.errors import Refused
from fleet.domain.model_rules import EXTENDED_KEY_USAGES, ProfileRules
from tests.ca.certificate_kinds import KEYS, PROFILES, permit_for

KEY = KEYS["EC-P256"]


def read(issuer: LocalIssuer, profile: ProfileRules, now: datetime, **changed: Any) -> judge.Certificate:
    permit = replace(permit_for(KEY, now, profile), **changed)
    return judge.Certificate.load(issuer.issue(permit, now).der, strict=True)


def alt_names(certificate: judge.Certificate) -> list[tuple[str, Any]] | None:
    value = certificate.subject_alt_name_value
    return None if value is None else [(name.name, name.native) for name in value]


def test_the_organisation_stands_before_the_name(issuer: LocalIssuer, now: datetime) -> None:
    certificate = read(issuer, PROFILES["everything"], now)
    assert list(certificate.subject.native.items()) == [
        ("organization_name", "Müller & Söhne"),
        ("common_name", "cam-7"),
        ("serial_number", "SN1"),
    ]


def test_all_extended_key_usages_of_the_profile(issuer: LocalIssuer, now: datetime) -> None:
    certificate = read(issuer, PROFILES["everything"], now)
    usages = {usage.dotted for usage in certificate.extended_key_usage_value}
    assert usages == set(EXTENDED_KEY_USAGES.values())
    assert "extended_key_usage" not in certificate.critical_extensions


def test_the_order_of_the_usages_makes_no_other_template(issuer: LocalIssuer, now: datetime) -> None:
    one = read(issuer, ProfileRules(extended_key_usages=("emailProtection", "clientAuth")), now)
    other = read(issuer, ProfileRules(extended_key_usages=("clientAuth", "emailProtection")), now)
    assert one.extended_key_usage_value.dump() == other.extended_key_usage_value.dump()
    assert len(issuer._templates) == 1


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("no SAN", None),
        ("DNS", [("dns_name", "cam-7.cam.example.com")]),
        ("https", [("uniform_resource_identifier", "https://example.com/cam/cam-7")]),
        ("urn", [("uniform_resource_identifier", "urn:example:cam:cam-7")]),
    ],
)
def test_one_form_of_name(
    issuer: LocalIssuer, now: datetime, profile: str, expected: list[tuple[str, str]] | None
) -> None:
    assert alt_names(read(issuer, PROFILES[profile], now)) == expected


def test_every_form_of_name_together(issuer: LocalIssuer, now: datetime) -> None:
    certificate = read(issuer, PROFILES["everything"], now)
    names = alt_names(certificate)
    assert names is not None
    assert [kind for kind, _ in names] == ["other_name", "dns_name", *["uniform_resource_identifier"] * 2]
    assert names[1:] == [
        ("dns_name", "cam-7.example.com"),
        ("uniform_resource_identifier", "https://example.com/a/cam-7"),
        ("uniform_resource_identifier", "https://192.0.2.7:8443/b/cam-7?model=cam#it"),
    ]
    # RFC 5280, 4.2.1.6: critical only where the subject is empty, which it never is.
    assert certificate.critical_extensions == {"basic_constraints", "key_usage"}


def test_the_names_of_a_person(issuer: LocalIssuer, now: datetime) -> None:
    certificate = read(issuer, PROFILES["person"], now, holder="jane.doe")
    assert certificate.subject_alt_name_value is not None
    mail, principal = certificate.subject_alt_name_value
    assert (mail.name, mail.native) == ("rfc822_name", "jane.doe@example.com")
    assert principal.native == {"type_id": "1.3.6.1.4.1.311.20.2.3", "value": "jane.doe@cam.corp.example"}
    assert principal.chosen["value"].parsed.tag == 12  # an UTF8String
    for holder in ("Jane", "a:b", "jane..doe", "jane.", "x" * 65):
        with pytest.raises(Refused) as refused:
            read(issuer, PROFILES["person"], now, holder=holder)
        assert refused.value.code == "name-impossible"


def test_a_service_is_a_server_under_its_own_name(issuer: LocalIssuer, now: datetime) -> None:
    certificate = read(issuer, PROFILES["service"], now)
    assert {usage.native for usage in certificate.extended_key_usage_value} == {"client_auth", "server_auth"}
    assert alt_names(certificate) == [("dns_name", "cam-7.partners.example.com")]


def test_without_a_hardware_serial_the_other_names_stand_alone(issuer: LocalIssuer, now: datetime) -> None:
    certificate = read(issuer, replace(PROFILES["DNS"], hardware_module_name=True), now, hardware_serial="")
    assert alt_names(certificate) == [("dns_name", "cam-7.cam.example.com")]


@pytest.mark.parametrize(
    "holder", ["aa:bb:cc", "cam_7", "CAM-7", "cam.7", "cam-7-", "x" * 64], ids=lambda holder: holder[:8]
)
@pytest.mark.parametrize("profile", [PROFILES["DNS"], ProfileRules(uris=("https://{id}.example.com/x",))])
def test_a_device_id_that_cannot_stand_in_a_host_is_refused(
    issuer: LocalIssuer, now: datetime, holder: str, profile: ProfileRules
) -> None:
    with pytest.raises(Refused, match="cannot be in a") as refused:
        read(issuer, profile, now, holder=holder)
    assert refused.value.code == "name-impossible"


@pytest.mark.parametrize("holder", ["aa:bb:cc", "cam_7", "CAM-7", "cam.7"])
def test_every_device_id_can_stand_in_a_path_or_a_urn(issuer: LocalIssuer, now: datetime, holder: str) -> None:
    profile = ProfileRules(hardware_module_name=False, uris=("https://example.com/{id}", "urn:example:{id}"))
    names = [("uniform_resource_identifier", f"{start}{holder}") for start in ("https://example.com/", "urn:example:")]
    assert alt_names(read(issuer, profile, now, holder=holder)) == names


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
def test_every_kind_of_key_signs_and_does_nothing_else(
    issuer: LocalIssuer, now: datetime, key: CertificateIssuerPrivateKeyTypes
) -> None:
    der = issuer.issue(permit_for(key, now), now).der
    assert x509.load_der_x509_certificate(der).public_key() == key.public_key()
    assert judge.Certificate.load(der).key_usage_value.native == {"digital_signature"}


def test_profiles_do_not_make_issuing_slow(issuer: LocalIssuer, now: datetime) -> None:
    """Each would, if its constant part were encoded anew each time."""

    def cost(profile: ProfileRules) -> float:
        permit = permit_for(KEY, now, profile)
        issuer.issue(permit, now)
        best = 1.0
        for _ in range(5):
            started = time.process_time()
            for _ in range(50):
                issuer.issue(permit, now)
            best = min(best, (time.process_time() - started) / 50)
        return best

    assert cost(PROFILES["everything"]) < 3 * cost(PROFILES["usual"])
