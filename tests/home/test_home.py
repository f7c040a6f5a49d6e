"""A fleet's folder: made whole or not at all, and its server certificate never left to expire."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from msgspec.structs import replace

from fleet.ca.authority import SERVER_LIFETIME, names_of_server
from fleet.config.settings import Settings
from fleet.domain.errors import Conflict, Invalid, NotFound, Refused
from fleet.home import pki
from fleet.home.authorities import read_authorities
from fleet.home.creation import create_home
from fleet.home.layout import Home, open_home, open_registry, settings_of
from fleet.home.pki import (
    audit_signer,
    load_operators_issuer,
    operators_authority,
    renew_server_certificate,
    server_identity,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SETTINGS = Settings(name="acme")


@pytest.fixture
async def home(tmp_path: Path) -> Home:
    return await create_home(tmp_path / "home", SETTINGS, NOW)


def leaf(home: Home) -> x509.Certificate:
    return server_identity(home).certificate_chain[0]


async def test_a_new_home_holds_what_it_promises(home: Home) -> None:
    assert open_home(home.path) == home
    assert settings_of(home) == SETTINGS
    registry = await open_registry(home)
    try:
        assert [model.name for model in await registry.models()] == ["default"]
    finally:
        await registry.close()
    assert names_of_server(leaf(home)) == {"localhost", "127.0.0.1", "::1"}


async def test_settings_that_cannot_be_read_are_one_sentence(home: Home) -> None:
    home.settings_file.write_text("[registry]\ndatabase = 'nonsense'\n")
    with pytest.raises(Invalid, match=r"line 2: registry\.database is not") as caught:
        await open_registry(home)
    assert caught.value.code == "bad-settings"


async def test_a_home_is_never_made_over_something(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in (home.path, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(Conflict):
            await create_home(place, SETTINGS, NOW)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


async def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    assert (await create_home(tmp_path / "home", SETTINGS, NOW)).settings_file.exists()


def test_a_folder_that_is_no_home_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_home(tmp_path)


async def test_a_server_certificate_in_its_youth_is_left_alone(home: Home) -> None:
    before = home.server_chain.read_bytes()
    assert renew_server_certificate(home, SETTINGS, NOW + SERVER_LIFETIME / 2) == ""
    assert home.server_chain.read_bytes() == before


@pytest.mark.parametrize("age", [SERVER_LIFETIME * 0.7, SERVER_LIFETIME + timedelta(days=400)])
async def test_it_is_renewed_before_and_even_after_its_end_for_the_same_key(home: Home, age: timedelta) -> None:
    before = leaf(home)
    assert "expire" in renew_server_certificate(home, SETTINGS, NOW + age)
    after = leaf(home)
    assert after.public_key() == before.public_key()
    assert after.not_valid_after_utc > NOW + age + SERVER_LIFETIME * 0.9
    assert renew_server_certificate(home, SETTINGS, NOW + age) == ""


async def test_other_hosts_in_fleet_toml_make_another_certificate(home: Home) -> None:
    settings = replace(SETTINGS, hosts=("localhost", "iot.acme.example", "2001:DB8:0::1"))
    assert renew_server_certificate(home, settings, NOW) == "fleet.toml names other hosts"
    assert names_of_server(leaf(home)) == {"localhost", "iot.acme.example", "2001:db8::1"}
    assert renew_server_certificate(home, settings, NOW) == ""


@pytest.mark.parametrize("place", [".", "fleet.toml", "ca", "server", "state", "archive"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
async def test_a_home_that_others_can_change_is_refused(home: Home, place: str, mode: int) -> None:
    target = home.path / place
    if place == "archive":
        target.mkdir(mode=0o700)
        assert open_home(home.path) == home
    target.chmod(target.stat().st_mode | mode)
    with pytest.raises(Refused) as refused:
        open_home(home.path)
    assert refused.value.code == "home-exposed"


async def test_a_run_folder_that_is_a_link_is_refused(home: Home, tmp_path: Path) -> None:
    home.run.rmdir()
    home.run.symlink_to(tmp_path)
    with pytest.raises(Refused) as refused:
        open_home(home.path)
    assert refused.value.code == "home-exposed"


async def test_a_new_home_is_its_users_own_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        home = await create_home(tmp_path / "home", SETTINGS, NOW)
    finally:
        os.umask(before)
    assert open_home(home.path) == home


class TestAuditKey:
    async def test_a_new_home_has_one(self, home: Home) -> None:
        assert home.audit_key.stat().st_mode & 0o777 == 0o600
        assert home.audit_public_key.read_bytes() == audit_signer(home).public_key.pem()

    async def test_an_older_home_gets_one_once(self, home: Home) -> None:
        home.audit_key.unlink()
        home.audit_public_key.unlink()
        with ThreadPoolExecutor(8) as pool:
            signers = list(pool.map(lambda _: audit_signer(home), range(16)))
        assert len({signer.key_id for signer in signers}) == 1
        assert sorted(p.name for p in home.audit_key.parent.iterdir() if "audit" in p.name) == [
            "audit.key",
            "audit.pub",
        ]
        assert home.audit_key.stat().st_mode & 0o777 == 0o600

    async def test_a_public_half_that_is_gone_is_made_again(self, home: Home) -> None:
        before = home.audit_public_key.read_bytes()
        home.audit_public_key.unlink()
        audit_signer(home)
        assert home.audit_public_key.read_bytes() == before

    async def test_a_key_that_is_lost_is_not_replaced_in_silence(self, home: Home) -> None:
        home.audit_key.unlink()
        with pytest.raises(Refused) as refused:
            audit_signer(home)
        assert refused.value.code == "audit-key-lost"
        assert not home.audit_key.exists()
        home.audit_public_key.rename(home.path / "old.pub")
        assert audit_signer(home).public_key.pem() != (home.path / "old.pub").read_bytes()

    async def test_halves_of_two_keys_are_refused(self, home: Home, tmp_path: Path) -> None:
        other = await create_home(tmp_path / "other", SETTINGS, NOW)
        home.audit_public_key.write_bytes(other.audit_public_key.read_bytes())
        with pytest.raises(Invalid, match="not the public half"):
            audit_signer(home)


async def test_the_operators_have_a_ca_of_their_own(home: Home) -> None:
    authority = operators_authority(home, NOW)
    authority.verify_directly_issued_by(authority)
    assert home.operators_key.stat().st_mode & 0o077 == 0
    own = read_authorities(home).own
    assert authority not in own.chain
    assert load_operators_issuer(home, NOW).certificate == authority
    assert authority.subject.rfc4514_string() == "CN=acme Operators CA"


async def test_the_operators_key_outlives_its_certificate(home: Home) -> None:
    """Absent for a moment, as during a copy of the home, the certificate is no reason to replace the key."""
    key, certificate = home.operators_key.read_bytes(), home.operators_certificate.read_bytes()
    home.operators_certificate.unlink()
    for ask in (operators_authority, load_operators_issuer):
        with pytest.raises(Refused) as refused:
            ask(home, NOW)
        assert refused.value.code == "operators-ca-lost"
    assert home.operators_key.read_bytes() == key
    home.operators_certificate.write_bytes(certificate)
    assert load_operators_issuer(home, NOW)


@pytest.mark.parametrize("step", ["write_file", "write_key", "sync"])
@pytest.mark.parametrize("is_done", [False, True])
async def test_a_creation_cut_off_anywhere_is_finished(
    home: Home, step: str, is_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.operators_certificate.unlink()
    home.operators_key.unlink()
    do = getattr(pki, step)

    def cut(*args: object, **named: object) -> None:
        if is_done:
            do(*args, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(pki, step, cut)
        with pytest.raises(KeyboardInterrupt):
            operators_authority(home, NOW)
    assert load_operators_issuer(home, NOW).certificate == operators_authority(home, NOW)
    assert not list(home.ca.glob("*.draft"))


async def test_an_older_home_gets_it_once_when_it_is_first_needed(home: Home) -> None:
    home.operators_certificate.unlink()
    home.operators_key.unlink()
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: operators_authority(home, NOW), range(8)))
    assert len(made) == 1
    load_operators_issuer(home, NOW)
    assert sorted(p.name for p in home.operators_certificate.parent.iterdir()) == [
        "audit.key",
        "audit.pub",
        "issuing.key",
        "issuing.pem",
        "operators.key",
        "operators.pem",
        "root.key",
        "root.pem",
    ]
