"""CRLs of a home's CAs: what they list and for how long, their numbers, and what openssl and GnuTLS make of them."""

import asyncio
import json
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import structs

from fleet.backup.create import save_home
from fleet.backup.restore import RestoreSource, restore_backup
from fleet.ca.crl import urls_in
from fleet.ca.distribution import Publication
from fleet.ca.key_identifiers import identifier_of
from fleet.config.settings import Settings
from fleet.config.template import render
from fleet.domain.access import Operator, Role
from fleet.domain.credential import Credential
from fleet.domain.crl import CrlHead, CrlReason
from fleet.domain.distribution import (
    ca_name,
    ca_path,
    delta_crl_path,
    full_crl_path,
    plain_crl_path,
    shard_crl_path,
    shard_of,
    shards_of_path,
)
from fleet.domain.errors import Invalid
from fleet.domain.ports import Registry
from fleet.domain.writes import DropCredentials, MarkUsed
from fleet.home import crl_issuing
from fleet.home.authorities import new_issuing_key, new_tenant, read_authorities
from fleet.home.creation import create_home
from fleet.home.crl_issuing import crl_reporter, issue_crls, slow_crl
from fleet.home.issued_urls import issued_urls
from fleet.home.layout import Home, certificate_in, open_registry, revocation_journal
from fleet.home.pki import load_issuer
from fleet.home.publication_check import urls_of
from fleet.runtime.background import background
from fleet.runtime.jobs.crls import Following, LateCrls, SlowCrls, publish_crls
from fleet.servers.admin.app import AdminApp
from fleet.servers.admin.context import Context
from fleet.servers.admin.messages import Caller, Headers, Request, body_of
from fleet.services import claims, crl_entries, inventory, revocation
from fleet.services.crl_publishing import LEASE, LEASE_TIME, CrlPolicy
from fleet.services.crl_report import CrlReporter, crl_report, lacking
from fleet.services.revocation_journal import catch_up, has_gone_back, usable_though_listed
from fleet.storage.engines import open_engine
from fleet.storage.journals.revoked_certificates import RevokedCertificates
from fleet.wire.spki import spki_of
from tests.home.crl_fleet import NOW, URL, CrlFleet, number_of, openssl_verify, serial
from tests.storage.samples import change
from tests.waiting import PATIENCE_SECONDS

DAY = timedelta(days=1)
WITH_URL = CrlPolicy(URL, shards=4, delta=True)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that each test copies."""
    return asyncio.run(create_home(tmp_path_factory.mktemp("template") / "home", Settings(), NOW - DAY)).path


@pytest.fixture
async def fleet(template: Path, tmp_path: Path) -> AsyncIterator[CrlFleet]:
    home = Home(Path(shutil.copytree(template, tmp_path / "home", symlinks=True)))
    registry = await open_registry(home)
    yield CrlFleet(home, registry)
    await registry.close()


def with_policy(fleet: CrlFleet, policy: CrlPolicy = WITH_URL) -> CrlFleet:
    return replace(fleet, policy=policy)


async def test_openssl_refuses_a_revoked_certificate_and_takes_a_resumed_one(fleet: CrlFleet, tmp_path: Path) -> None:
    one, other = await fleet.enroll("cam-1"), await fleet.enroll("cam-2")
    root = full_crl_path(ca_name(identifier_of(certificate_in(fleet.home.root_certificate))))

    async def verify(credential: object) -> str:
        await fleet.publish()
        crls = [(await fleet.file(path)).body for path in (full_crl_path(fleet.issuing), root)]
        return openssl_verify(fleet.home, tmp_path, credential, crls)  # type: ignore[arg-type]

    assert await verify(one) == "OK"
    await fleet.move("suspend", "cam-1")
    assert "certificate revoked" in await verify(one)
    assert await fleet.listed() == {serial(one): "certificateHold"}
    assert await verify(other) == "OK"
    await fleet.move("resume", "cam-1")
    assert await verify(one) == "OK"
    await fleet.move("retire", "cam-1")
    await fleet.move("revoke", "cam-2")
    assert "certificate revoked" in await verify(one)
    assert await fleet.listed() == {serial(one): "cessationOfOperation", serial(other): "unspecified"}


async def test_a_claims_certificate_is_on_hold_from_its_issue_on(fleet: CrlFleet, tmp_path: Path) -> None:
    """It is shared by a batch, and its name may be a device's: it is for our EST alone."""
    device = await fleet.enroll("cam-1")
    spki = spki_of(ec.generate_private_key(ec.SECP256R1()).public_key())
    new = claims.NewClaim("cam-1", "default", 5, spki, NOW + 30 * DAY)
    _, claim = await claims.enroll_claim(fleet.registry, load_issuer(fleet.home), new, act=fleet.act)
    root = full_crl_path(ca_name(identifier_of(certificate_in(fleet.home.root_certificate))))

    async def verify(credential: Credential) -> str:
        await fleet.publish()
        crls = [(await fleet.file(path)).body for path in (full_crl_path(fleet.issuing), root)]
        return openssl_verify(fleet.home, tmp_path, credential, crls, "-purpose", "sslclient")

    assert "certificate revoked" in await verify(claim)
    assert await verify(device) == "OK"
    await claims.quarantine_claim(fleet.registry, "cam-1", act=fleet.act)
    await claims.release_claim(fleet.registry, "cam-1", act=fleet.act)
    await verify(claim)
    assert await fleet.listed() == {serial(claim): "certificateHold"}
    await claims.revoke_claim(fleet.registry, "cam-1", act=fleet.act, crl_reason=CrlReason.KEY_COMPROMISE)
    await verify(claim)
    assert await fleet.listed() == {serial(claim): "keyCompromise"}


async def test_each_certificate_is_in_its_shard_whose_url_its_issuing_distribution_point_names(
    fleet: CrlFleet, tmp_path: Path
) -> None:
    fleet = with_policy(fleet)
    held = [await fleet.enroll(f"cam-{n}") for n in range(6)]
    first = await fleet.publish()
    assert {shard_crl_path(fleet.issuing, n, 4) for n in range(4)} < set(first)
    await fleet.move("revoke", "cam-3")
    fleet.now += timedelta(seconds=1)
    made = await fleet.publish(soon=True)
    path = shard_crl_path(fleet.issuing, shard_of(serial(held[3]), 4), 4)
    assert set(made) == {path, delta_crl_path(fleet.issuing)}  # the full CRL rests after it was made
    crl = await fleet.crl(path)
    point = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint)
    assert point.critical
    assert point.value.full_name == [x509.UniformResourceIdentifier(URL + path)]
    assert list(await fleet.listed(path)) == [serial(held[3])]
    assert await fleet.listed() == {}
    assert set(await fleet.publish()) == {full_crl_path(fleet.issuing), plain_crl_path(fleet.issuing)}
    assert list(await fleet.listed(plain_crl_path(fleet.issuing))) == [serial(held[3])]
    plain = await fleet.crl(plain_crl_path(fleet.issuing))
    assert [each.critical for each in plain.extensions] == [False, False]  # authority key identifier and number


async def test_more_shards_leave_the_earlier_ones_published(fleet: CrlFleet) -> None:
    await with_policy(fleet).publish()
    fleet = with_policy(fleet, structs.replace(WITH_URL, shards=8))
    one = await fleet.enroll("cam-1")
    await fleet.publish()
    await fleet.move("revoke", "cam-1")
    made = await fleet.publish()
    for shards in (4, 8):
        path = shard_crl_path(fleet.issuing, shard_of(serial(one), shards), shards)
        assert path in made
        assert list(await fleet.listed(path)) == [serial(one)]


async def test_shards_list_what_was_revoked_while_no_url_was_known(fleet: CrlFleet) -> None:
    sharded = with_policy(fleet)
    one, other = await sharded.enroll("cam-1"), await sharded.enroll("cam-2")
    await sharded.publish()
    without = with_policy(fleet, CrlPolicy())
    for credential, name in ((one, "cam-1"), (other, "cam-2")):
        await without.move("revoke", name)
        await without.publish()
        assert serial(credential) in await without.listed()
    made = await sharded.publish()
    places = {shard_crl_path(fleet.issuing, shard_of(serial(each), 4), 4) for each in (one, other)}
    assert {path for path in made if "-of-" in path} == places
    assert set().union(*[await sharded.listed(path) for path in places]) == {serial(one), serial(other)}
    assert await sharded.publish() == {}


async def test_shards_of_an_earlier_number_go_once_no_certificate_names_them(fleet: CrlFleet) -> None:
    def shards(heads: Iterable[CrlHead]) -> set[int]:
        return {shards_of_path(head.path) for head in heads} - {0}

    four, eight = (with_policy(fleet, structs.replace(WITH_URL, shards=number)) for number in (4, 8))
    named = await fleet.enroll("cam-1")
    await four.publish()
    eight.now += DAY
    await eight.publish()
    await fleet.enroll("cam-2", lifetime=timedelta(days=400))  # with a name of eight
    four.now = eight.now + DAY
    await four.publish()  # the setting is back: nothing is known of when certificates will have ended
    assert {head.named_until is None for head in await fleet.registry.crl_heads() if "-of-4" in head.path} == {True}
    eight.now = four.now + DAY
    await eight.publish()
    until = max(named.not_after, await fleet.registry.latest_end())
    eight.now = until + DAY
    await eight.publish()
    assert shards(await fleet.registry.crl_heads()) == {4, 8}
    eight.now += timedelta(seconds=1)
    await eight.publish()
    assert shards(await fleet.registry.crl_heads()) == {8}
    await eight.publish(at_once=True)
    assert shards(await fleet.registry.crl_heads()) == {8}


async def test_shards_of_an_earlier_number_go_together(fleet: CrlFleet) -> None:
    four, eight = (with_policy(fleet, structs.replace(WITH_URL, shards=number)) for number in (4, 8))
    one = await fleet.enroll("cam-1")
    await four.publish()
    await fleet.move("revoke", "cam-1")
    eight.now += LEASE_TIME
    await eight.publish()  # of the four, the one with cam-1 alone
    await fleet.enroll("cam-2", lifetime=timedelta(days=400))
    eight.now += DAY
    await eight.publish()  # the others
    until = {head.named_until for head in await fleet.registry.crl_heads() if "-of-4" in head.path}
    assert until == {one.not_after, await fleet.registry.latest_end()}
    eight.now = one.not_after + DAY * 2
    await fleet.enroll("cam-3", lifetime=timedelta(days=800))
    for _ in range(2):
        await eight.publish()
        assert {head.named_until for head in await fleet.registry.crl_heads() if "-of-4" in head.path} == until
        eight.now += DAY


async def test_other_urls_in_the_settings_sign_every_crl_anew(fleet: CrlFleet) -> None:
    await fleet.enroll("cam-1")
    await fleet.move("revoke", "cam-1")
    await fleet.publish()
    elsewhere, one = "http://elsewhere.example", structs.replace(WITH_URL, shards=1)
    full, delta = full_crl_path(fleet.issuing), delta_crl_path(fleet.issuing)
    others = (structs.replace(one, url=elsewhere), structs.replace(one, url=elsewhere, delta=False))
    for policy in (one, *others, CrlPolicy()):
        other = with_policy(fleet, policy)
        other.now = fleet.now = fleet.now + timedelta(seconds=1)
        made = await other.publish(soon=True)
        assert {full, plain_crl_path(fleet.issuing)} <= set(made)
        names = urls_in((await other.file(full)).body)
        assert names == (policy.url and policy.url + full, policy.url + delta if policy.delta else "")
        assert (delta in made) is policy.delta
        if policy.delta:  # with a base of its own scope
            assert made[delta].base == made[full].number
            assert urls_in((await other.file(delta)).body) == (policy.url + full, "")
        assert list(await other.listed(full)) == list(await fleet.listed(plain_crl_path(fleet.issuing)))
        assert await other.publish(soon=True) == {}
        assert await with_policy(fleet, policy).publish(soon=True) == {}


async def test_a_delta_crl_adds_and_removes(fleet: CrlFleet, tmp_path: Path) -> None:
    fleet = with_policy(fleet)
    one, held = await fleet.enroll("cam-1"), await fleet.enroll("cam-2")
    await fleet.move("suspend", "cam-2")
    await fleet.publish()
    base = (await fleet.file(full_crl_path(fleet.issuing))).body
    await fleet.move("revoke", "cam-1")
    await fleet.move("resume", "cam-2")
    fleet.now += timedelta(seconds=1)
    await fleet.publish()
    delta = delta_crl_path(fleet.issuing)
    assert await fleet.listed(delta) == {serial(one): "unspecified", serial(held): "removeFromCRL"}
    indicator = (await fleet.crl(delta)).extensions.get_extension_for_class(x509.DeltaCRLIndicator)
    assert indicator.critical
    assert indicator.value.crl_number == number_of(x509.load_der_x509_crl(base))
    assert number_of(await fleet.crl(delta)) > indicator.value.crl_number


async def test_numbers_never_go_back_not_even_with_an_older_registry(fleet: CrlFleet, tmp_path: Path) -> None:
    await fleet.enroll("cam-1")
    await fleet.publish()
    before = tmp_path / "before.db"
    with closing(sqlite3.connect(fleet.home.registry)) as live, closing(sqlite3.connect(before)) as copy:
        live.backup(copy)
    last = number_of(await fleet.crl())
    for _ in range(3):
        assert await fleet.publish(at_once=True)  # at one and the same time
        number = number_of(await fleet.crl())
        assert number > last
        last = number
    await fleet.registry.close()  # type: ignore[attr-defined]
    for file in fleet.home.path.glob("registry.db*"):
        file.unlink()
    shutil.copy(before, fleet.home.registry)
    fleet.home.registry.chmod(0o600)
    registry = await open_registry(fleet.home)
    restored = replace(fleet, registry=registry, now=fleet.now + timedelta(seconds=1))
    restored.now += LEASE_TIME
    await restored.publish(at_once=True)
    assert number_of(await restored.crl()) > last
    await registry.close()


async def test_revoked_certificates_stay_through_supersession_renewal_and_retention(fleet: CrlFleet) -> None:
    old = await fleet.enroll("cam-1")
    new = await fleet.enroll("cam-1", is_new=False)
    await fleet.registry.commit(change(MarkUsed(new.fingerprint)))
    await fleet.publish()
    assert await fleet.listed() == {}  # a superseded certificate is not revoked
    await fleet.move("revoke", "cam-1")
    await fleet.publish()
    both = {serial(old), serial(new)}
    assert set(await fleet.listed()) == both
    fleet.now += 89 * DAY
    assert await fleet.publish()
    assert set(await fleet.listed()) == both


async def test_an_expired_certificate_leaves_after_it_was_once_listed_past_its_end(fleet: CrlFleet) -> None:
    one = await fleet.enroll("cam-1", lifetime=timedelta(days=1))
    await fleet.move("revoke", "cam-1")
    await fleet.publish()
    fleet.now = one.not_after + timedelta(hours=1)
    await fleet.registry.commit(change(DropCredentials((one.fingerprint,), fleet.now)))
    await fleet.publish()
    assert set(await fleet.listed()) == {serial(one)}
    assert await fleet.registry.revocation(one.serial) is not None
    fleet.now += DAY
    await fleet.publish()
    assert await fleet.listed() == {}
    assert await fleet.registry.revocation(one.serial) is None


async def test_a_restore_lists_what_was_issued_and_revoked_after_its_backup(fleet: CrlFleet, tmp_path: Path) -> None:
    await fleet.enroll("cam-1")
    file, journal = tmp_path / "fleet.backup", revocation_journal(fleet.home)
    await catch_up(fleet.registry, journal)
    await save_home(fleet.home, fleet.registry, file, encryption=None, act=fleet.act)
    known, unknown = await fleet.enroll("cam-1", is_new=False), await fleet.enroll("cam-2")
    await fleet.enroll("cam-3")
    for name, verb in (("cam-1", "revoke"), ("cam-2", "revoke"), ("cam-3", "suspend"), ("cam-3", "resume")):
        await fleet.move(verb, name)
        await fleet.publish()
    before = await fleet.listed()
    assert set(before) > {serial(known), serial(unknown)}
    number = number_of(await fleet.crl())
    await catch_up(fleet.registry, journal)
    await restore_backup(RestoreSource(file, fleet.home.revocations), tmp_path / "home2", act=fleet.act)
    second = Home(tmp_path / "home2")
    registry = await open_registry(second)
    restored = replace(fleet, home=second, registry=registry, now=fleet.now + LEASE_TIME)
    await restored.publish()
    assert await restored.listed() == before
    assert number_of(await restored.crl()) > number
    assert set(RevokedCertificates(second.revoked_certificates).read(fleet.now)) >= {known.serial, unknown.serial}
    await registry.close()


async def test_a_registry_set_back_lists_again_what_any_node_has_listed(fleet: CrlFleet, tmp_path: Path) -> None:
    first = await fleet.enroll("cam-1")
    journal = revocation_journal(fleet.home)
    await catch_up(fleet.registry, journal)
    before = tmp_path / "before.db"
    with closing(sqlite3.connect(fleet.home.registry)) as live, closing(sqlite3.connect(before)) as copy:
        live.backup(copy)
    await fleet.enroll("cam-1", is_new=False)
    await fleet.enroll("cam-2")
    await revocation.revoke(fleet.registry, "cam-1", act=fleet.act, crl_reason=CrlReason.KEY_COMPROMISE)
    await fleet.move("revoke", "cam-2")
    await fleet.publish()
    listed = await fleet.listed()
    assert len(listed) == 3
    assert listed[serial(first)] == "keyCompromise"
    await catch_up(fleet.registry, journal)
    fleet.home.revoked_certificates.unlink()  # as on a node that did not publish
    await Following(fleet.registry, RevokedCertificates(fleet.home.revoked_certificates)).follow()
    await fleet.registry.close()  # type: ignore[attr-defined]
    for file in fleet.home.path.glob("registry.db*"):
        file.unlink()
    shutil.copy(before, fleet.home.registry)
    fleet.home.registry.chmod(0o600)
    engine = await open_engine(fleet.home.registry, create=False)
    try:
        for _ in range(9):  # goes on from there, with events of its own
            await inventory.add_device(engine, f"new-{_}", "default", act=fleet.act)
        assert await has_gone_back(engine, journal)
        await catch_up(engine, journal)
        restored = replace(fleet, registry=engine, now=fleet.now + LEASE_TIME)
        await restored.publish()
        assert await restored.listed() == listed
    finally:
        await engine.close()


async def test_a_registry_set_back_with_its_journal_lists_again_what_this_node_has_listed(
    fleet: CrlFleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fleet.enroll("cam-1")
    await fleet.publish()
    await catch_up(fleet.registry, revocation_journal(fleet.home))
    before, journal = tmp_path / "before.db", fleet.home.revocations.read_bytes()
    with closing(sqlite3.connect(fleet.home.registry)) as live, closing(sqlite3.connect(before)) as copy:
        live.backup(copy)
    await fleet.move("revoke", "cam-1")
    fleet.now += DAY
    newest = max(head.number for head in (await fleet.publish()).values())
    listed = await fleet.listed()
    assert len(listed) == 1
    await Following(fleet.registry, RevokedCertificates(fleet.home.revoked_certificates)).follow()
    await fleet.registry.close()  # type: ignore[attr-defined]
    for file in fleet.home.path.glob("registry.db*"):
        file.unlink()
    shutil.copy(before, fleet.home.registry)
    fleet.home.registry.chmod(0o600)
    fleet.home.revocations.write_bytes(journal)
    engine = await open_engine(fleet.home.registry, create=False)
    try:
        restored = replace(fleet, registry=engine)
        async with background(publish_crls(fleet.home, engine, Settings(), lambda: fleet.now + DAY), "CRLs") as task:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while number_of(await restored.crl()) <= newest:
                    assert not task.done()
                    await asyncio.sleep(0.01)
        assert await restored.listed() == listed
    finally:
        await engine.close()
    assert "outcome=listed-again usable=1" in caplog.text


async def test_every_ca_has_its_crl_and_its_certificate(fleet: CrlFleet) -> None:
    with new_tenant(fleet.home, "north", own_root=True, now=fleet.now):
        pass
    new_issuing_key(fleet.home, "", fleet.now, root_too=True)
    await fleet.publish()
    own = {ca_name(identifier_of(certificate_in(file))) for file in fleet.home.ca.rglob("*.pem")}
    assert len(own) == 7  # two roots and two issuing CAs, the tenant's two, the operators'
    for name in own:
        issuer = x509.load_der_x509_certificate((await fleet.file(ca_path(name))).body)
        crl = await fleet.crl(full_crl_path(name))
        assert crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
        assert crl.issuer == issuer.subject


async def test_a_ca_whose_key_is_away_is_left_out(fleet: CrlFleet) -> None:
    fleet.home.root_key.unlink()
    root = ca_name(identifier_of(certificate_in(fleet.home.root_certificate)))
    await fleet.publish()
    assert await fleet.crls.find(full_crl_path(root)) is None
    assert await fleet.crls.find("/crl/") is None
    assert await fleet.crls.find("/ocsp") is None


async def test_a_key_that_cannot_be_read_leaves_the_crls_of_the_other_cas(fleet: CrlFleet) -> None:
    fleet.home.issuing_key.chmod(0o644)
    with pytest.raises(Invalid) as refused:
        await fleet.publish()
    assert refused.value.code == "key-exposed"
    root = ca_name(identifier_of(certificate_in(fleet.home.root_certificate)))
    assert await fleet.crls.find(full_crl_path(fleet.issuing)) is None
    assert await fleet.crls.find(full_crl_path(root)) is not None


async def test_what_is_kept_for_the_next_full_crl_is_what_the_registry_has(
    fleet: CrlFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two nodes that take turns: holds that end, other reasons, ends of validity."""
    monkeypatch.setattr(crl_entries, "IN_PARTS", 0)
    other = replace(fleet, node="node-2")
    for n in range(12):
        await fleet.enroll(f"cam-{n}", lifetime=timedelta(days=1 + n % 2 * 8))

    async def made_by(node: CrlFleet) -> dict[int, str]:
        assert await node.publish(at_once=True)
        await node.publisher.release(node.now)
        return await node.listed()

    async def agree(node: CrlFleet) -> dict[int, str]:
        fleet.now = other.now = fleet.now + timedelta(minutes=1)
        kept = await made_by(node)
        assert await made_by(replace(node, node="node-3")) == kept  # which begins with nothing
        return kept

    assert await agree(fleet) == {}
    for n, node in enumerate((fleet, other, fleet, fleet, other)):
        await fleet.move("suspend", f"cam-{n}")
        await fleet.move("revoke", f"cam-{n + 5}")
        assert len(await agree(node)) == 2 * (n + 1)
    await fleet.move("resume", "cam-0")
    await fleet.move("revoke", "cam-1")
    assert len(await agree(fleet)) == 9
    await revocation.revoke(fleet.registry, "cam-5", act=fleet.act, crl_reason=CrlReason.KEY_COMPROMISE)
    assert list((await agree(other)).values()).count("keyCompromise") == 1
    fleet.now += timedelta(days=1, hours=12)
    assert len(await made_by(fleet)) == 9  # once more with what has ended since
    fleet.now += timedelta(hours=13)
    assert len(await agree(fleet)) == len(await agree(other)) < 9


async def test_openssl_adds_a_delta_to_its_base(fleet: CrlFleet, tmp_path: Path) -> None:
    fleet = with_policy(fleet, structs.replace(WITH_URL, shards=1))
    one = await fleet.enroll("cam-1", publication=Publication(URL))
    await fleet.publish()
    root = plain_crl_path(ca_name(identifier_of(certificate_in(fleet.home.root_certificate))))
    base = [(await fleet.file(path)).body for path in (full_crl_path(fleet.issuing), root)]
    assert openssl_verify(fleet.home, tmp_path, one, base, "-use_deltas") == "OK"
    await fleet.move("revoke", "cam-1")
    fleet.now += timedelta(seconds=1)
    await fleet.publish(soon=True)
    delta = (await fleet.file(delta_crl_path(fleet.issuing))).body
    assert "certificate revoked" in openssl_verify(fleet.home, tmp_path, one, [*base, delta], "-use_deltas")
    assert openssl_verify(fleet.home, tmp_path, one, base, "-use_deltas") == "OK"


async def test_of_two_nodes_one_publishes_and_the_other_follows_when_it_is_gone(fleet: CrlFleet) -> None:
    other = replace(fleet, node="node-2")
    assert await fleet.publish()
    assert await other.publish() == {}
    await fleet.enroll("cam-1")
    await fleet.move("revoke", "cam-1")
    assert await other.publish() == {}
    other.now += LEASE_TIME
    assert set(await other.publish()) == {full_crl_path(fleet.issuing), plain_crl_path(fleet.issuing)}
    fleet.now = other.now
    assert await fleet.publish() == {}
    assert (await fleet.file(full_crl_path(fleet.issuing))).body == (
        await other.file(full_crl_path(fleet.issuing))
    ).body


async def test_a_command_publishes_at_once_in_place_of_a_server_that_has_just_done_so(
    fleet: CrlFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crl_issuing, "LEASE_TIME", timedelta())  # it does not wait for the server's to end
    await fleet.publish()
    assert await issue_crls(fleet.home, fleet.registry, fleet.now, None)
    await fleet.enroll("cam-1")
    await fleet.move("revoke", "cam-1")
    fleet.now += timedelta(seconds=1)
    assert await fleet.publish(), "the server goes on"


async def test_a_round_that_a_command_has_overtaken_publishes_nothing(fleet: CrlFleet) -> None:
    await fleet.publish()
    other = replace(fleet, node="node-2")
    await other.publisher.take_over(fleet.now)
    await fleet.enroll("cam-1")
    await fleet.move("revoke", "cam-1")
    assert await fleet.publish() == {}
    assert await other.publish()
    assert len(await other.listed()) == 1


async def test_a_node_that_died_with_a_fast_clock_keeps_no_other_from_publishing(fleet: CrlFleet) -> None:
    fast = replace(fleet, node="node-2", now=fleet.now + timedelta(minutes=15))
    await fleet.enroll("cam-1")
    assert await fast.publish()
    await fleet.move("revoke", "cam-1")
    assert await fleet.publish()
    assert len(await fleet.listed()) == 1


async def test_two_servers_with_one_name_of_host_and_home_do_not_both_publish(fleet: CrlFleet) -> None:
    async def owner_after_serving(revoked: str) -> str:
        await fleet.enroll(revoked)
        await fleet.move("revoke", revoked)

        def clock() -> datetime:
            fleet.now += timedelta(milliseconds=1)
            return fleet.now

        async with background(publish_crls(fleet.home, fleet.registry, Settings(), clock), "CRLs") as task:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (held := await fleet.registry.lease(LEASE)) is None or held.expires_at <= fleet.now:
                    assert not task.done()
                    await asyncio.sleep(0.01)
            return held.owner

    first = await owner_after_serving("cam-1")
    held = await fleet.registry.lease(LEASE)
    assert held is not None
    assert held.expires_at <= fleet.now, "one that stops lets the next publish at once"
    assert first != await owner_after_serving("cam-2")


async def test_crls_are_signed_again_before_their_next_update(fleet: CrlFleet) -> None:
    await fleet.publish()
    number = number_of(await fleet.crl())
    fleet.now += timedelta(hours=11)
    assert await fleet.publish() == {}
    fleet.now += timedelta(hours=2)
    assert full_crl_path(fleet.issuing) in await fleet.publish()
    crl = await fleet.crl()
    assert number_of(crl) > number
    assert crl.next_update_utc == fleet.now + DAY


@pytest.mark.skipif(shutil.which("certtool") is None, reason="certtool of gnutls-bin is not installed")
async def test_gnutls_verifies_the_plain_crl(fleet: CrlFleet, tmp_path: Path) -> None:
    one = await fleet.enroll("cam-1")
    await fleet.move("revoke", "cam-1")
    await fleet.publish()
    crl, ca = tmp_path / "one.crl", fleet.home.issuing_certificate
    crl.write_bytes((await fleet.crl(plain_crl_path(fleet.issuing))).public_bytes(Encoding.PEM))
    command = ["certtool", "--verify-crl", "--load-ca-certificate", str(ca), "--infile", str(crl)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Verified" in done.stdout
    shown = subprocess.run(["certtool", "--crl-info", "--infile", str(crl)], capture_output=True, text=True, check=True)
    assert f"{serial(one):040x}" in shown.stdout.replace(" ", "")


async def test_a_full_crl_that_takes_long_is_named_where_there_are_no_shards(
    fleet: CrlFleet, caplog: pytest.LogCaptureFixture
) -> None:
    policy = CrlPolicy(max_delay=timedelta(milliseconds=10))  # the clock of the tests says that each takes 10 ms
    await with_policy(fleet, policy).publish()
    slow = [head for head in await fleet.registry.crl_heads() if policy.is_slow(head)]
    assert full_crl_path(fleet.issuing) in {head.path for head in slow}
    sentence = slow_crl(slow[0], policy)
    assert "set crl.shards" in sentence
    assert not any(structs.replace(policy, url=URL, shards=2).is_slow(head) for head in slow)
    assert not any(structs.replace(policy, max_delay=timedelta(milliseconds=30)).is_slow(head) for head in slow)
    noted = SlowCrls(policy)
    with caplog.at_level("WARNING", "fleet.crl"):
        for _ in range(2):
            noted.note(slow[0])
    assert [each.getMessage() for each in caplog.records] == [f'event=crl.slow path={slow[0].path} advice="{sentence}"']


async def test_crls_that_are_late_or_slow_are_reported_and_degrade_the_health(fleet: CrlFleet) -> None:
    def reporter(max_delay: float = 0.03) -> CrlReporter:
        settings = Settings(crl_max_delay=max_delay)
        return crl_reporter(fleet.home, fleet.registry, settings, lambda: read_authorities(fleet.home))

    async def health(after: float = 0.0, max_delay: float = 0.03) -> tuple[list[str] | None, dict[str, Any]]:
        """The reasons of a degraded health, and what the status has."""
        at = fleet.now + timedelta(seconds=after)
        context: Any = Context(fleet.registry, Any, Any, lambda: at, crl_report=reporter(max_delay).at)  # type: ignore[arg-type]
        app, caller = AdminApp(context), Caller("alice", Operator("alice", Role.ADMIN, at))
        asked = [Request("GET", path, Headers(()), body_of(b""), caller=caller) for path in ("/healthz", "/v1/status")]
        replies = [await app.dispatch(request) for request in asked]
        assert {reply.status for reply in replies} == {200}
        health, status = (json.loads(reply.body) for reply in replies)
        assert health["status"] == ("degraded" if "reasons" in health else "ok")
        return health.get("reasons"), status["crls"]

    reasons, shown = await health()
    assert (reasons, shown["published"]) == (None, 0)
    await fleet.enroll("cam-1")
    await fleet.publish()
    assert await health() == (
        None,
        {
            "published": 6,
            "oldest_seconds": 0.0,  # thisUpdate is backdated
            "next_update_seconds": 86400.0,
            "made_in_seconds": 0.01,
            "unlisted": 0,
            "unlisted_seconds": 0.0,
            "late": 0,
            "slow": 0,
            "overdue": 0,
            "named": [],
        },
    )
    await fleet.move("revoke", "cam-1")
    assert (await health(after=0.2))[0] is None  # a full CRL rests after it was made
    reasons, shown = await health(after=2)
    assert (reasons, shown["unlisted"], shown["unlisted_seconds"]) == (["crl-late"], 1, 2.0)
    assert (shown["late"], shown["overdue"]) == (0, 1)
    assert await fleet.publisher.publish_due([], fleet.now) == []  # no key is here
    reasons, shown = await health(after=2)
    assert (reasons, shown["overdue"], len(shown["named"])) == (["crl-late"], 1, 2)
    assert all(fleet.issuing in path for path in shown["named"])
    late = await lacking(fleet.registry, fleet.policy, [bytes.fromhex(fleet.issuing)], fleet.now + timedelta(minutes=1))
    assert late == {bytes.fromhex(fleet.issuing): 1}
    await fleet.publish()
    assert (await health(after=2))[0] is None
    assert (await health(max_delay=0.015))[0] == ["crl-slow"]
    reasons, shown = await health(after=17 * 3600)
    assert reasons is None
    reasons, shown = await health(after=19 * 3600)
    assert (reasons, shown["late"], shown["overdue"]) == (["crl-late"], 6, 0)


def test_a_crl_that_lacks_revocations_is_logged_once_with_its_path_and_why(caplog: pytest.LogCaptureFixture) -> None:
    late = LateCrls()
    for lacking_, signing in (({b"\xaa": 2}, []), ({b"\xaa": 3}, []), ({}, []), ({b"\xaa": 1}, [b"\xaa"])):
        late.note(lacking_, signing)
    assert [each.getMessage() for each in caplog.records] == [
        'event=crl outcome=failed path=/crl/aa.crl waiting=2 reason="the key of its CA is not in this home"',
        'event=crl outcome=failed path=/crl/aa.crl waiting=1 reason="it was not signed in time"',
    ]


async def test_the_report_is_of_the_cas_of_the_home_and_read_once_in_a_while(fleet: CrlFleet) -> None:
    await fleet.publish()
    [issuing] = {head.issuer for head in await fleet.registry.crl_heads() if fleet.issuing in head.path}
    ends = fleet.now + DAY
    assert (await crl_report(fleet.registry, fleet.policy, {issuing}, ends)).late == 2
    assert (await crl_report(fleet.registry, fleet.policy, (), ends)).late == 0  # of CAs that are forgotten
    reporter = CrlReporter(fleet.registry, fleet.policy, lambda: {issuing})
    first = await reporter.at(NOW)
    assert await reporter.at(NOW + timedelta(seconds=4)) is first
    assert await reporter.at(NOW + timedelta(seconds=5)) is not first


async def test_what_certificates_in_use_name_is_found_with_the_urls_of_former_settings(fleet: CrlFleet) -> None:
    fleet = with_policy(fleet)
    settings = Settings(publish_url=URL, crl_delta=True, crl_shards=2)
    fleet.home.settings_file.write_text(render(settings))
    await fleet.publish()  # 4 shards
    await fleet.enroll("former", publication=Publication("http://former.example"))
    await fleet.enroll("ended", lifetime=timedelta(minutes=1), publication=Publication("http://ended.example"))
    await fleet.enroll("matter")
    for n in range(3):
        await fleet.enroll(f"cam-{n}", lifetime=timedelta(days=30 + n), publication=Publication(URL, 2))
    authorities = read_authorities(fleet.home)
    issued = await issued_urls(fleet.home, authorities, fleet.registry, NOW + timedelta(hours=1))
    urls = {each.url for each in issued}
    assert {url for url in urls if "former" in url} == {
        f"http://former.example{full_crl_path(fleet.issuing)}",
        f"http://former.example{ca_path(fleet.issuing)}",
        "http://former.example/ocsp",
    }
    assert not any("ended" in url for url in urls)
    assert {URL + shard_crl_path(fleet.issuing, shard, 4) for shard in range(4)} < urls
    every = urls_of(fleet.home, authorities, issued)
    assert urls < {each.url for each in every}
    assert URL + delta_crl_path(fleet.issuing) in {each.url for each in every if each.kind == "delta"}


@pytest.mark.parametrize("first", ["suspend", "revoke"])
async def test_what_is_listed_stays_while_its_reason_changes(
    fleet: CrlFleet, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    victim = await fleet.enroll("victim")
    await fleet.enroll("other")
    await fleet.move(first, "victim")
    await fleet.publish()
    await fleet.move("revoke", "other")  # so that a CRL is due
    fleet.now += timedelta(seconds=5)
    read, changed = type(fleet.registry).crl_entries, False

    async def change_before_reading(registry: Registry, issuer: bytes, buckets: range, since: datetime) -> list[bytes]:
        nonlocal changed
        if not changed:
            changed = True
            await revocation.revoke(registry, "victim", act=fleet.act, crl_reason=CrlReason.KEY_COMPROMISE)
        return await read(registry, issuer, buckets, since)

    monkeypatch.setattr(type(fleet.registry), "crl_entries", change_before_reading)
    await fleet.publish()
    assert changed
    assert (await fleet.listed())[serial(victim)] == {"suspend": "certificateHold", "revoke": "unspecified"}[first]
    fleet.now += timedelta(seconds=1)
    await fleet.publish(soon=True)  # a full CRL that was just made rests
    assert serial(victim) in await fleet.listed()
    await fleet.publish()
    assert (await fleet.listed())[serial(victim)] == "keyCompromise"
    assert len(await fleet.listed()) == 2
    assert await fleet.registry.pending_revocations(10) == []


@pytest.mark.parametrize(
    ("policy", "read"),
    [
        (CrlPolicy(), "unpublished"),
        (CrlPolicy(), "crl_entries"),
        (WITH_URL, "unpublished"),
        (WITH_URL, "changed_entries"),
    ],
    ids=["full", "full, later", "shards", "delta"],
)
async def test_what_is_on_hold_is_in_every_crl_while_it_is_released_and_held_again(
    fleet: CrlFleet, monkeypatch: pytest.MonkeyPatch, policy: CrlPolicy, read: str
) -> None:
    fleet = with_policy(fleet, policy)
    victim = await fleet.enroll("victim")
    await fleet.enroll("other")
    await fleet.move("suspend", "victim")
    await fleet.publish()
    await fleet.move("suspend", "other")  # so that CRLs are due
    fleet.now += timedelta(seconds=5)
    as_it_is, changed = getattr(type(fleet.registry), read), 0

    async def change_around(registry: Registry, *words: object) -> object:
        nonlocal changed
        changed += 1
        if changed == 1:
            await fleet.move("resume", "victim")
            fleet.now += timedelta(milliseconds=1)
            await fleet.move("suspend", "victim")
        return await as_it_is(registry, *words)

    async def held() -> set[str]:
        """Paths of CRLs that list it; a delta CRL lacks what its base has."""
        paths = {head.path for head in await fleet.registry.crl_heads() if fleet.issuing in head.path and not head.base}
        return {path for path in paths if (await fleet.listed(path)).get(serial(victim)) == "certificateHold"}

    async def refused() -> bool:
        """As a client with the full CRL and the delta CRL has it."""
        delta = await fleet.listed(delta_crl_path(fleet.issuing)) if policy.delta else {}
        return delta.get(serial(victim)) != "removeFromCRL" and serial(victim) in await fleet.listed()

    monkeypatch.setattr(type(fleet.registry), read, change_around)
    before = await held()
    assert before
    await fleet.publish()
    assert changed
    assert before <= await held()
    assert await refused()
    fleet.now += timedelta(seconds=1)
    for _ in range(2):
        await fleet.publish()
        assert before <= await held()
        assert await refused()
    assert await fleet.registry.pending_revocations(10) == []
    await fleet.move("resume", "victim")
    fleet.now += timedelta(seconds=1)
    await fleet.publish()
    assert await held() == set()
    assert not await refused()


async def test_a_released_certificate_is_listed_as_revoked_not_as_removed(fleet: CrlFleet) -> None:
    victim = await fleet.enroll("victim")
    await fleet.move("suspend", "victim")
    await fleet.publish()
    await fleet.move("resume", "victim")
    await fleet.publish()
    assert await fleet.listed() == {}
    await fleet.move("revoke", "victim")
    [key_identifier] = {head.issuer for head in await fleet.registry.crl_heads() if fleet.issuing in head.path}
    assert await fleet.registry.crl_entries(key_identifier, range(1 << 16), NOW - timedelta(days=1)) == []
    await fleet.publish()
    assert await fleet.listed() == {serial(victim): "unspecified"}


async def test_what_an_older_registry_holds_for_usable_is_named(fleet: CrlFleet, tmp_path: Path) -> None:
    revoked = await fleet.enroll("revoked")
    await fleet.enroll("held")
    await fleet.enroll("other")
    older = shutil.copy(fleet.home.registry, tmp_path / "older.db")
    shutil.copy(fleet.home.registry.with_name("registry.db-wal"), tmp_path / "older.db-wal")
    await fleet.move("revoke", "revoked")
    await fleet.move("suspend", "held")
    await fleet.publish()
    log = RevokedCertificates(fleet.home.revoked_certificates)
    assert await usable_though_listed(fleet.registry, log, NOW) == []
    registry = await open_engine(Path(older), create=False)
    try:
        found = await usable_though_listed(registry, log, NOW)
    finally:
        await registry.close()
    assert [each.serial for each in found] == [
        revoked.serial
    ]  # one on hold is usable, and refused by its device's state
