"""What is served is what clients can verify: hand-made chains, and certificates of other CAs."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from fleet.ca.authority import create_issuing, create_root, issue_server_certificate
from fleet.ca.key_identifiers import identifier_of
from fleet.ca.keys import generate_key, load_key, write_key
from fleet.config.settings import Settings
from fleet.domain.errors import Invalid
from fleet.home.authorities import authority_of
from fleet.home.ca_store import Authority, FormerRoot
from fleet.home.creation import create_home
from fleet.home.layout import Home, certificates_in
from fleet.home.pki import renew_server_certificate, server_identity
from fleet.home.served_chain import served_chain
from fleet.runtime.jobs.server_certificate import Contexts, renew_if_due
from fleet.tls.verification import why_unverified
from tests.home.corporate import CorporateCa, below, corporate_root, install
from tests.tenant_fixtures import pem

NOW = datetime(2026, 5, 1, tzinfo=UTC)
SETTINGS = Settings(name="Acme", hosts=("localhost",))


@pytest.fixture
async def home(tmp_path: Path) -> Home:
    return await create_home(tmp_path / "home", SETTINGS, NOW)


@pytest.mark.parametrize("levels", [1, 2, 3])
async def test_a_hand_made_chain_is_served_whole_and_by_its_own_key_identifiers(home: Home, levels: int) -> None:
    root = corporate_root("Corp Root", NOW, is_rsa=True)
    chain = [root]
    for level in range(levels):
        chain.insert(0, below(chain[0], f"Corp CA {level}", NOW, path_length=levels - 1 - level))
    install(home.ca, root, chain[:-1])
    assert renew_server_certificate(home, SETTINGS, NOW)
    served = server_identity(home).certificate_chain
    assert served[1:] == tuple(each.certificate for each in chain[:-1])
    authority = served[0].extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert authority.key_identifier == identifier_of(chain[0].certificate)
    assert why_unverified(served, [root.certificate], NOW) == ""
    Contexts.of(home, lambda: NOW)
    assert renew_server_certificate(home, SETTINGS, NOW) == ""
    assert set(authority_of(home, "").chain) == {each.certificate for each in chain}


async def test_a_certificate_that_names_the_key_above_by_another_method_is_renewed(home: Home) -> None:
    authority = authority_of(home, "")
    by_sha1 = x509.SubjectKeyIdentifier.from_public_key(authority.issuing.public_key())
    key, root_key = load_key(home.issuing_key), load_key(home.root_key)
    root = CorporateCa(authority.root, root_key)
    (home.ca / "issuing.pem").write_bytes(pem(root.signed(authority.issuing.subject, key.public_key(), NOW)))
    assert identifier_of(authority_of(home, "").issuing) == by_sha1.digest
    assert "names its issuing CA's key otherwise" in renew_server_certificate(home, SETTINGS, NOW)
    assert why_unverified(server_identity(home).certificate_chain, [authority.root], NOW) == ""


async def test_a_chain_that_no_client_verifies_is_not_served(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    root = corporate_root("Corp Root", NOW)
    upper = below(root, "Corp Upper", NOW, path_length=1)
    issuing = below(upper, "Corp Issuing", NOW)
    install(home.ca, root, [issuing])  # the upper one is missing
    renew_server_certificate(home, SETTINGS, NOW)
    with pytest.raises(Invalid, match=r"server\.pem: unable to get local issuer certificate") as refused:
        Contexts.of(home, lambda: NOW)
    assert refused.value.code == "bad-server-chain"
    (home.ca / "issuing.pem").write_bytes(pem(issuing.certificate, upper.certificate))
    assert renew_server_certificate(home, SETTINGS, NOW) == "another chain serves every client"
    contexts = Contexts.of(home, lambda: NOW)
    before = contexts.est.current
    home.server_chain.write_bytes(pem(*certificates_in(home.server_chain)[:2]))
    contexts.reload(home)
    assert contexts.est.current is before
    assert "outcome=failed" in caplog.text


async def test_a_key_of_another_certificate_is_named_with_its_file(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    contexts, before = Contexts.of(home, lambda: NOW), home.server_key.read_bytes()
    home.server_key.unlink()
    write_key(home.server_key, generate_key())
    with pytest.raises(
        Invalid, match=r"server\.key is not the key of the first certificate in .*server\.pem"
    ) as refused:
        Contexts.of(home, lambda: NOW)
    assert refused.value.code == "bad-server-key"
    contexts.reload(home)
    assert "outcome=failed" in caplog.text
    home.server_key.write_bytes(before)
    Contexts.of(home, lambda: NOW)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("path length", "path length constraint exceeded"),
        ("no CA", "invalid CA certificate"),
        ("no server", "unsuitable certificate purpose"),
    ],
)
async def test_the_whole_chain_is_verified(home: Home, fault: str, why: str) -> None:
    root = corporate_root("Corp Root", NOW)
    upper = below(root, "Corp Upper", NOW, path_length=0 if fault == "path length" else 1)
    issuing = below(upper, "Corp Issuing", NOW, ca=fault != "no CA")
    key = load_key(home.server_key)
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if fault == "no server" else ExtendedKeyUsageOID.SERVER_AUTH
    leaf = issuing.signed(
        "localhost", key.public_key(), NOW, ca=False, extensions=[(x509.ExtendedKeyUsage([usage]), False)]
    )
    home.server_chain.write_bytes(pem(leaf, issuing.certificate, upper.certificate))
    with pytest.raises(Invalid, match=why):
        Contexts.of(home, lambda: NOW)


async def test_an_operators_certificate_is_kept_and_watched(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    root, key = create_root("Corporate", NOW)
    issuing, issuing_key = create_issuing("Corporate", root, key, NOW)
    theirs, _ = issue_server_certificate(issuing, issuing_key, ("localhost",), NOW, key=load_key(home.server_key))
    kept = pem(theirs, issuing)
    home.server_chain.write_bytes(kept)

    def looked_at(at: datetime, settings: Settings = SETTINGS) -> str:
        caplog.clear()
        renew_if_due(home, settings, lambda: at)
        assert home.server_chain.read_bytes() == kept
        Contexts.of(home, lambda: at)  # an expired one is served, for clients without a clock
        return " ".join(each.getMessage() for each in caplog.records if each.levelno == logging.WARNING)

    end = theirs.not_valid_after_utc
    assert looked_at(NOW) == ""
    assert "which has to renew it" in looked_at(end - timedelta(days=60))
    assert "certificate has expired" in looked_at(end + timedelta(days=1))
    assert "does not name elsewhere" in looked_at(NOW, Settings(hosts=("localhost", "elsewhere")))


async def test_what_others_trust_need_not_be_known_here(home: Home) -> None:
    root = corporate_root("Public Root", NOW)
    upper = below(root, "Public Upper", NOW, path_length=1)
    issuing = below(upper, "Public Issuing", NOW)
    leaf = issuing.signed("localhost", load_key(home.server_key).public_key(), NOW, ca=False)
    for chain in ((leaf,), (leaf, issuing.certificate), (leaf, issuing.certificate, upper.certificate)):
        home.server_chain.write_bytes(pem(*chain))
        Contexts.of(home, lambda: NOW)
    home.server_chain.write_bytes(pem(leaf, upper.certificate))
    with pytest.raises(Invalid, match="unable to get local issuer"):
        Contexts.of(home, lambda: NOW)


@pytest.mark.parametrize("path_length", [None, 3, 2, 1])
def test_a_root_that_is_not_ours_leads_to_the_one_before_where_path_lengths_allow_it(path_length: int | None) -> None:
    """Otherwise the issuing CA as that one has signed it is sent too, which GnuTLS follows."""
    first = corporate_root("First", NOW, path_length=path_length)
    root = corporate_root("Corp Root", NOW)
    upper = below(root, "Corp Upper", NOW, path_length=1)
    issuing = below(upper, "Issuing", NOW)
    link = first.signed(root.certificate.subject, root.key.public_key(), NOW, path_length=None)
    cross = first.signed(issuing.certificate.subject, issuing.key.public_key(), NOW)
    former = FormerRoot(1, first.certificate, Path("none"), link, None, cross)
    authority = Authority("", root.certificate, issuing.certificate, (), Path("none"), (former,), (upper.certificate,))
    expected = [issuing.certificate, upper.certificate, link]
    assert list(served_chain(authority, NOW)) == expected + [cross] * (path_length in (1, 2))
