"""Back-end applications: models of a kind of their own, how they enroll, and what they may not be taken for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.domain.access import Act, Role
from fleet.domain.changes import Change
from fleet.domain.credential import Credential
from fleet.domain.device import Model, new_model
from fleet.domain.errors import Refused
from fleet.domain.model_rules import HttpRules, ModelKind
from fleet.domain.mqtt_rules import ClientIdBinding, MqttRules
from fleet.domain.policy_explained import Action, Attempt, explained
from fleet.domain.writes import AddCredential, Insert
from fleet.dynamic_security.commands import DENY_REST, RESERVED_ROLE, Client, add_device, add_model, no_holdings
from fleet.servers.gateway.broker.mosquitto import BACKEND
from fleet.services import anchors, inventory, revocation
from fleet.wire.mqtt.codes import V5, V311, Reason
from tests.servers import admin_fixtures, test_broker_auth, test_forward_auth
from tests.servers.admin_fixtures import AdminHarness, csr_text, open_admin
from tests.servers.est_fixtures import basic, csr_for
from tests.servers.gateway_fixtures import (
    MODEL,
    credential,
    device,
    now,
    operator,
    populate,
)
from tests.servers.mosquitto_gateway import MosquittoGateway, needs_mosquitto, open_mosquitto_gateway

BACKENDS = new_model("backend", ModelKind.APPLICATION)
APP = replace(device("app-1"), model="backend")
UP, DOWN = "devices/+/up/#", "devices/+/down/#"
ANY_REVISION = {"If-Match": "*"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    async with open_admin(tmp_path) as api:
        await inventory.add_model(api.est.registry, BACKENDS, act=Act("test", api.est.clock()))
        yield api


async def code_of(client: admin_fixtures.Client, method: str, path: str, body: object) -> str:
    status, answer = await client.ask(method, path, body, None if method == "POST" else ANY_REVISION)
    return str(answer["code"]) if status >= 400 else "ok"


async def test_a_model_is_of_devices_or_of_applications_and_stays_so(api: AdminHarness) -> None:
    admin = await api.operator("bob")
    status, made = await admin.ask("POST", "/v1/models", {"name": "reports", "kind": "application", "publish": []})
    assert (status, made["publish"], made["subscribe"]) == (201, [], [UP])
    assert (made["kind"], made["admission"]["paths"]) == ("application", ["token"])
    assert await admin.get("/v1/models/reports") == made
    own = "/v1/models/backend"
    for method, path, body, code in (
        ("PATCH", own, {"kind": "device"}, "model-kind-fixed"),
        ("PUT", own, {}, "model-kind-fixed"),  # what is left out is as in a new one
        ("PATCH", "/v1/models/cam", {"kind": "application", "admission": {"paths": ["token"]}}, "model-kind-fixed"),
        ("PUT", "/v1/models/pump", {"kind": "application"}, "model-kind-fixed"),
        ("PATCH", own, {"kind": "program"}, "bad-request"),
        ("PATCH", own, {"kind": "application", "admission": {"paths": ["token", "approval"]}}, "ok"),
        ("PUT", own, {"kind": "application"}, "ok"),
    ):
        assert await code_of(admin, method, path, body) == code, (method, path, body)
    replaced = await admin.get(own)
    assert (replaced["subscribe"], replaced["admission"]["paths"]) == ([UP], ["token"])


async def test_no_path_of_the_factory_admits_an_application(api: AdminHarness) -> None:
    admin, registry, act = await api.operator("bob"), api.est.registry, Act("test", api.est.clock())
    for path in ("station", "claim", "idevid", "manifest"):
        admitted = {"admission": {"paths": ["token", path]}}
        assert await code_of(admin, "PATCH", "/v1/models/backend", admitted) == "bad-rule"
        new = {"name": "b", "kind": "application", **admitted}
        assert await code_of(admin, "POST", "/v1/models", new) == "bad-rule"
    claim = {"name": "lot-9", "model": "backend", "quota": 5, "lifetime_seconds": 3600}
    for path, body in (
        ("/v1/stations", {"name": "line-9", "models": ["cam", "backend"], "csr": csr_text("line-9")}),
        ("/v1/claims", {**claim, "csr": csr_text("lot-9")}),
        ("/v1/operators", {"name": "f", "role": "factory", "models": ["backend"], "csr": csr_text("f")}),
    ):
        assert await code_of(admin, "POST", path, body) == "application-model", path
    with pytest.raises(Refused, match="is of applications"):
        await anchors.add_anchor(registry, "acme", ["backend"], b"der", act=act)
    rows = [{"device_id": "app-7", "model": "backend", "hardware_serial": "S"}]
    (refused,) = (await admin.ask("POST", "/v1/manifest", {"rows": rows}))[1]["refused"]
    assert refused["code"] == "application-model"
    assert await registry.device("app-7") is None
    # Who vouches for devices has its own models, whatever label it names.
    for vouching in (api.station, await api.est.claim("lot-8", "cam")):
        answer = await api.est.enroll(csr_for("app-8"), identity=vouching, label="backend")
        assert answer.status == 403
    assert await registry.device("app-8") is None


async def test_it_enrolls_by_token_or_approval_and_is_listed_and_revoked_as_devices_are(api: AdminHarness) -> None:
    est, admin = api.est, await api.operator("bob")
    await est.device("app-1", "backend")
    first = await est.enroll(csr_for("app-1"), basic(await est.token("app-1")))
    assert first.status == 200, first.text
    by_model = await est.enroll(csr_for("app-2"), basic(await est.token(model="backend")), label="backend")
    assert by_model.status == 200, by_model.text
    for csr, token in (
        (csr_for("app-1"), await est.token(model="cam")),
        (csr_for("cam-2"), await est.token(model="backend")),
        (csr_for("app-9"), await est.token("app-1")),
    ):
        assert (await est.enroll(csr, basic(token))).status == 403
    assert (await est.enroll(csr_for("app-3"), label="backend")).status == 401
    both = {"admission": {"paths": ["token", "approval"]}}
    assert await code_of(admin, "PATCH", "/v1/models/backend", both) == "ok"
    key_csr = csr_for("app-3")
    assert (await est.enroll(key_csr, label="backend")).status == 202
    (waiting,) = (await admin.get("/v1/requests"))["items"]
    await admin.ask("POST", f"/v1/requests/{waiting['id']}/approve")
    assert (await est.enroll(key_csr, label="backend")).status == 200

    async def listed(query: str) -> dict[str, str]:
        return {each["id"]: each["kind"] for each in (await admin.get(f"/v1/devices?{query}"))["items"]}

    assert set(await listed("kind=application")) == {"app-1", "app-2", "app-3"}
    assert set((await listed("kind=device&model=cam")).values()) == {"device"}
    assert await listed("kind=device&model=backend") == {}
    assert len(await listed("")) == len(await listed("kind=application")) + len(await listed("kind=device"))
    assert (await admin.get("/v1/devices/app-1"))["kind"] == "application"
    held = await api.operator("carl", Role.OPERATOR, ("cam",))
    assert (await held.get("/v1/devices?kind=application"))["items"] == []
    assert {each["kind"] for each in (await held.get("/v1/devices?kind=device"))["items"]} == {"device"}
    assert (await admin.ask("POST", "/v1/devices/app-1/revoke", {"reason": "moved"}))[0] == 200
    assert (await est.enroll(csr_for("app-1"), basic(await est.token(model="backend")))).code == "device-revoked"
    row = [each.entry for each in await est.registry.audit(limit=999) if each.entry.subject == "device app-1"]
    assert [each.action for each in row if each.outcome == "ok"][-1] == "device.revoke"


@asynccontextmanager
async def opened(
    folder: Path, model: Model = BACKENDS
) -> AsyncIterator[tuple[MosquittoGateway, Credential, Credential]]:
    """A gateway, a device's certificate and an application's."""
    async with open_mosquitto_gateway(folder, (MODEL, model)) as gateway:
        registry = gateway.harness.registry
        (cam,) = await populate(registry, "cam-1")
        app = credential("app-1")
        writes = (Insert(model), Insert(APP), AddCredential(app))
        await registry.commit(Change(operator("populate"), writes))
        yield gateway, cam, app


@needs_mosquitto
async def test_it_reads_what_devices_send_and_writes_to_them_and_nothing_else(tmp_path: Path) -> None:
    async with opened(tmp_path) as (gateway, held_cam, held_app):
        app, cam = await gateway.device(held_app), await gateway.device(held_cam)
        asked = (UP, f"$share/g/{UP}", "devices/cam-1/up/t", "#", "devices/#", DOWN, "devices/cam-1/fleet/#", "news/a")
        assert await app.subscribe(*asked) == [1, 1, 1, *(Reason.NOT_AUTHORIZED,) * 5]
        beyond = (UP, f"$share/g/{UP}", DOWN, "devices/app-1/up/#")
        assert await cam.subscribe(*beyond, "devices/cam-1/down/#") == [*(Reason.NOT_AUTHORIZED,) * 4, 1]
        for topic in ("devices/cam-1/up/t", "devices/app-1/up/t", "devices/cam-1/fleet/t", "news/a", "all/cam2"):
            assert await app.publish(topic, b"forged") == Reason.NOT_AUTHORIZED
        assert await app.publish("devices/cam-1/down/t", b"kept", retain=True) == Reason.NOT_AUTHORIZED
        assert await cam.publish("devices/cam-2/down/t", b"forged") == Reason.NOT_AUTHORIZED
        assert await app.publish("devices/cam-1/down/t", b"go") == Reason.SUCCESS
        assert await cam.message() == ("devices/cam-1/down/t", b"go")
        for held, taken in ((held_app, "cam-1"), (held_cam, "app-1"), (held_app, "app-1/2")):
            _, connack = await gateway.harness.connect(held, V5, client_id=taken)
            assert connack.code == Reason.CLIENT_IDENTIFIER_NOT_VALID, taken
        await cam.publish("devices/cam-1/up/t", b"went")
        assert {await app.message() for _ in range(2)} == {("devices/cam-1/up/t", b"went")}


@needs_mosquitto
async def test_the_brokers_acl_gives_it_the_same_topics_and_nothing_else(tmp_path: Path) -> None:
    async with opened(tmp_path) as (gateway, *_):
        app, backend = await gateway.local("backend", "app-1"), await gateway.local(BACKEND, "b")
        await app.subscribe("#")
        await backend.subscribe("#")
        for topic in ("devices/cam-1/down/t", "devices/cam-1/x", "news/a", "devices/cam-1/up/t"):
            await backend.publish(topic, b"theirs")
        assert await app.message() == ("devices/cam-1/up/t", b"theirs")
        assert [(await backend.message())[0] for _ in range(4)][-1] == "devices/cam-1/up/t"
        for topic in ("devices/cam-1/up/t", "news/a", "$SYS/x", "devices/cam-1/down/t"):
            await app.publish(topic, b"its own")
        assert await backend.message() == ("devices/cam-1/down/t", b"its own")


@needs_mosquitto
@pytest.mark.parametrize("end", ["suspend", "revoke", "topics"])
async def test_what_ends_its_right_ends_its_sessions(tmp_path: Path, end: str) -> None:
    several = replace(BACKENDS, rules=replace(BACKENDS.rules, mqtt=MqttRules(client_id=ClientIdBinding.PREFIX)))
    async with opened(tmp_path, several) as (gateway, held_cam, held_app):
        instances = [await gateway.device(held_app, client_id=f"app-1/{n}") for n in (1, 2)]
        for each in instances:
            assert await each.subscribe(f"$share/g/{UP}") == [1]
        cam = await gateway.device(held_cam)
        registry, act = gateway.harness.registry, Act("test", now())
        match end:
            case "suspend":
                await revocation.suspend(registry, "app-1", act=act)
            case "revoke":
                await revocation.revoke(registry, "app-1", act=act)
            case _:
                stored = await inventory.known_model(registry, "backend")
                await inventory.set_model(registry, replace(stored, subscribe=("devices/+/up/alarms",)), act=act)
        expected = Reason.NOT_AUTHORIZED if end == "topics" else Reason.ADMINISTRATIVE_ACTION
        for each in instances:
            assert await each.got(each.disconnected) == expected
        assert await cam.publish("devices/cam-1/up/t", b"still here") < Reason.UNSPECIFIED
        if end != "topics":
            _, connack = await gateway.harness.connect(held_app, V5)
            assert connack.code == Reason.BANNED
        else:
            again = await gateway.device(held_app)
            assert await again.subscribe(UP, "devices/+/up/alarms") == [Reason.NOT_AUTHORIZED, 1]


@needs_mosquitto
@pytest.mark.parametrize(
    ("version", "client_id", "is_away"),
    [(V311, "app-1", False), (V5, "app-1/2", False), (V311, "app-1/2", True), (V5, "app-1", True)],
)
async def test_one_that_is_suspended_gives_up_its_part_of_a_shared_subscription(
    tmp_path: Path, version: int, client_id: str, is_away: bool
) -> None:
    """What waits for it stays, and so do its other subscriptions."""
    several = replace(BACKENDS, rules=replace(BACKENDS.rules, mqtt=MqttRules(client_id=ClientIdBinding.PREFIX)))
    async with opened(tmp_path, several) as (gateway, _, held_app):
        share, backend = "$share/g/devices/+/up/n", await gateway.backend()
        app = await gateway.device(held_app, version, client_id=client_id, clean=False)
        assert await app.subscribe(share, "devices/cam-9/up/own") == [1, 1]
        if is_away:
            await app.close()
            await gateway.harness.count("mqtt.session.client-disconnected")
            await backend.publish("devices/cam-9/up/own", b"waits")
        registry, act = gateway.harness.registry, Act("test", now())
        await revocation.suspend(registry, "app-1", act=act)
        await gateway.harness.count("mqtt.share.left")
        other = await gateway.local(BACKEND, "other")
        await other.subscribe(share)
        for n in range(20):
            await backend.publish("devices/cam-1/up/n", str(n).encode())
        assert [(await other.message())[1] for _ in range(20)] == [str(n).encode() for n in range(20)]
        await backend.publish("devices/cam-9/up/own", b"later")
        await revocation.resume(registry, "app-1", act=act)
        await other.close()
        again = await gateway.device(held_app, version, client_id=client_id, clean=False)
        got = [(await again.message())[1] for _ in range(1 + is_away)]
        assert got == [b"waits", b"later"][-len(got) :]
        assert await again.subscribe(share) == [1]
        await backend.publish("devices/cam-1/up/n", b"its part again")
        assert (await again.message())[1] == b"its part again"


def test_a_policy_is_explained_as_that_of_an_application() -> None:
    def tested(action: Action, topic: str) -> tuple[bool, str, str, str]:
        found = explained(APP, BACKENDS, Attempt(action, topic), 65_536)
        return found.allowed, found.rule, found.source, found.message

    assert tested(Action.SUBSCRIBE, f"$share/g/{UP}") == (True, UP, "model", "The application may subscribe here.")
    assert tested(Action.PUBLISH, "devices/cam-1/down/t")[:3] == (True, DOWN, "model")
    wide = replace(BACKENDS, publish=("devices/#",))
    reserved = explained(APP, wide, Attempt(Action.PUBLISH, "devices/cam-1/fleet/t"), 65_536)
    assert (reserved.allowed, reserved.code) == (False, "reserved")
    for asked in (UP, f"$share/g/{UP}", "devices/#", "#"):
        found = explained(device("cam-1"), MODEL, Attempt(Action.SUBSCRIBE, asked), 65_536)
        assert (found.allowed, found.advice.partition(": ")[2]) == (False, "fleet model add NAME --application")
    message = f"None of the publish filters of application model backend covers it: {DOWN}."
    assert tested(Action.PUBLISH, "devices/cam-1/up/t") == (False, "", "model", message)


def test_the_plugin_gives_it_its_topics() -> None:
    holdings = no_holdings()
    add_model(holdings, BACKENDS)
    add_device(holdings, APP, BACKENDS)
    assert holdings.clients == {
        "app-1": Client(("device-app-1", DENY_REST, RESERVED_ROLE, "model-backend"), is_enabled=True)
    }
    assert holdings.roles["model-backend"] == {
        ("publishClientSend", DOWN, True),
        ("subscribePattern", UP, True),
        ("subscribePattern", f"$share/+/{UP}", True),
        ("publishClientReceive", UP, True),
    }


async def test_brokers_that_ask_are_told_its_topics(tmp_path: Path) -> None:
    async with test_broker_auth.opened(tmp_path) as house:
        one = await house.enroll("app-1", BACKENDS)
        await house.enroll("cam-1")

        async def rabbitmq(name: str, permission: str, key: str) -> str:
            topic = {**test_broker_auth.TOPIC, "username": name, "variable_map__client_id": name}
            return await house.rabbitmq("topic", **topic, permission=permission, routing_key=key)

        assert await rabbitmq("app-1", "read", "devices.*.up.#") == "allow"
        assert await rabbitmq("app-1", "write", "devices.cam-1.down.t") == "allow"
        for name, permission, key in (
            ("app-1", "read", "#"),
            ("app-1", "write", "devices.cam-1.up.t"),
            ("cam-1", "read", "devices.*.up.#"),
            ("cam-1", "write", "devices.cam-2.down.t"),
        ):
            assert await rabbitmq(name, permission, key) == "deny topic-not-allowed"
        pem = test_broker_auth.pem(one.der).decode()
        told = await house.emqx("authn", username="app-1", clientid="app-1", cert_common_name="app-1", cert_pem=pem)
        assert told["result"] == "allow"


async def test_a_reverse_proxy_passes_on_what_rules_allow_it_alone(tmp_path: Path) -> None:
    async with test_forward_auth.opened(tmp_path) as house:
        shown = test_forward_auth.nginx((await house.enroll("app-1", BACKENDS)).der)
        refused = await house.ask("/nginx", *shown)
        assert (refused.status, refused.code) == (403, "http-not-allowed")
        rules = replace(BACKENDS.rules, http=HttpRules(("GET /",)))
        ruled = replace(BACKENDS, name="reports", rules=rules)
        allowed = await house.ask("/nginx", *test_forward_auth.nginx((await house.enroll("app-2", ruled)).der))
        assert allowed.status == 200
