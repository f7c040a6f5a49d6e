"""Every CSR of the corpus through the real EST server: the right status, one plain sentence, an audit row; and whatever
is taken, its certificate holds nothing of it but the key. Certificates are read by a decoder that is not ours.
"""

import base64
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from asn1crypto import cms
from asn1crypto import x509 as judge
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.model_rules import rules_of
from fleet.services import inventory
from tests.servers.csr_corpus import EVIL, NAME, Case, corpus, mutations, refused_keys, spki
from tests.servers.est_fixtures import Answer, EstHarness, KeptAlive, basic, open_est

TYPED = {"Content-Type": "application/pkcs10"}
PATH = "/.well-known/est/simpleenroll"
SENTENCES = re.compile(r"['A-Z][^\n]*\. \([a-z0-9-]+\)\n")
NEVER_SHOWN = ("Traceback", "Error(", "0x", "<", ".py", "cryptography", EVIL)


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        cam = await inventory.known_model(est.registry, "cam")
        endless = replace(cam, rules=rules_of({"renewal": {"certificates_per_day": 0}}))
        await inventory.set_model(est.registry, endless, act=Act("test", est.clock()))
        await est.device(NAME)
        await est.device("cam-2")
        yield est


def must_hold_nothing_but(key: ec.EllipticCurvePrivateKey, answer: Answer) -> None:
    """RFC 7030 leaves it to the CA what it takes over from a CSR; this one takes the key."""
    [chosen] = cms.ContentInfo.load(base64.b64decode(answer.body), strict=True)["content"]["certificates"]
    der = chosen.chosen.dump()
    certificate = judge.Certificate.load(der, strict=True)
    assert certificate.public_key.dump() == spki(key.public_key())
    assert list(certificate.subject.native.items()) == [("common_name", NAME)]
    assert certificate.subject_alt_name_value is None
    assert {e["extn_id"].native for e in certificate["tbs_certificate"]["extensions"]} == {
        "basic_constraints",
        "key_usage",
        "extended_key_usage",
        "authority_key_identifier",
        "key_identifier",
    }
    assert certificate.basic_constraints_value.native == {"ca": False, "path_len_constraint": None}
    assert certificate.key_usage_value.native == {"digital_signature"}
    assert certificate.extended_key_usage_value.native == ["client_auth"]
    for codec in ("ascii", "utf-16-be"):
        assert EVIL.encode(codec) not in der


def must_be_one_sentence(answer: Answer) -> None:
    assert SENTENCES.fullmatch(answer.text), answer.text
    assert len(answer.text) < 400
    assert not [word for word in NEVER_SHOWN if word in answer.text], answer.text


async def test_every_case_of_the_corpus(est: EstHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = datetime.now(UTC)
    verdicts: Counter[str] = Counter()
    wrong: list[tuple[str, object, int, str]] = []
    secrets = []
    client = KeptAlive(est, None)
    for case in corpus():
        now += timedelta(seconds=61)  # whoever is refused again and again fills one row a minute
        est.now = now
        token = await est.token(NAME)
        secrets.append(token.partition(".")[2])
        before = await est.registry.last_audit()
        key = generate_key()
        answer = await client.send("POST", PATH, case.armour(case.build(key)), {**TYPED, **basic(token)})
        if case.expected is None and answer.status == 200:
            must_hold_nothing_but(key, answer)
            verdicts["taken"] += 1
            continue
        found = answer.status, answer.code
        if found != case.expected:
            wrong.append((case.what, case.expected, answer.status, answer.text))
            continue
        verdicts[f"{found[0]} {found[1]}"] += 1
        must_be_one_sentence(answer)
        if not is_kept_out_by_its_size(case, key):
            [row] = await est.registry.audit(after=before)
            entry = row.entry
            assert (entry.action, entry.outcome, entry.address) == ("device.enroll", answer.code, "127.0.0.1")
            who = {f"token {token.partition('.')[0]}", "nobody"}
            assert entry.actor in who, case.what
    client.close()
    assert wrong == [], "\n".join(f"{w} wanted {e} got {s} {t[:150]}" for w, e, s, t in wrong)
    print("\n" + "\n".join(f"{count:4} {verdict}" for verdict, count in sorted(verdicts.items())))
    must_be_clean(caplog, secrets)
    assert len(await est.registry.devices()) == 2


def is_kept_out_by_its_size(case: Case, key: ec.EllipticCurvePrivateKey) -> bool:
    """A body over the cap is not read at all: the log has it, by its address."""
    return len(case.armour(case.build(key))) > 64 * 1024


def must_be_clean(caplog: pytest.LogCaptureFixture, secrets: list[str]) -> None:
    """No stack trace, no token, nothing of a CSR in the log."""
    assert [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR] == []
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("fleet"))
    assert "code=malformed" in ours
    assert EVIL not in ours
    assert not [secret for secret in secrets if secret in ours]
    assert "MII" not in ours


async def test_every_place_in_the_tree(est: EstHarness, caplog: pytest.LogCaptureFixture) -> None:
    """Empty SETs and SEQUENCEs everywhere (CVE-2026-40097), elements left out, doubled, or of another type."""
    caplog.set_level(logging.INFO)
    key = generate_key()
    token = await est.token(model="cam", uses=9999)
    client = KeptAlive(est, None)
    statuses: Counter[int] = Counter()
    seen, taken = set(), []
    for what, csr in mutations(key):
        if csr in seen:
            continue
        seen.add(csr)
        answer = await client.send("POST", PATH, base64.b64encode(csr), {**TYPED, **basic(token)})
        statuses[answer.status] += 1
        if answer.status == 200:
            if NAME not in {d.id for d in await est.registry.devices()}:
                pytest.fail(f"{what}: another device")
            must_hold_nothing_but(key, answer)
            taken.append(what)
        else:
            assert answer.status in (400, 403, 413), (what, answer.text)
            must_be_one_sentence(answer)
    client.close()
    print(f"\n{len(seen)} trees: {dict(statuses)}; taken: {taken}")
    assert taken[0] == "as it is"  # so it is the change that the others are refused for
    assert statuses[400] > 300
    must_be_clean(caplog, [token.partition(".")[2]])


async def test_who_presented_a_certificate_is_named(est: EstHarness) -> None:
    """Also when the CSR could not be read."""
    station = await est.station()
    answer = await est.send("POST", PATH, base64.b64encode(b"evil"), TYPED, identity=station)
    assert (answer.status, answer.code) == (400, "malformed")
    *_, row = await est.registry.audit()
    assert (row.entry.actor, row.entry.action, row.entry.outcome) == ("station line-1", "device.enroll", "malformed")


async def test_one_stranger_with_junk_does_not_fill_the_audit(est: EstHarness) -> None:
    est.now = datetime.now(UTC)
    before = await est.registry.last_audit()
    for _ in range(20):
        await est.send("POST", PATH, base64.b64encode(b"evil"), {**TYPED, **basic("no.token")})
    assert await est.registry.last_audit() == before + 1


@pytest.mark.parametrize("operation", ["simplereenroll", "serverkeygen"])
async def test_the_other_operations_refuse_the_same(est: EstHarness, operation: str) -> None:
    device = await est.enrolled("cam-9")
    est.now = datetime.now(UTC)
    for case in refused_keys():
        if case.expected == (400, "key-not-allowed"):
            continue
        est.now += timedelta(seconds=61)
        key = generate_key()
        before = await est.registry.last_audit()
        answer = await est.post(operation, case.build(key), identity=device)
        assert (answer.status, answer.code) == case.expected, case.what
        [row] = await est.registry.audit(after=before)
        action = {"simplereenroll": "device.reenroll", "serverkeygen": "device.serverkeygen"}[operation]
        assert (row.entry.actor, row.entry.action, row.entry.outcome) == ("device cam-9", action, answer.code)


def test_the_corpus_is_what_it_says() -> None:
    """A slip in building one would make a case of nothing."""
    cases = corpus()
    assert len(cases) > 150
    key = generate_key()
    sizes = {case.what: len(case.build(key)) for case in cases}
    assert sizes["an integer of 1 MB"] > 1 << 20
    assert sizes["10,000 names"] > 60_000
