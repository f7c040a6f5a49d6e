"""A model's profile over real EST: what a CSR may choose, what a renewal gets after a change, what is refused."""

import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import cms
from asn1crypto import x509 as judge
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import structs

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.device import Model
from fleet.domain.model_rules import EXTENDED_KEY_USAGES, rules_of
from fleet.services import inventory
from tests.ca.certificate_kinds import permit_for
from tests.servers.est_fixtures import Answer, EstHarness, Identity, Key, basic, csr_for, open_est, renewal_csr

SERVER_AUTH = "1.3.6.1.5.5.7.3.1"
THREE = ["clientAuth", "emailProtection", "ipsecIKE"]
NAMED: dict[str, Any] = {
    "organisation": "Acme",
    "dns_name": "{id}.{model}.example.com",
    "uris": ["urn:example:{model}:{id}"],
}


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        yield est


async def add_model(est: EstHarness, name: str, **profile: Any) -> None:
    model = Model(name, rules=rules_of({"profile": profile}))
    await inventory.add_model(est.registry, model, act=Act("test", est.clock()))


async def set_model(est: EstHarness, name: str, **profile: Any) -> None:
    old = await est.registry.model(name)
    assert old is not None
    model = Model(name, rules=rules_of({"profile": profile}, old.rules), revision=old.revision)
    await inventory.set_model(est.registry, model, act=Act("test", est.clock()))


async def enroll(est: EstHarness, model: str, name: str, csr: bytes) -> Answer:
    if await est.registry.device(name) is None:
        await est.device(name, model, serial="SN1")
    return await est.enroll(csr, basic(await est.token(name)))


def read(answer: Answer) -> judge.Certificate:
    """By a decoder that is not ours."""
    assert answer.status == 200, answer.text
    [chosen] = cms.ContentInfo.load(base64.b64decode(answer.body), strict=True)["content"]["certificates"]
    return judge.Certificate.load(chosen.chosen.dump(), strict=True)


def usages(answer: Answer) -> set[str]:
    return {usage.dotted for usage in read(answer).extended_key_usage_value}


def asking(name: str, *oids: str, key: Key | None = None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    )
    usage = x509.ExtendedKeyUsage([x509.ObjectIdentifier(oid) for oid in oids])
    signed = builder.add_extension(usage, critical=False).sign(key or generate_key(), hashes.SHA256())
    return signed.public_bytes(Encoding.DER)


async def test_a_certificate_is_what_its_model_says(est: EstHarness) -> None:
    await add_model(est, "probe", extended_key_usages=THREE, **NAMED)
    answer = await enroll(est, "probe", "p-1", csr_for("p-1"))
    certificate = read(answer)
    assert list(certificate.subject.native.values()) == ["Acme", "p-1", "SN1"]
    assert usages(answer) == {EXTENDED_KEY_USAGES[name] for name in THREE}
    assert [(n.name, n.native) for n in certificate.subject_alt_name_value][1:] == [
        ("dns_name", "p-1.probe.example.com"),
        ("uniform_resource_identifier", "urn:example:probe:p-1"),
    ]


async def test_a_csr_chooses_among_what_its_model_gives_and_never_beyond(est: EstHarness) -> None:
    await add_model(est, "probe", extended_key_usages=THREE, csr_extended_key_usages=True)
    every = {EXTENDED_KEY_USAGES[name] for name in THREE}
    client, mail = EXTENDED_KEY_USAGES["clientAuth"], EXTENDED_KEY_USAGES["emailProtection"]
    assert usages(await enroll(est, "probe", "p-1", csr_for("p-1"))) == every
    assert usages(await enroll(est, "probe", "p-1", asking("p-1", *every))) == every
    assert usages(await enroll(est, "probe", "p-1", asking("p-1", mail))) == {client, mail}
    assert usages(await enroll(est, "probe", "p-1", asking("p-1", client))) == {client}
    for beyond in (SERVER_AUTH, "2.5.29.37.0", "1.3.6.1.5.5.7.3.28", EXTENDED_KEY_USAGES["eapOverLAN"]):
        answer = await enroll(est, "probe", "p-1", asking("p-1", mail, beyond))
        assert (answer.status, answer.code) == (400, "usage-not-allowed")
        assert beyond in answer.text
        *_, row = await est.registry.audit()
        assert (row.entry.subject, row.entry.outcome) == ("device p-1", "usage-not-allowed")


async def test_where_the_model_does_not_say_so_a_csr_chooses_nothing(est: EstHarness) -> None:
    await add_model(est, "probe", extended_key_usages=THREE)
    every = {EXTENDED_KEY_USAGES[name] for name in THREE}
    mail = EXTENDED_KEY_USAGES["emailProtection"]
    assert usages(await enroll(est, "probe", "p-1", asking("p-1", mail))) == every
    assert usages(await enroll(est, "probe", "p-1", asking("p-1", SERVER_AUTH))) == every


async def test_a_renewal_repeats_the_old_names_and_gets_those_of_the_profile_now(est: EstHarness) -> None:
    """RFC 7030, 4.2.2 compares a request with the certificate that it is to replace: the device cannot know more. What
    the model has come to say is in the next certificate, and from then on compared with.
    """
    await add_model(est, "probe")
    key = generate_key()
    answer = await enroll(est, "probe", "p-1", csr_for("p-1", key))
    first = est.identity(answer.certificates[0], key)
    await set_model(est, "probe", extended_key_usages=THREE, **NAMED)

    guess = await est.reenroll(renewal_csr(named_as(est, "p-1", "probe", first)), first)
    assert (guess.status, guess.code) == (403, "names-changed")
    key = generate_key()
    answer = await est.reenroll(renewal_csr(first, key), first)
    assert list(read(answer).subject.native.values()) == ["Acme", "p-1", "SN1"]
    assert usages(answer) == {EXTENDED_KEY_USAGES[name] for name in THREE}
    second = est.identity(answer.certificates[0], key)

    stale = await est.reenroll(renewal_csr(first), second)
    assert (stale.status, stale.code) == (403, "names-changed")
    answer = await est.reenroll(renewal_csr(second), second)
    assert read(answer).subject.native == read_certificate(second).subject.native

    await set_model(est, "probe", organisation="", dns_name="", uris=[], extended_key_usages=["clientAuth"])
    answer = await est.reenroll(renewal_csr(second), second)
    assert list(read(answer).subject.native) == ["common_name", "serial_number"]


def named_as(est: EstHarness, device: str, model: str, like: Identity) -> Identity:
    """An identity whose certificate has the names that the profile will give: nobody has issued it yet."""
    profile = rules_of({"profile": NAMED}).profile
    permit = structs.replace(permit_for(like.key, est.clock(), profile), holder=device, model=model)
    return replace(like, certificate=x509.load_der_x509_certificate(est.issuer.issue(permit, est.clock()).der))


def read_certificate(identity: Identity) -> judge.Certificate:
    return judge.Certificate.load(identity.certificate.public_bytes(Encoding.DER))


@pytest.mark.parametrize("name", ["aa:bb:cc", "P_1"])
async def test_an_id_that_cannot_stand_in_its_dns_name_is_refused_and_told_why(est: EstHarness, name: str) -> None:
    await add_model(est, "probe", dns_name="{id}.example.com")
    answer = await enroll(est, "probe", name, csr_for(name))
    assert (answer.status, answer.code) == (403, "name-impossible")
    assert "cannot be in a DNS name" in answer.text
    assert await est.registry.credentials(name) == []
    *_, row = await est.registry.audit()
    assert (row.entry.subject, row.entry.outcome) == (f"device {name}", "name-impossible")
    assert row.entry.actor.startswith("token ")
    await set_model(est, "probe", dns_name="")
    assert (await enroll(est, "probe", name, csr_for(name))).status == 200
