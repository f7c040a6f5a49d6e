"""A distrust over real TLS: who is refused by EST, API and MQTT, who may renew, and how it ends."""

import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fleet.ca.keys import generate_key
from fleet.domain.access import Act, Role
from fleet.domain.crl import CrlReason
from fleet.domain.distrust import DISTRUSTS_MAX, Distrust
from fleet.domain.errors import Invalid
from fleet.services import distrust, inventory
from fleet.services.bulk import Revoke
from fleet.wire.mqtt.codes import V5, Reason
from fleet.wire.mqtt.connect import Connect, encode_connect
from tests.servers.admin_fixtures import AdminHarness, Client, open_admin
from tests.servers.est_fixtures import EstHarness, Identity, basic, csr_for, renewal_csr
from tests.servers.gateway_fixtures import MODEL, now, open_gateway, populate, refused

PATH = "/v1/distrusts"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    async with open_admin(tmp_path) as api:
        yield api


async def begun(client: Client, expected: int = 1, **terms: object) -> str:
    status, answer = await client.ask("POST", PATH, {**terms, "expected": expected})
    assert status == 200, answer
    return str(answer["distrust"]["id"])


async def renewed(est: EstHarness, device: Identity) -> str:
    answer = await est.reenroll(renewal_csr(device), device)
    return "ok" if answer.status == 200 else answer.code


async def window(est: EstHarness, name: str) -> tuple[datetime, datetime]:
    answer = await est.send("GET", f"/.well-known/est/renewal-info/{name}")
    assert answer.status == 200, answer.text
    found: dict[str, Any] = json.loads(answer.text)["suggestedWindow"]
    return datetime.fromisoformat(found["start"]), datetime.fromisoformat(found["end"])


def sha256(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def certificate_id(certificate: x509.Certificate) -> str:
    """RFC 9773, 4.1."""
    key_id = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    serial = certificate.serial_number
    assert key_id is not None
    parts = (key_id, serial.to_bytes(serial.bit_length() // 8 + 1))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


async def test_the_certificate_is_refused_but_for_its_renewal_and_the_next_is_not(api: AdminHarness) -> None:
    est, operator = api.est, await api.operator("bob")
    device = await est.enrolled("cam-7")
    plan = (await operator.ask("POST", PATH, {"model": "cam", "dry_run": True}))[1]
    assert plan == {"matched": 2, "by_model": {"cam": 2}, "first": ["cam-1", "cam-7"], "distrust": None}
    assert (await operator.get(PATH))["items"] == []
    assert (await est.send("GET", "/v1/whoami", identity=device, server="admin")).status == 200
    made = await begun(operator, 2, model="cam", spread_seconds=0, reason="leak")
    answer = await est.send("GET", "/v1/whoami", identity=device, server="admin")
    assert (answer.status, json.loads(answer.text)["code"]) == (403, "certificate-distrusted")
    token = basic(await est.token("cam-7"))
    refusal = await est.post("simpleenroll", csr_for("cam-7"), token, identity=device)
    assert (refusal.status, refusal.code) == (403, "certificate-distrusted")
    start, end = await window(est, sha256(device.certificate))
    assert start <= end <= est.clock() + timedelta(seconds=1)
    assert (await operator.get(f"{PATH}/{made}"))["left"] == 2

    key = csr_for("cam-7")
    assert (await est.reenroll(key, device)).code != "certificate-distrusted"
    assert await renewed(est, device) == "ok"
    shown = await operator.get(f"{PATH}/{made}")
    assert (shown["devices"], shown["left"], shown["left_by_model"], shown["first"]) == (2, 1, {"cam": 1}, ["cam-1"])
    assert (shown["reason"], shown["created_by"], shown["model"]) == ("leak", "operator bob", "cam")
    entry = next(row.entry for row in await est.registry.audit(limit=1000) if row.entry.action == "distrust.begin")
    assert (entry.subject, entry.detail["devices"], entry.detail["model"]) == (f"distrust {made}", "2", "cam")

    assert await operator.ask("POST", f"{PATH}/{made}/undo", {"reason": "false alarm"}) == (200, {"id": made})
    assert (await est.send("GET", "/v1/whoami", identity=api.device, server="admin")).status == 200
    for method, path in (("GET", ""), ("POST", "/undo")):
        assert (await operator.ask(method, f"{PATH}/{made}{path}"))[0] == 404


async def test_a_distrusted_certificate_is_not_handed_out_again(api: AdminHarness) -> None:
    est, operator = api.est, await api.operator("bob")
    await est.device("cam-8")
    csr, token = csr_for("cam-8"), basic(await est.token("cam-8"))
    [first] = (await est.enroll(csr, token)).certificates
    assert (await est.enroll(csr, token)).certificates == [first]  # the answer might have been lost
    earlier = await est.enrolled("cam-7")
    renewal = renewal_csr(earlier, generate_key())
    [unused] = (await est.reenroll(renewal, earlier)).certificates
    await begun(operator, 3, model="cam")
    assert (await est.enroll(csr, token)).code == "token-used-up"
    [second] = (await est.enroll(csr, basic(await est.token("cam-8")))).certificates
    assert second != first
    [renewed_again] = (await est.reenroll(renewal, earlier)).certificates
    assert renewed_again != unused


async def test_no_renewal_and_only_renewal(api: AdminHarness) -> None:
    est, operator = api.est, await api.operator("bob")
    usual = await window(est, sha256(api.device.certificate))
    asked = await begun(operator, model="cam", refuses=False)
    assert (await est.send("GET", "/v1/whoami", identity=api.device, server="admin")).status == 200
    assert (await window(est, sha256(api.device.certificate)))[0] < usual[0]
    await operator.ask("POST", f"{PATH}/{asked}/undo")
    assert await window(est, sha256(api.device.certificate)) == usual
    await begun(operator, model="cam", may_renew=False)
    assert await renewed(est, api.device) == "certificate-distrusted"
    assert await window(est, sha256(api.device.certificate)) == usual
    again = await est.enroll(csr_for("cam-1"), basic(await est.token("cam-1")))
    assert again.status == 200, again.text


async def test_by_ca_key_type_and_time_of_issue(api: AdminHarness) -> None:
    est, operator = api.est, await api.operator("bob")
    issuing = next(each for each in (await operator.get("/v1/authorities"))["items"] if each["role"] == "issuing")
    root = next(each for each in (await operator.get("/v1/authorities"))["items"] if each["role"] == "root")
    hour = timedelta(hours=1)
    before, after = (est.clock() - hour).isoformat(), (est.clock() + timedelta(minutes=1)).isoformat()

    async def matched(**terms: object) -> int:
        found: int = (await operator.ask("POST", PATH, {**terms, "dry_run": True}))[1]["matched"]
        return found

    assert await matched(ca=issuing["sha256"]) == 1
    assert await matched(key_type="EC-P256") == 1
    assert await matched(key_type="RSA-2048+") == 0
    assert await matched(issued_from=before, issued_before=after) == 1
    assert await matched(issued_from=before, issued_before=(est.clock() - hour / 2).isoformat()) == 0
    assert await matched(model="pump", key_type="EC-P256") == 0
    for ca in (root["sha256"], "ab" * 32):
        assert (await operator.ask("POST", PATH, {"ca": ca, "dry_run": True}))[1]["code"] == "no-such-authority"
    made = await begun(operator, ca=issuing["sha256"], key_type="EC-P256", issued_from=before)
    [shown] = (await operator.get(PATH))["items"]
    assert (shown["id"], shown["key_type"], len(shown["ca_key_id"])) == (made, "EC-P256", 40)
    assert (await est.send("GET", "/v1/whoami", identity=api.device, server="admin")).status == 403
    assert (await est.send("GET", "/v1/whoami", identity=api.station, server="admin")).status == 200


async def test_what_is_no_distrust(api: AdminHarness) -> None:
    operator = await api.operator("bob")
    later, earlier = (api.est.clock() + timedelta(hours=sign) for sign in (1, -1))
    for body, code in (
        ({}, "bad-distrust"),
        ({"model": "cam", "issued_before": later.isoformat()}, "bad-distrust"),
        ({"issued_from": api.est.clock().isoformat(), "issued_before": earlier.isoformat()}, "bad-distrust"),
        ({"model": "cam", "issued_from": "yesterday"}, "bad-request"),
        ({"model": "cam", "issued_before": "2026-13-01T00:00:00Z"}, "bad-request"),
        ({"key_type": "RSA-1024"}, "bad-request"),
        ({"ca": "00"}, "bad-request"),
        ({"model": "cam", "spread_seconds": 10**9}, "bad-request"),
        ({"model": "valve"}, "no-such-model"),
        ({"model": "cam"}, "count-needed"),
        ({"model": "cam", "expected": 2}, "count-differs"),
    ):
        assert (await operator.ask("POST", PATH, body))[1]["code"] == code, body
    assert await api.est.registry.distrusts() == []
    registry, act = api.est.registry, Act("test", api.est.clock())
    rule = Distrust("0" * 12, act.now, act.now, "cam")
    for number in range(DISTRUSTS_MAX):
        await distrust.begin(registry, Distrust(f"{number:012x}", act.now, act.now, "cam"), act=act)
    with pytest.raises(Invalid) as caught:
        await distrust.checked(registry, rule, act.now)
    assert caught.value.code == "too-many-distrusts"


async def test_those_that_do_not_come_back_are_revoked_in_steps(
    api: AdminHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    est, operator = api.est, await api.operator("bob")
    devices = [await est.enrolled(f"cam-{number}") for number in range(5, 9)]
    made = await begun(operator, 5, model="cam")
    assert await renewed(est, devices[0]) == "ok"
    monkeypatch.setattr(distrust, "STEP_DEVICES_MAX", 3)
    path = f"{PATH}/{made}/revoke"
    for body, code in (({}, "count-needed"), *(({"expected": n}, "count-differs") for n in (3, 5, 10**6))):
        assert (await operator.ask("POST", path, body))[1]["code"] == code
    steps = [(await operator.ask("POST", path, {"expected": n, "reason": "stolen"}))[1] for n in (4, 1, 0)]
    assert [(step["done"], step["left"], step["failed"]) for step in steps] == [(3, 1, []), (1, 0, []), (0, 0, [])]
    states = {str(device.id): device.state.value for device in await est.registry.devices()}
    assert [states[f"cam-{number}"] for number in (1, 5, 6, 7, 8)] == ["revoked", "active", *["revoked"] * 3]
    rows = [row.entry for row in await est.registry.audit(limit=1000) if row.entry.action == "device.revoke"]
    assert {(entry.actor, entry.detail["reason"]) for entry in rows} == {("operator bob", "stolen")}


async def test_of_devices_that_have_renewed_the_certificates_under_the_rule_are_revoked(
    api: AdminHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distrust, "STEP_CERTIFICATES_MAX", 2)
    est, operator, registry = api.est, await api.operator("bob"), api.est.registry
    devices = [api.device, *[await est.enrolled(f"cam-{number}") for number in (5, 6, 7)]]
    made = await begun(operator, 4, model="cam")
    for device in devices[:3]:
        assert await renewed(est, device) == "ok"
    path, reason = f"{PATH}/{made}/revoke", "keyCompromise"
    steps = [(await operator.ask("POST", path, {"expected": n, "crl_reason": reason}))[1] for n in (1, 0, 0)]
    told = [(step["done"], step["left"], step["certificates"], step["certificates_left"]) for step in steps]
    assert told == [(1, 0, 2, 1), (0, 0, 1, 0), (0, 0, 0, 0)]
    for device in devices:
        listed = await registry.revocation(f"{device.certificate.serial_number:x}")
        assert listed is not None
        assert listed.reason == CrlReason.KEY_COMPROMISE
    states = [[one.state.value for one in await registry.credentials(name)] for name in ("cam-1", "cam-5", "cam-7")]
    assert states == [["revoked", "issued"], ["revoked", "issued"], ["revoked"]]
    assert [
        row.entry.detail["distrust"]
        for row in await registry.audit(limit=1000)
        if row.entry.action == "credential.revoke"
    ] == [made, made]
    assert await renewed(est, devices[0]) == "certificate-revoked"


async def test_a_device_that_renews_in_mid_step_is_not_revoked(api: AdminHarness) -> None:
    est, operator = api.est, await api.operator("bob")
    made = await begun(operator, 1, model="cam")
    [rule] = await est.registry.distrusts()
    assert rule.id == made
    assert await renewed(est, api.device) == "ok"
    operation = Revoke(CrlReason.UNSPECIFIED, "operator bob", "", "0" * 12, est.clock)
    outcome = await distrust._revoke_one(est.registry, rule, operation, "cam-1")
    assert (outcome.code, outcome.is_failure) == ("not-distrusted", False)


async def test_an_operator_of_some_models_distrusts_these(api: AdminHarness) -> None:
    held, admin = await api.operator("held", Role.ADMIN, ("cam",)), await api.operator("admin")
    for body in ({"key_type": "EC-P256"}, {"model": "pump"}, {"model": "no-such-model"}):
        assert (await held.ask("POST", PATH, {**body, "dry_run": True}))[1]["code"] == "held-to-models"
    own, all_ = await begun(held, model="cam"), await begun(admin, key_type="EC-P256")
    assert [each["id"] for each in (await held.get(PATH))["items"]] == [own]
    assert [each["id"] for each in (await admin.get(PATH))["items"]] == [own, all_]
    for method, path in (("GET", ""), ("POST", "/undo")):
        assert (await held.ask(method, f"{PATH}/{all_}{path}"))[1]["code"] == "no-such-distrust"
    assert (await held.ask("POST", f"{PATH}/{own}/undo"))[0] == 200


async def test_the_same_request_again_makes_one(api: AdminHarness) -> None:
    operator = await api.operator("bob")
    key = {"Idempotency-Key": "incident-7"}
    answers = [await operator.send("POST", PATH, {"model": "cam", "expected": 1}, key) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].body == answers[1].body
    assert len(await api.est.registry.distrusts()) == 1


async def test_renewal_info_by_the_identifier_of_rfc_9773(api: AdminHarness) -> None:
    est, certificate = api.est, api.device.certificate
    name = certificate_id(certificate)
    assert await window(est, name) == await window(est, sha256(certificate))
    key_id, serial = name.split(".")
    other = base64.urlsafe_b64encode(bytes(20)).rstrip(b"=").decode()
    station = certificate_id(api.station.certificate)
    for unknown in (f"{other}.{serial}", f"{key_id}.AQ", station, f"{key_id[:24]}.{serial}"):
        answer = await est.send("GET", f"/.well-known/est/renewal-info/{unknown}")
        assert (answer.status, answer.code) == (404, "no-such-certificate"), unknown
    for bad in (f"{key_id}.{serial}=", f"{key_id}.", f".{serial}", f"{key_id}.AAE", f"{key_id}.gA", "A.AQ", "AB.AQ"):
        assert (await est.send("GET", f"/.well-known/est/renewal-info/{bad}")).code == "no-such-path", bad
    for size in range(len(name)):
        answer = await est.send("GET", f"/.well-known/est/renewal-info/{name[:size]}")
        assert answer.code in ("no-such-path", "no-such-certificate"), name[:size]


async def test_live_sessions_end_and_new_ones_are_refused(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        registry, act = h.registry, Act("operator bob", now())
        one, two = await populate(registry, "cam-1", "cam-2")
        sessions = [(await h.live(held, V5))[0] for held in (one, two)]
        await inventory.add_device(registry, "cam-3", MODEL.name, act=act)
        rule = Distrust("0" * 12, now(), now(), MODEL.name)
        await distrust.begin(registry, rule, act=act)
        for session in sessions:
            assert (await session.until_closed())[-1].body[0] == Reason.NOT_AUTHORIZED
        await h.count("mqtt.session.certificate-distrusted", 2)
        wire = await h.dial(one)
        wire.send(encode_connect(Connect(V5, "cam-1")))
        assert await refused(wire, V5) == Reason.NOT_AUTHORIZED
        await h.count("mqtt.connect.certificate-distrusted")
        await distrust.undo(registry, rule, act=act)
        await h.live(two, V5)


def test_a_time_that_this_clock_has_not_reached_yet_is_now() -> None:
    assert timedelta(0) < distrust.SKEW_MAX < timedelta(hours=1)
    assert datetime.now(UTC).tzinfo is UTC
