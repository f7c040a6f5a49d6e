"""Tenants at every door: each has its own CA and labels, and what one of them holds is worth nothing at another."""

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from fleet.ca.issuer import LocalIssuer
from fleet.ca.keys import generate_key, load_key
from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.credential import CredentialKind, Station
from fleet.domain.device import DeviceState, Model
from fleet.domain.enrollment import IssuePermit
from fleet.domain.errors import Conflict, Invalid, Refused
from fleet.domain.labels import OPERATIONS
from fleet.domain.model_rules import AdmissionPath, AdmissionRules, ModelRules
from fleet.domain.writes import AddCredential, Insert, Write
from fleet.home.authorities import authority_of
from fleet.home.reloading_ca import LOOK_EVERY_NS
from fleet.services import approvals, inventory
from fleet.wire import est
from fleet.wire.est import decode_body
from tests.servers.est_fixtures import Answer, Identity, basic, csr_for, renewal_csr, run
from tests.tenant_fixtures import TenantsHarness, open_tenants, pem
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
async def tenants(tmp_path: Path) -> AsyncIterator[TenantsHarness]:
    async with open_tenants(tmp_path) as tenants:
        yield tenants


def verdict(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.code


def issuer_of(identity: Identity) -> str:
    return identity.certificate.issuer.rfc4514_string()


async def cacerts(tenants: TenantsHarness, label: str = "") -> set[str]:
    """Subjects, as openssl reads them."""
    answer = await tenants.send("GET", f"/.well-known/est/{label}{'/' if label else ''}cacerts")
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
async def test_cacerts_hands_out_the_chain_of_the_label(
    tenants: TenantsHarness, label: str, expected: set[str]
) -> None:
    assert await cacerts(tenants, label) == expected


async def test_a_label_that_leads_nowhere_is_answered_like_one_of_the_fleets_own(tenants: TenantsHarness) -> None:
    answers = [await tenants.send("GET", f"/.well-known/est/{label}/cacerts") for label in ("cam", "never", "A")]
    assert len({answer.body for answer in answers}) == 1
    assert len({answer.head.replace(f"Date: {answer.header('Date')}", "") for answer in answers}) == 1


@pytest.mark.parametrize("label", ["", "a", "a-cam"])
async def test_a_tenants_ca_signs_for_its_models_under_every_label_that_leads_to_them(
    tenants: TenantsHarness, label: str
) -> None:
    device = await tenants.member("a-1", "a-cam", label=label)
    assert issuer_of(device) == "CN=Fleet a Issuing CA"
    own, other = authority_of(tenants.home, "a"), authority_of(tenants.home, "b")
    for authority, good in ((own, True), (other, False), (authority_of(tenants.home, ""), False)):
        anchors, chain = tenants.folder / "anchors.pem", tenants.folder / "chain.pem"
        anchors.write_bytes(pem(authority.root))
        chain.write_bytes(pem(authority.issuing))
        code, _, _ = await run(
            *("openssl", "verify", "-x509_strict", "-purpose", "sslclient"),
            *("-CAfile", anchors, "-untrusted", chain, device.cert_file),
        )
        assert (code == 0) is good


async def test_devices_of_every_tenant_come_in_everywhere(tenants: TenantsHarness) -> None:
    for name, model in (("c-1", "cam"), ("a-1", "a-cam"), ("b-1", "b-cam")):
        device = await tenants.member(name, model)
        assert await tenants.whoami(device) == 200
        assert (await tenants.connect_mqtt(device, name))[0] == 0
        renewed = await tenants.reenroll(renewal_csr(device), device)
        assert renewed.status == 200, renewed.text
        assert renewed.certificates[0].issuer == device.certificate.issuer


LABELS = ["", "b", "b-cam", "a", "a-cam", "cam"]


@pytest.mark.parametrize("label", LABELS)
async def test_nothing_of_one_tenant_enrolls_a_device_of_another(tenants: TenantsHarness, label: str) -> None:
    """An attacker of tenant a with every kind of credential that its people and devices have."""
    await tenants.device("b-1", "b-cam")
    await tenants.device("a-9", "a-cam")
    tokens = (await tenants.token("a-9"), await tenants.token(model="a-cam", uses=9))
    device = await tenants.member("a-1", "a-cam")
    station = await tenants.station("line-a", ("a-cam", "a-pump"))
    for token in tokens:
        for user in ("", "a-9", "b-1"):
            answer = await tenants.enroll(csr_for("b-1"), basic(token, user), label=label)
            assert answer.status == 403, (user, answer.text)
        beside = await tenants.enroll(csr_for("b-1"), basic(token), identity=device, label=label)
        assert beside.status == 403, beside.text
    assert (await tenants.enroll(csr_for("b-1"), identity=station, label=label)).status == 403
    assert (await tenants.enroll(csr_for("b-1"), identity=device, label=label)).status == 403
    assert (await tenants.reenroll(csr_for("b-1"), device, label=label)).status == 403
    assert (await tenants.reenroll(csr_for("b-1"), station, label=label)).status == 403
    found = await tenants.registry.device("b-1")
    assert found is not None
    assert (found.state, await tenants.registry.credentials("b-1")) == (DeviceState.REGISTERED, [])


@pytest.mark.parametrize("label", ["b", "b-cam"])
async def test_nothing_of_one_tenant_gets_its_own_device_a_certificate_of_another(
    tenants: TenantsHarness, label: str
) -> None:
    """EJBCA's CVE-2020-28942: another tenant's CA was reached by its label."""
    device = await tenants.member("a-1", "a-cam")
    await tenants.device("a-2", "a-cam")
    station = await tenants.station("line-a", ("a-cam", "a-pump"))
    not_here = (403, "not-your-model")
    assert verdict(await tenants.reenroll(renewal_csr(device), device, label=label)) == not_here
    assert verdict(await tenants.enroll(csr_for("a-2"), basic(await tenants.token("a-2")), label=label)) == not_here
    model_token = await tenants.token(model="a-cam")
    assert verdict(await tenants.enroll(csr_for("a-3"), basic(model_token), label=label)) == not_here
    assert verdict(await tenants.enroll(csr_for("a-2"), identity=station, label=label)) == not_here
    new = verdict(await tenants.enroll(csr_for("a-4"), identity=station, label=label))
    assert new in ((403, "no-such-model"), not_here)
    assert await tenants.registry.device("a-4") is None


async def test_a_station_names_its_only_model_of_a_tenant_by_the_tenants_label(tenants: TenantsHarness) -> None:
    one = await tenants.station("line-1", ("a-cam", "b-cam"))
    answer = await tenants.enroll(csr_for("b-7"), identity=one, label="b")
    assert answer.status == 200, answer.text
    assert answer.certificates[0].issuer.rfc4514_string() == "CN=Fleet b Issuing CA"
    two = await tenants.station("line-2", ("a-cam", "a-pump"))
    assert verdict(await tenants.enroll(csr_for("a-7"), identity=two, label="a")) == (403, "model-not-named")


def forged(tenants: TenantsHarness, tenant: str, holder: str, kind: CredentialKind = CredentialKind.DEVICE) -> Identity:
    """What somebody makes who has stolen the tenant's CA."""
    authority, key = authority_of(tenants.home, tenant), generate_key()
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    now = tenants.clock()
    permit = IssuePermit(kind, holder, "", spki, hashlib.sha256(spki).digest(), now, now + timedelta(days=9), "theft")
    thief = LocalIssuer(authority.issuing, load_key(authority.key_file))
    return tenants.identity(x509.load_der_x509_certificate(thief.issue(permit, now).der), key)


async def recorded(tenants: TenantsHarness, identity: Identity, holder: str, kind: CredentialKind) -> None:
    """The certificate in the registry, as only somebody who can write there could put it."""
    certificate = identity.certificate
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    now, writes = tenants.clock(), list[Write]()
    permit = IssuePermit(kind, holder, "", spki, hashlib.sha256(spki).digest(), now, now + timedelta(days=9), "theft")
    der = certificate.public_bytes(Encoding.DER)
    mould = tenants.issuer.issue(permit, now)
    if kind is CredentialKind.STATION:
        writes.append(Insert(Station(holder, ("b-cam",), now)))
    credential = replace(
        mould, der=der, fingerprint=hashlib.sha256(der).digest(), serial=f"{certificate.serial_number:x}"
    )
    entry = AuditEntry(now, "thief", "test", holder, "ok")
    await tenants.registry.commit(Change(entry, (*writes, AddCredential(credential))))


async def refusals(tenants: TenantsHarness) -> set[str]:
    return {row.entry.outcome for row in await tenants.registry.audit()} - {"ok"}


async def test_a_registered_device_may_ask_for_an_operators_word_under_its_tenants_label(
    tenants: TenantsHarness,
) -> None:
    """It shows nothing, and is heard under the label of its own tenant as under its model's; under no other."""
    admission = AdmissionRules((AdmissionPath.APPROVAL,))
    await tenants.set_model("a-cam", ModelRules(tenant="a", admission=admission))
    await tenants.device("a-1", "a-cam")
    key = generate_key()
    csr = csr_for("a-1", key)
    assert verdict(await tenants.enroll(csr, label="b")) == (401, "no-credentials")
    assert verdict(await tenants.enroll(csr, label="a-pump")) == (401, "no-credentials")
    assert verdict(await tenants.enroll(csr, label="a")) == (202, "approval-pending")
    (waiting,) = await tenants.registry.requests(now=tenants.clock())
    await approvals.approve(tenants.registry, waiting.id, act=Act("operator", tenants.clock()))
    answer = await tenants.enroll(csr, label="a")
    assert issuer_of(tenants.identity(answer.certificates[0], key)) == "CN=Fleet a Issuing CA"
    # Heard because of another of its models, and told the same as everywhere.
    await tenants.device("a-2", "a-pump")
    assert verdict(await tenants.enroll(csr_for("a-2"), label="a")) == (401, "no-credentials")


async def test_a_stolen_ca_forges_for_nobody(tenants: TenantsHarness) -> None:
    await tenants.member("b-1", "b-cam")
    await tenants.member("a-1", "a-cam")
    for holder in ("b-1", "a-1"):
        forgery = forged(tenants, "a", holder)
        assert verdict(await tenants.reenroll(renewal_csr(forgery), forgery)) == (401, "certificate-unknown")
        assert (await tenants.connect_mqtt(forgery, holder))[0] != 0
        assert await tenants.whoami(forgery) == 401
    assert await refusals(tenants) == {"certificate-unknown"}


async def test_a_tenants_ca_is_not_believed_for_another_even_when_the_registry_says_so(tenants: TenantsHarness) -> None:
    await tenants.member("b-1", "b-cam")
    forgery = forged(tenants, "a", "b-1")
    await recorded(tenants, forgery, "b-1", CredentialKind.DEVICE)
    station = forged(tenants, "a", "line-b", CredentialKind.STATION)
    await recorded(tenants, station, "line-b", CredentialKind.STATION)
    assert verdict(await tenants.reenroll(renewal_csr(forgery), forgery)) == (403, "other-tenant")
    assert verdict(await tenants.enroll(csr_for("b-8"), identity=station)) == (403, "other-tenant")
    assert (await tenants.connect_mqtt(forgery, "b-1"))[0] > 0
    assert await tenants.whoami(forgery) == 403
    assert await refusals(tenants) == {"other-tenant"}


async def test_a_model_moves_with_its_devices_and_leaves_when_it_is_told_to(tenants: TenantsHarness) -> None:
    first, second = await tenants.member("a-1", "a-cam"), await tenants.member("a-2", "a-cam")
    await tenants.set_model("a-cam", ModelRules(tenant="b"))
    moved = await tenants.registry.model("a-cam")
    assert moved is not None
    assert moved.rules.signers == ("b", "a")
    code, stream = await tenants.connect_mqtt(first, "a-1")
    assert code == 0
    assert stream is not None
    assert verdict(await tenants.reenroll(renewal_csr(first), first, label="a")) == (403, "not-your-model")
    answer = await tenants.reenroll(renewal_csr(second), second, label="b")
    assert answer.status == 200, answer.text
    renewed = answer.certificates[0]
    assert renewed.issuer.rfc4514_string() == "CN=Fleet b Issuing CA"
    assert renewed.subject == second.certificate.subject
    # Ended: what a has signed is worth nothing at b from now on, live sessions with it.
    await tenants.set_model("a-cam", ModelRules(tenant="b"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await stream.read()  # returns at the end of the session only
    assert (await tenants.connect_mqtt(first, "a-1"))[0] > 0
    assert verdict(await tenants.reenroll(renewal_csr(first), first)) == (403, "other-tenant")
    assert await tenants.whoami(first) == 403


async def test_a_tenant_that_is_added_while_serving_is_there_at_once(tenants: TenantsHarness) -> None:
    assert await cacerts(tenants, "c") == FLEETS_OWN
    await tenants.add_tenant("c", own_root=True)
    assert await cacerts(tenants, "c") == {"Fleet c Root CA", "Fleet c Issuing CA", "Fleet Root CA"}
    act = Act("test", tenants.clock())
    await inventory.add_model(tenants.registry, Model("c-cam", rules=ModelRules("c")), act=act, tenants={"c"})
    device = await tenants.member("c-1", "c-cam", label="c")
    assert issuer_of(device) == "CN=Fleet c Issuing CA"
    assert (await tenants.connect_mqtt(device, "c-1"))[0] == 0
    assert await tenants.whoami(device) == 200


async def next_look() -> None:
    """What changed on the disk is noticed within LOOK_EVERY_NS."""
    await asyncio.sleep(LOOK_EVERY_NS / 1e9)


async def test_a_tenant_whose_ca_is_away_is_signed_for_by_nobody(tenants: TenantsHarness) -> None:
    await tenants.device("a-1", "a-cam")
    token, away = await tenants.token("a-1"), tenants.folder / "away"
    shutil.move(tenants.home.tenants / "a", away)
    await next_look()
    for label in ("", "a", "a-cam"):
        assert verdict(await tenants.enroll(csr_for("a-1"), basic(token), label=label)) == (403, "no-such-tenant")
    shutil.move(away, tenants.home.tenants / "a")
    await next_look()
    assert (await tenants.enroll(csr_for("a-1"), basic(token))).status == 200  # the token was not spent


async def test_a_ca_that_cannot_sign_here_is_a_passing_trouble_of_its_tenant_alone(tenants: TenantsHarness) -> None:
    device = await tenants.member("a-1", "a-cam")
    key = tenants.home.tenants / "a" / "issuing.key"
    key.chmod(0o644)
    (tenants.home.tenants / "x").mkdir()  # as a copy that has only begun
    await next_look()
    answer = await tenants.reenroll(renewal_csr(device), device)
    assert verdict(answer) == (503, "ca-cannot-sign")
    assert str(key) not in answer.text
    assert await tenants.whoami(device) == 200
    assert (await tenants.member("c-1", "cam")) is not None
    key.chmod(0o600)
    await next_look()
    assert (await tenants.reenroll(renewal_csr(device), device)).status == 200
    for file in (tenants.home.tenants / "a").iterdir():
        shutil.copy2(file, tenants.home.tenants / "x")
    key.unlink()
    assert len(await cacerts(tenants, "x")) == 2  # whole by now


def test_a_label_is_never_an_operation() -> None:
    assert set(est.OPERATIONS) == OPERATIONS


async def test_a_name_is_a_models_or_a_tenants(tenants: TenantsHarness) -> None:
    act = Act("test", tenants.clock())
    with pytest.raises(Conflict, match="There is a tenant a"):
        await inventory.add_model(tenants.registry, Model("a"), act=act, tenants={"a", "b"})
    for name in OPERATIONS:
        with pytest.raises(Invalid, match="operation of EST"):
            await inventory.add_model(tenants.registry, Model(name), act=act)
        with pytest.raises(Invalid, match="operation of EST"):
            await tenants.add_tenant(name)
        assert (await tenants.send("GET", f"/.well-known/est/{name}/cacerts")).status == 404


async def test_a_model_belongs_to_no_tenant_that_is_not_there(tenants: TenantsHarness) -> None:
    with pytest.raises(Refused) as refused:
        await tenants.set_model("cam", ModelRules(tenant="nobody"))
    assert refused.value.code == "no-such-tenant"
    with pytest.raises(Refused, match="no tenant nobody"):
        await inventory.add_model(
            tenants.registry, Model("new", rules=ModelRules(tenant="nobody")), act=Act("test", tenants.clock())
        )
