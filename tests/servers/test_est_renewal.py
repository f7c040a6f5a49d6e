"""Renewal over real TLS: late ones, keys by the model's rule, and requests that come again (RFC 7030, 4.2.2)."""

import json
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.device import Model
from fleet.domain.errors import Invalid
from fleet.domain.model_rules import rules_of
from fleet.services import inventory, renewal, revocation
from fleet.wire.est import encode_body
from tests.servers.est_house import House, Identity, KeptAlive, basic, csr_for, open_house, renewal_csr

DAY = timedelta(days=1)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as house:
        yield house


async def enrolled(house: House, name: str, **renewal: Any) -> Identity:
    """A device of a model of its own with these rules of renewal; its certificate lives for 90 days."""
    model = Model(f"of-{name}", rules=rules_of({"renewal": renewal}))
    await inventory.add_model(house.registry, model, act=Act("test", house.clock()))
    await house.device(name, model.name)
    key = generate_key()
    answer = await house.enroll(csr_for(name, key), basic(await house.token(name)))
    return house.identity(answer.certificates[0], key)


async def verdict(house: House, device: Identity, csr: bytes | None = None) -> str:
    answer = await house.reenroll(csr or renewal_csr(device), device)
    return "ok" if answer.status == 200 else answer.code


async def test_within_the_grace_a_late_device_renews_and_does_nothing_else(house: House) -> None:
    device = await enrolled(house, "late-1", grace_seconds=7 * 86400)
    house.now = datetime.now(UTC) + 96 * DAY
    for path in ("simpleenroll", "serverkeygen"):
        refused = await house.post(path, renewal_csr(device), identity=device)
        assert (refused.status, refused.code) == (403, "certificate-expired")
    token = basic(await house.token("late-1"))
    assert (await house.post("simpleenroll", renewal_csr(device), token, identity=device)).code == "certificate-expired"
    with pytest.raises((ssl.SSLError, ConnectionError, IndexError)):  # the HTTP API does not even let it in
        _ = (await house.send("GET", "/v1/whoami", identity=device, server="admin")).status
    key = generate_key()
    answer = await house.reenroll(renewal_csr(device, key), device)
    assert answer.status == 200, answer.text
    entry = (await house.registry.audit())[-1].entry
    assert (entry.actor, entry.action, entry.outcome) == ("device late-1", "device.reenroll", "ok")
    # Its successor is as good as any, and once it has been used the old one is over.
    successor = house.identity(answer.certificates[0], key)
    assert await verdict(house, successor) == "ok"
    assert await verdict(house, device) == "certificate-superseded"


async def test_after_the_grace_it_is_over(house: House) -> None:
    late, none = await enrolled(house, "late-1", grace_seconds=7 * 86400), await enrolled(house, "late-2")
    house.now = datetime.now(UTC) + 91 * DAY
    assert await verdict(house, none) == "certificate-expired"
    house.now = datetime.now(UTC) + 98 * DAY
    assert await verdict(house, late) == "certificate-expired"
    outcomes = [row.entry.outcome for row in await house.registry.audit() if row.entry.action == "device.reenroll"]
    assert outcomes == ["certificate-expired", "certificate-expired"]


async def test_grace_forgives_lateness_alone(house: House) -> None:
    grace = {"grace_seconds": 30 * 86400}
    device, other = await enrolled(house, "late-1", **grace), await enrolled(house, "late-2", **grace)
    suspended, revoked = await enrolled(house, "late-3", **grace), await enrolled(house, "late-4", **grace)
    house.now = datetime.now(UTC) + 91 * DAY
    act = Act("test", house.clock())
    await revocation.suspend(house.registry, "late-3", act=act, reason="test")
    await revocation.revoke(house.registry, "late-4", act=act, reason="test")
    assert await verdict(house, device, renewal_csr(other)) == "not-your-identity"
    assert await verdict(house, device, csr_for("late-9")) == "not-your-identity"
    assert await verdict(house, suspended) == "device-suspended"
    assert await verdict(house, revoked) == "certificate-revoked"


async def test_a_model_may_want_a_new_key_each_time(house: House) -> None:
    device = await enrolled(house, "new-1", key="new")
    assert await verdict(house, device, renewal_csr(device, device.key)) == "key-not-new"
    assert await verdict(house, device) == "ok"


async def test_a_model_may_want_the_same_key_for_ever(house: House) -> None:
    device = await enrolled(house, "same-1", key="same")
    assert await verdict(house, device) == "key-not-same"
    first = await house.reenroll(renewal_csr(device, device.key), device)
    assert first.status == 200, first.text
    [successor] = first.certificates
    assert successor.public_key() == device.certificate.public_key()
    assert successor.serial_number != device.certificate.serial_number
    again = house.identity(successor, device.key)
    assert await verdict(house, again, renewal_csr(again, device.key)) == "ok"


@pytest.mark.parametrize("operation", ["simpleenroll", "simplereenroll"])
async def test_a_hundred_retries_of_one_csr_give_one_certificate(house: House, operation: str) -> None:
    await house.device("cam-1")
    token = basic(await house.token("cam-1"))
    identity: Identity | None = None
    csr = csr_for("cam-1")
    if operation == "simplereenroll":
        key = generate_key()
        first = await house.enroll(csr_for("cam-1", key), token)
        identity = house.identity(first.certificates[0], key)
        csr = renewal_csr(identity)
    client = KeptAlive(house, identity)
    headers = {"Content-Type": "application/pkcs10", **({} if identity else token)}
    answers = [
        await client.send("POST", f"/.well-known/est/{operation}", encode_body(csr), headers) for _ in range(100)
    ]
    client.close()
    assert {answer.status for answer in answers} == {200}
    assert len({answer.certificates[0].serial_number for answer in answers}) == 1
    assert len(await house.registry.credentials("cam-1")) == (2 if identity else 1)


# When to renew


async def window(house: House, fingerprint: str) -> dict[str, Any]:
    answer = await house.send("GET", f"/.well-known/est/renewal-info/{fingerprint}")
    assert (answer.status, answer.header("Content-Type")) == (200, "application/json"), answer.text
    assert int(answer.header("Retry-After") or "") >= 60
    found: dict[str, Any] = json.loads(answer.text)["suggestedWindow"]
    return found


def fingerprint_of(device: Identity) -> str:
    return device.certificate.fingerprint(hashes.SHA256()).hex()


async def test_a_certificate_has_a_window(house: House) -> None:
    device = await house.enrolled("cam-1")
    found = await window(house, fingerprint_of(device))
    start, end = (datetime.fromisoformat(found[name]) for name in ("start", "end"))
    certificate = device.certificate
    assert certificate.not_valid_before_utc < start < end < certificate.not_valid_after_utc


async def test_what_cannot_be_renewed_has_none(house: House) -> None:
    device, station = await house.enrolled("cam-1"), await house.station()
    await revocation.revoke(house.registry, "cam-1", act=Act("test", house.clock()), reason="test")
    for name in (fingerprint_of(device), fingerprint_of(station), "ab" * 32):
        answer = await house.send("GET", f"/.well-known/est/renewal-info/{name}")
        assert (answer.status, answer.code) == (404, "no-such-certificate")
    for path in ("renewal-info/AB", "renewal-info/", f"renewal-info/{'AB' * 32}", f"renewal-info/{'ab' * 32}/x"):
        assert (await house.send("GET", f"/.well-known/est/{path}")).code == "no-such-path"
    assert (await house.send("POST", f"/.well-known/est/renewal-info/{'ab' * 32}")).code == "bad-method"


async def test_a_campaign_brings_the_window_forward_and_counts_who_has_renewed(house: House) -> None:
    device = await enrolled(house, "cam-1")
    other = await enrolled(house, "cam-2")
    house.now = datetime.now(UTC) + DAY
    model = await house.registry.model("of-cam-1")
    assert model is not None
    new = renewal.with_campaign(model, house.now - timedelta(hours=1), timedelta(hours=6), house.now)
    await inventory.set_model(house.registry, new, act=Act("test", house.clock()))
    found = await window(house, fingerprint_of(device))
    start = datetime.fromisoformat(found["start"])
    assert house.now - timedelta(seconds=1) <= start <= house.now + timedelta(hours=6)
    usual = datetime.fromisoformat((await window(house, fingerprint_of(other)))["start"])
    assert usual > house.now + 30 * DAY
    before = await renewal.progress(house.registry, "of-cam-1")
    assert (before.devices, before.renewed) == (1, 0)
    answer = await house.reenroll(renewal_csr(device), device)
    assert answer.status == 200, answer.text
    after = await renewal.progress(house.registry, "of-cam-1")
    assert (after.devices, after.renewed) == (1, 1)
    successor = answer.certificates[0].fingerprint(hashes.SHA256()).hex()
    assert datetime.fromisoformat((await window(house, successor))["start"]) > house.now + 30 * DAY


async def test_a_campaign_is_for_what_has_been_issued(house: House) -> None:
    model = await house.registry.model("cam")
    assert model is not None
    with pytest.raises(Invalid) as refused:
        renewal.with_campaign(model, house.clock() + DAY, timedelta(hours=6), house.clock())
    assert refused.value.code == "bad-campaign"
    called = renewal.with_campaign(model, house.clock() - DAY, timedelta(hours=6), house.clock())
    assert renewal.without_campaign(called) == model
