"""First certificates by a claim that a batch shares, over real TLS; and what puts a claim into quarantine."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.changes import Event, EventKind
from fleet.domain.claim import TAKEOVERS_MAX, Claim
from fleet.domain.errors import Refused
from fleet.domain.model_rules import AdmissionPath, AdmissionRules
from fleet.domain.peer import Peer
from fleet.services import claims, inventory, revocation
from fleet.services.admission import admit
from fleet.services.restore_revocations import reapply
from fleet.wire.est import encode_body
from tests.servers.est_fixtures import Answer, EstHarness, Identity, basic, csr_for, open_est, renewal_csr

MANY = 200


@dataclass
class Batch:
    est: EstHarness
    shown: Identity
    """The claim's certificate, which every device of the batch has."""

    @property
    def act(self) -> Act:
        return Act("test", self.est.clock())

    async def claim(self) -> Claim:
        found = await self.est.registry.claim("batch-1")
        assert found is not None
        return found

    async def enroll(self, id_: str, label: str = "", key: object = None) -> Answer:
        return await self.est.enroll(csr_for(id_, key), identity=self.shown, label=label)  # type: ignore[arg-type]

    async def verdict(self, id_: str, label: str = "", key: object = None) -> tuple[int, str]:
        answer = await self.enroll(id_, label, key)
        return answer.status, answer.code if answer.status != 200 else ""

    async def rows(self) -> list[tuple[str, str, str, str]]:
        """(actor, action, subject, outcome) of each row that is no operator's."""
        entries = [row.entry for row in await self.est.registry.audit(limit=5000)]
        return [(e.actor, e.action, e.subject, e.outcome) for e in entries if e.actor != "test"]

    async def is_quarantined(self, why: str) -> None:
        """It is, for that reason: in its state, in the audit, in the feed, and at the door."""
        claim = await self.claim()
        assert claim.quarantined_at is not None
        assert why in claim.quarantine_reason
        assert ("watch", "claim.quarantine", "claim batch-1", "ok") in await self.rows()
        told = [(e.kind, e.subject, e.detail) for e in await self.est.registry.events()]
        assert (EventKind.CLAIM_STATE, "batch-1", "quarantined") in told
        assert await self.verdict("new-99") == (403, "claim-quarantined")
        assert await self.est.registry.device("new-99") is None
        assert ("claim batch-1", "device.enroll", "device new-99", "claim-quarantined") in await self.rows()


async def new_batch(est: EstHarness, name: str = "batch-1", quota: int = 3, days: float = 1) -> Batch:
    key = generate_key()
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    act = Act("test", est.clock())
    _, credential = await claims.enroll_claim(
        est.registry,
        est.issuer,
        claims.NewClaim(name, "cam", quota, spki, act.now + timedelta(days=days)),
        act=act,
    )
    return Batch(est, est.identity(x509.load_der_x509_certificate(credential.der), key))


async def admits(est: EstHarness, model: str, *paths: AdmissionPath) -> None:
    old = await est.registry.model(model)
    assert old is not None
    new = replace(old, rules=replace(old.rules, admission=AdmissionRules(paths=paths)))
    await inventory.set_model(est.registry, new, act=Act("test", est.clock()))


@pytest.fixture
async def batch(tmp_path: Path) -> AsyncIterator[Batch]:
    async with open_est(tmp_path) as est:
        await admits(est, "cam", AdmissionPath.TOKEN, AdmissionPath.CLAIM)
        yield await new_batch(est)


async def test_it_enrolls_new_devices_up_to_its_quota(batch: Batch) -> None:
    for number in range(3):
        assert await batch.verdict(f"new-{number}") == (200, "")
    assert await batch.verdict("new-3") == (403, "claim-used-up")
    assert await batch.est.registry.device("new-3") is None
    assert (await batch.claim()).uses == 3
    assert (await batch.claim()).quarantined_at is None
    assert ("claim batch-1", "device.enroll", "device new-0", "ok") in await batch.rows()
    assert ("claim batch-1", "device.enroll", "device new-3", "claim-used-up") in await batch.rows()
    [held] = await batch.est.registry.credentials("new-0")
    assert held.grant == "claim batch-1"


async def test_many_at_once_are_no_more_than_its_quota(batch: Batch) -> None:
    answers = await asyncio.gather(*(batch.verdict(f"new-{number}") for number in range(12)))
    assert sorted(answers) == sorted([(200, "")] * 3 + [(403, "claim-used-up")] * 9)
    assert (await batch.claim()).uses == 3


async def test_a_registered_device_that_waits_for_its_first(batch: Batch) -> None:
    await batch.est.device("cam-1", serial="SN1")
    assert await batch.verdict("cam-1") == (200, "")


async def test_a_device_that_a_restore_has_barred_is_no_fault_of_the_claim(batch: Batch) -> None:
    """It asks in good faith: what it was put out for, and as what, only the lost registry knew."""
    since = [Event(EventKind.DEVICE_STATE, "new-1", "active", 1), Event(EventKind.DEVICE_STATE, "new-1", "revoked", 2)]
    await reapply(batch.est.registry, since, act=batch.act)
    await claims.release_claim(batch.est.registry, "batch-1", act=batch.act)  # an operator has looked
    for label in ("", "cam"):
        assert await batch.verdict("new-1", label=label) == (403, "device-barred")
    assert (await batch.claim()).quarantined_at is None
    assert await batch.verdict("new-2") == (200, "")


async def test_a_lost_answer_costs_no_second_use(batch: Batch) -> None:
    key = generate_key()
    answers = [await batch.enroll("new-1", key=key) for _ in range(3)]
    assert len({answer.certificates[0].serial_number for answer in answers}) == 1
    assert (await batch.claim()).uses == 1


async def test_a_used_up_claim_still_answers_the_same_request(batch: Batch) -> None:
    keys = [generate_key() for _ in range(3)]
    for number, key in enumerate(keys):
        assert await batch.verdict(f"new-{number}", key=key) == (200, "")
    assert await batch.verdict("new-0", key=keys[0]) == (200, "")


async def test_its_end(batch: Batch) -> None:
    now = batch.est.clock()
    batch.est.now = (await batch.claim()).expires_at - timedelta(seconds=1)
    assert await batch.verdict("new-1") == (200, "")
    batch.est.now = now
    reader, writer = await batch.est.connect(batch.shown)  # let in, and then its time is over
    batch.est.now = (await batch.claim()).expires_at
    body = encode_body(csr_for("new-2"))
    head = "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: x\r\nContent-Type: application/pkcs10\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    answer = Answer(await reader.read())
    writer.close()
    assert (answer.status, answer.code) == (403, "certificate-expired")
    assert (await batch.claim()).quarantined_at is None


async def test_revoked_is_for_good(batch: Batch) -> None:
    await claims.revoke_claim(batch.est.registry, "batch-1", act=batch.act)
    assert await batch.verdict("new-1") == (403, "certificate-revoked")
    assert ("claim batch-1", "device.enroll", "device new-1", "certificate-revoked") in await batch.rows()


async def test_the_models_rule_decides(batch: Batch) -> None:
    await admits(batch.est, "cam", AdmissionPath.TOKEN)
    assert await batch.verdict("new-1") == (403, "path-not-open")
    assert (await batch.claim()).quarantined_at is None


async def test_attributes_are_those_of_its_model(batch: Batch) -> None:
    answer = await batch.est.send("GET", "/.well-known/est/csrattrs", identity=batch.shown)
    assert answer.status == 200
    assert (await batch.claim()).quarantined_at is None


# Misuse


async def test_at_the_mqtt_door(batch: Batch) -> None:
    der = batch.shown.certificate.public_bytes(Encoding.DER)
    facts = await batch.est.registry.credentials("batch-1")
    peer = Peer("192.0.2.7", certificate_der=der, fingerprint=facts[0].fingerprint)
    with pytest.raises(Refused) as caught:
        await admit(batch.est.registry, peer, "batch-1", batch.est.clock())
    assert caught.value.code == "claim-only-enrolls"
    assert ("claim batch-1", "mqtt.connect", "device batch-1", "claim-only-enrolls") in await batch.rows()
    await batch.is_quarantined("opens nothing")


async def test_for_renewal(batch: Batch) -> None:
    answer = await batch.est.reenroll(renewal_csr(batch.shown), batch.shown)
    assert (answer.status, answer.code) == (403, "claim-only-enrolls")
    await batch.is_quarantined("opens nothing")


@pytest.mark.parametrize("path", ["/v1/whoami", "/v1/devices", "/v1/stations"])
async def test_at_the_api(batch: Batch, path: str) -> None:
    answer = await batch.est.send("GET", path, identity=batch.shown, server="admin")
    assert (answer.status, "claim-only-enrolls" in answer.text) == (403, True)
    assert ("claim batch-1", "api.call", f"GET {path}", "claim-only-enrolls") in await batch.rows()
    await batch.is_quarantined("opens nothing")


async def test_under_another_models_label(batch: Batch) -> None:
    assert await batch.verdict("new-1", label="pump") == (403, "not-your-model")
    await batch.is_quarantined("another model")


@pytest.mark.parametrize("path", [AdmissionPath.CLAIM, AdmissionPath.TOKEN])
async def test_for_a_device_of_another_model(batch: Batch, path: AdmissionPath) -> None:
    """Whatever that model lets in."""
    await admits(batch.est, "pump", path)
    await batch.est.device("pump-1", "pump")
    assert await batch.verdict("pump-1") == (403, "not-your-model")
    await batch.is_quarantined("another model")


async def test_again_and_again_for_what_has_an_owner(batch: Batch) -> None:
    owner = await batch.est.enrolled("cam-1")
    assert (await batch.est.reenroll(renewal_csr(owner), owner)).status == 200
    for count in range(1, TAKEOVERS_MAX + 1):
        assert await batch.verdict("cam-1") == (403, "already-enrolled")
        assert ((await batch.claim()).takeovers, (await batch.claim()).quarantined_at) == (count, None)
    assert await batch.verdict("cam-1") == (403, "already-enrolled")
    await batch.is_quarantined(f"more than {TAKEOVERS_MAX} times")


async def test_many_at_once_are_counted_in_the_write(batch: Batch) -> None:
    """Each has read a claim that nobody had misused yet."""
    owner = await batch.est.enrolled("cam-1")
    assert (await batch.est.reenroll(renewal_csr(owner), owner)).status == 200
    barrier = asyncio.Barrier(MANY)
    registry = batch.est.registry
    found = await registry.holder_facts(batch.shown.certificate.fingerprint(hashes.SHA256()))
    assert found is not None
    assert found.claim is not None
    claim, codes = found.claim, Counter[str]()

    async def misuse() -> None:
        await barrier.wait()
        try:
            await claims.misused(registry, claim, "already-enrolled", Peer("192.0.2.1"), batch.est.clock())
        except Refused as refusal:
            codes[refusal.code] += 1
        else:
            codes["already-enrolled"] += 1

    await asyncio.gather(*(misuse() for _ in range(MANY)))
    assert (await batch.claim()).takeovers == TAKEOVERS_MAX
    actions = Counter(action for _, action, _, _ in await batch.rows())
    assert (actions["claim.takeover"], actions["claim.quarantine"]) == (TAKEOVERS_MAX, 1)
    # The one that exceeds the limit is answered like those before it.
    assert codes == {"already-enrolled": TAKEOVERS_MAX + 1, "claim-quarantined": MANY - TAKEOVERS_MAX - 1}


async def test_many_at_once_over_tls_learn_no_more(batch: Batch) -> None:
    owner = await batch.est.enrolled("cam-1")
    assert (await batch.est.reenroll(renewal_csr(owner), owner)).status == 200
    answers = Counter(await asyncio.gather(*(batch.verdict("cam-1") for _ in range(20))))
    assert (await batch.claim()).takeovers == TAKEOVERS_MAX
    assert answers == {
        (403, "already-enrolled"): TAKEOVERS_MAX + 1,
        (403, "claim-quarantined"): 20 - TAKEOVERS_MAX - 1,
    }


async def test_for_what_was_put_out(batch: Batch) -> None:
    await batch.est.enrolled("cam-1")
    await revocation.revoke(batch.est.registry, "cam-1", act=batch.act)
    assert await batch.verdict("cam-1") == (403, "device-revoked")
    assert (await batch.claim()).takeovers == 1


async def test_a_brother_is_not_taken_over(batch: Batch) -> None:
    assert await batch.verdict("new-1") == (200, "")
    assert await batch.verdict("new-1") == (403, "already-enrolled")  # another key: another device of the batch


async def test_released_it_goes_on_where_it_was(batch: Batch) -> None:
    assert await batch.verdict("new-1") == (200, "")
    assert await batch.verdict("new-2", label="pump") == (403, "not-your-model")
    await batch.is_quarantined("another model")
    await claims.release_claim(batch.est.registry, "batch-1", act=batch.act)
    claim = await batch.claim()
    assert (claim.uses, claim.takeovers, claim.quarantined_at) == (1, 0, None)
    assert await batch.verdict("new-2") == (200, "")


async def test_what_a_quarantined_claim_enrolled_stays(batch: Batch) -> None:
    key = generate_key()
    own = batch.est.identity((await batch.enroll("new-1", key=key)).certificates[0], key)
    await claims.quarantine_claim(batch.est.registry, "batch-1", act=batch.act, reason="one was opened")
    assert (await batch.est.reenroll(renewal_csr(own), own)).status == 200
    assert await batch.verdict("new-2") == (403, "claim-quarantined")


async def test_bad_requests_are_no_misuse(batch: Batch) -> None:
    answer = await batch.est.post("simpleenroll", b"no csr", identity=batch.shown)
    assert answer.status == 400
    assert await batch.verdict("no id at all") == (400, "bad-device-id")
    assert (await batch.claim()).quarantined_at is None


async def test_a_token_beside_it_is_what_counts(batch: Batch) -> None:
    await batch.est.device("cam-1")
    token = await batch.est.token("cam-1")
    answer = await batch.est.enroll(csr_for("cam-1"), basic(token), identity=batch.shown)
    assert answer.status == 200
    assert (await batch.claim()).uses == 0
    other = await batch.est.token(model="pump")
    answer = await batch.est.enroll(csr_for("cam-1"), basic(other), identity=batch.shown)
    assert (answer.status, answer.code) == (403, "not-your-model")
    assert (await batch.claim()).quarantined_at is None  # it is the token that was misused
