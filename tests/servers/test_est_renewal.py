"""Renewal over real TLS: late ones, keys by the model's rule, and requests that come again (RFC 7030, 4.2.2)."""

import json
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from msgspec.structs import replace

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.device import Model
from fleet.domain.model_rules import rules_of
from fleet.services import inventory, renewal, revocation
from fleet.wire.est import encode_body
from tests.servers.est_fixtures import EstHarness, Identity, KeptAlive, basic, csr_for, open_est, renewal_csr

DAY = timedelta(days=1)


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        yield est


async def enrolled(est: EstHarness, name: str, **renewal: Any) -> Identity:
    """A device of a model of its own with these rules of renewal; its certificate lives for 90 days."""
    model = Model(f"of-{name}", rules=rules_of({"renewal": renewal}))
    await inventory.add_model(est.registry, model, act=Act("test", est.clock()))
    await est.device(name, model.name)
    key = generate_key()
    answer = await est.enroll(csr_for(name, key), basic(await est.token(name)))
    return est.identity(answer.certificates[0], key)


async def verdict(est: EstHarness, device: Identity, csr: bytes | None = None) -> str:
    answer = await est.reenroll(csr or renewal_csr(device), device)
    return "ok" if answer.status == 200 else answer.code


async def test_within_the_grace_a_late_device_renews_and_does_nothing_else(est: EstHarness) -> None:
    device = await enrolled(est, "late-1", grace_seconds=7 * 86400)
    est.now = datetime.now(UTC) + 96 * DAY
    for path in ("simpleenroll", "serverkeygen"):
        refused = await est.post(path, renewal_csr(device), identity=device)
        assert (refused.status, refused.code) == (403, "certificate-expired")
    token = basic(await est.token("late-1"))
    assert (await est.post("simpleenroll", renewal_csr(device), token, identity=device)).code == "certificate-expired"
    with pytest.raises((ssl.SSLError, ConnectionError, IndexError)):  # the HTTP API does not even let it in
        _ = (await est.send("GET", "/v1/whoami", identity=device, server="admin")).status
    key = generate_key()
    answer = await est.reenroll(renewal_csr(device, key), device)
    assert answer.status == 200, answer.text
    entry = (await est.registry.audit())[-1].entry
    assert (entry.actor, entry.action, entry.outcome) == ("device late-1", "device.reenroll", "ok")
    # Its successor is as good as any, and once it has been used the old one is over.
    successor = est.identity(answer.certificates[0], key)
    assert await verdict(est, successor) == "ok"
    assert await verdict(est, device) == "certificate-superseded"


async def test_after_the_grace_it_is_over(est: EstHarness) -> None:
    late, none = await enrolled(est, "late-1", grace_seconds=7 * 86400), await enrolled(est, "late-2")
    est.now = datetime.now(UTC) + 91 * DAY
    assert await verdict(est, none) == "certificate-expired"
    est.now = datetime.now(UTC) + 98 * DAY
    assert await verdict(est, late) == "certificate-expired"
    outcomes = [row.entry.outcome for row in await est.registry.audit() if row.entry.action == "device.reenroll"]
    assert outcomes == ["certificate-expired", "certificate-expired"]


async def test_grace_forgives_lateness_alone(est: EstHarness) -> None:
    grace = {"grace_seconds": 30 * 86400}
    device, other = await enrolled(est, "late-1", **grace), await enrolled(est, "late-2", **grace)
    suspended, revoked = await enrolled(est, "late-3", **grace), await enrolled(est, "late-4", **grace)
    est.now = datetime.now(UTC) + 91 * DAY
    act = Act("test", est.clock())
    await revocation.suspend(est.registry, "late-3", act=act, reason="test")
    await revocation.revoke(est.registry, "late-4", act=act, reason="test")
    assert await verdict(est, device, renewal_csr(other)) == "not-your-identity"
    assert await verdict(est, device, csr_for("late-9")) == "not-your-identity"
    assert await verdict(est, suspended) == "device-suspended"
    assert await verdict(est, revoked) == "device-revoked"


async def test_a_model_may_want_a_new_key_each_time(est: EstHarness) -> None:
    device = await enrolled(est, "new-1", key="new")
    assert await verdict(est, device, renewal_csr(device, device.key)) == "key-not-new"
    assert await verdict(est, device) == "ok"


async def test_a_model_may_want_the_same_key_for_ever(est: EstHarness) -> None:
    device = await enrolled(est, "same-1", key="same")
    assert await verdict(est, device) == "key-not-same"
    first = await est.reenroll(renewal_csr(device, device.key), device)
    assert first.status == 200, first.text
    [successor] = first.certificates
    assert successor.public_key() == device.certificate.public_key()
    assert successor.serial_number != device.certificate.serial_number
    again = est.identity(successor, device.key)
    assert await verdict(est, again, renewal_csr(again, device.key)) == "ok"


@pytest.mark.parametrize("operation", ["simpleenroll", "simplereenroll"])
async def test_a_hundred_retries_of_one_csr_give_one_certificate(est: EstHarness, operation: str) -> None:
    await est.device("cam-1")
    token = basic(await est.token("cam-1"))
    identity: Identity | None = None
    csr = csr_for("cam-1")
    if operation == "simplereenroll":
        key = generate_key()
        first = await est.enroll(csr_for("cam-1", key), token)
        identity = est.identity(first.certificates[0], key)
        csr = renewal_csr(identity)
    client = KeptAlive(est, identity)
    headers = {"Content-Type": "application/pkcs10", **({} if identity else token)}
    answers = [
        await client.send("POST", f"/.well-known/est/{operation}", encode_body(csr), headers) for _ in range(100)
    ]
    client.close()
    assert {answer.status for answer in answers} == {200}
    assert len({answer.certificates[0].serial_number for answer in answers}) == 1
    assert len(await est.registry.credentials("cam-1")) == (2 if identity else 1)


# When to renew


async def window(est: EstHarness, fingerprint: str) -> dict[str, Any]:
    answer = await est.send("GET", f"/.well-known/est/renewal-info/{fingerprint}")
    assert (answer.status, answer.header("Content-Type")) == (200, "application/json"), answer.text
    assert int(answer.header("Retry-After") or "") >= 60
    found: dict[str, Any] = json.loads(answer.text)["suggestedWindow"]
    return found


def fingerprint_of(device: Identity) -> str:
    return device.certificate.fingerprint(hashes.SHA256()).hex()


async def test_a_certificate_has_a_window(est: EstHarness) -> None:
    device = await est.enrolled("cam-1")
    found = await window(est, fingerprint_of(device))
    start, end = (datetime.fromisoformat(found[name]) for name in ("start", "end"))
    certificate = device.certificate
    assert certificate.not_valid_before_utc < start < end < certificate.not_valid_after_utc


async def test_what_cannot_be_renewed_has_none(est: EstHarness) -> None:
    device, station = await est.enrolled("cam-1"), await est.station()
    await revocation.revoke(est.registry, "cam-1", act=Act("test", est.clock()), reason="test")
    for name in (fingerprint_of(device), fingerprint_of(station), "ab" * 32):
        answer = await est.send("GET", f"/.well-known/est/renewal-info/{name}")
        assert (answer.status, answer.code) == (404, "no-such-certificate")
    for path in ("renewal-info/AB", "renewal-info/", f"renewal-info/{'AB' * 32}", f"renewal-info/{'ab' * 32}/x"):
        assert (await est.send("GET", f"/.well-known/est/{path}")).code == "no-such-path"
    assert (await est.send("POST", f"/.well-known/est/renewal-info/{'ab' * 32}")).code == "bad-method"


async def test_a_campaign_brings_the_window_forward_and_counts_who_has_renewed(est: EstHarness) -> None:
    device = await enrolled(est, "cam-1")
    other = await enrolled(est, "cam-2")
    est.now = datetime.now(UTC) + DAY
    model = await est.registry.model("of-cam-1")
    assert model is not None
    before_and_start = {"before": (est.now - timedelta(hours=1)).isoformat(), "start": est.now.isoformat()}
    rules = rules_of({"renewal": {"campaign": {**before_and_start, "spread_seconds": 6 * 3600}}}, model.rules)
    await inventory.set_model(est.registry, replace(model, rules=rules), act=Act("test", est.clock()))
    found = await window(est, fingerprint_of(device))
    start = datetime.fromisoformat(found["start"])
    assert est.now - timedelta(seconds=1) <= start <= est.now + timedelta(hours=6)
    usual = datetime.fromisoformat((await window(est, fingerprint_of(other)))["start"])
    assert usual > est.now + 30 * DAY
    before = await renewal.progress(est.registry, "of-cam-1")
    assert (before.devices, before.renewed) == (1, 0)
    answer = await est.reenroll(renewal_csr(device), device)
    assert answer.status == 200, answer.text
    after = await renewal.progress(est.registry, "of-cam-1")
    assert (after.devices, after.renewed) == (1, 1)
    successor = answer.certificates[0].fingerprint(hashes.SHA256()).hex()
    assert datetime.fromisoformat((await window(est, successor))["start"]) > est.now + 30 * DAY
