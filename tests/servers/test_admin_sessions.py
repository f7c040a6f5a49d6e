"""Sessions over the API: listed by what is asked, to whom may see the device, and kicked."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from fleet.domain.access import Role
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.device import Device, DeviceId, DeviceState, new_model
from fleet.domain.model_rules import ModelKind
from fleet.domain.presence import SILENT_AFTER, ClientSession, GatewayRun
from fleet.domain.registry_events import SessionKicked, decode_event
from fleet.domain.writes import Insert
from tests.servers.admin_fixtures import AdminHarness, open_admin

RUN, LOST = "aa" * 8, "bb" * 8
NODES = {RUN: "host:/home", LOST: "other:/home"}


def session(api: AdminHarness, client_id: str, *, run: str = RUN, ended: str = "") -> ClientSession:
    now = api.est.clock()
    device_id, address = client_id.partition("/")[0], "192.0.2.7"
    ended_at = now if ended else None
    since = now - timedelta(hours=1)
    return ClientSession(
        device_id, client_id, since, now, ended_at, ended, address, NODES[run], run, "5.0", "TLSv1.3", "X25519"
    )


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    """cam-1 is connected twice, cam-2 has gone, and pump-1 is at a node that has died."""
    async with open_admin(tmp_path) as api:
        registry, now = api.est.registry, api.est.clock()
        here, there = (GatewayRun(run, node, 1, now) for run, node in NODES.items())
        for run in (here, there):
            await registry.begin_run(run)
        await registry.note_sessions([session(api, "pump-1", run=LOST)], there)
        api.est.now = now + SILENT_AFTER + timedelta(seconds=1)
        sessions = [session(api, "cam-1"), session(api, "cam-1/app"), session(api, "cam-2", ended="client-gone")]
        await registry.note_sessions(sessions, GatewayRun(RUN, NODES[RUN], 1, api.est.clock()))
        yield api


STATES = {"cam-1": "connected", "cam-1/app": "connected", "cam-2": "disconnected", "pump-1": "unknown"}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["cam-1", "cam-1/app", "cam-2", "pump-1"]),
        ("?device=cam-1", ["cam-1", "cam-1/app"]),
        ("?model=pump", ["pump-1"]),
        ("?node=other:/home", ["pump-1"]),
        ("?connected=true", ["cam-1", "cam-1/app", "pump-1"]),
        ("?connected=false", ["cam-2"]),
        ("?connected=true&model=cam&node=host:/home&device=cam-1", ["cam-1", "cam-1/app"]),
        ("?device=cam-2&connected=true", []),
        ("?kind=device", ["cam-1", "cam-1/app", "cam-2", "pump-1"]),
        ("?kind=application", []),
    ],
)
async def test_listing(api: AdminHarness, query: str, expected: list[str]) -> None:
    client = await api.operator("bob", Role.VIEWER)
    found = (await client.get(f"/v1/sessions{query}"))["items"]
    assert {each["client_id"]: each["state"] for each in found} == {each: STATES[each] for each in expected}


async def test_it_comes_in_pages_of_any_size(api: AdminHarness) -> None:
    client = await api.operator("bob", Role.VIEWER)
    for limit in (1, 2, 3, 4):
        following, found = f"/v1/sessions?limit={limit}", []
        while following:
            page = await client.get(following)
            assert len(page["items"]) <= limit
            found += [each["client_id"] for each in page["items"]]
            following = page["next"]
        assert found == list(STATES)
    for bad in ("connected=yes", "device=/", "node=" + "n" * 300, "cursor=e30"):
        assert (await client.ask("GET", f"/v1/sessions?{bad}"))[0] == 400


async def test_applications_alone(api: AdminHarness) -> None:
    registry, client = api.est.registry, await api.operator("bob", Role.VIEWER)
    backend = new_model("backend", ModelKind.APPLICATION)
    reports = Device(DeviceId("reports"), "backend", DeviceState.ACTIVE, api.est.clock())
    entry = AuditEntry(api.est.clock(), "operator", "model.add", "model backend", "ok")
    await registry.commit(Change(entry, (Insert(backend), Insert(reports))))
    await registry.note_sessions([session(api, "reports")], GatewayRun(RUN, NODES[RUN], 1, api.est.clock()))
    ids = {"application": ["reports"], "device": ["cam-1", "cam-1/app", "cam-2", "pump-1"]}
    for kind, expected in ids.items():
        found = (await client.get(f"/v1/sessions?kind={kind}"))["items"]
        assert [each["client_id"] for each in found] == expected
    assert (await client.get("/v1/sessions?kind=application&model=cam"))["items"] == []
    assert [each["client_id"] for each in (await client.get("/v1/sessions?kind=device&model=pump"))["items"]] == [
        "pump-1"
    ]
    held = await api.operator("held", Role.OPERATOR, ("pump",))
    assert (await held.get("/v1/sessions?kind=application"))["items"] == []
    assert (await client.ask("GET", "/v1/sessions?kind=robot"))[0] == 400


async def test_one_devices_sessions_with_all_that_is_known(api: AdminHarness) -> None:
    client = await api.operator("bob", Role.VIEWER)
    found = await client.get("/v1/sessions/cam-2")
    known = session(api, "cam-2")
    assert found == {
        "device_id": "cam-2",
        "sessions": [
            {
                "device_id": "cam-2",
                "client_id": "cam-2",
                "state": "disconnected",
                "connected_at": known.connected_at.isoformat().replace("+00:00", "Z"),
                "seen_at": known.seen_at.isoformat().replace("+00:00", "Z"),
                "ended_at": known.seen_at.isoformat().replace("+00:00", "Z"),
                "reason": "client-gone",
                "address": "192.0.2.7",
                "node": "host:/home",
                "mqtt": "5.0",
                "tls": "TLSv1.3",
                "tls_group": "X25519",
            }
        ],
    }
    await api.est.device("cam-3")
    assert await client.get("/v1/sessions/cam-3") == {"device_id": "cam-3", "sessions": []}
    assert (await client.ask("GET", "/v1/sessions/cam-9"))[1]["code"] == "no-such-device"


async def test_what_is_another_models_is_not_there(api: AdminHarness) -> None:
    held = await api.operator("held", Role.OPERATOR, ("pump",))
    assert [each["client_id"] for each in (await held.get("/v1/sessions"))["items"]] == ["pump-1"]
    assert (await held.get("/v1/sessions?model=cam"))["items"] == []
    assert (await held.ask("POST", "/v1/sessions/cam-1/kick"))[1]["code"] == "no-such-device"


async def test_a_kick_is_audited_and_told_to_every_gateway(api: AdminHarness) -> None:
    bob, registry = await api.operator("bob", Role.OPERATOR), api.est.registry
    before = await registry.last_event()
    kept = {"client_id": "cam-2"}  # not connected
    assert (await bob.ask("POST", "/v1/sessions/cam-2/kick", kept))[1]["client_ids"] == []
    assert await bob.ask("POST", "/v1/sessions/cam-1/kick") == (
        200,
        {"device_id": "cam-1", "client_ids": ["cam-1", "cam-1/app"], "will": False},
    )
    body = {"client_id": "cam-1/app", "will": True, "reason": "stuck"}
    assert (await bob.ask("POST", "/v1/sessions/cam-1/kick", body))[1]["client_ids"] == ["cam-1/app"]
    assert (await bob.ask("POST", "/v1/sessions/cam-2/kick", {}))[1]["client_ids"] == []
    for other in ("cam-1/x", "cam-2"):
        status, answer = await bob.ask("POST", "/v1/sessions/cam-1/kick", {"client_id": other})
        assert (status, answer["code"]) == (404, "no-such-session")
    events = [decode_event(event) for event in await registry.events(after=before)]
    assert events == [
        SessionKicked("cam-2", "cam-2", ends_kept=True),
        SessionKicked("cam-1"),
        SessionKicked("cam-1", "cam-1/app", True),
        SessionKicked("cam-2"),
    ]
    entry = (await registry.audit())[-2].entry
    assert (entry.actor, entry.action, entry.subject) == ("operator bob", "session.kick", "device cam-1")
    assert entry.detail == {"client_id": "cam-1/app", "will": "published", "reason": "stuck"}
    for bad in ({"client_id": ""}, {"will": "yes"}, {"client_id": "x" * 300}, {"all": True}):
        assert (await bob.ask("POST", "/v1/sessions/cam-1/kick", bad))[0] == 400


async def test_the_same_request_again_is_one_kick(api: AdminHarness) -> None:
    bob, registry = await api.operator("bob"), api.est.registry
    before = await registry.last_event()
    answers = [
        (await bob.send("POST", "/v1/sessions/cam-1/kick", {}, {"Idempotency-Key": "k1"})).body for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert await registry.last_event() == before + 1
