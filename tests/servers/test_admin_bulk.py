"""Acts on many devices over the API."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fleet.domain.access import Act, Role
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.device import Device, DeviceFilter, DeviceId, DeviceState, new_model
from fleet.domain.model_rules import ModelKind
from fleet.domain.writes import Insert
from fleet.servers.admin.cursors import packed, unpacked
from fleet.servers.admin.handlers.bulk import OPERATION_LASTS
from fleet.services import inventory
from fleet.services.bulk import WINDOW
from fleet.services.operators import revoke_operator
from tests.servers.admin_fixtures import AdminHarness, Client, open_admin

SUSPEND = {"filter": "lot=L7", "act": "suspend"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    async with open_admin(tmp_path) as api:
        yield api


@pytest.fixture
async def admin(api: AdminHarness) -> Client:
    return await api.operator("bob")


async def fill(api: AdminHarness, count: int, model: str = "cam") -> None:
    """Active devices of lot L7, the first to end the last by id."""
    now = api.est.clock()
    device = Device(DeviceId(""), model, DeviceState.ACTIVE, now, tags=(("lot", "L7"),))
    writes = tuple(
        Insert(replace(device, id=DeviceId(f"{model}:{n:04}"), expires_at=now + timedelta(hours=count - n)))
        for n in range(count)
    )
    await api.est.registry.commit(Change(AuditEntry(now, "test", "prepare", "", "ok"), writes))


def edited(cursor: str, at: int, value: object) -> str:
    """The cursor with another value in one place."""
    values = unpacked(cursor)
    values[at] = value
    return packed(values)


async def suspended(api: AdminHarness) -> int:
    return await api.est.registry.count_devices(DeviceFilter(state=DeviceState.SUSPENDED))


async def steps(client: Client, body: dict[str, Any], expected: int) -> list[dict[str, Any]]:
    """Every step's answer."""
    found = []
    given: dict[str, Any] = {"expected": expected}
    while True:
        status, step = await client.ask("POST", "/v1/bulk", {**body, **given})
        assert status == 200, step
        found.append(step)
        if step["next"] is None:
            return found
        given = {"cursor": step["next"]}


async def test_a_dry_run_counts_and_changes_nothing(api: AdminHarness, admin: Client) -> None:
    await fill(api, 3)
    status, told = await admin.ask("POST", "/v1/bulk", {**SUSPEND, "dry_run": True, "expected": 99})
    assert (status, told["matched"], told["done"], told["next"]) == (200, 3, 0, None)
    assert await suspended(api) == 0


async def test_a_kind_selects_the_devices_of_its_models(api: AdminHarness, admin: Client) -> None:
    registry = api.est.registry
    for name in ("backend", "reports"):
        await inventory.add_model(registry, new_model(name, ModelKind.APPLICATION), act=Act("test", api.est.clock()))
    for model in ("cam", "backend", "reports"):
        await fill(api, WINDOW + 1, model)
    apps = {**SUSPEND, "filter": "lot=L7 and kind=application"}
    assert (await admin.ask("POST", "/v1/bulk", {**apps, "dry_run": True}))[1]["matched"] == 2 * WINDOW + 2
    held = await api.operator("held", Role.OPERATOR, ("cam", "reports"))
    assert (await held.ask("POST", "/v1/bulk", {**apps, "dry_run": True}))[1]["matched"] == WINDOW + 1
    for text, count in (
        ("kind=application and model=cam", 0),
        ("kind=application and model=backend", WINDOW + 1),
        ("kind=device and lot=L7", WINDOW + 1),
    ):
        status, told = await admin.ask("POST", "/v1/bulk", {**SUSPEND, "filter": text, "dry_run": True})
        assert (status, told["matched"]) == (200, count), text
    told = await steps(admin, apps, 2 * WINDOW + 2)
    assert sum(step["done"] for step in told) == await suspended(api) == 2 * WINDOW + 2
    assert await registry.count_devices(DeviceFilter("cam", DeviceState.SUSPENDED)) == 0


async def test_models_of_a_kind_that_come_meanwhile_end_the_operation(api: AdminHarness, admin: Client) -> None:
    await fill(api, 1001)
    given = {**SUSPEND, "filter": "lot=L7 and kind=device"}
    status, step = await admin.ask("POST", "/v1/bulk", {**given, "expected": 1001})
    assert (status, step["next"] is not None) == (200, True)
    await inventory.add_model(api.est.registry, new_model("a"), act=Act("test", api.est.clock()))
    status, refused = await admin.ask("POST", "/v1/bulk", {**given, "cursor": step["next"]})
    assert (status, refused["code"]) == (400, "bad-cursor")


async def test_the_registry_is_never_asked_by_kind(api: AdminHarness) -> None:
    with pytest.raises(ValueError, match="by its models"):
        await api.est.registry.count_devices(DeviceFilter(kind=ModelKind.DEVICE))


async def test_it_is_confirmed_by_the_number(api: AdminHarness, admin: Client) -> None:
    await fill(api, 3)
    assert (await admin.ask("POST", "/v1/bulk", SUSPEND))[1]["code"] == "count-needed"
    status, told = await admin.ask("POST", "/v1/bulk", {**SUSPEND, "expected": 2})
    assert (status, told["code"], told["detail"]) == (409, "count-differs", "3 match, not 2; nothing was changed.")
    assert await suspended(api) == 0


@pytest.mark.parametrize("text", ["lot=L7", "lot=L7 and expires<400w"])
async def test_step_by_step_until_all_are_done(api: AdminHarness, admin: Client, text: str) -> None:
    await fill(api, 1203)
    found = await steps(admin, {"filter": text, "act": "revoke", "reason": "lot L7 leaks"}, 1203)
    assert [step["done"] for step in found] == [500, 500, 203]
    assert {step["matched"] for step in found} == {1203}
    assert len({step["bulk"] for step in found}) == 1
    left = await api.est.registry.count_devices(DeviceFilter(tags=(("lot", "L7"),), state=DeviceState.ACTIVE))
    assert left == 0
    rows = [r.entry for r in await api.est.registry.audit(limit=5000) if r.entry.action == "device.revoke"]
    assert len(rows) == 1203
    assert {(e.actor, e.address, e.outcome) for e in rows} == {("operator bob", "127.0.0.1", "ok")}
    detail = {"reason": "lot L7 leaks", "bulk": found[0]["bulk"], "before": "state=active", "after": "state=revoked"}
    assert rows[0].detail == detail


async def test_again_there_is_nothing_to_do(api: AdminHarness, admin: Client) -> None:
    await fill(api, 3)
    assert (await steps(admin, SUSPEND, 3))[0]["done"] == 3
    (again,) = await steps(admin, SUSPEND, 3)
    assert (again["done"], again["skipped"], again["failed"]) == (0, {"device-suspended": 3}, [])
    assert await suspended(api) == 3


async def test_a_step_sent_twice_harms_nothing(api: AdminHarness, admin: Client) -> None:
    """And what came in meanwhile is left alone: it was not counted."""
    await fill(api, 600)
    _, first = await admin.ask("POST", "/v1/bulk", {**SUSPEND, "expected": 600})
    await fill(api, 20, "pump")
    body = {**SUSPEND, "cursor": first["next"]}
    _, one = await admin.ask("POST", "/v1/bulk", body)
    _, two = await admin.ask("POST", "/v1/bulk", body)
    assert (one["done"], two["done"], two["skipped"]) == (100, 0, {"device-suspended": 100})
    assert (one["next"], two["next"], await suspended(api)) == (None, None, 600)


async def test_a_step_sent_again_leaves_alone_what_was_registered_since(api: AdminHarness, admin: Client) -> None:
    """However often: they are none of those that were confirmed."""
    await fill(api, 502)
    body = {"filter": "lot=L7 and state=active", "act": "suspend"}
    _, first = await admin.ask("POST", "/v1/bulk", {**body, "expected": 502})
    await fill(api, 4, "pump")  # behind all others by id
    done = []
    for _ in range(3):
        _, step = await admin.ask("POST", "/v1/bulk", {**body, "cursor": first["next"]})
        done.append((step["done"], step["skipped"], step["next"]))
    assert (done, await suspended(api)) == ([(2, {}, None), (0, {}, None), (0, {}, None)], 502)


async def test_it_stops_when_its_operator_is_revoked_in_mid_step(api: AdminHarness, admin: Client) -> None:
    """A right is judged when it is used: nothing is begun after the revocation."""
    await fill(api, 300)
    registry, commit = api.est.registry, api.est.registry.commit
    moved = 0

    async def revoked_meanwhile(change: Change) -> None:
        nonlocal moved
        if change.audit.action == "device.suspend":
            moved += 1
            if moved == 70:
                await revoke_operator(registry, "bob", act=Act("test", api.est.clock()))
        await commit(change)

    registry.commit = revoked_meanwhile  # type: ignore[method-assign]
    status, told = await admin.ask("POST", "/v1/bulk", {**SUSPEND, "expected": 300})
    assert (status, told["code"]) == (403, "certificate-revoked")
    assert 70 <= await suspended(api) <= 2 * WINDOW
    rows = [r.entry for r in await registry.audit(limit=5000)]
    assert [(e.actor, e.subject, e.outcome) for e in rows if e.action == "api.call"] == [
        ("operator bob", "POST /v1/bulk", "certificate-revoked")
    ]


async def test_a_cursor_is_refused_once_the_operation_is_too_old(api: AdminHarness, admin: Client) -> None:
    await fill(api, 600)
    api.est.now = began = api.est.clock()
    _, first = await admin.ask("POST", "/v1/bulk", {**SUSPEND, "expected": 600})
    body = {**SUSPEND, "cursor": first["next"]}
    api.est.now = began + OPERATION_LASTS + timedelta(seconds=1)
    status, told = await admin.ask("POST", "/v1/bulk", body)
    assert (status, told["code"], await suspended(api)) == (400, "bad-cursor", 500)
    api.est.now = began + OPERATION_LASTS
    assert (await admin.ask("POST", "/v1/bulk", body))[1]["done"] == 100


async def test_the_first_step_sent_again_with_its_key_is_told_how_it_went(api: AdminHarness, admin: Client) -> None:
    """Without the key its number would not match any more, and nobody would know what became of it."""
    await fill(api, 3)
    key, body = {"Idempotency-Key": "k"}, {"filter": "lot=L7 and state=active", "act": "suspend", "expected": 3}
    first = await admin.ask("POST", "/v1/bulk", body, key)
    assert (first[0], first[1]["done"]) == (200, 3)
    rows = await api.est.registry.last_audit()
    assert await admin.ask("POST", "/v1/bulk", body, key) == first
    assert await api.est.registry.last_audit() == rows
    assert (await admin.ask("POST", "/v1/bulk", {**body, "expected": 2}, key))[1]["code"] == "idempotency-key-reused"
    assert (await admin.ask("POST", "/v1/bulk", body))[1]["code"] == "count-differs"
    # another operator's key is another key, and what was refused leaves it free
    other = await api.operator("carol", Role.OPERATOR, ("cam",))
    assert (await other.ask("POST", "/v1/bulk", body, key))[1]["code"] == "count-differs"
    assert (await other.ask("POST", "/v1/bulk", {**body, "expected": 0}, key))[0] == 200
    entries = [row.entry for row in await api.est.registry.audit(limit=100)]
    (row,) = [entry for entry in entries if entry.subject == f"bulk {first[1]['bulk']}"]
    assert (row.actor, row.action, row.detail) == ("operator bob", "bulk.step", {"act": "suspend", "done": "3"})


async def test_a_step_sent_twice_at_once_with_its_key_is_answered_alike(api: AdminHarness) -> None:
    await fill(api, 300)
    identity = await api.est.operator("bob")
    clients = [api.client(identity) for _ in range(2)]
    key, body = {"Idempotency-Key": "k"}, {**SUSPEND, "expected": 300}
    one, two = await asyncio.gather(*(client.ask("POST", "/v1/bulk", body, key) for client in clients))
    assert one == two
    assert one[0] == 200
    assert await suspended(api) == 300


async def test_tags_and_groups(api: AdminHarness, admin: Client) -> None:
    await fill(api, 3)
    body = {"filter": "lot=L7", "act": "tag", "tags": {"lot": None, "site": "Köln Süd"}, "join": ["recall"]}
    assert (await steps(admin, body, 3))[0]["done"] == 3
    found = await admin.get("/v1/devices?group=recall")
    assert [d["tags"] for d in found["items"]] == [{"site": "Köln Süd"}] * 3
    assert (await steps(admin, {"filter": "group=recall", "act": "tag", "leave": ["recall"]}, 3))[0]["done"] == 3


async def test_of_ones_own_models_alone(api: AdminHarness, admin: Client) -> None:
    for model in ("cam", "pump"):
        await fill(api, 700, model)
    held = await api.operator("held", Role.OPERATOR, ("cam",))
    both = await api.operator("both", Role.OPERATOR, ("pump", "cam"))
    assert (await steps(held, {**SUSPEND, "filter": "model=pump and lot=L7"}, 0))[0]["matched"] == 0
    assert sum(step["done"] for step in await steps(held, SUSPEND, 700)) == 700
    assert await api.est.registry.count_devices(DeviceFilter(model="pump", state=DeviceState.SUSPENDED)) == 0
    found = await steps(both, {**SUSPEND, "act": "resume"}, 1400)
    assert sum(step["done"] for step in found) == 700
    assert sum(step["skipped"].get("device-not-suspended", 0) for step in found) == 700
    assert await suspended(api) == 0


async def test_a_cursor_gives_no_right(api: AdminHarness, admin: Client) -> None:
    """Neither to others' devices, nor to whoever may not act, nor to anybody but whom it was given to."""
    await fill(api, 600, "pump")
    _, first = await admin.ask("POST", "/v1/bulk", {**SUSPEND, "expected": 600})
    body = {**SUSPEND, "cursor": first["next"]}
    held = await api.operator("held", Role.OPERATOR, ("cam",))
    viewer = await api.operator("eve", Role.VIEWER)
    other = await api.operator("rita", Role.OPERATOR)
    for client in (held, other):
        status, told = await client.ask("POST", "/v1/bulk", body)
        assert (status, told["code"]) == (400, "bad-cursor")
    assert (await viewer.ask("POST", "/v1/bulk", body))[0] == 403
    assert await suspended(api) == 500


async def test_a_cursor_cannot_be_made_up(api: AdminHarness, admin: Client) -> None:
    """Neither the operation's id that the audit shows, nor how many devices were confirmed, nor where it goes on."""
    await fill(api, 600)
    _, first = await admin.ask("POST", "/v1/bulk", {**SUSPEND, "expected": 600})
    others = ((1, "f" * 12), (3, 601), (4, 1), (4, 600), (6, ""), (6, "cam:0001"))
    for at, value in others:
        told = await admin.ask("POST", "/v1/bulk", {**SUSPEND, "cursor": edited(first["next"], at, value)})
        assert (told[0], told[1]["code"]) == (400, "bad-cursor"), (at, value)
    assert await suspended(api) == 500
    assert (await admin.ask("POST", "/v1/bulk", {**SUSPEND, "cursor": first["next"]}))[1]["done"] == 100


async def test_what_is_wrong_changes_nothing(api: AdminHarness, admin: Client) -> None:
    await fill(api, 600)
    _, first = await admin.ask("POST", "/v1/bulk", {**SUSPEND, "expected": 600})
    cursor = first["next"]
    before = await api.est.registry.last_audit()
    made_up = [(at, value) for at in (3, 4, 5) for value in (inf, nan, 600.0, -1, "1")] + [(6, 5), (7, 1)]
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"filter": "lot", "act": "suspend", "expected": 1}, "bad-filter"),
        ({"filter": "", "act": "suspend", "expected": 1}, "bad-filter"),
        ({"filter": "lot=L7", "act": "explode", "expected": 1}, "bad-request"),
        ({"filter": "lot=L7"}, "bad-request"),
        ({"filter": "lot=L7", "act": "suspend", "tags": {"a": "b"}, "expected": 600}, "bad-bulk"),
        ({"filter": "lot=L7", "act": "tag", "expected": 600}, "nothing-to-tag"),
        ({"filter": "lot=L7", "act": "tag", "tags": {"state": "x"}, "expected": 600}, "bad-tag"),
        ({"filter": "lot=L7", "act": "suspend", "reason": "a\nb", "expected": 600}, "bad-request"),
        ({"filter": "lot=L7", "act": "suspend", "expected": -1}, "bad-request"),
        ({**SUSPEND, "cursor": "e30"}, "bad-cursor"),
        ({**SUSPEND, "cursor": cursor[:-4]}, "bad-cursor"),
        *(({**SUSPEND, "cursor": edited(cursor, at, value)}, "bad-cursor") for at, value in made_up),
        ({**SUSPEND, "act": "revoke", "cursor": cursor}, "bad-cursor"),
        ({**SUSPEND, "filter": "lot=L8", "cursor": cursor}, "bad-cursor"),
    )
    for body, code in wrong:
        status, told = await admin.ask("POST", "/v1/bulk", body)
        assert told["code"] == code, (body, told)
        assert 400 <= status < 500
    assert await api.est.registry.last_audit() == before
