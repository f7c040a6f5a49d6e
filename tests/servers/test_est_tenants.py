"""Tenants at every door: each has its own CA and labels, and what one of them holds is worth nothing at another."""

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.ca.issuer import LocalIssuer
from fleet.ca.keys import generate_key, load_key
from fleet.domain.access import Act
from fleet.domain.changes import AddCredential, AddStation, AuditEntry, Change, Write
from fleet.domain.credential import CredentialKind, Station
from fleet.domain.device import DeviceState, Model
from fleet.domain.enrollment import IssuePermit
from fleet.domain.errors import Conflict, Invalid, Refused
from fleet.domain.labels import OPERATIONS
from fleet.domain.model_rules import AdmissionPath, AdmissionRules, ModelRules
from fleet.home.tenants import authority_of
from fleet.services import approvals, inventory
from fleet.wire import est
from fleet.wire.est import decode_body
from tests.servers.est_house import Answer, Identity, basic, csr_for, renewal_csr, run
from tests.tenant_house import Tenants, open_tenants, pem


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Tenants]:
    async with open_tenants(tmp_path) as house:
        yield house


def verdict(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.code


def issuer_of(identity: Identity) -> str:
    return identity.certificate.issuer.rfc4514_string()


async def cacerts(house: Tenants, label: str = "") -> set[str]:
    """Subjects, as openssl reads them."""
    answer = await house.send("GET", f"/.well-known/est/{label}{'/' if label else ''}cacerts")
    assert answer.status == 200
    code, out, errors = await run(
        "openssl", "pkcs7", "-inform", "DER", "-print_certs", "-noout", stdin=decode_body(answer.body)
    )
    assert code == 0, errors
    lines = out.decode().splitlines()
    return {line.partition("CN = ")[2] for line in lines if line.startswith("subject=")}


FLEETS_OWN = {"Fleet Root CA", "Fleet Issuing CA"}


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("", FLEETS_OWN),
        ("cam", FLEETS_OWN),
        ("nothing-of-the-kind", FLEETS_OWN),
        ("a", {"Fleet Root CA", "Fleet a Issuing CA"}),
        ("a-pump", {"Fleet Root CA", "Fleet a Issuing CA"}),
        ("b", {"Fleet b Root CA", "Fleet b Issuing CA", "Fleet Root CA"}),
        ("b-cam", {"Fleet b Root CA", "Fleet b Issuing CA", "Fleet Root CA"}),
    ],
)
async def test_cacerts_hands_out_the_chain_of_the_label(house: Tenants, label: str, expected: set[str]) -> None:
    assert await cacerts(house, label) == expected


async def test_a_label_that_leads_nowhere_is_answered_like_one_of_the_fleets_own(house: Tenants) -> None:
    answers = [await house.send("GET", f"/.well-known/est/{label}/cacerts") for label in ("cam", "never", "A")]
    assert len({answer.body for answer in answers}) == 1
    assert len({answer.head for answer in answers}) == 1


@pytest.mark.parametrize("label", ["", "a", "a-cam"])
async def test_a_tenants_ca_signs_for_its_models_under_every_label_that_leads_to_them(
    house: Tenants, label: str
) -> None:
    device = await house.member("a-1", "a-cam", label=label)
    assert issuer_of(device) == "CN=Fleet a Issuing CA"
    own, other = authority_of(house.home, "a"), authority_of(house.home, "b")
    for authority, good in ((own, True), (other, False), (authority_of(house.home, ""), False)):
        anchors, chain = house.folder / "anchors.pem", house.folder / "chain.pem"
        anchors.write_bytes(pem(authority.root))
        chain.write_bytes(pem(authority.issuing))
        code, _, _ = await run(
            *("openssl", "verify", "-x509_strict", "-purpose", "sslclient"),
            *("-CAfile", anchors, "-untrusted", chain, device.cert_file),
        )
        assert (code == 0) is good


async def test_devices_of_every_tenant_come_in_everywhere(house: Tenants) -> None:
    for name, model in (("c-1", "cam"), ("a-1", "a-cam"), ("b-1", "b-cam")):
        device = await house.member(name, model)
        assert await house.whoami(device) == 200
        assert (await house.connect_mqtt(device, name))[0] == 0
        renewed = await house.reenroll(renewal_csr(device), device)
        assert renewed.status == 200, renewed.text
        assert renewed.certificates[0].issuer == device.certificate.issuer


LABELS = ["", "b", "b-cam", "a", "a-cam", "cam"]


@pytest.mark.parametrize("label", LABELS)
async def test_nothing_of_one_tenant_enrolls_a_device_of_another(house: Tenants, label: str) -> None:
    """An attacker of tenant a with every kind of credential that its people and devices have."""
    await house.device("b-1", "b-cam")
    await house.device("a-9", "a-cam")
    tokens = (await house.token("a-9"), await house.token(model="a-cam", uses=9))
    device = await house.member("a-1", "a-cam")
    station = await house.station("line-a", ("a-cam", "a-pump"))
    for token in tokens:
        for user in ("", "a-9", "b-1"):
            answer = await house.enroll(csr_for("b-1"), basic(token, user), label=label)
            assert answer.status == 403, (user, answer.text)
        beside = await house.enroll(csr_for("b-1"), basic(token), identity=device, label=label)
        assert beside.status == 403, beside.text
    assert (await house.enroll(csr_for("b-1"), identity=station, label=label)).status == 403
    assert (await house.enroll(csr_for("b-1"), identity=device, label=label)).status == 403
    assert (await house.reenroll(csr_for("b-1"), device, label=label)).status == 403
    assert (await house.reenroll(csr_for("b-1"), station, label=label)).status == 403
    found = await house.registry.device("b-1")
    assert found is not None
    assert (found.state, await house.registry.credentials("b-1")) == (DeviceState.REGISTERED, [])


@pytest.mark.parametrize("label", ["b", "b-cam"])
async def test_nothing_of_one_tenant_gets_its_own_device_a_certificate_of_another(house: Tenants, label: str) -> None:
    """EJBCA's CVE-2020-28942: another tenant's CA was reached by its label."""
    device = await house.member("a-1", "a-cam")
    await house.device("a-2", "a-cam")
    station = await house.station("line-a", ("a-cam", "a-pump"))
    not_here = (403, "not-your-model")
    assert verdict(await house.reenroll(renewal_csr(device), device, label=label)) == not_here
    assert verdict(await house.enroll(csr_for("a-2"), basic(await house.token("a-2")), label=label)) == not_here
    model_token = await house.token(model="a-cam")
    assert verdict(await house.enroll(csr_for("a-3"), basic(model_token), label=label)) == not_here
    assert verdict(await house.enroll(csr_for("a-2"), identity=station, label=label)) == not_here
    new = verdict(await house.enroll(csr_for("a-4"), identity=station, label=label))
    assert new in ((403, "no-such-model"), not_here)
    assert await house.registry.device("a-4") is None


async def test_a_station_names_its_only_model_of_a_tenant_by_the_tenants_label(house: Tenants) -> None:
    one = await house.station("line-1", ("a-cam", "b-cam"))
    answer = await house.enroll(csr_for("b-7"), identity=one, label="b")
    assert answer.status == 200, answer.text
    assert answer.certificates[0].issuer.rfc4514_string() == "CN=Fleet b Issuing CA"
    two = await house.station("line-2", ("a-cam", "a-pump"))
    assert verdict(await house.enroll(csr_for("a-7"), identity=two, label="a")) == (403, "model-not-named")


def forged(house: Tenants, tenant: str, holder: str, kind: CredentialKind = CredentialKind.DEVICE) -> Identity:
    """What somebody makes who has stolen the tenant's CA."""
    authority, key = authority_of(house.home, tenant), generate_key()
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    now = house.clock()
    permit = IssuePermit(kind, holder, "", spki, hashlib.sha256(spki).digest(), now, now + timedelta(days=9), "theft")
    thief = LocalIssuer(authority.issuing, load_key(authority.key_file))
    return house.identity(x509.load_der_x509_certificate(thief.issue(permit, now).der), key)


async def recorded(house: Tenants, identity: Identity, holder: str, kind: CredentialKind) -> None:
    """The certificate in the registry, as only somebody who can write there could put it."""
    certificate = identity.certificate
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    now, writes = house.clock(), list[Write]()
    permit = IssuePermit(kind, holder, "", spki, hashlib.sha256(spki).digest(), now, now + timedelta(days=9), "theft")
    der = certificate.public_bytes(Encoding.DER)
    mould = house.issuer.issue(permit, now)
    if kind is CredentialKind.STATION:
        writes.append(AddStation(Station(holder, ("b-cam",), now)))
    credential = replace(
        mould, der=der, fingerprint=hashlib.sha256(der).digest(), serial=f"{certificate.serial_number:x}"
    )
    entry = AuditEntry(now, "thief", "test", holder, "ok")
    await house.registry.commit(Change(entry, (*writes, AddCredential(credential))))


async def refusals(house: Tenants) -> set[str]:
    return {row.entry.outcome for row in await house.registry.audit()} - {"ok"}


async def test_a_registered_device_may_ask_for_an_operators_word_under_its_tenants_label(house: Tenants) -> None:
    """It shows nothing, and is heard under the label of its own tenant as under its model's; under no other."""
    admission = AdmissionRules((AdmissionPath.APPROVAL,))
    await house.set_model("a-cam", ModelRules(tenant="a", admission=admission))
    await house.device("a-1", "a-cam")
    key = generate_key()
    csr = csr_for("a-1", key)
    assert verdict(await house.enroll(csr, label="b")) == (401, "no-credentials")
    assert verdict(await house.enroll(csr, label="a-pump")) == (401, "no-credentials")
    assert verdict(await house.enroll(csr, label="a")) == (202, "approval-pending")
    (waiting,) = await house.registry.requests(now=house.clock())
    await approvals.approve(house.registry, waiting.id, act=Act("operator", house.clock()))
    answer = await house.enroll(csr, label="a")
    assert issuer_of(house.identity(answer.certificates[0], key)) == "CN=Fleet a Issuing CA"
    # Heard because of another of its models, and told the same as everywhere.
    await house.device("a-2", "a-pump")
    assert verdict(await house.enroll(csr_for("a-2"), label="a")) == (401, "no-credentials")


async def test_a_stolen_ca_forges_for_nobody(house: Tenants) -> None:
    await house.member("b-1", "b-cam")
    await house.member("a-1", "a-cam")
    for holder in ("b-1", "a-1"):
        forgery = forged(house, "a", holder)
        assert verdict(await house.reenroll(renewal_csr(forgery), forgery)) == (401, "certificate-unknown")
        assert (await house.connect_mqtt(forgery, holder))[0] != 0
        assert await house.whoami(forgery) == 401
    assert await refusals(house) == {"certificate-unknown"}


async def test_a_tenants_ca_is_not_believed_for_another_even_when_the_registry_says_so(house: Tenants) -> None:
    await house.member("b-1", "b-cam")
    forgery = forged(house, "a", "b-1")
    await recorded(house, forgery, "b-1", CredentialKind.DEVICE)
    station = forged(house, "a", "line-b", CredentialKind.STATION)
    await recorded(house, station, "line-b", CredentialKind.STATION)
    assert verdict(await house.reenroll(renewal_csr(forgery), forgery)) == (403, "other-tenant")
    assert verdict(await house.enroll(csr_for("b-8"), identity=station)) == (403, "other-tenant")
    assert (await house.connect_mqtt(forgery, "b-1"))[0] > 0
    assert await house.whoami(forgery) == 403
    assert await refusals(house) == {"other-tenant"}


async def test_a_model_moves_with_its_devices_and_leaves_when_it_is_told_to(house: Tenants) -> None:
    first, second = await house.member("a-1", "a-cam"), await house.member("a-2", "a-cam")
    await house.set_model("a-cam", ModelRules(tenant="b"))
    moved = await house.registry.model("a-cam")
    assert moved is not None
    assert moved.rules.signers == ("b", "a")
    code, stream = await house.connect_mqtt(first, "a-1")
    assert code == 0
    assert stream is not None
    assert verdict(await house.reenroll(renewal_csr(first), first, label="a")) == (403, "not-your-model")
    answer = await house.reenroll(renewal_csr(second), second, label="b")
    assert answer.status == 200, answer.text
    renewed = answer.certificates[0]
    assert renewed.issuer.rfc4514_string() == "CN=Fleet b Issuing CA"
    assert renewed.subject == second.certificate.subject
    # Ended: what a has signed is worth nothing at b from now on, live sessions with it.
    await house.set_model("a-cam", ModelRules(tenant="b"))
    async with asyncio.timeout(20):
        await stream.read()  # returns at the end of the session only
    assert (await house.connect_mqtt(first, "a-1"))[0] > 0
    assert verdict(await house.reenroll(renewal_csr(first), first)) == (403, "other-tenant")
    assert await house.whoami(first) == 403


async def test_a_tenant_that_is_added_while_serving_is_there_at_once(house: Tenants) -> None:
    assert await cacerts(house, "c") == FLEETS_OWN
    await house.add_tenant("c", own_root=True)
    assert await cacerts(house, "c") == {"Fleet c Root CA", "Fleet c Issuing CA", "Fleet Root CA"}
    act = Act("test", house.clock())
    await inventory.add_model(house.registry, Model("c-cam", rules=ModelRules("c")), act=act, tenants={"c"})
    device = await house.member("c-1", "c-cam", label="c")
    assert issuer_of(device) == "CN=Fleet c Issuing CA"
    assert (await house.connect_mqtt(device, "c-1"))[0] == 0
    assert await house.whoami(device) == 200


async def test_a_tenant_whose_ca_is_away_is_signed_for_by_nobody(house: Tenants) -> None:
    await house.device("a-1", "a-cam")
    token, away = await house.token("a-1"), house.folder / "away"
    shutil.move(house.home.tenants / "a", away)
    for label in ("", "a", "a-cam"):
        assert verdict(await house.enroll(csr_for("a-1"), basic(token), label=label)) == (403, "no-such-tenant")
    shutil.move(away, house.home.tenants / "a")
    assert (await house.enroll(csr_for("a-1"), basic(token))).status == 200  # the token was not spent


async def test_a_ca_that_cannot_sign_here_is_a_passing_trouble_of_its_tenant_alone(house: Tenants) -> None:
    device = await house.member("a-1", "a-cam")
    key = house.home.tenants / "a" / "issuing.key"
    key.chmod(0o644)
    (house.home.tenants / "x").mkdir()  # as a copy that has only begun
    answer = await house.reenroll(renewal_csr(device), device)
    assert verdict(answer) == (503, "ca-cannot-sign")
    assert str(key) not in answer.text
    assert await house.whoami(device) == 200
    assert (await house.member("c-1", "cam")) is not None
    key.chmod(0o600)
    assert (await house.reenroll(renewal_csr(device), device)).status == 200
    for file in (house.home.tenants / "a").iterdir():
        shutil.copy2(file, house.home.tenants / "x")
    key.unlink()
    assert len(await cacerts(house, "x")) == 2  # whole by now


def test_a_label_is_never_an_operation() -> None:
    assert set(est.OPERATIONS) == OPERATIONS


async def test_a_name_is_a_models_or_a_tenants(house: Tenants) -> None:
    act = Act("test", house.clock())
    with pytest.raises(Conflict, match="There is a tenant a"):
        await inventory.add_model(house.registry, Model("a"), act=act, tenants={"a", "b"})
    for name in OPERATIONS:
        with pytest.raises(Invalid, match="operation of EST"):
            await inventory.add_model(house.registry, Model(name), act=act)
        with pytest.raises(Invalid, match="operation of EST"):
            await house.add_tenant(name)
        assert (await house.send("GET", f"/.well-known/est/{name}/cacerts")).status == 404


async def test_a_model_belongs_to_no_tenant_that_is_not_there(house: Tenants) -> None:
    with pytest.raises(Refused) as refused:
        await house.set_model("cam", ModelRules(tenant="nobody"))
    assert refused.value.code == "no-such-tenant"
    with pytest.raises(Refused, match="no tenant nobody"):
        await inventory.add_model(
            house.registry, Model("new", rules=ModelRules(tenant="nobody")), act=Act("test", house.clock())
        )
