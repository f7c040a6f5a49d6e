"""Requests that wait for an operator, over the API."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.domain.access import Role
from tests.servers.admin_fixtures import AdminHarness, Client, open_admin


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    async with open_admin(tmp_path) as api:
        yield api


@pytest.fixture
async def admin(api: AdminHarness) -> Client:
    return await api.operator("bob")


async def test_shown_approved_and_denied(api: AdminHarness, admin: Client) -> None:
    asked = await api.waiting()
    path = f"/v1/requests/{asked.id}"
    shown = await admin.get(path)
    assert (shown["device"], shown["state"], shown["fingerprint"]) == ("new-1", "pending", asked.fingerprint)
    assert (shown["decided_by"], shown["decided_at"], shown["revision"]) == ("", None, 1)
    answer = await admin.send("POST", f"{path}/approve", {"reason": "seen it"}, {"If-Match": '"1"'})
    assert (answer.status, answer.header("ETag")) == (200, '"2"')
    approved = json.loads(answer.body)
    assert (approved["state"], approved["decided_by"], approved["reason"]) == ("approved", "operator bob", "seen it")
    assert await admin.get(path) == approved
    (row,) = await api.est.registry.audit(after=await api.est.registry.last_audit() - 1)
    e = row.entry
    assert (e.actor, e.action, e.subject, e.outcome) == ("operator bob", "request.approve", f"request {asked.id}", "ok")
    assert e.address == "127.0.0.1"
    assert e.detail == {
        "device": "new-1",
        "model": "cam",
        "key": asked.fingerprint,
        "reason": "seen it",
        "before": "state=pending",
        "after": "state=approved",
    }
    assert (await admin.ask("POST", f"{path}/approve"))[1]["code"] == "request-approved"
    assert (await admin.ask("POST", f"{path}/deny", None, {"If-Match": '"1"'}))[0] == 412
    status, denied = await admin.ask("POST", f"{path}/deny")
    assert (status, denied["state"], denied["reason"]) == (200, "denied", "")


async def test_listed_by_page_and_filter(api: AdminHarness, admin: Client) -> None:
    asked = [await api.waiting(f"d{n}", f"k{n}", "pump" if n == 4 else "cam") for n in range(5)]
    await admin.ask("POST", f"/v1/requests/{asked[0].id}/deny")
    found, path = [], "/v1/requests?limit=2"
    while path:
        page = await admin.get(path)
        found += [item["id"] for item in page["items"]]
        path = page["next"]
    assert found == sorted(r.id for r in asked)

    async def ids(query: str) -> set[str]:
        return {item["id"] for item in (await admin.get(f"/v1/requests?{query}"))["items"]}

    assert await ids("state=denied") == {asked[0].id}
    assert await ids("model=pump") == {asked[4].id}
    assert await ids("device=d2&state=pending") == {asked[2].id}
    for query in ("state=lost", "model=a/b", "color=red", "cursor=abc"):
        assert (await admin.ask("GET", f"/v1/requests?{query}"))[0] == 400
    both = await api.operator("both", Role.OPERATOR, ("cam", "pump"))
    assert [i["id"] for i in (await both.get("/v1/requests?limit=5"))["items"]] == found


async def test_the_same_decision_sent_twice_is_made_once(api: AdminHarness, admin: Client) -> None:
    asked = await api.waiting()
    path, key = f"/v1/requests/{asked.id}/approve", {"Idempotency-Key": "k-1"}
    first = await admin.ask("POST", path, {"reason": "seen it"}, key)
    assert first[0] == 200
    assert await admin.ask("POST", path, {"reason": "seen it"}, key) == first
    assert (await admin.ask("POST", path, {"reason": "another"}, key))[1]["code"] == "idempotency-key-reused"


async def test_what_is_wrong_decides_nothing(api: AdminHarness, admin: Client) -> None:
    asked = await api.waiting()
    path = f"/v1/requests/{asked.id}/approve"
    bodies: tuple[object, ...] = ({"reason": "two\nlines"}, {"reason": "x" * 1000}, {"why": ""}, [])
    for body in bodies:
        assert (await admin.ask("POST", path, body))[0] == 400
    assert (await admin.ask("POST", "/v1/requests/ABC/approve"))[0] == 404
    assert (await admin.ask("POST", f"/v1/requests/{'0' * 16}/approve"))[1]["code"] == "no-such-request"
    assert await api.est.registry.request(asked.id) == asked


async def test_who_follows_hears_of_it(api: AdminHarness, admin: Client) -> None:
    """And an operator who is held to another model does not."""
    held = await api.est.operator("held", Role.OPERATOR, ("pump",))
    anybody = await api.est.operator("all", Role.OPERATOR)
    start = await api.est.registry.last_event()
    asked = await api.waiting()
    other = await api.waiting("new-2", "k2", "pump")
    await admin.ask("POST", f"/v1/requests/{asked.id}/deny")
    seen: dict[str, list[str]] = {}
    for name, identity in (("held", held), ("all", anybody)):
        reader, writer = await api.est.connect(identity, "admin")
        writer.write(f"GET /v1/events?after={start} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        heard = b""
        while heard.count(b"data: ") < (1 if name == "held" else 3):
            part = await reader.read(4096)
            assert part, heard
            heard += part
        writer.close()
        lines = [line[6:] for line in heard.decode().splitlines() if line.startswith("data: ")]
        seen[name] = [f"{e['kind']} {e['subject']} {e['detail']}" for e in map(json.loads, lines)]
    assert seen["held"] == [f"request.pending {other.id} new-2"]
    assert seen["all"] == [
        f"request.pending {asked.id} new-1",
        f"request.pending {other.id} new-2",
        f"request.decided {asked.id} denied",
    ]


@pytest.mark.parametrize(
    ("method", "path", "unseen", "missing"),
    [
        ("GET", "/v1/models/{}", "pump", "none"),
        ("GET", "/v1/devices/{}", "pump-1", "pump-9"),
        ("GET", "/v1/claims/{}", "lot-2", "lot-9"),
        ("POST", "/v1/stations/{}/revoke", "line-2", "line-9"),
        ("GET", "/v1/requests/{}", "", "0" * 16),
    ],
)
async def test_what_is_of_another_model_is_answered_like_what_is_not_there(
    api: AdminHarness, method: str, path: str, unseen: str, missing: str
) -> None:
    held = await api.operator("held", Role.ADMIN, ("cam",))
    name = unseen or (await api.waiting(model="pump")).id
    told = [(await held.ask(method, path.format(each)))[1] for each in (name, missing)]
    assert [each["status"] for each in told] == [404, 404]
    assert told[0]["detail"] == told[1]["detail"].replace(missing, name)
    assert "See: fleet " in told[0]["detail"]


async def test_many_are_denied_by_a_filter(api: AdminHarness) -> None:
    admin = await api.operator("bob")
    held = await api.operator("held", Role.OPERATOR, ("pump",))
    mine = [await api.waiting(f"new-{n}", f"k{n}") for n in range(3)]
    pump = await api.waiting("new-9", "k9", "pump")
    body = {"filter": "address=192.0.2.1"}
    _, dry = await admin.ask("POST", "/v1/requests/deny", {**body, "dry_run": True})
    assert (dry["matched"], dry["done"]) == (4, 0)
    later = await api.waiting("late", "late")
    assert (await admin.ask("POST", "/v1/requests/deny", body))[1]["code"] == "count-needed"
    assert (await admin.ask("POST", "/v1/requests/deny", {**body, "expected": 1}))[1]["code"] == "count-differs"
    assert (await admin.ask("POST", "/v1/requests/deny", {**body, "at": "2026-13-01T00:00:00Z"}))[0] == 400
    _, done = await held.ask("POST", "/v1/requests/deny", {**body, "expected": 1})
    assert (done["done"], done["left"]) == (1, 0)
    given = {**body, "expected": 3, "at": dry["at"], "reason": "junk"}
    key = {"Idempotency-Key": "once"}
    _, done = await admin.ask("POST", "/v1/requests/deny", given, key)
    assert (done["matched"], done["done"], done["failed"], done["left"]) == (3, 3, [], 0)
    assert (await admin.ask("POST", "/v1/requests/deny", given, key))[1] == done
    states = {r["id"]: r["state"] for r in (await admin.get("/v1/requests"))["items"]}
    assert states == {**{r.id: "denied" for r in (*mine, pump)}, later.id: "pending"}
