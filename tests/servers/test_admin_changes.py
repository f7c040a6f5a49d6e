"""Changing things over the API: conditions, idempotency, and what the audit says of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.ca.keys import generate_key
from fleet.config.timestamps import rfc3339
from fleet.domain.access import Act, Role
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.model_rules import DEFAULT_RULES, rules_json
from fleet.domain.writes import MarkUsed, SetModel
from fleet.services import inventory
from tests.servers.admin_fixtures import AdminHarness, Client, open_admin
from tests.servers.est_fixtures import basic, csr_for, renewal_csr


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    async with open_admin(tmp_path) as api:
        yield api


@pytest.fixture
async def admin(api: AdminHarness) -> Client:
    return await api.operator("bob")


async def last_entry(api: AdminHarness) -> tuple[str, str, str, str, str]:
    """The newest audit row: actor, action, subject, outcome, address."""
    (row,) = await api.est.registry.audit(after=await api.est.registry.last_audit() - 1)
    e = row.entry
    return e.actor, e.action, e.subject, e.outcome, e.address


class TestModels:
    async def test_a_models_life(self, api: AdminHarness, admin: Client) -> None:
        new = {"name": "valve", "lifetime_seconds": 3600, "publish": ["up/{id}"], "subscribe": [], "retain": True}
        status, made = await admin.ask("POST", "/v1/models", new)
        assert status == 201
        assert made == {**new, "key_types": ["EC-P256", "EC-P384"], **rules_json(DEFAULT_RULES), "revision": 1}
        assert await last_entry(api) == ("operator bob", "model.add", "model valve", "ok", "127.0.0.1")
        patched = await admin.send("PATCH", "/v1/models/valve", {"retain": False}, {"If-Match": '"1"'})
        assert (patched.status, patched.header("ETag")) == (200, '"2"')
        assert json.loads(patched.body) == {**made, "retain": False, "revision": 2}
        status, replaced = await admin.ask("PUT", "/v1/models/valve", {}, {"If-Match": "*"})
        usual = {"lifetime_seconds": 7776000, "publish": ["devices/{id}/up/#"], "subscribe": ["devices/{id}/down/#"]}
        assert (status, replaced) == (200, {**made, **usual, "retain": False, "revision": 3})
        assert await admin.get("/v1/models/valve") == replaced
        assert (await admin.ask("POST", "/v1/models", new))[1]["code"] == "model-exists"

    async def test_an_answer_is_the_revision_written_whoever_writes_next(
        self, api: AdminHarness, admin: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = api.est.registry
        commit = registry.commit

        async def overtaken(change: Change) -> None:
            await commit(change)
            if any(isinstance(write, SetModel) for write in change.writes):
                monkeypatch.undo()
                stored = await registry.model("cam")
                assert stored is not None
                await inventory.set_model(registry, replace(stored, retain=True), act=Act("eve", api.est.clock()))

        monkeypatch.setattr(registry, "commit", overtaken)
        patched = await admin.send("PATCH", "/v1/models/cam", {"publish": ["up/{id}"]}, {"If-Match": '"1"'})
        body = json.loads(patched.body)
        assert (patched.header("ETag"), body["revision"], body["retain"]) == ('"2"', 2, False)
        assert (await admin.get("/v1/models/cam"))["revision"] == 3

    async def test_rules_are_merged_and_replaced(self, admin: Client) -> None:
        new = {"name": "valve", "tenant": "acme", "renewal": {"key": "new", "grace_seconds": 60}}
        _, made = await admin.ask("POST", "/v1/models", new)
        mqtt = {"on_denied": "close", "burst_seconds": 2, "check_response_topic": False}
        mqtt |= {"subscriptions_max": 3, "packet_size_max": 4_096}
        names = {"binding": True, "email": "{id}@example.com", "upn": "{id}@corp.example"}
        http = {"allow": ["GET,HEAD /v1/{id}/**"]}
        renewal = {"grace_seconds": 120, "certificates_per_day": 100}
        patch = {"renewal": renewal, "profile": names, "mqtt": mqtt, "http": http}
        _, patched = await admin.ask("PATCH", "/v1/models/valve", patch, {"If-Match": "*"})
        assert patched["renewal"] == {"key": "new", "campaign": None, **renewal}
        assert patched["profile"] == {**made["profile"], **names}
        assert patched["http"] == http
        assert patched["mqtt"] == {**made["mqtt"], **mqtt}
        assert patched["tenant"] == "acme"
        _, replaced = await admin.ask("PUT", "/v1/models/valve", {}, {"If-Match": "*"})
        moved = {**rules_json(DEFAULT_RULES), "former_tenants": ["acme"]}
        assert {name: replaced[name] for name in moved} == moved

    async def test_a_tenant_is_one_that_has_a_ca_and_its_name_is_taken(self, admin: Client) -> None:
        for method, path, body, expected in (
            ("POST", "/v1/models", {"name": "valve", "tenant": "nobody"}, (403, "no-such-tenant")),
            ("POST", "/v1/models", {"name": "acme"}, (409, "name-taken")),
            ("POST", "/v1/models", {"name": "cacerts"}, (400, "bad-name")),
            ("PATCH", "/v1/models/cam", {"tenant": "nobody"}, (403, "no-such-tenant")),
            ("PATCH", "/v1/models/cam", {"former_tenants": ["a b"]}, (400, "bad-request")),
            ("PATCH", "/v1/models/cam", {"former_tenants": "acme"}, (400, "bad-request")),
            ("PATCH", "/v1/models/cam", {"mqtt": {"subscriptions_max": 100_001}}, (400, "bad-request")),
            ("PATCH", "/v1/models/cam", {"renewal": {"certificates_per_day": 1_000_001}}, (400, "bad-request")),
            ("PATCH", "/v1/models/cam", {"renewal": {"certificates_per_day": -1}}, (400, "bad-request")),
            ("PATCH", "/v1/models/cam", {"mqtt": {"packet_size_max": 67_108_865}}, (400, "bad-request")),
            ("PATCH", "/v1/models/cam", {"mqtt": {"overrides": [{"tag": "a=b", "qos_max": 3}]}}, (400, "bad-request")),
            ("PATCH", "/v1/models/cam", {"mqtt": {"overrides": [{"tag": "a=b"}]}}, (400, "bad-rule")),
            ("PATCH", "/v1/models/cam", {"mqtt": {"overrides": [{"tag": "a=b", "x": 1}]}}, (400, "bad-request")),
        ):
            status, problem = await admin.ask(method, path, body, {"If-Match": "*"} if method == "PATCH" else None)
            assert (status, problem["code"]) == expected, body

    async def test_who_is_held_to_models_moves_none_of_them_to_another_tenant(
        self, api: AdminHarness, admin: Client
    ) -> None:
        held = await api.operator("held", Role.ADMIN, ("cam",))
        for body in ({"tenant": "acme"}, {"former_tenants": ["acme"]}):
            for method in ("PATCH", "PUT"):
                status, problem = await held.ask(method, "/v1/models/cam", body, {"If-Match": "*"})
                assert (status, problem["code"]) == (403, "held-to-models")
        assert (await held.ask("PATCH", "/v1/models/cam", {"retain": True}, {"If-Match": "*"}))[0] == 200
        _, moved = await admin.ask("PATCH", "/v1/models/cam", {"tenant": "acme"}, {"If-Match": "*"})
        assert (moved["tenant"], moved["former_tenants"]) == ("acme", [""])
        _, ended = await held.ask("PATCH", "/v1/models/cam", {"former_tenants": []}, {"If-Match": "*"})
        assert (ended["tenant"], ended["former_tenants"]) == ("acme", [])
        status, problem = await held.ask("PATCH", "/v1/models/cam", {"tenant": ""}, {"If-Match": "*"})
        assert (status, problem["code"]) == (403, "held-to-models")

    async def test_who_is_held_to_models_gives_them_no_topics_or_names_of_others(
        self, api: AdminHarness, admin: Client
    ) -> None:
        held, any_one = await api.operator("held", Role.ADMIN, ("cam",)), {"If-Match": "*"}
        old = await admin.get("/v1/models/cam")
        assert (old["publish"], old["subscribe"]) == (["devices/{id}/up/#"], ["devices/{id}/down/#"])
        kept = {"publish": old["publish"], "subscribe": old["subscribe"]}
        for body in (
            {"subscribe": ["devices/#"]},
            {"subscribe": ["devices/+/down/#"]},
            {"publish": ["devices/{id}/up/#", "devices/pump-1/down/#"]},
            {"publish": ["#"]},
            {"publish": ["{id}/#"]},
            {**kept, "mqtt": {"overrides": [{"tag": "a=b", "subscribe": ["#"]}]}},
            {**kept, "profile": {"dns_name": "{id}.pumps.example.com"}},
            {**kept, "profile": {"uris": ["urn:pump:{id}"]}},
        ):
            for method in ("PATCH", "PUT"):
                status, problem = await held.ask(method, "/v1/models/cam", body, any_one)
                assert (status, problem["code"]) == (403, "held-to-models"), body
        narrow = {"publish": ["devices/{id}/up/a", "devices/{id}/up/+/b"], "subscribe": []}
        assert (await held.ask("PATCH", "/v1/models/cam", narrow, any_one))[0] == 200
        assert (await held.ask("PUT", "/v1/models/cam", {}, any_one))[0] == 403  # back to what it had
        assert (await admin.ask("PATCH", "/v1/models/cam", {"subscribe": ["devices/#"]}, any_one))[0] == 200

    async def test_one_that_no_device_can_live_by(self, admin: Client) -> None:
        for body, code in (
            ({"name": "valve", "publish": ["a/#/b"]}, "bad-topic-filter"),
            ({"name": "valve", "lifetime_seconds": 59}, "bad-request"),
            ({"name": "a/b"}, "bad-request"),
            ({"name": "valve", "key_types": ["RSA-512"]}, "bad-request"),
            ({"name": "valve", "color": "red"}, "bad-request"),
            ({"name": "valve", "renewal": {"color": "red"}}, "bad-request"),
            ({"name": "valve", "admission": {"paths": ["door"]}}, "bad-request"),
            ({"name": "valve", "admission": {"webhook": "http://x/"}}, "bad-rule"),
            ({}, "bad-request"),
        ):
            status, problem = await admin.ask("POST", "/v1/models", body)
            assert (status, problem["code"]) == (400, code), body
        assert (await admin.ask("GET", "/v1/models/valve"))[0] == 404


class TestConditions:
    async def test_a_change_names_what_it_is_for(self, admin: Client) -> None:
        for method, path in (("PUT", "/v1/models/cam"), ("PATCH", "/v1/models/cam"), ("PATCH", "/v1/devices/cam-1")):
            etag = (await admin.send("GET", path)).header("ETag")
            body: object = {"groups": []} if "devices" in path else {"retain": True}
            assert (await admin.ask(method, path, body))[1]["code"] == "if-match-needed"
            for stale in ('"7"', f"W/{etag}", '"1x"'):
                status, problem = await admin.ask(method, path, body, {"If-Match": stale})
                assert (status, problem["code"]) == (412, "changed-meanwhile")
            assert (await admin.ask(method, path, body, {"If-Match": "1"}))[1]["code"] == "bad-etag"
            on_two_lines = {"If-Match": f'"9"\r\nIf-Match: {etag}'}
            assert (await admin.ask(method, path, body, on_two_lines))[0] == 200

    async def test_the_registry_decides_a_race(self, api: AdminHarness) -> None:
        clients = [await api.operator(f"bob-{n}") for n in range(4)]
        changes = [
            client.ask("PATCH", "/v1/devices/cam-2", {"tags": {"n": str(n)}}, {"If-Match": '"1"'})
            for n, client in enumerate(clients)
        ]
        answers = await asyncio.gather(*changes)
        assert sorted(status for status, _ in answers) == [200, 412, 412, 412]
        (winner,) = [value for status, value in answers if status == 200]
        assert await clients[0].get("/v1/devices/cam-2") == winner

    async def test_a_move_may_name_it_too(self, admin: Client) -> None:
        path = "/v1/devices/cam-2/suspend"
        assert (await admin.ask("POST", path, headers={"If-Match": '"9"'}))[0] == 412
        assert (await admin.ask("POST", path, headers={"If-Match": '"1"'}))[0] == 200

    async def test_what_is_known_is_not_sent_again(self, api: AdminHarness, admin: Client) -> None:
        serial = f"{api.device.certificate.serial_number:x}"
        for path in ("/v1/devices/cam-2", "/v1/models/cam", f"/v1/credentials/{serial}", "/v1/openapi.json"):
            etag = (await admin.send("GET", path)).header("ETag")
            assert etag
            for header in (etag, f'"x", W/{etag}', "*"):
                again = await admin.send("GET", path, headers={"If-None-Match": header})
                assert (again.status, again.body, again.header("ETag")) == (304, b"", etag), path
            assert (await admin.send("GET", path, headers={"If-None-Match": '"x"'})).status == 200


class TestDevices:
    async def test_a_devices_life(self, api: AdminHarness, admin: Client) -> None:
        made = await admin.send("POST", "/v1/devices", {"id": "cam:9", "model": "cam", "hardware_serial": "SN 9"})
        assert (made.status, made.header("Location"), made.header("ETag")) == (201, "/v1/devices/cam%3A9", '"1"')
        for path in ("/v1/devices/cam:9", "/v1/devices/cam%3A9"):
            assert await admin.get(path) == json.loads(made.body)
        for verb, state in (("suspend", "suspended"), ("resume", "registered"), ("revoke", "revoked")):
            status, moved = await admin.ask("POST", f"/v1/devices/cam:9/{verb}", {"reason": "odd traffic"})
            assert (status, moved["state"]) == (200, state)
            expected = ("operator bob", f"device.{verb}", "device cam:9", "ok", "127.0.0.1")
            assert await last_entry(api) == expected
            shown = await admin.get("/v1/devices/cam:9")
            row = (await api.est.registry.audit(after=await api.est.registry.last_audit() - 1))[0]
            known = {"at": rfc3339(row.entry.at), "actor": "operator bob", "reason": "odd traffic"}
            assert shown.pop("state_change", None) == (None if verb == "resume" else known)
            assert shown == moved
        assert (await admin.ask("POST", "/v1/devices/cam:9/resume"))[1]["code"] == "device-not-suspended"
        assert (await admin.ask("POST", "/v1/devices/cam:9/retire"))[1]["state"] == "retired"

    async def test_a_merge_patch_of_tags(self, admin: Client) -> None:
        async def patch(body: object) -> tuple[object, object]:
            kind = {"If-Match": "*", "Content-Type": "application/merge-patch+json"}
            status, device = await admin.ask("PATCH", "/v1/devices/cam-2", body, kind)
            assert status == 200, device
            return device["tags"], device["groups"]

        assert await patch({"tags": {"site": "essen", "floor": "2"}}) == ({"site": "essen", "floor": "2"}, [])
        assert await patch({"groups": ["b", "a"]}) == ({"site": "essen", "floor": "2"}, ["a", "b"])
        assert await patch({"tags": {"floor": None, "x": None}, "groups": []}) == ({"site": "essen"}, [])

    async def test_one_that_is_labelled_from_the_start(self, api: AdminHarness, admin: Client) -> None:
        new = {"id": "cam-9", "model": "cam", "tags": {"site": "essen", "lot": "L7"}, "groups": ["b", "a", "b"]}
        status, made = await admin.ask("POST", "/v1/devices", new)
        assert (status, made["tags"], made["groups"]) == (201, new["tags"], ["a", "b"])
        assert await admin.get("/v1/devices/cam-9") == made
        for wrong, code in (({"tags": {"a": " x"}}, "bad-tag"), ({"tags": {"a": None}}, "bad-request")):
            status, problem = await admin.ask("POST", "/v1/devices", {**new, "id": "cam-8", **wrong})
            assert (status, problem["code"]) == (400, code)
        assert (await admin.ask("GET", "/v1/devices/cam-8"))[0] == 404

    async def test_labels_that_it_has_already_change_nothing(self, api: AdminHarness, admin: Client) -> None:
        body = {"tags": {"lot": "L7"}, "reason": "recounted"}
        status, tagged = await admin.ask("PATCH", "/v1/devices/cam-2", body, {"If-Match": '"1"'})
        assert (status, tagged["revision"]) == (200, 2)
        newest = await api.est.registry.last_audit()
        (row,) = await api.est.registry.audit(after=newest - 1)
        assert row.entry.detail == {
            "before": "tags=",
            "after": 'tags={"lot": "L7"}',
            "reason": "recounted",
        }
        assert (await admin.ask("PATCH", "/v1/devices/cam-2", body, {"If-Match": '"2"'}))[1] == tagged
        assert await api.est.registry.last_audit() == newest

    async def test_tags_have_limits(self, admin: Client) -> None:
        for tags, code in (
            ({"1": "x"}, "bad-request"),
            ({"a": ""}, "bad-request"),
            ({"a": " x"}, "bad-tag"),
            ({"a": "x\n"}, "bad-request"),
            ({f"a{n}": "x" for n in range(33)}, "bad-request"),
        ):
            status, problem = await admin.ask("PATCH", "/v1/devices/cam-2", {"tags": tags}, {"If-Match": "*"})
            assert (status, problem["code"]) == (400, code), tags


class TestIdempotency:
    async def test_the_same_request_gets_the_same_answer(self, api: AdminHarness, admin: Client) -> None:
        requests = (
            ("/v1/models", {"name": "valve"}),
            ("/v1/devices", {"id": "cam-9", "model": "cam"}),
            ("/v1/devices/cam-9/suspend", {"reason": "lost"}),
            ("/v1/devices/cam-9/revoke", None),
        )
        for n, (path, body) in enumerate(requests):
            key = {"Idempotency-Key": f"key-{n}"}
            first = await admin.send("POST", path, body, key)
            rows = await api.est.registry.last_audit()
            again = await admin.send("POST", path, body, key)
            assert first.status in (200, 201)
            for name in ("Content-Type", "ETag", "Location"):
                assert again.header(name) == first.header(name)
            assert (again.status, again.body) == (first.status, first.body)
            assert await api.est.registry.last_audit() == rows

    async def test_the_same_key_for_another_request(self, api: AdminHarness, admin: Client) -> None:
        key = {"Idempotency-Key": "k"}
        assert (await admin.ask("POST", "/v1/devices", {"id": "cam-9", "model": "cam"}, key))[0] == 201
        for path, body in (("/v1/devices", {"id": "cam-8", "model": "cam"}), ("/v1/tokens", {"model": "cam"})):
            status, problem = await admin.ask("POST", path, body, key)
            assert (status, problem["code"]) == (422, "idempotency-key-reused")
        other = await api.operator("alice")
        assert (await other.ask("POST", "/v1/devices", {"id": "cam-8", "model": "cam"}, key))[0] == 201

    async def test_a_tokens_secret_is_kept_nowhere(self, api: AdminHarness, admin: Client) -> None:
        key = {"Idempotency-Key": "k"}
        status, first = await admin.ask("POST", "/v1/tokens", {"device": "cam-2"}, key)
        secret = first.pop("token").partition(".")[2]
        assert status == 201
        assert len(secret) > 40
        status, again = await admin.ask("POST", "/v1/tokens", {"device": "cam-2"}, key)
        assert "shown once" in again.pop("note")
        assert (status, again) == (201, first)
        kept = await api.est.registry.answer("operator bob", "k")
        assert kept is not None
        assert secret not in kept.body
        rows = await api.est.registry.audit()
        assert secret not in str(rows)

    async def test_two_at_once_are_done_once(self, api: AdminHarness) -> None:
        identity = await api.est.operator("bob")
        clients = [api.client(identity) for _ in range(6)]
        key = {"Idempotency-Key": "k"}
        before = await api.est.registry.last_audit()
        answers = await asyncio.gather(*(c.ask("POST", "/v1/tokens", {"model": "cam"}, key) for c in clients))
        assert {status for status, _ in answers} == {201}
        assert len({value["id"] for _, value in answers}) == 1
        assert sum("token" in value for _, value in answers) == 1
        moves = await asyncio.gather(
            *(c.ask("POST", "/v1/devices/cam-2/revoke", headers={"Idempotency-Key": "m"}) for c in clients)
        )
        assert {(status, value["state"]) for status, value in moves} == {(200, "revoked")}
        assert await api.est.registry.last_audit() == before + 2

    async def test_a_refused_request_leaves_its_key_free(self, admin: Client) -> None:
        key = {"Idempotency-Key": "k"}
        assert (await admin.ask("POST", "/v1/devices", {"id": "cam-9", "model": "valve"}, key))[0] == 404
        await admin.ask("POST", "/v1/models", {"name": "valve"})
        assert (await admin.ask("POST", "/v1/devices", {"id": "cam-9", "model": "valve"}, key))[0] == 201

    async def test_a_day_later_it_is_forgotten(self, api: AdminHarness, admin: Client) -> None:
        key = {"Idempotency-Key": "k"}
        assert (await admin.ask("POST", "/v1/tokens", {"model": "cam"}, key))[0] == 201
        api.est.now = api.est.clock() + timedelta(hours=24, seconds=1)
        later = api.client(await api.est.operator("alice"))
        assert (await later.ask("POST", "/v1/tokens", {"model": "cam"}, {"Idempotency-Key": "l"}))[0] == 201
        assert await api.est.registry.answer("operator bob", "k") is None
        assert (await admin.ask("POST", "/v1/tokens", {"device": "cam-2"}, key))[0] == 201

    async def test_a_key_has_a_form(self, admin: Client) -> None:
        for key in ("a b", "a\r\nIdempotency-Key: b", "k" * 129, "é".encode().decode("latin-1")):
            status, problem = await admin.ask("POST", "/v1/tokens", {"model": "cam"}, {"Idempotency-Key": key})
            assert (status, problem["code"]) == (400, "bad-idempotency-key")


async def test_a_tokens_life(api: AdminHarness, admin: Client) -> None:
    status, made = await admin.ask("POST", "/v1/tokens", {"model": "cam", "uses": 3, "ttl_seconds": 60})
    assert (status, made["uses_max"], made["state"]) == (201, 3, "open")
    assert made["token"].startswith(f"{made['id']}.")
    (listed, *_) = (await admin.get("/v1/tokens"))["items"]
    assert "token" not in listed
    status, revoked = await admin.ask("POST", f"/v1/tokens/{made['id']}/revoke")
    assert (status, revoked["state"]) == (200, "revoked")
    assert await last_entry(api) == ("operator bob", "token.revoke", f"token {made['id']}", "ok", "127.0.0.1")
    assert (await admin.ask("POST", f"/v1/tokens/{made['id']}/revoke"))[1]["code"] == "token-gone"
    for body in ({}, {"model": "cam", "device": "cam-1"}, {"model": "cam", "uses": 0}, {"model": "cam", "uses": True}):
        assert (await admin.ask("POST", "/v1/tokens", body))[0] == 400


async def test_a_factory_makes_devices_and_tokens(api: AdminHarness) -> None:
    line = await api.operator("line-1", Role.FACTORY, ("cam",))
    assert (await line.ask("POST", "/v1/devices", {"id": "cam-9", "model": "cam"}))[0] == 201
    assert (await line.ask("POST", "/v1/tokens", {"device": "cam-9"}))[0] == 201
    assert {d["id"] for d in (await line.get("/v1/devices"))["items"]} == {"cam-1", "cam-2", "cam-9"}
    assert (await line.ask("POST", "/v1/devices/cam-9/revoke"))[1]["code"] == "role-not-enough"


async def test_a_factorys_token_takes_over_no_device_that_is_in_the_field(api: AdminHarness) -> None:
    line = await api.operator("line-1", Role.FACTORY, ("cam",))
    token, registry = {"device": "cam-1"}, api.est.registry
    assert (await line.ask("POST", "/v1/tokens", token))[0] == 201  # enrolled, and its certificate never used
    (held,) = await registry.credentials("cam-1")
    entry = AuditEntry(api.est.clock(), "device cam-1", "credential.first-use", "device cam-1", "ok")
    await registry.commit(Change(entry, (MarkUsed(held.fingerprint),)))
    status, problem = await line.ask("POST", "/v1/tokens", token)
    assert (status, problem["code"]) == (403, "already-enrolled")
    assert (await line.ask("POST", "/v1/tokens", {"device": "cam-2"}))[0] == 201
    operator = await api.operator("carol", Role.OPERATOR, ("cam",))
    assert (await operator.ask("POST", "/v1/tokens", token))[0] == 201


async def test_a_factorys_token_is_judged_again_when_it_is_used(api: AdminHarness) -> None:
    """Made while the device was new, kept, and used once the device is in the field and its maker revoked."""
    line = await api.operator("line-1", Role.FACTORY, ("cam",))
    kept = [(await line.ask("POST", "/v1/tokens", {"device": "cam-2"}))[1] for _ in range(3)]
    assert {(token["takes_over"], token["made_by"]) for token in kept} == {(False, "operator line-1")}
    first, second, third = (token["token"] for token in kept)
    key = generate_key()
    assert (await api.est.enroll(csr_for("cam-2", key), basic(first))).status == 200
    # A board that was flashed again before it was ever in the field.
    answer = await api.est.enroll(csr_for("cam-2", key := generate_key()), basic(second))
    assert answer.status == 200
    owner = api.est.identity(answer.certificates[0], key)
    assert (await api.est.reenroll(renewal_csr(owner), owner)).status == 200
    await api.revoke("line-1")
    refused = await api.est.enroll(csr_for("cam-2"), basic(third))
    assert (refused.status, refused.code) == (403, "already-enrolled")
    carol = await api.operator("carol", Role.OPERATOR, ("cam",))
    _, made = await carol.ask("POST", "/v1/tokens", {"device": "cam-2"})
    assert made["takes_over"]
    assert (await api.est.enroll(csr_for("cam-2"), basic(made["token"]))).status == 200


async def test_a_factorys_token_spent_early_takes_over_no_device_later(api: AdminHarness) -> None:
    line = await api.operator("line-1", Role.FACTORY, ("cam",))
    first, kept = [(await line.ask("POST", "/v1/tokens", {"device": "cam-2"}))[1]["token"] for _ in range(2)]
    held = []
    for token in (first, kept):
        answer = await api.est.enroll(csr_for("cam-2", key := generate_key()), basic(token))
        held.append(api.est.identity(answer.certificates[0], key))
    board, other = held
    assert (await api.est.reenroll(renewal_csr(board), board)).status == 200  # its first use
    refused = await api.est.reenroll(renewal_csr(other), other)
    assert (refused.status, refused.code) == (403, "certificate-superseded")
    assert (await api.est.reenroll(renewal_csr(board), board)).status == 200
    carol = await api.operator("carol", Role.OPERATOR, ("cam",))
    answers = []
    for device in ("cam-2", "cam-2"):
        _, made = await carol.ask("POST", "/v1/tokens", {"device": device})
        key = generate_key()
        answer = await api.est.enroll(csr_for(device, key), basic(made["token"]))
        answers.append(api.est.identity(answer.certificates[0], key))
    for identity in answers:  # an operator's token may replace a board, in use or not
        assert (await api.est.reenroll(renewal_csr(identity), identity)).status == 200


async def test_an_operators_unspent_tokens_are_counted_and_revoked_with_it(api: AdminHarness, admin: Client) -> None:
    line = await api.operator("line-1", Role.FACTORY, ("cam",))
    made = [(await line.ask("POST", "/v1/tokens", {"model": "cam"}))[1] for _ in range(4)]
    spent, gone, *open_ = made
    assert (await api.est.enroll(csr_for("new-1"), basic(spent["token"]))).status == 200
    assert (await admin.ask("POST", f"/v1/tokens/{gone['id']}/revoke"))[0] == 200
    assert (await admin.get("/v1/operators/line-1"))["open_tokens"] == 2
    assert {o["name"]: o["open_tokens"] for o in (await admin.get("/v1/operators"))["items"]} == {"bob": 0, "line-1": 2}
    # Without asking for it they stay, and can be revoked later.
    _, revoked = await admin.ask("POST", "/v1/operators/line-1/revoke")
    assert (revoked["certificate"], revoked["open_tokens"], revoked["revoked_tokens"]) == ("revoked", 2, 0)
    _, revoked = await admin.ask("POST", "/v1/operators/line-1/revoke", {"tokens": True, "reason": "left"})
    assert (revoked["certificate"], revoked["open_tokens"], revoked["revoked_tokens"]) == ("revoked", 0, 2)
    for token in open_:
        assert (await api.est.enroll(csr_for("new-2"), basic(token["token"]))).code == "token-revoked"
    rows = [r.entry for r in await api.est.registry.audit(limit=500) if r.entry.action.endswith(".revoke")]
    assert {(e.action, e.subject, e.detail["reason"]) for e in rows[-2:]} == {
        ("token.revoke", f"token {token['id']}", "left") for token in open_
    }
    status, told = await admin.ask("POST", "/v1/operators/line-1/revoke", {"tokens": True})
    assert (status, told["code"]) == (409, "operator-revoked")
    assert (await api.est.registry.token(spent["id"])).revoked_at is None  # type: ignore[union-attr]
