"""An issuing CA that a corporate root has signed: what is refused, each with its sentence, and what is taken."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec import structs

from fleet.ca.authority import create_root
from fleet.ca.crl import LocalCrlSigner
from fleet.ca.imported_crl import number_of
from fleet.ca.key_identifiers import identifier_of
from fleet.ca.keys import load_key
from fleet.ca.tbs import ECDSA_WITH_SHA256, sealed, time
from fleet.config.settings import Settings
from fleet.domain.access import Act, Operator, Role
from fleet.domain.credential import CredentialKind
from fleet.domain.crl import CrlForm, CrlReason
from fleet.domain.distribution import full_crl_path, plain_crl_path
from fleet.domain.enrollment import permit_by_operator
from fleet.domain.errors import Conflict, FleetError, Invalid, NotFound, Refused
from fleet.domain.model_rules import ProfileRules
from fleet.domain.ports import Registry
from fleet.domain.published_file import CRL
from fleet.home import ca_store
from fleet.home.authorities import (
    authority_of,
    forget_former,
    issuers_below,
    new_issuing_key,
    new_tenant,
)
from fleet.home.ca_store import Authority
from fleet.home.creation import create_home
from fleet.home.crl_issuing import import_root_crl, issue_crls, root_crl, sign_root_crl
from fleet.home.home_cas import authorities_for_admin
from fleet.home.imported_ca import (
    import_chain,
    imported_tenant,
    is_requested,
    read_crls,
    read_import,
    read_new_tenant,
    request_issuing,
    request_tenant,
)
from fleet.home.layout import Home, fleet_fingerprint, open_registry
from fleet.home.pki import load_issuer, renew_server_certificate, server_identity
from fleet.home.reloading_ca import LiveAuthorities
from fleet.home.root_signing import cross_sign, read_revoked, sign_authority
from fleet.runtime.jobs.server_certificate import Contexts
from fleet.servers.admin.app import AdminApp
from fleet.servers.admin.context import Context
from fleet.servers.admin.messages import Caller, Headers, Request, body_of
from fleet.services.published_crls import PublishedCrls
from fleet.services.retention import Policy
from fleet.tls.verification import why_unverified
from fleet.wire.der import INTEGER, encode_element, sequence
from tests.home.corporate import CorporateCa, below, corporate_root
from tests.tenant_fixtures import pem

NOW = datetime(2026, 5, 1, tzinfo=UTC)
SETTINGS = Settings(name="Acme", hosts=("fleet.example.com",))
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(create_home(tmp_path_factory.mktemp("fresh") / "home", SETTINGS, NOW)).path


@pytest.fixture
def home(fresh: Path, tmp_path: Path) -> Home:
    return Home(Path(shutil.copytree(fresh, tmp_path / "home")))


def request(home: Home, tenant: str = "", **options: Any) -> x509.CertificateSigningRequest:
    return x509.load_pem_x509_csr(request_issuing(home, tenant, **options))


def answered(home: Home, above: CorporateCa, tenant: str = "", **options: Any) -> x509.Certificate:
    """The issuing CA that the request asks for, as `above` signs it."""
    asked = request(home, tenant)
    return above.signed(asked.subject, asked.public_key(), options.pop("now", NOW), **options)


def imported(home: Home, data: bytes, tenant: str = "", *, now: datetime = NOW, **options: Any) -> Authority:
    made = read_import(home, tenant, data, {"cam": ProfileRules()}, now)
    after = import_chain(home, tenant, made, now, **options)
    if not tenant:
        renew_server_certificate(home, SETTINGS, now)
    return after


def unverified(home: Home, root: x509.Certificate, now: datetime = NOW) -> str:
    return why_unverified(server_identity(home).certificate_chain, [root], now)


async def test_a_request_is_repeated_until_it_is_answered(home: Home) -> None:
    first = request(home)
    assert first.is_signature_valid
    assert first.subject.rfc4514_string() == "CN=Acme Issuing CA 2"
    constraints = first.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    named = request(home, name="Acme Devices")
    assert named.public_key() == first.public_key()
    assert named.subject.rfc4514_string() == "CN=Acme Devices"
    assert request(home, new_key=True).public_key() != first.public_key()
    assert authority_of(home, "").former == ()
    assert (home.ca / "request.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("form", ["PEM", "PEM reversed", "PKCS#7", "DER of one"])
@pytest.mark.parametrize("levels", [0, 1, 2])
async def test_a_corporate_chain_is_taken_in_every_form(home: Home, form: str, levels: int) -> None:
    before = authority_of(home, "").root
    chain = [corporate_root("Corp Root", NOW, is_rsa=levels > 0)]
    for level in range(levels):
        chain.append(below(chain[-1], f"Corp {level}", NOW, path_length=levels - level))
    issuing = answered(home, chain[-1])
    whole = [issuing, *(each.certificate for each in reversed(chain))]
    data = {
        "PEM": pem(*whole),
        "PEM reversed": pem(*reversed(whole)),
        "PKCS#7": pkcs7.serialize_certificates(whole, Encoding.DER),
        "DER of one": issuing.public_bytes(Encoding.DER),
    }[form]
    if form == "DER of one":
        with pytest.raises(Invalid, match="which is not in the file"):
            imported(home, data)
        return
    identity = fleet_fingerprint(home)
    after = imported(home, data)
    assert (after.issuing, *after.above, after.root) == tuple(whole)
    assert load_issuer(home).certificate == issuing
    assert not home.root_key.exists()
    assert not (home.ca / "request.key").exists()
    assert fleet_fingerprint(home) == identity
    assert unverified(home, whole[-1]) == unverified(home, before) == ""
    assert set(whole) < set(after.chain)
    Contexts.of(home, lambda: NOW)
    with pytest.raises(NotFound, match="no request"):
        imported(home, data)


def _foreign(home: Home, root: CorporateCa) -> bytes:
    return pem(below(root, "Other", NOW).certificate, root.certificate)


def _constrained(permitted: list[x509.GeneralName]) -> Callable[[Home, CorporateCa], bytes]:
    def chain(home: Home, root: CorporateCa) -> bytes:
        limits = x509.NameConstraints(permitted, None)
        upper = below(root, "Upper", NOW, path_length=1, extensions=[(limits, True)])
        return pem(answered(home, upper), upper.certificate, root.certificate)

    return chain


def _upper(**options: Any) -> Callable[[Home, CorporateCa], bytes]:
    def chain(home: Home, root: CorporateCa) -> bytes:
        upper = below(root, "Upper", NOW, **({"path_length": 1} | options))
        return pem(answered(home, upper), upper.certificate, root.certificate)

    return chain


def _issuing(**options: Any) -> Callable[[Home, CorporateCa], bytes]:
    return lambda home, root: pem(answered(home, root, **options), root.certificate)


def _impostor(home: Home, root: CorporateCa) -> bytes:
    """The issuer's name, and another key."""
    return pem(answered(home, root), corporate_root("Corp Root", NOW).certificate)


REFUSED: dict[str, tuple[Callable[[Home, CorporateCa], bytes], str]] = {
    "another key": (_foreign, "no certificate for the key of the request"),
    "expired": (_issuing(life=(-9 * DAY, -DAY)), "CN=Acme Issuing CA 2 has expired on 2026-04-30"),
    "not yet valid": (_issuing(life=(DAY, 9 * DAY)), "CN=Acme Issuing CA 2 is not valid before 2026-05-02"),
    "no CA": (_issuing(ca=False), "CN=Acme Issuing CA 2 is no CA: its basic constraints do not say CA:TRUE"),
    "above: expired": (_upper(life=(-9 * DAY, -DAY)), "CN=Upper has expired"),
    "above: no CA": (_upper(ca=False), "CN=Upper is no CA"),
    "above: path length 0": (_upper(path_length=0), "CN=Upper has path length 0, and 1 CA would stand below it"),
    "no issuer": (lambda home, root: pem(answered(home, root)), "is CN=Corp Root, which is not in the file"),
    "an impostor": (_impostor, "is CN=Corp Root, which has not signed it"),
    "another host": (_constrained([x509.DNSName("other.example")]), "permitted subtree violation"),
    "another device": (
        _constrained(
            [x509.DirectoryName(x509.Name([])), x509.DNSName("example.com"), x509.UniformResourceIdentifier("x.test")]
        ),
        "a device of model uris below it: permitted subtree violation",
    ),
    "empty": (lambda home, root: b"", "The file is empty"),
    "large": (lambda home, root: b"x" * 300_000, "the file is larger than"),
    "a name in use": (
        lambda home, root: pem(
            root.signed(authority_of(home, "").issuing.subject, request(home).public_key(), NOW), root.certificate
        ),
        "There is a CA called CN=Acme Issuing CA already",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
async def test_each_fault_is_refused_by_its_own_sentence(home: Home, fault: str) -> None:
    root = corporate_root("Corp Root", NOW)
    request(home)
    make, sentence = REFUSED[fault]
    data = make(home, root)
    before = sorted((each, each.read_bytes()) for each in home.ca.rglob("*") if each.is_file())
    uris = ProfileRules(uris=("https://elsewhere.example/{id}",))
    with pytest.raises((Invalid, Conflict)) as refused:
        read_import(home, "", data, {"uris": uris} if fault == "another device" else {}, NOW)
    assert sentence in str(refused.value)
    assert refused.value.code in ("bad-chain", "name-taken")
    assert sorted((each, each.read_bytes()) for each in home.ca.rglob("*") if each.is_file()) == before


async def test_name_constraints_that_allow_our_names_are_no_hindrance(home: Home) -> None:
    root = corporate_root("Corp Root", NOW)
    imported(home, _constrained([x509.DNSName("example.com")])(home, root))
    assert unverified(home, root.certificate) == ""
    Contexts.of(home, lambda: NOW)


async def test_names_outside_the_constraints_are_refused_for_new_models_and_at_issue(home: Home) -> None:
    root = corporate_root("Corp Root", NOW)
    imported(home, _constrained([x509.DNSName("example.com")])(home, root))
    live = LiveAuthorities(home)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    registry = await open_registry(home)
    act = Act("user alice", NOW)
    app = AdminApp(Context(registry, lambda: authorities_for_admin(home, NOW), lambda: Policy(0, 0, 0), lambda: NOW))
    caller = Caller(act.actor, Operator(act.actor, Role.ADMIN, NOW))

    async def add(name: str, dns_name: str) -> tuple[int, bytes]:
        body = json.dumps({"name": name, "profile": {"dns_name": dns_name}}).encode()
        headers = Headers((("Content-Type", "application/json"),))
        answer = await app.dispatch(Request("POST", "/v1/models", headers, body_of(body), caller=caller))
        return answer.status, answer.body

    for number, (dns_name, fits) in enumerate((("{id}.example.com", True), ("{id}.other.example", False))):
        status, said = await add(f"cam{number}", dns_name)
        assert (status == 201) is fits, said
        permit = permit_by_operator(CredentialKind.DEVICE, "cam-1", spki, NOW + DAY, NOW, model="cam")
        permit = structs.replace(permit, profile=ProfileRules(dns_name=dns_name))
        if fits:
            assert live.issue(permit, NOW).holder == "cam-1"
            continue
        assert status == 403
        assert b"Clients would reject a device of model cam1 below CN=Acme Issuing CA 2: permitted subtree" in said
        with pytest.raises(Refused, match="would reject device cam-1 below CN=Acme Issuing CA 2: permitted sub") as no:
            live.issue(permit, NOW)
        assert no.value.code == "name-impossible"
    await registry.close()


async def test_a_chain_cut_anywhere_is_refused(home: Home) -> None:
    root = corporate_root("Corp Root", NOW)
    data = pkcs7.serialize_certificates([answered(home, root), root.certificate], Encoding.DER)
    for cut in range(0, len(data), 3):
        with pytest.raises(Invalid, match="The chain is refused"):
            read_import(home, "", data[:cut], {}, NOW)
    read_import(home, "", data, {}, NOW)


def asked_for(home: Home, above: CorporateCa, tenant: str, **options: Any) -> x509.Certificate:
    """The issuing CA of a new tenant, as `above` signs it."""
    asked = x509.load_pem_x509_csr(request_tenant(home, tenant))
    return above.signed(asked.subject, asked.public_key(), NOW, **options)


async def test_a_new_tenant_below_a_root_whose_key_is_elsewhere(home: Home) -> None:
    root = CorporateCa(authority_of(home, "").root, load_key(home.root_key))
    home.root_key.unlink()
    with pytest.raises(Refused), new_tenant(home, "north", own_root=False, now=NOW):
        pass
    assert not is_requested(home, "north")
    first = request_tenant(home, "north")
    assert x509.load_pem_x509_csr(first).subject.rfc4514_string() == "CN=Acme north Issuing CA"
    issuing = asked_for(home, root, "north")  # repeated for the same key
    assert x509.load_pem_x509_csr(first).public_key() == issuing.public_key()
    assert is_requested(home, "north")
    made = read_new_tenant(home, "north", pem(issuing), NOW)
    with pytest.raises(RuntimeError), imported_tenant(home, "north", made):
        raise RuntimeError("the registry refuses")
    assert is_requested(home, "north")
    live = LiveAuthorities(home)
    with imported_tenant(home, "north", made):
        pass
    assert not is_requested(home, "north")
    assert list(home.tenants.iterdir()) == [home.tenants / "north"]
    found = authority_of(home, "north")
    assert (found.issuing, found.root, found.has_own_root) == (issuing, root.certificate, False)
    live.reread()
    assert "north" in live.names()
    with pytest.raises(Conflict) as refused:
        request_tenant(home, "north")
    assert refused.value.code == "tenant-exists"
    asked = request(home, "north")  # its next one
    assert asked.subject.rfc4514_string() == "CN=Acme north Issuing CA 2"


async def test_what_has_no_request_names_the_tenants_that_have_one(home: Home) -> None:
    with pytest.raises(NotFound, match="no request") as caught:
        read_import(home, "", b"", {}, NOW)
    assert caught.value.advice == "Make one with: fleet ca csr"
    with pytest.raises(NotFound) as caught:
        request_issuing(home, "south")
    assert caught.value.advice.endswith("fleet ca csr --tenant south --new-tenant")
    request_tenant(home, "south")
    with pytest.raises(NotFound, match="no request") as caught:
        read_import(home, "", b"", {}, NOW)
    assert caught.value.advice == "Say whose: --tenant south"


async def test_a_new_tenant_below_a_root_of_its_own(home: Home) -> None:
    root = corporate_root("North Root", NOW)
    upper = below(root, "North Upper", NOW, path_length=1)
    issuing = asked_for(home, upper, "north")
    made = read_new_tenant(home, "north", pem(issuing, upper.certificate, root.certificate), NOW)
    with imported_tenant(home, "north", made):
        pass
    found = authority_of(home, "north")
    assert (found.issuing, found.above, found.root) == (issuing, (upper.certificate,), root.certificate)
    assert found.has_own_root
    assert not found.root_key_file.exists()
    assert authority_of(home, "").root != root.certificate


@pytest.mark.parametrize("fault", ["another key", "path length", "expired", "no CA", "itself", "name"])
async def test_a_chain_that_no_new_tenant_can_have_is_refused(home: Home, fault: str) -> None:
    root = corporate_root("North Root", NOW, path_length=0 if fault == "path length" else None)
    upper = below(root, "North Upper", NOW, path_length=1)
    name = authority_of(home, "").issuing.subject if fault == "name" else "North"
    x509.load_pem_x509_csr(request_tenant(home, "north"))
    key = load_key(home.tenants / "north.request.key")
    public_key = ec.generate_private_key(ec.SECP256R1()).public_key() if fault == "another key" else key.public_key()
    life = (-2 * DAY, -DAY) if fault == "expired" else (-DAY, 100 * DAY)
    issuing = upper.signed(name, public_key, NOW, ca=fault != "no CA", life=life)
    if fault == "itself":
        data = pem(CorporateCa(issuing, key).signed("North", key.public_key(), NOW, path_length=None))
    else:
        data = pem(issuing, upper.certificate, root.certificate)
    with pytest.raises((Invalid, Conflict)) as refused:
        read_new_tenant(home, "north", data, NOW)
    assert refused.value.code == ("name-taken" if fault == "name" else "bad-chain")
    assert is_requested(home, "north")


@pytest.mark.parametrize("fault", ["EKU", "EKU above", "unknown critical extension", "weak curve"])
async def test_a_new_tenant_below_whose_ca_no_device_could_connect_is_refused(home: Home, fault: str) -> None:
    """Whether the tenant is the first of its kind makes no difference to what its devices' peers verify."""
    eku: tuple[x509.ExtensionType, bool] = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), True)
    odd: tuple[x509.ExtensionType, bool] = (
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00"),
        True,
    )
    root = corporate_root("North Root", NOW, curve=ec.SECP192R1() if fault == "weak curve" else None)
    upper = below(root, "North Upper", NOW, path_length=1, extensions=[eku] if fault == "EKU above" else [])
    x509.load_pem_x509_csr(request_tenant(home, "north"))
    key = load_key(home.tenants / "north.request.key").public_key()
    extensions = {"EKU": [eku], "unknown critical extension": [odd]}.get(fault, [])
    issuing = upper.signed("North", key, NOW, extensions=extensions)
    with pytest.raises(Invalid) as refused:
        read_new_tenant(home, "north", pem(issuing, upper.certificate, root.certificate), NOW)
    assert refused.value.code == "bad-chain"
    assert is_requested(home, "north")


async def test_a_request_answered_by_a_ca_that_signed_itself_is_refused(home: Home) -> None:
    issuing = answered(home, corporate_root("Corp Root", NOW))
    itself = CorporateCa(issuing, load_key(home.ca / "request.key"))
    data = pem(itself.signed(issuing.subject, issuing.public_key(), NOW, path_length=None))
    with pytest.raises(Invalid) as refused:
        read_import(home, "", data, {}, NOW)
    assert refused.value.code == "bad-chain"


async def test_path_length_0_above_a_tenant_is_refused(home: Home) -> None:
    with new_tenant(home, "acme", own_root=False, now=NOW):
        pass
    root = corporate_root("Corp Root", NOW, path_length=0)
    issuing = below(root, "Corp Issuing", NOW)
    with pytest.raises(Invalid, match="CN=Corp Issuing has path length 0, and 1 CA would stand below it: CN=Acme acme"):
        imported(home, pem(answered(home, issuing, "acme"), issuing.certificate, root.certificate), "acme")
    own = corporate_root("Tenants Root", NOW)
    after = imported(home, pem(answered(home, own, "acme"), own.certificate), "acme")
    assert after.root == own.certificate
    assert authority_of(home, "").root != own.certificate
    assert home.root_key.exists()
    assert [each.subject.rfc4514_string() for each in after.former] == ["CN=Acme acme Issuing CA"]


async def test_a_present_root_whose_key_is_away_is_not_left_behind_unless_forced(home: Home) -> None:
    root = corporate_root("Corp Root", NOW)
    data = pem(answered(home, root), root.certificate)
    kept = home.root_key.rename(home.path / "away.key")
    with pytest.raises(Refused, match="Clients that trust the present root alone") as refused:
        imported(home, data)
    assert refused.value.code == "root-key-away"
    assert authority_of(home, "").former == ()
    before = authority_of(home, "").root
    imported(home, data, force=True)
    assert unverified(home, root.certificate) == ""
    assert unverified(home, before) != ""
    assert kept.exists()


async def test_an_import_that_is_killed_after_its_commit_is_completed_by_the_next_reader(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = corporate_root("Corp Root", NOW)
    data = pem(answered(home, root), root.certificate)
    whole = ca_store.finish_rollover

    def killed(folder: Path) -> None:
        if (folder / ca_store.NEXT).exists():
            raise ZeroDivisionError

    monkeypatch.setattr(ca_store, "finish_rollover", killed)
    with pytest.raises(ZeroDivisionError):
        imported(home, data)
    monkeypatch.setattr(ca_store, "finish_rollover", whole)
    assert (home.ca / "issuing.next").exists()
    assert authority_of(home, "").root == root.certificate
    assert not home.root_key.exists()
    with pytest.raises(NotFound, match="no request"):
        imported(home, data)
    assert request(home).public_key() != authority_of(home, "").issuing.public_key()


async def test_issuing_and_root_rollover_of_an_imported_chain(home: Home) -> None:
    first = authority_of(home, "").root
    corp = corporate_root("Corp Root", NOW)
    imported(home, pem(answered(home, corp), corp.certificate))
    later = NOW + DAY
    with pytest.raises(Refused) as refused:
        new_issuing_key(home, "", later)
    assert "fleet ca csr" in refused.value.advice
    after = imported(home, pem(answered(home, corp, now=later)), now=later)  # the root is known
    assert after.issuing.subject.rfc4514_string() == "CN=Acme Issuing CA 3"
    assert len(after.former) == 2
    assert unverified(home, corp.certificate, later) == unverified(home, first, later) == ""
    # The corporate root gets a new key, and its owner sends the certificates that link the two.
    new = corporate_root("Corp Root", later)
    new_with_old = corp.signed("Corp Root", new.key.public_key(), later, path_length=None)
    old_with_new = new.signed("Corp Root", corp.key.public_key(), later, path_length=None)
    answer = pem(answered(home, new, now=later), new.certificate, new_with_old, old_with_new)
    after = imported(home, answer, now=later)
    assert after.root == new.certificate
    assert (after.former_roots[0].new_with_old, after.former_roots[0].old_with_new) == (new_with_old, old_with_new)
    for root in (new.certificate, corp.certificate, first):
        assert unverified(home, root, later) == "", root.subject
    Contexts.of(home, lambda: later)
    # A root that is forgotten is left out, and what is below the others stays.
    sha256 = first.fingerprint(hashes.SHA256()).hex()
    assert [each.subject.rfc4514_string() for each in issuers_below(home, first)] == ["CN=Acme Issuing CA"]
    forget_former(home, "", sha256, later)
    renew_server_certificate(home, SETTINGS, later)
    assert unverified(home, first, later) != ""
    assert unverified(home, corp.certificate, later) == ""


@asynccontextmanager
async def registry_of(home: Home) -> AsyncIterator[Registry]:
    registry = await open_registry(home)
    yield registry
    await registry.close()


async def test_an_offline_root_signs_a_request_and_its_crl(home: Home, tmp_path: Path) -> None:
    offline = await create_home(tmp_path / "root", Settings(name="Acme Trust"), NOW)
    with pytest.raises(Invalid, match="no certificate request"):
        sign_authority(offline, b"no", 1, NOW)
    made, answer = sign_authority(offline, request_issuing(home, ""), 3650, NOW)
    root = authority_of(offline, "").root
    imported(home, answer)
    assert authority_of(home, "").root == root
    assert unverified(home, root) == ""
    async with registry_of(offline) as registry:
        empty = await sign_root_crl(offline, registry, [], 365, NOW)
        assert len(list(empty)) == 0
        assert empty.next_update_utc == NOW + 365 * DAY
        # The CA is revoked: it stays listed from then on, and the number never goes back.
        with pytest.raises(Invalid, match="has not signed"):
            read_revoked(offline, [pem(authority_of(home, "").former[0])])
        listed = await sign_root_crl(offline, registry, read_revoked(offline, [pem(made)]), 365, NOW)
        again = await sign_root_crl(offline, registry, [], 30, NOW)
    assert number_of(empty) < number_of(listed) < number_of(again)
    assert [each.serial_number for each in again] == [made.serial_number]
    assert again.next_update_utc == NOW + 30 * DAY
    assert read_crls(home, "", answer) == []  # a chain
    assert read_crls(home, "", answer + listed.public_bytes(Encoding.PEM)) == []  # a chain is with it
    [given] = read_crls(home, "", listed.public_bytes(Encoding.DER))
    assert given == (root, listed)
    async with registry_of(home) as registry:
        assert await import_root_crl(home, registry, *given, NOW)
        assert not await import_root_crl(home, registry, root, empty, NOW)
        crls = PublishedCrls(registry, fresh_for=DAY)
        for path in (full_crl_path(identifier_of(root).hex()), plain_crl_path(identifier_of(root).hex())):
            file = await crls.find(path)
            assert file is not None
            assert (file.body, file.content_type) == (listed.public_bytes(Encoding.DER), CRL)
        # With the root's key back here, its next CRL lists what was imported, and is valid for as long.
        shutil.copy(offline.root_key, home.root_key)
        await issue_crls(home, registry, NOW + DAY, None)
        own = await root_crl(registry, root)
        assert own is not None
        assert [each.serial_number for each in own] == [made.serial_number]
        assert own.next_update_utc == listed.next_update_utc
        assert number_of(own) > number_of(listed)
        assert not await import_root_crl(home, registry, root, listed, NOW)


@pytest.mark.parametrize("fault", ["another root", "no nextUpdate"])
async def test_a_root_crl_that_is_refused(home: Home, fault: str) -> None:
    other = create_root("Other", NOW)
    data = LocalCrlSigner(*other).sign(CrlForm(1, NOW, NOW + DAY), [])
    if fault == "no nextUpdate":
        root, key = authority_of(home, "").root, load_key(home.root_key)
        data = crl_without_next_update(root, key, NOW)
    with pytest.raises(Invalid, match={"another root": "has not signed it", "no nextUpdate": "no nextUpdate"}[fault]):
        read_crls(home, "", data)


def crl_without_next_update(ca: x509.Certificate, key: ec.EllipticCurvePrivateKey, at: datetime) -> bytes:
    parts = (encode_element(INTEGER, b"\x01"), ECDSA_WITH_SHA256, ca.subject.public_bytes(), time(at))
    tbs = sequence(*parts)
    return sealed(tbs, key.sign(tbs, ec.ECDSA(hashes.SHA256())))


async def test_what_a_corporate_root_lists_is_kept_with_its_reason_whatever_its_numbers(home: Home) -> None:
    corp = corporate_root("Corp Root", NOW)
    imported(home, pem(answered(home, corp), corp.certificate))
    builder = x509.CertificateRevocationListBuilder().issuer_name(corp.certificate.subject)
    builder = builder.last_update(NOW).next_update(NOW + DAY).add_extension(x509.CRLNumber(1 << 158), critical=False)
    for number, reason in ((7, x509.ReasonFlags.key_compromise), ((1 << 159) - 1, None)):
        entry = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(NOW)
        if reason is not None:
            entry = entry.add_extension(x509.CRLReason(reason), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    data = builder.sign(corp.key, hashes.SHA256()).public_bytes(Encoding.DER)
    [given] = read_crls(home, "", data)
    assert given is not None
    async with registry_of(home) as registry:
        assert await import_root_crl(home, registry, *given, NOW)
        assert await import_root_crl(home, registry, *given, NOW)  # again: nothing is doubled
        found = [await registry.revocation(f"{number:x}") for number in (7, (1 << 159) - 1)]
        assert [each.reason for each in found if each is not None] == [CrlReason.KEY_COMPROMISE, CrlReason.UNSPECIFIED]
        assert await registry.unpublished() == []


async def test_our_own_rollovers_travel_with_the_answer(home: Home, tmp_path: Path) -> None:
    offline = await create_home(tmp_path / "root", Settings(name="Acme Trust"), NOW)
    imported(home, sign_authority(offline, request_issuing(home, ""), 3650, NOW)[1])
    old = authority_of(offline, "").root
    new_issuing_key(offline, "", NOW + DAY, root_too=True)
    answer = sign_authority(offline, request_issuing(home, ""), 3650, NOW + DAY)[1]
    after = imported(home, answer, now=NOW + DAY)
    assert after.root == authority_of(offline, "").root != old
    assert unverified(home, after.root, NOW + DAY) == unverified(home, old, NOW + DAY) == ""


async def test_two_of_our_roots_sign_each_other(home: Home, tmp_path: Path) -> None:
    other = await create_home(tmp_path / "other", Settings(name="Other", hosts=("other.example.com",)), NOW)
    ours, theirs = authority_of(home, "").root, authority_of(other, "").root
    cross = cross_sign(home, pem(theirs), NOW)
    assert (cross.subject, cross.issuer) == (theirs.subject, ours.subject)
    chain = server_identity(other).certificate_chain
    assert why_unverified(chain, [ours], NOW) != ""
    assert why_unverified((*chain, cross), [ours], NOW) == ""
    assert why_unverified((*chain, cross), [theirs], NOW) == ""
    for wrong, sentence in (
        (pem(ours), "own root"),
        (pem(authority_of(other, "").issuing), "is no root"),
        (b"", "empty"),
    ):
        with pytest.raises(FleetError, match=sentence):
            cross_sign(home, wrong, NOW)


async def test_a_request_of_another_kind_is_refused(home: Home) -> None:
    asked = request_issuing(home, "")
    for cut in range(0, len(asked) - 1, 9):
        with pytest.raises(Invalid):
            sign_authority(home, asked[:cut], 1, NOW)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    der = builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()).public_bytes(Encoding.DER)
    with pytest.raises(Invalid, match="not P-256"):
        sign_authority(home, der, 1, NOW)
