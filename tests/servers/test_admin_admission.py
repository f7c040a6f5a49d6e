"""Claims, makers' CAs and manifests over the API; and what it takes to verify the audit from afar."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from fleet.ca.head_signer import LocalHeadSigner
from fleet.ca.keys import generate_key
from fleet.domain.access import Role
from fleet.domain.crl import CrlReason
from fleet.domain.manifest import ManifestFacts
from fleet.servers.admin.records.devices import MANIFEST_ROWS_MAX
from fleet.services.sealing import seal
from tests.servers.admin_fixtures import AdminHarness, Client, csr_text, open_admin
from tests.servers.est_fixtures import renewal_csr
from tests.servers.makers import new_maker


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    async with open_admin(tmp_path) as api:
        yield api


@pytest.fixture
async def admin(api: AdminHarness) -> Client:
    return await api.operator("bob")


def claim(name: str = "lot-9", **more: Any) -> dict[str, Any]:
    return {"name": name, "model": "cam", "quota": 2, "lifetime_seconds": 86400, "csr": csr_text("whoever"), **more}


def row(device: str = "m-1", **more: Any) -> dict[str, Any]:
    return {"device_id": device, "model": "cam", "hardware_serial": f"SN {device}", **more}


async def imported(client: Client, *rows: dict[str, Any]) -> Any:
    status, told = await client.ask("POST", "/v1/manifest", {"bulk": "0123456789ab", "rows": list(rows)})
    assert status == 200, told
    return told


async def test_a_claim_has_a_certificate_for_its_own_key(api: AdminHarness, admin: Client) -> None:
    key = generate_key()
    status, told = await admin.ask("POST", "/v1/claims", claim(csr=csr_text("whoever", key)))
    assert (status, told["state"], told["quota"], told["uses"]) == (201, "open", 2, 0)
    leaf, issuer = x509.load_pem_x509_certificates(told["chain"].encode())
    assert (leaf.public_key(), issuer) == (key.public_key(), api.est.issuing[0])
    assert "whoever" not in leaf.subject.rfc4514_string()
    held = (await admin.get("/v1/claims/lot-9/credentials"))["items"]
    assert [each["serial"] for each in held] == [f"{leaf.serial_number:x}"]
    _, shut = await admin.ask("POST", "/v1/claims/lot-9/quarantine", {"reason": "odd"})
    assert (shut["state"], shut["quarantine_reason"]) == ("quarantined", "odd")
    assert await admin.get("/v1/claims/lot-9") == shut
    assert (await admin.ask("POST", "/v1/claims/lot-9/release"))[1]["state"] == "open"
    _, gone = await admin.ask("POST", "/v1/claims/lot-9/revoke")
    assert gone["state"] == "revoked"
    assert await admin.get("/v1/claims/lot-9") == gone
    assert (await admin.ask("POST", "/v1/claims/lot-9/release"))[1]["code"] == "claim-not-quarantined"
    rows = [each.entry for each in await api.est.registry.audit() if each.entry.subject == "claim lot-9"]
    assert [(e.actor, e.address, e.action) for e in rows] == [
        ("operator bob", "127.0.0.1", f"claim.{verb}") for verb in ("create", "quarantine", "release", "revoke")
    ]


async def test_a_revoked_claim_has_a_reason_in_crls_which_may_become_keycompromise(
    api: AdminHarness, admin: Client
) -> None:
    await admin.ask("POST", "/v1/claims", claim())
    [held] = (await admin.get("/v1/claims/lot-9/credentials"))["items"]
    path, reasons = "/v1/claims/lot-9/revoke", []
    for reason in ("cessationOfOperation", "keyCompromise"):
        _, gone = await admin.ask("POST", path, {"crl_reason": reason})
        assert gone["state"] == "revoked"
        assert await admin.get("/v1/claims/lot-9") == gone  # revoked at the first time
        known = await api.est.registry.revocation(held["serial"])
        assert known is not None
        reasons.append(CrlReason(known.reason).text)
    assert reasons == ["cessationOfOperation", "keyCompromise"]
    for reason in ("keyCompromise", "superseded"):
        assert (await admin.ask("POST", path, {"crl_reason": reason}))[1]["code"] == "claim-gone"
    rows = [each.entry for each in await api.est.registry.audit() if each.entry.action == "claim.revoke"]
    assert [e.detail["crl_reason"] for e in rows] == reasons


async def test_one_certificate_of_a_device_is_revoked_and_the_device_goes_on(api: AdminHarness, admin: Client) -> None:
    first = await api.est.enrolled("cam-9")
    assert (await api.est.reenroll(renewal_csr(first), first)).status == 200
    old, new = (await admin.get("/v1/devices/cam-9/credentials"))["items"]
    path = f"/v1/devices/cam-9/credentials/{old['serial'].upper()}/revoke"
    other = path.replace("cam-9", "cam-1")
    assert (await admin.ask("POST", other))[1]["code"] == "no-such-credential"
    status, gone = await admin.ask("POST", path, {"reason": "leaked", "crl_reason": "superseded"})
    listed = {"revoked_at": gone["revoked_at"], "crl_reason": "superseded"}
    assert (status, gone) == (200, {**old, "state": "revoked", **listed})
    assert await admin.get(f"/v1/credentials/{old['serial'].upper()}") == gone
    assert (await admin.ask("POST", path))[1]["code"] == "certificate-revoked"
    assert (await admin.get("/v1/devices/cam-9"))["state"] == "active"
    assert (await admin.get(f"/v1/credentials/{new['serial']}"))["state"] == new["state"]
    assert (await api.est.reenroll(renewal_csr(first), first)).code == "certificate-revoked"
    entry = (await api.est.registry.audit(after=await api.est.registry.last_audit() - 2))[0].entry
    assert (entry.actor, entry.action, entry.subject) == ("operator bob", "certificate.revoke", "device cam-9")


async def test_the_same_request_sent_twice_is_answered_alike(admin: Client) -> None:
    maker = {"name": "acme", "models": ["cam"], "certificate": new_maker().pem.decode()}
    for path, body in (
        ("/v1/claims", claim()),
        ("/v1/claims/lot-9/quarantine", None),
        ("/v1/claims/lot-9/release", None),
        ("/v1/claims/lot-9/revoke", None),
        ("/v1/anchors", maker),
        ("/v1/anchors/acme/remove", None),
    ):
        key = {"Idempotency-Key": path}
        first = await admin.ask("POST", path, body, key)
        assert first[0] in (200, 201), first
        assert await admin.ask("POST", path, body, key) == first
        assert (await admin.ask("POST", path, body))[0] in (404, 409), path


async def test_of_ones_own_models_alone(api: AdminHarness, admin: Client) -> None:
    held = await api.operator("held", Role.ADMIN, ("cam",))
    assert (await held.ask("POST", "/v1/claims", claim(model="pump")))[1]["code"] == "held-to-models"
    assert (await held.ask("POST", "/v1/claims", claim()))[0] == 201
    for path in ("", "/credentials"):
        assert (await held.ask("GET", f"/v1/claims/lot-2{path}"))[1]["code"] == "no-such-claim"
    assert (await held.ask("POST", "/v1/claims/lot-2/revoke"))[1]["code"] == "no-such-claim"
    key = hashlib.sha256(b"a key").hexdigest()
    await imported(admin, row("pump-9", model="pump", hardware_serial="", key_sha256=key))
    told = await imported(
        held, row("m-1"), row("m-2", model="pump"), row("m-3", hardware_serial="", key_sha256=key), row("m-4", line=70)
    )
    assert (told["added"], told["unchanged"]) == (2, 0)
    assert [(each["line"], each["device_id"], each["code"]) for each in told["refused"]] == [
        (2, "m-2", "held-to-models"),
        (3, "m-3", "key-taken"),
    ]
    assert "pump-9" not in str(told)
    assert (await admin.ask("GET", "/v1/devices/m-2"))[0] == 404


async def test_the_same_rows_again_change_nothing(api: AdminHarness, admin: Client) -> None:
    rows = [row(f"m-{n}", tags={"lot": "L7"}, groups=["pilot"]) for n in range(MANIFEST_ROWS_MAX)]
    assert (await imported(admin, *rows))["added"] == MANIFEST_ROWS_MAX
    again = await imported(admin, *rows, *())
    assert (again["added"], again["unchanged"], again["refused"]) == (0, MANIFEST_ROWS_MAX, [])
    differs = await imported(admin, row("m-1", hardware_serial="other"), row("m/5"), row("m-9000", key_sha256="zz"))
    assert [each["code"] for each in differs["refused"]] == ["row-differs", "bad-device-id", "bad-key-hash"]
    entries = [each.entry for each in await api.est.registry.audit() if each.entry.action == "device.import"]
    assert [(e.actor, e.address, e.detail["bulk"]) for e in entries] == [
        ("operator bob", "127.0.0.1", "0123456789ab"),
    ]
    facts: ManifestFacts = await api.est.registry.manifest_facts(["m-7"], (), ())
    assert [entry.hardware_serial for entry in facts.entries] == ["SN m-7"]


async def test_what_is_wrong_brings_nothing_in(api: AdminHarness, admin: Client) -> None:
    maker, ours = new_maker().pem.decode(), (await admin.get("/v1/authorities"))["items"][0]["pem"]
    wrong: tuple[tuple[str, dict[str, Any], int], ...] = (
        ("/v1/claims", claim(csr="nonsense"), 400),
        ("/v1/claims", claim(quota=0), 400),
        ("/v1/claims", claim(lifetime_seconds=1), 400),
        ("/v1/claims", claim(model="valve"), 404),
        ("/v1/claims", claim("lot-1"), 409),
        ("/v1/claims", {"name": "lot-9"}, 400),
        ("/v1/anchors", {"name": "a", "models": ["cam"], "certificate": ours}, 400),
        ("/v1/anchors", {"name": "a", "models": ["cam"], "certificate": maker + maker}, 400),
        ("/v1/anchors", {"name": "a", "models": ["cam"], "certificate": maker[:300]}, 400),
        ("/v1/anchors", {"name": "a", "models": ["cam"], "certificate": ""}, 400),
        ("/v1/anchors", {"name": "a", "models": [], "certificate": maker}, 400),
        ("/v1/anchors", {"name": "a", "models": ["valve"], "certificate": maker}, 404),
        ("/v1/anchors/a/remove", {}, 404),
        ("/v1/manifest", {"rows": []}, 400),
        ("/v1/manifest", {"rows": [row()] * (MANIFEST_ROWS_MAX + 1)}, 400),
        ("/v1/manifest", {"rows": [row(color="red")]}, 400),
        ("/v1/manifest", {"rows": [{"device_id": "m-1"}]}, 400),
        ("/v1/manifest", {"rows": [row()], "bulk": "x"}, 400),
    )
    for path, body, expected in wrong:
        status, told = await admin.ask("POST", path, body)
        assert status == expected, (path, body, told)
    for quota in (-1, "7", None, 2.5):
        assert (await admin.ask("PATCH", "/v1/stations/line-1", {"quota": quota}))[0] == 400
    assert {each.name for each in await api.est.registry.claims()} == {"lot-1", "lot-2"}
    assert await api.est.registry.anchors() == []
    assert len(await api.est.registry.devices()) == 3


async def test_a_body_that_is_too_large_is_not_read(admin: Client) -> None:
    many = [row(f"m-{n}", tags={f"k{k}": "x" * 200 for k in range(16)}) for n in range(400)]
    status, told = await admin.ask("POST", "/v1/manifest", {"rows": many})
    assert (status, told["code"]) == (413, "too-large")


async def test_a_stations_quota(admin: Client) -> None:
    status, told = await admin.ask("PATCH", "/v1/stations/line-1", {"quota": 7})
    assert (status, told["quota"], told["certificate"]) == (200, 7, "issued")
    [line] = [each for each in (await admin.get("/v1/stations"))["items"] if each["name"] == "line-1"]
    assert line == told


async def test_heads_and_hashes(api: AdminHarness, admin: Client) -> None:
    assert await admin.get("/v1/audit/sealed") == {"head": None, "frontier": None}
    assert (await admin.get("/v1/audit/heads"))["items"] == []
    signer = LocalHeadSigner(generate_key())
    sizes = []
    for number in range(3):
        await api.est.device(f"more-{number}")
        head = await seal(api.est.registry, signer, api.est.clock())
        assert head is not None
        sizes.append(head.size)
    first = await admin.get("/v1/audit/heads?limit=2")
    assert [each["size"] for each in first["items"]] == sizes[:2]
    assert [each["size"] for each in (await admin.get(first["next"]))["items"]] == sizes[2:]
    assert [each["size"] for each in (await admin.get(f"/v1/audit/heads?after={sizes[1]}"))["items"]] == sizes[2:]
    sealed = await admin.get("/v1/audit/sealed")
    assert (sealed["head"]["size"], sealed["frontier"]["size"]) == (sizes[2], sizes[2])
    rows = (await admin.get("/v1/audit"))["items"]
    leaves = (await admin.get("/v1/audit/hashes?level=0&first=1&count=2"))["hashes"]
    assert leaves == [rows[1]["leaf"], rows[2]["leaf"]]
    assert (await admin.get("/v1/audit/hashes?first=9007199254740991"))["hashes"] == []
    for query in ("level=3", "count=0", "count=100000", "first=-1", "first=9007199254740992"):
        assert (await admin.ask("GET", f"/v1/audit/hashes?{query}"))[0] == 400, query
