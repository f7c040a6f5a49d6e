"""Tenants' CAs in a home: made whole, rolled over whole, whatever cuts the process off."""

import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.ca.authority import create_issuing, create_root, issue_server_certificate
from fleet.ca.keys import generate_key, load_key
from fleet.config.settings import Settings
from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import permit_by_operator
from fleet.domain.errors import Conflict, Invalid, NotFound, Refused, Unavailable
from fleet.est_client.certificate_checks import find_chain
from fleet.home import reloading_ca
from fleet.home.authorities import (
    authority_of,
    forget_former,
    former_of,
    found_tenant,
    new_issuing_key,
    new_tenant,
    read_authorities,
    tenant_names,
)
from fleet.home.ca_store import FORMER_MAX, Authority, fingerprint, locked
from fleet.home.creation import create_home
from fleet.home.layout import Home, fleet_fingerprint, open_home
from fleet.home.pki import load_issuer, operators_authority, renew_server_certificate, server_identity
from fleet.home.reloading_ca import LiveAuthorities, client_anchors
from tests.servers.est_fixtures import run
from tests.tenant_fixtures import pem
from tests.tiers import Tier

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SPKI = generate_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
SETTINGS = Settings(name="Acme")


@pytest.fixture
async def home(tmp_path: Path) -> Home:
    return await create_home(tmp_path / "home", SETTINGS, NOW)


def add(home: Home, name: str, *, own_root: bool = False) -> Authority:
    with new_tenant(home, name, own_root=own_root, now=NOW) as made:
        pass
    return made


def subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()


@pytest.mark.parametrize("own_root", [False, True])
async def test_a_tenants_ca_verifies_by_openssl_and_can_have_no_ca_below_it(
    home: Home, tmp_path: Path, own_root: bool
) -> None:
    made = add(home, "x", own_root=own_root)
    assert found_tenant(home, "x") == made
    assert (subject(made.root) == "CN=Acme x Root CA") is own_root
    (tmp_path / "root.pem").write_bytes(pem(made.root))
    (tmp_path / "ca.pem").write_bytes(pem(made.issuing))
    when = str(int(NOW.timestamp()))
    code, _, errors = await run(
        *("openssl", "verify", "-x509_strict", "-attime", when, "-CAfile", tmp_path / "root.pem", tmp_path / "ca.pem")
    )
    assert code == 0, errors
    assert made.issuing.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


async def test_every_ca_has_a_name_and_a_key_of_its_own(home: Home) -> None:
    for name in ("x", "y"):
        add(home, name)
    new_issuing_key(home, "x", NOW)
    found = [c for a in read_authorities(home).all for c in (a.root, *a.issuers)]
    distinct = {c.public_bytes(Encoding.DER) for c in found}
    assert len(distinct) == 5
    assert len({subject(c) for c in found}) == 5
    assert len({c.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for c in found}) == 5


async def test_keys_are_for_their_owner_alone(home: Home) -> None:
    add(home, "x", own_root=True)
    new_issuing_key(home, "x", NOW)
    new_issuing_key(home, "", NOW)
    for path in home.ca.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & 0o022, path
        if path.is_dir():
            assert mode == 0o700, path
        elif path.suffix == ".key":
            assert mode == 0o600, path


async def test_a_tenants_folder_that_others_can_write_is_refused(home: Home) -> None:
    add(home, "x")
    home.tenants.chmod(0o770)
    with pytest.raises(Refused, match="can be changed by others"):
        open_home(home.path)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".x", "-x", "a b", "x" * 65, "cacerts", "x" * 64])
async def test_names_that_cannot_be(home: Home, name: str) -> None:
    with pytest.raises(Invalid):
        add(home, name)
    assert tenant_names(home) == frozenset()
    assert not home.tenants.exists() or list(home.tenants.iterdir()) == []


async def test_a_tenant_is_made_once_and_nothing_of_it_is_touched(home: Home) -> None:
    made = add(home, "x")
    with pytest.raises(Conflict, match="There is a tenant x"):
        add(home, "x", own_root=True)
    assert found_tenant(home, "x") == made


async def test_a_name_that_would_make_two_cas_of_one_name(tmp_path: Path) -> None:
    home = await create_home(tmp_path / "home", Settings(name="Acme"), NOW)
    add(home, "x")
    settings = home.settings_file.read_text()
    home.settings_file.write_text(settings.replace('"Acme"', '"Acme x"'))  # the fleet was called otherwise since
    (home.tenants / "x").rename(home.tenants / "y")
    with pytest.raises(NotFound):
        found_tenant(home, "x")
    home.settings_file.write_text(settings)
    with pytest.raises(Conflict, match="There is a CA called CN=Acme x Issuing CA"):
        add(home, "x")


async def test_without_the_roots_key_only_a_root_of_its_own_will_do(home: Home) -> None:
    home.root_key.rename(home.path / "offline.key")
    with pytest.raises(Refused) as refused:
        add(home, "x")
    assert refused.value.code == "root-key-away"
    with pytest.raises(Refused):
        new_issuing_key(home, "", NOW)
    assert add(home, "x", own_root=True).tenant == "x"
    assert new_issuing_key(home, "x", NOW).former


async def test_what_a_block_refuses_is_not_there(home: Home) -> None:
    with pytest.raises(ZeroDivisionError), new_tenant(home, "x", own_root=False, now=NOW):
        _ = 1 // 0
    assert list(home.tenants.iterdir()) == []


async def test_a_rollover_keeps_the_ca_before_and_signs_by_the_new_one(home: Home) -> None:
    before = authority_of(home, "")
    after = new_issuing_key(home, "", NOW + timedelta(days=1))
    assert (after.root, after.former) == (before.root, (before.issuing,))
    assert subject(after.issuing) == "CN=Acme Issuing CA 2"
    assert load_issuer(home).certificate == after.issuing
    kept = home.ca / "former" / f"{fingerprint(before.issuing)}.key"
    assert load_key(kept).public_key() == before.issuing.public_key()
    third = new_issuing_key(home, "", NOW + timedelta(days=2))
    assert subject(third.issuing) == "CN=Acme Issuing CA 3"
    assert set(third.former) == {before.issuing, after.issuing}
    anchors, tenants = client_anchors(read_authorities(home))
    assert set(third.issuers) < set(anchors)
    assert set(tenants.values()) == {""}


async def test_the_server_shows_a_certificate_of_the_ca_that_signs(home: Home) -> None:
    new_issuing_key(home, "", NOW)
    assert renew_server_certificate(home, SETTINGS, NOW) == "its issuing CA signs no more"
    leaf, issuing = server_identity(home).certificate_chain
    leaf.verify_directly_issued_by(issuing)
    assert issuing == authority_of(home, "").issuing
    assert renew_server_certificate(home, SETTINGS, NOW) == ""


async def test_a_server_certificate_of_another_ca_is_kept(home: Home) -> None:
    root, key = create_root("Corporate", NOW)
    issuing, issuing_key = create_issuing("Corporate", root, key, NOW)
    theirs, _ = issue_server_certificate(issuing, issuing_key, ("elsewhere",), NOW, key=load_key(home.server_key))
    home.server_chain.write_bytes(pem(theirs, issuing))
    new_issuing_key(home, "", NOW, root_too=True)
    late = theirs.not_valid_after_utc - timedelta(days=1)
    assert renew_server_certificate(home, SETTINGS, late) == ""
    assert server_identity(home).certificate_chain == (theirs, issuing)


@pytest.mark.parametrize("damaged", ["", "-----BEGIN CERTIFICATE-----\nMIIB\n", "text"])
async def test_a_damaged_file_is_named(home: Home, damaged: str) -> None:
    for file in (home.issuing_certificate, home.root_certificate):
        kept = file.read_bytes()
        file.write_text(damaged)
        with pytest.raises(Invalid, match=str(file)) as refused:
            read_authorities(home)
        assert refused.value.code == "bad-certificate-file"
        file.write_bytes(kept)
    home.server_chain.write_text(damaged)
    with pytest.raises(Invalid, match=str(home.server_chain)):
        server_identity(home)


async def test_former_cas_are_forgotten_one_by_one_and_never_too_many(home: Home) -> None:
    for _ in range(FORMER_MAX):
        new_issuing_key(home, "", NOW)
    with pytest.raises(Invalid, match="maximum") as refused:
        new_issuing_key(home, "", NOW)
    assert refused.value.code == "too-many-former"
    oldest = authority_of(home, "").former[-1]
    assert forget_former(home, "", fingerprint(oldest), NOW) == oldest
    assert not list((home.ca / "former").glob(f"{fingerprint(oldest)}*"))
    for wanted in (fingerprint(oldest), "../issuing", "zz"):
        with pytest.raises(NotFound):
            forget_former(home, "", wanted, NOW)
        with pytest.raises(NotFound):
            former_of(home, "", wanted)
    new_issuing_key(home, "", NOW)


async def test_the_ca_that_signs_cannot_be_forgotten(home: Home) -> None:
    with pytest.raises(NotFound):
        forget_former(home, "", fingerprint(authority_of(home, "").issuing), NOW)


# The root


def roots_before(authority: Authority) -> list[x509.Certificate]:
    return [each.certificate for each in authority.former_roots]


async def test_a_root_is_rolled_over_under_its_name_and_the_fleet_stays_the_same(home: Home) -> None:
    before, identity = authority_of(home, ""), fleet_fingerprint(home)
    for number in (1, 2):
        old = authority_of(home, "")
        after = new_issuing_key(home, "", NOW + timedelta(days=number), root_too=True)
        assert after.root.subject == old.root.subject
        assert after.root.public_key() != old.root.public_key()
        former = after.former_roots[0]
        assert former.certificate == old.root
        assert former.new_with_old is not None
        assert former.old_with_new is not None
        after.issuing.verify_directly_issued_by(after.root)
        former.new_with_old.verify_directly_issued_by(old.root)
        former.old_with_new.verify_directly_issued_by(after.root)
        assert former.new_with_old.public_key() == after.root.public_key()
        assert former.old_with_new.public_key() == old.root.public_key()
        assert all(each.issuing is not None for each in after.former_roots)
    assert after.former_roots[-1].certificate == before.root
    assert fleet_fingerprint(home) == identity
    assert load_key(home.root_key).public_key() == after.root.public_key()


async def test_each_root_leads_to_what_the_other_signed(home: Home, tmp_path: Path) -> None:
    add(home, "x")
    before, tenant = authority_of(home, ""), authority_of(home, "x")
    after = new_issuing_key(home, "", NOW, root_too=True)
    renew_server_certificate(home, SETTINGS, NOW)
    shown = server_identity(home).certificate_chain
    late = add(home, "y")
    for root in (before.root, after.root):
        (tmp_path / "root.pem").write_bytes(pem(root))
        chains = (
            (shown[0], shown[1:]),
            (before.issuing, after.chain),
            (after.issuing, after.chain),
            (tenant.issuing, authority_of(home, "x").chain),
            (late.issuing, authority_of(home, "y").chain),
        )
        for leaf, chain in chains:
            (tmp_path / "leaf.pem").write_bytes(pem(leaf))
            between = [each for each in chain if each not in (after.root, before.root)]
            (tmp_path / "chain.pem").write_bytes(pem(*between))
            code, _, errors = await run(
                *("openssl", "verify", "-x509_strict", "-attime", str(int(NOW.timestamp()))),
                *("-CAfile", tmp_path / "root.pem", "-untrusted", tmp_path / "chain.pem", tmp_path / "leaf.pem"),
            )
            assert code == 0, (subject(leaf), root.serial_number, errors)


@pytest.mark.parametrize("forgotten", [0, 1, 2])
async def test_every_root_that_is_left_verifies_the_server_after_one_was_forgotten(
    home: Home, tmp_path: Path, forgotten: int
) -> None:
    roots = [authority_of(home, "").root]
    for number in (1, 2, 3):
        roots.append(new_issuing_key(home, "", NOW + timedelta(days=number), root_too=True).root)
    gone = roots.pop(forgotten)
    assert forget_former(home, "", fingerprint(gone), NOW) == gone
    renew_server_certificate(home, SETTINGS, NOW)
    leaf, *between = server_identity(home).certificate_chain
    assert len(between) == 3
    for root in roots:
        assert await verifies(tmp_path, leaf, between, root), roots.index(root)
    assert not await verifies(tmp_path, leaf, between, gone) or forgotten == 0
    assert find_chain(leaf, authority_of(home, "").chain, [roots[0]], NOW)[1]


async def test_a_root_in_between_is_kept_while_its_neighbours_cannot_be_linked(home: Home, tmp_path: Path) -> None:
    roots = [authority_of(home, "").root]
    for number in (1, 2):
        roots.append(new_issuing_key(home, "", NOW + timedelta(days=number), root_too=True).root)
    home.root_key.rename(tmp_path / "away")
    with pytest.raises(Refused) as refused:
        forget_former(home, "", fingerprint(roots[1]), NOW)
    assert refused.value.code == "root-key-away"
    assert fingerprint(roots[0]) in refused.value.advice
    forget_former(home, "", fingerprint(roots[0]), NOW)
    forget_former(home, "", fingerprint(roots[1]), NOW)
    assert authority_of(home, "").former_roots == ()


async def test_a_gap_between_roots_leaves_the_newer_ones_served(home: Home, tmp_path: Path) -> None:
    """As a process that is killed between two files, or a hand, may leave it."""
    roots = [authority_of(home, "").root]
    for number in (1, 2):
        roots.append(new_issuing_key(home, "", NOW + timedelta(days=number), root_too=True).root)
    for file in (home.ca / "roots").glob("2-*"):
        file.unlink()
    renew_server_certificate(home, SETTINGS, NOW)
    leaf, *between = server_identity(home).certificate_chain
    assert await verifies(tmp_path, leaf, between, roots[2])


async def verifies(
    folder: Path, leaf: x509.Certificate, between: list[x509.Certificate], root: x509.Certificate
) -> bool:
    """Whether openssl builds a chain to `root`."""
    for name, certificates in (("root", [root]), ("leaf", [leaf]), ("chain", between)):
        (folder / f"{name}.pem").write_bytes(pem(*certificates))
    code, _, _ = await run(
        *("openssl", "verify", "-x509_strict", "-attime", str(int((NOW + timedelta(days=5)).timestamp()))),
        *("-CAfile", folder / "root.pem", "-untrusted", folder / "chain.pem", folder / "leaf.pem"),
    )
    return code == 0


async def test_a_tenant_below_the_fleets_root_has_none_to_roll_over(home: Home) -> None:
    add(home, "x")
    with pytest.raises(Invalid) as refused:
        new_issuing_key(home, "x", NOW, root_too=True)
    assert refused.value.code == "not-its-root"
    own = add(home, "y", own_root=True)
    assert roots_before(new_issuing_key(home, "y", NOW, root_too=True)) == [own.root]
    assert authority_of(home, "").former_roots == ()


# Whatever cuts it off


STEPS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "shutil.rmtree"})


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that is killed before its `step`th look at the disk; whether it came that far."""
    child = os.fork()
    if child == 0:
        left = [step]

        def hook(event: str, _: object) -> None:
            if event in STEPS:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            work()
        except BaseException:
            os._exit(2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status)), "it failed by itself"
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize(("tenant", "root_too"), [("", False), ("x", False), ("", True)])
async def test_a_rollover_that_is_killed_anywhere_has_happened_or_has_not(
    home: Home, tmp_path: Path, tenant: str, root_too: bool, tier: Tier
) -> None:
    add(home, "x")
    outcomes, step, identity = set(), 0, fleet_fingerprint(home)
    before = authority_of(home, tenant)
    while True:
        copy = Home(Path(shutil.copytree(home.path, tmp_path / f"copy-{step}")))
        killed = killed_at(step, partial(new_issuing_key, copy, tenant, NOW, root_too=root_too))
        after = authority_of(copy, tenant)
        assert load_key(after.key_file).public_key() == after.issuing.public_key()
        after.issuing.verify_directly_issued_by(after.root)
        assert fleet_fingerprint(copy) == identity
        happened = after.issuing != before.issuing
        assert (after.root != before.root) is (happened and root_too)
        assert after.former == ((before.issuing,) if happened else ())
        assert roots_before(after) == ([before.root] if happened and root_too else [])
        assert LiveAuthorities(copy).current.of(tenant) == after
        assert not list(copy.ca.rglob("issuing.next"))
        outcomes.add(happened)
        if not killed:
            break
        step += tier.times(3, all=1)
    assert outcomes == {True, False}
    assert step > 20


async def test_a_tenant_whose_making_is_killed_anywhere_is_there_whole_or_not_at_all(home: Home) -> None:
    outcomes, step = set(), 0
    while killed_at(step, partial(add, home, f"x{step}")):
        there = f"x{step}" in tenant_names(home)
        outcomes.add(there)
        found = read_authorities(home)
        assert found.broken == {}
        for each in found.tenants.values():
            assert load_key(each.key_file).public_key() == each.issuing.public_key()
        step += 1
    assert step > 10
    assert outcomes == {True, False}
    add(home, "last")
    assert not [path for path in home.tenants.iterdir() if path.name.startswith(".")]  # what was left is cleared away


# As they are used


async def test_they_are_read_again_when_they_have_changed(home: Home) -> None:
    live, told = LiveAuthorities(home), list[int]()
    live.changed = lambda: told.append(len(live.current.tenants))
    assert live.names() == frozenset()
    add(home, "x")
    assert live.names() == {"x"}
    new_issuing_key(home, "x", NOW)
    assert len(live.chain_der("x") or ()) == 3
    assert live.chain_der("nobody") is None
    assert told == [1, 1]
    live.reread()
    assert told == [1, 1]


async def test_what_a_new_ca_signs_is_trusted_by_every_process_when_it_comes(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading_ca, "LOOK_EVERY_NS", 500_000_000)  # the rollover and what follows take less
    signing, other = LiveAuthorities(home), LiveAuthorities(home)
    before = other.recent.own.issuing  # it has just looked
    new_issuing_key(home, "", NOW)
    permit = permit_by_operator(CredentialKind.DEVICE, "cam-1", SPKI, NOW + timedelta(days=1), NOW, model="cam")
    made = x509.load_der_x509_certificate(signing.issue(permit, NOW).der)
    assert made.issuer != before.subject
    made.verify_directly_issued_by(other.recent.own.issuing)


async def test_what_cannot_be_read_leaves_what_was_there(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    live = LiveAuthorities(home)
    before, content = live.current, home.issuing_certificate.read_bytes()
    home.issuing_certificate.unlink()
    assert live.current is before
    assert live.current is before
    assert caplog.text.count("event=ca.read outcome=failed kept=old") == 1
    home.issuing_certificate.write_bytes(content)
    assert live.current == before


async def test_a_server_never_waits_for_a_change(home: Home) -> None:
    live = LiveAuthorities(home)
    (home.ca / "issuing.next").mkdir()
    with locked(home.ca):
        assert live.current.own.issuing
        with pytest.raises(Unavailable) as busy:
            read_authorities(home, wait=False)
        assert busy.value.code == "ca-busy"
    (home.ca / "issuing.next").rmdir()


async def test_the_operators_ca_is_made_beside_a_change(home: Home) -> None:
    home.operators_certificate.unlink()
    home.operators_key.unlink()
    assert operators_authority(home, NOW)
