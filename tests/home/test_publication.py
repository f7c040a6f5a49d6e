"""Distribution points of a home's certificates: by its settings, from the next certificate on."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import structs

from fleet.ca.key_identifiers import identifier_of
from fleet.config.settings import Settings
from fleet.config.template import render
from fleet.domain.credential import CredentialKind
from fleet.home.authorities import new_issuing_key, new_tenant
from fleet.home.creation import create_home
from fleet.home.layout import Home
from fleet.home.pki import load_issuer, load_operators_issuer, renew_server_certificate, server_identity
from fleet.home.reloading_ca import LiveAuthorities
from tests.ca.certificate_kinds import permit_for
from tests.ca.test_distribution_points import named

NOW = datetime(2026, 5, 1, tzinfo=UTC)
AT = "http://pki.example.com"
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
async def home(tmp_path: Path) -> Home:
    home = await create_home(tmp_path / "home", Settings(name="Acme", hosts=("localhost",)), NOW)
    with new_tenant(home, "acme", own_root=False, now=NOW):
        pass
    return home


def publish(home: Home, **chosen: object) -> Settings:
    settings = Settings(name="Acme", hosts=("localhost",), publish_url=AT, **chosen)  # type: ignore[arg-type]
    home.settings_file.write_text(render(settings))
    return settings


def device(home: Home, tenant: str) -> x509.Certificate:
    permit = structs.replace(permit_for(KEY, NOW), tenant=tenant)
    return x509.load_der_x509_certificate(LiveAuthorities(home).issue(permit, NOW).der)


def operator(home: Home) -> x509.Certificate:
    permit = structs.replace(permit_for(KEY, NOW), kind=CredentialKind.OPERATOR, hardware_serial="", model="")
    return x509.load_der_x509_certificate(load_operators_issuer(home, NOW).issue(permit, NOW).der)


async def test_nothing_is_named_without_a_url(home: Home) -> None:
    for each in (device(home, ""), device(home, "acme"), operator(home), *server_identity(home).certificate_chain):
        assert named(each) == ([], [])


async def test_each_ca_names_its_own_files(home: Home) -> None:
    settings = publish(home, crl_shards=16)
    first = device(home, "")
    ca = identifier_of(load_issuer(home).certificate).hex()
    assert named(first)[0][0].startswith(f"{AT}/crl/{ca}/")
    assert named(first)[0][0].endswith("-of-16.crl")
    assert named(first)[1] == [f"{AT}/ocsp", f"{AT}/ca/{ca}.cer"]
    assert ca not in named(device(home, "acme"))[0][0]
    assert named(operator(home))[0][0].count("/") == 4  # operators are few: no shards
    assert renew_server_certificate(home, settings, NOW) == ""  # not before it is due
    assert renew_server_certificate(home, settings, NOW + timedelta(days=300))
    assert named(server_identity(home).certificate_chain[0])[1] == named(first)[1]
    after = new_issuing_key(home, "", NOW + timedelta(days=1)).issuing
    assert named(device(home, ""))[1] == [f"{AT}/ocsp", f"{AT}/ca/{identifier_of(after).hex()}.cer"]


async def test_an_issuing_ca_names_the_crl_and_the_certificate_of_its_root(home: Home) -> None:
    """The OCSP responder answers for none of the CAs."""
    publish(home, crl_shards=16)
    made = new_issuing_key(home, "", NOW + timedelta(days=1))
    root = identifier_of(made.root).hex()
    assert named(made.issuing) == ([f"{AT}/crl/{root}.crl"], [f"{AT}/ca/{root}.cer"])
    with new_tenant(home, "own", own_root=True, now=NOW) as own:
        assert identifier_of(own.root).hex() != root
        assert named(own.issuing)[0] == [f"{AT}/crl/{identifier_of(own.root).hex()}.crl"]
    publish(home, publish_cdp=("tenant:acme",), publish_aia=())
    assert named(new_issuing_key(home, "", NOW + timedelta(days=2)).issuing) == ([], [])


async def test_they_are_chosen_by_ca(home: Home) -> None:
    publish(home, publish_cdp=("fleet",), publish_aia=("tenant:acme", "operators"))
    shown = {what: named(each) for what, each in (("", device(home, "")), ("acme", device(home, "acme")))}
    assert [bool(each) for each in (*shown[""], *shown["acme"])] == [True, False, False, True]
    crls, places = named(operator(home))
    assert (crls, len(places)) == ([], 2)
