"""Where two parts of the EST door meet: what each does alone, it does beside the others."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.device import DeviceId, Model
from fleet.domain.manifest import ManifestRow
from fleet.domain.model_rules import rules_of
from fleet.domain.rates import RateLimits, Rates
from fleet.services import inventory, revocation
from fleet.services.importing import Importer, Numbered
from fleet.wire.csr import build_csr
from fleet.wire.est import encode_body
from fleet.wire.names import names_of_certificate
from tests.servers.est_fixtures import Answer, EstHarness, Identity, Key, basic, csr_for, open_est, renewal_csr
from tests.servers.test_est_keygen import pair_of

EST = "/.well-known/est"


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        yield est


async def model(est: EstHarness, name: str, **rules: Any) -> None:
    await inventory.add_model(est.registry, Model(name, rules=rules_of(rules)), act=Act("test", est.clock()))


async def listed(est: EstHarness, name: str, model: str) -> Key:
    """The key by which the manifest lets a device in."""
    key = generate_key()
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    row = ManifestRow(DeviceId(name), model, "", hashlib.sha256(spki).digest())
    assert await Importer(est.registry, "test", est.clock, "bulk").take([Numbered(2, row)]) == []
    return key


async def rows(est: EstHarness) -> list[tuple[str, str]]:
    """(actor, outcome) of each row that is no operator's."""
    entries = [row.entry for row in await est.registry.audit(limit=5000)]
    return [(e.actor, e.outcome) for e in entries if e.actor != "test"]


async def with_a_key_made_here(est: EstHarness, name: str, model: str) -> Identity:
    await est.device(name, model)
    answer = await est.post("serverkeygen", csr_for(name), basic(await est.token(name)))
    key, certificate = pair_of(answer)
    return est.identity(certificate, key)


# serverkeygen, whose CSR's own key says nothing (RFC 7030, 4.4.1), and the rules about keys


async def test_a_model_that_wants_new_keys_takes_those_that_are_made_here(est: EstHarness) -> None:
    """A device that has no other key signs with the one it has."""
    await model(est, "probe", profile={"server_keygen": True}, renewal={"key": "new"})
    device = await with_a_key_made_here(est, "p-1", "probe")
    answer = await est.post("serverkeygen", renewal_csr(device, device.key), identity=device)
    key, certificate = pair_of(answer)
    assert certificate.public_key() == key.public_key() != device.key.public_key()
    assert (await est.reenroll(renewal_csr(device, device.key), device)).code == "key-not-new"


async def test_a_model_that_keeps_its_keys_has_none_made(est: EstHarness) -> None:
    await model(est, "probe", profile={"server_keygen": True}, renewal={"key": "same"})
    device = await with_a_key_made_here(est, "p-1", "probe")
    answer = await est.post("serverkeygen", renewal_csr(device, device.key), identity=device)
    assert (answer.status, answer.code) == (403, "key-not-same")


async def test_a_station_signs_for_a_device_that_has_no_key(est: EstHarness) -> None:
    await model(est, "probe", profile={"server_keygen": True})
    station = await est.station(models=("probe",))
    answer = await est.post("serverkeygen", csr_for("p-1", station.key), identity=station)
    key, certificate = pair_of(answer)
    assert certificate.public_key() == key.public_key() != station.key.public_key()
    assert (await est.enroll(csr_for("p-2", station.key), identity=station)).code == "key-in-use"


# A device whose key the manifest lists, and rights that many share


async def test_a_claim_does_not_take_a_device_whose_key_is_listed(est: EstHarness) -> None:
    """Everybody has the claim; only the device has the key."""
    await model(est, "m-cam", admission={"paths": ["manifest", "claim"]}, profile={"server_keygen": True})
    key = await listed(est, "m-1", "m-cam")
    lot = await est.claim("lot-1", "m-cam")
    assert (await est.enroll(csr_for("m-1"), identity=lot)).code == "not-your-key"
    assert (await est.post("serverkeygen", csr_for("m-1", key), identity=lot)).code == "not-your-key"
    claim = await est.registry.claim("lot-1")
    assert claim is not None
    assert (claim.uses, claim.takeovers) == (0, 2)
    assert (await est.enroll(csr_for("m-1", key), identity=lot)).status == 200  # it has both


async def test_a_models_token_does_not_either_and_the_devices_own_does(est: EstHarness) -> None:
    await model(est, "m-cam", admission={"paths": ["manifest", "token"]})
    key = await listed(est, "m-1", "m-cam")
    for_all, its_own = basic(await est.token(model="m-cam", uses=2)), basic(await est.token("m-1"))
    assert (await est.enroll(csr_for("m-1"), for_all)).code == "not-your-key"
    assert (await est.enroll(csr_for("m-1", key), for_all)).status == 200
    assert (await est.enroll(csr_for("m-1"), its_own)).status == 200


async def test_nobody_waits_for_a_device_whose_key_is_listed(est: EstHarness) -> None:
    await model(est, "m-cam", admission={"paths": ["manifest", "approval"]})
    key = await listed(est, "m-1", "m-cam")
    assert (await est.enroll(csr_for("m-1"))).code == "not-your-key"
    assert await est.registry.requests(now=est.clock()) == []
    assert (await est.enroll(csr_for("m-1", key))).status == 200


# Who asks too often


async def test_what_is_answered_to_anybody_ends_no_waiting(est: EstHarness) -> None:
    device = await est.enrolled("cam-1")
    await revocation.revoke(est.registry, "cam-1", act=Act("test", est.clock()), reason="test")
    est.servers["est"].rates = Rates(RateLimits(failures_max=3))
    fingerprint = hashlib.sha256(device.certificate.public_bytes(Encoding.DER)).hexdigest()
    codes = []
    for path in ("cacerts", "csrattrs", "cam/csrattrs", f"renewal-info/{fingerprint}"):
        codes.append((await est.reenroll(renewal_csr(device), device)).code)
        await est.send("GET", f"{EST}/{path}", identity=device)
    assert codes == ["device-revoked"] * 3 + ["too-many-requests"]


async def test_a_device_that_is_refused_keeps_no_other_of_its_batch_waiting(est: EstHarness) -> None:
    lot = await est.claim()
    est.servers["est"].rates = Rates(RateLimits(failures_max=3))
    codes = [(await est.post("serverkeygen", csr_for("cam-1"), identity=lot)).code for _ in range(4)]
    assert codes == ["path-not-open"] * 3 + ["too-many-requests"]
    assert (await enroll_from("127.0.0.2", est, lot)).code == "path-not-open"


async def enroll_from(address: str, est: EstHarness, identity: Identity) -> Answer:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1",
        est.port,
        ssl=est.client_context(identity),
        server_hostname="localhost",
        local_addr=(address, 0),
    )
    body = encode_body(csr_for("cam-2"))
    head = f"POST {EST}/simpleenroll HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/pkcs10\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = Answer(await reader.read())
    writer.close()
    return answer


# The audit, and who can be answered for ever


async def test_a_device_fills_one_row_a_minute_with_what_it_is_refused(est: EstHarness) -> None:
    """A 400 has nobody wait: a valid certificate could fill the disk, twenty rows a second."""
    device = await est.enrolled("cam-1")
    wrong = build_csr(ed25519.Ed25519PrivateKey.generate(), *names_of_certificate(device.certificate))
    for _ in range(4):
        assert (await est.reenroll(wrong, device)).code == "key-not-allowed"
    assert (await rows(est)).count(("device cam-1", "key-not-allowed")) == 1


async def test_a_certificate_that_is_fetched_again_and_again_fills_one_row_a_minute(est: EstHarness) -> None:
    await model(est, "m-cam", admission={"paths": ["manifest"]})
    key = await listed(est, "m-1", "m-cam")
    got = [await est.enroll(csr_for("m-1", key)) for _ in range(5)]
    assert {answer.status for answer in got} == {200}
    assert len({answer.body for answer in got}) == 1
    assert (await rows(est)).count(("manifest m-1", "ok")) == 2  # its issue, and that it was asked for again


async def test_each_device_that_comes_again_by_what_it_shares_has_its_row(est: EstHarness) -> None:
    token = await est.token(model="cam", uses=2)
    for csr in (csr_for("cam-1"), csr_for("cam-2")):
        assert {(await est.enroll(csr, basic(token))).status for _ in range(3)} == {200}
    entries = [row.entry for row in await est.registry.audit()]
    assert [e.subject for e in entries if "repeated" in e.detail] == ["device cam-1", "device cam-2"]
