"""Messages of the fleet over the API: to whom, by whom, what the audit says, and what the broker has not taken."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from fleet.domain.access import Role
from fleet.domain.changes import AuditEntry
from fleet.domain.presence import SILENT_AFTER, ClientSession, GatewayRun
from fleet.services import node_messages
from fleet.services.node_messages import publish_for_others
from fleet.services.notifying import PAYLOAD_SIZE_MAX, Notifier
from tests.fake_publisher import FakePublisher
from tests.servers.admin_fixtures import AdminHarness, Client, open_admin

PATH = "/v1/devices/cam-1/notify"
TOPIC = "devices/cam-1/fleet/renew"
SECRET = "do-not-log"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    async with open_admin(tmp_path) as api:
        yield api


@pytest.fixture
def publisher(api: AdminHarness) -> FakePublisher:
    made = FakePublisher()
    api.est.notifier = Notifier(made, "here:/home")
    return made


async def notes(api: AdminHarness) -> list[AuditEntry]:
    return [row.entry for row in await api.est.registry.audit() if row.entry.action == "device.notify"]


async def operator_of(api: AdminHarness) -> Client:
    """An operator of all models; cam-1 is active."""
    admin = await api.operator("bob")
    assert (await admin.get("/v1/devices/cam-1"))["state"] == "active"
    return admin


async def test_with_a_key_what_was_published_is_not_published_again(
    api: AdminHarness, publisher: FakePublisher
) -> None:
    admin, publisher.subscribed = await operator_of(api), True
    key, body = {"Idempotency-Key": "k"}, {"name": "renew"}
    first = await admin.ask("POST", PATH, body, key)
    publisher.subscribed = False
    assert await admin.ask("POST", PATH, body, key) == first
    assert first == (200, {"device_id": "cam-1", "topic": TOPIC, "subscribed": True})
    assert len(publisher.published) == len(await notes(api)) == 1
    assert (await admin.ask("POST", PATH, {"name": "other"}, key))[1]["code"] == "idempotency-key-reused"
    assert (await admin.ask("POST", PATH, body))[1]["subscribed"] is False, "without a key it is another message"
    assert len(publisher.published) == 2


async def test_what_the_broker_has_not_taken_leaves_its_key_free(api: AdminHarness, publisher: FakePublisher) -> None:
    admin, key = await operator_of(api), {"Idempotency-Key": "k"}
    publisher.failures = ["broker-unreachable"]
    assert (await admin.ask("POST", PATH, {"name": "renew"}, key))[0] == 503
    assert (await admin.ask("POST", PATH, {"name": "renew"}, key))[0] == 200
    assert len(publisher.published) == 1


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        ({}, b""),
        ({"payload": None}, b"null"),
        ({"payload": {"a": [1, 2.5, "\u00e9"], "b": SECRET}}, b'{"a": [1, 2.5, "\\u00e9"], "b": "do-not-log"}'),
        ({"payload": "x" * (PAYLOAD_SIZE_MAX - 2)}, b'"' + b"x" * (PAYLOAD_SIZE_MAX - 2) + b'"'),
    ],
)
@pytest.mark.parametrize("subscribed", [True, False, None])
async def test_it_is_published_and_audited_without_its_payload(
    api: AdminHarness, publisher: FakePublisher, body: dict[str, object], payload: bytes, subscribed: bool | None
) -> None:
    admin, publisher.subscribed = await operator_of(api), subscribed
    status, answer = await admin.ask("POST", PATH, {"name": "renew", **body, "reason": "weak key"})
    assert (status, answer) == (200, {"device_id": "cam-1", "topic": TOPIC, "subscribed": subscribed})
    assert publisher.published == [(TOPIC, payload)]
    (entry,) = await notes(api)
    assert (entry.actor, entry.subject, entry.outcome) == ("operator bob", "device cam-1", "ok")
    assert entry.detail == {"name": "renew", "bytes": str(len(payload)), "reason": "weak key"}


@pytest.mark.parametrize("text", ["1.50", "[ 1e2,\n\t0.10000000000000000555111512 ]", '"\u00e9 \\u00e9"', "{}", "null"])
async def test_it_is_published_as_it_is_written(api: AdminHarness, publisher: FakePublisher, text: str) -> None:
    admin = await operator_of(api)
    body = f'{{ "payload" : {text} , "name": "renew"}}'.encode()
    assert (await admin.ask("POST", PATH, body, {"Content-Type": "application/json"}))[0] == 200
    where = '"filter": "model=cam and state=active", "act": "notify", "expected": 1'
    many = f'{{{where}, "message": {body.decode()}}}'.encode()
    status, told = await admin.ask("POST", "/v1/bulk", many, {"Content-Type": "application/json"})
    assert status == 200, told
    assert publisher.published == [(TOPIC, text.encode())] * 2


async def test_what_the_broker_has_not_taken_is_said_and_audited(api: AdminHarness, publisher: FakePublisher) -> None:
    admin = await operator_of(api)
    for code in ("broker-unreachable", "publish-refused", "publisher-busy"):
        publisher.failures = [code]
        status, answer = await admin.ask("POST", PATH, {"name": "renew", "payload": SECRET})
        assert (status, answer["code"]) == (503, code)
        asked, failed = (await notes(api))[-2:]
        assert (asked.outcome, failed.outcome) == ("ok", code)
        assert asked.detail == failed.detail == {"name": "renew", "bytes": "12"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "bad-request"),
        ({"name": ""}, 400, "bad-request"),
        ({"name": "#"}, 400, "bad-request"),
        ({"name": "a/+"}, 400, "bad-request"),
        ({"name": "/a"}, 400, "bad-request"),
        ({"name": "a//b"}, 400, "bad-request"),
        ({"name": "../x"}, 400, "bad-request"),
        ({"name": "a\n"}, 400, "bad-request"),
        ({"name": "a/b/c/d/e"}, 400, "bad-request"),
        ({"name": "renew", "retain": True}, 400, "bad-request"),
        ({"name": "renew", "payload": "x" * (PAYLOAD_SIZE_MAX - 1)}, 400, "payload-too-large"),
        (b'{"name": "renew", "payload": NaN}', 400, "bad-json"),
        (b'{"name": "renew", "payload": "' + b"x" * 200_000 + b'"}', 413, "too-large"),
    ],
)
async def test_what_is_no_message(
    api: AdminHarness, publisher: FakePublisher, body: object, status: int, code: str
) -> None:
    admin = await operator_of(api)
    found, answer = await admin.ask("POST", PATH, body, {"Content-Type": "application/json"})
    assert (found, answer["code"]) == (status, code)
    assert (publisher.published, await notes(api)) == ([], [])


async def test_who_may(api: AdminHarness, publisher: FakePublisher) -> None:
    await operator_of(api)
    held = await api.operator("held", Role.OPERATOR, ("pump",))
    assert (await held.ask("POST", PATH, {"name": "renew"}))[0] == 404
    for role in (Role.VIEWER, Role.FACTORY):
        models = ("cam",) if role is Role.FACTORY else ()
        assert (await (await api.operator(role, role, models)).ask("POST", PATH, {"name": "renew"}))[0] == 403
    assert publisher.published == []
    operator = await api.operator("op", Role.OPERATOR, ("cam",))
    assert (await operator.ask("POST", PATH, {"name": "renew"}))[0] == 200


async def test_a_device_that_is_not_in_service(api: AdminHarness, publisher: FakePublisher) -> None:
    admin = await operator_of(api)
    assert (await admin.ask("POST", "/v1/devices/cam-1/suspend"))[0] == 200
    for name, code in (("cam-1", "device-suspended"), ("cam-2", "device-registered")):
        status, answer = await admin.ask("POST", f"/v1/devices/{name}/notify", {"name": "renew"})
        assert (status, answer["code"]) == (409, code)
    assert publisher.published == []


async def test_where_there_is_no_broker(api: AdminHarness) -> None:
    admin = await api.operator("bob")
    for path, body in ((PATH, {}), ("/v1/bulk", {"filter": "model=cam", "act": "notify", "dry_run": True})):
        message = {"message": {"name": "renew"}} if "bulk" in path else {"name": "renew"}
        status, answer = await admin.ask("POST", path, {**body, **message})
        assert (status, answer["code"]) == (409, "no-broker")


async def connect(api: AdminHarness, node: str, run: str, client_id: str = "cam-1") -> None:
    """A session of the device at a node, which lives now."""
    now = api.est.clock()
    await api.est.registry.begin_run(GatewayRun(run, node, 1, now))
    session = ClientSession("cam-1", client_id, now, now, None, "", "192.0.2.7", node, run, "5.0", "TLSv1.3", "X25519")
    await api.est.registry.note_sessions([session], GatewayRun(run, node, 1, now))


async def test_a_device_at_another_node_with_a_broker_of_its_own(
    api: AdminHarness, publisher: FakePublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = await operator_of(api)
    await connect(api, "there:/home", "aa" * 8)
    there, registry = FakePublisher(), api.est.registry
    serving = asyncio.create_task(publish_for_others(registry, "there:/home", there, api.est.clock))
    for subscribed in (True, False, None):
        there.subscribed = subscribed
        status, answer = await admin.ask("POST", PATH, {"name": "renew", "payload": {"n": 1}})
        assert (status, answer["subscribed"], there.published.pop()) == (200, subscribed, (TOPIC, b'{"n": 1}'))
    await connect(api, "here:/home", "bb" * 8, client_id="cam-1/app")  # a session at each
    assert (await admin.ask("POST", PATH, {"name": "renew"}))[0] == 200
    assert there.published.pop() == publisher.published.pop() == (TOPIC, b"")
    there.failures = ["broker-unreachable"]
    status, answer = await admin.ask("POST", PATH, {"name": "renew"})
    assert (status, answer["code"], (await notes(api))[-1].outcome) == (503, "broker-unreachable", "broker-unreachable")
    publisher.published.clear()
    serving.cancel()
    monkeypatch.setattr(node_messages, "ANSWER_SECONDS_MAX", 0.1)
    status, answer = await admin.ask("POST", PATH, {"name": "renew"})
    assert (status, answer["code"]) == (503, "node-silent")
    assert "there:/home" in answer["detail"]
    assert await registry.messages_for("there:/home", api.est.clock(), 10) == []
    publisher.published.clear()
    api.est.now = api.est.clock() + SILENT_AFTER + timedelta(seconds=1)  # neither node is heard from
    api.est.notifier = Notifier(publisher, "third:/home")
    status, answer = await admin.ask("POST", PATH, {"name": "renew"})
    assert (status, answer["code"], publisher.published) == (409, "node-silent", [])
    api.est.notifier = Notifier(publisher)  # one broker for all nodes
    assert (await admin.ask("POST", PATH, {"name": "renew"}))[0] == 200
    api.est.notifier = Notifier(publisher, "there:/home")
    assert (await admin.ask("POST", PATH, {"name": "renew"}))[0] == 200


async def bulk(client: Client, **body: object) -> tuple[int, dict[str, object]]:
    return await client.ask("POST", "/v1/bulk", {"filter": "model=cam", "act": "notify", **body})


async def test_many(api: AdminHarness, publisher: FakePublisher) -> None:
    admin, message = await operator_of(api), {"name": "log-level", "payload": {"level": "debug"}}
    status, step = await bulk(admin, message=message, dry_run=True)
    assert (status, step["matched"], publisher.published) == (200, 2, [])
    status, step = await bulk(admin, message=message, expected=2, reason="a look")
    assert (status, step["done"], step["skipped"], step["failed"]) == (200, 1, {"device-registered": 1}, [])
    assert publisher.published == [("devices/cam-1/fleet/log-level", b'{"level": "debug"}')]
    (entry,) = await notes(api)
    detail = {"name": "log-level", "bytes": "18", "bulk": step["bulk"], "reason": "a look"}
    assert (entry.subject, entry.detail) == ("device cam-1", detail)
    publisher.subscribed = False
    status, step = await bulk(admin, message=message, expected=2)
    assert (step["done"], step["skipped"]) == (0, {"device-registered": 1, "not-subscribed": 1})
    publisher.failures = ["broker-unreachable"]
    status, step = await bulk(admin, message=message, expected=2)
    assert step["failed"] == [{"id": "cam-1", "code": "broker-unreachable", "why": "It has not."}]
    assert [each.outcome for each in await notes(api)] == ["ok", "ok", "ok", "broker-unreachable"]


async def test_what_goes_with_the_act(api: AdminHarness, publisher: FakePublisher) -> None:
    admin = await operator_of(api)
    for body in ({}, {"act": "suspend", "message": {"name": "renew"}}, {"message": {"name": "renew"}, "join": ["a"]}):
        status, answer = await bulk(admin, dry_run=True, **body)
        assert (status, answer["code"]) == (400, "bad-bulk")
