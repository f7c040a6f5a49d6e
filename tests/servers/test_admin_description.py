"""The API's description: that it is one, that it names everything, and that the answers are as it says."""

import json
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any, get_origin

import jsonschema_rs
import msgspec
import pytest

from fleet.ca.head_signer import LocalHeadSigner
from fleet.ca.keys import generate_key
from fleet.domain.crl import Crl, CrlHead
from fleet.domain.device import Model
from fleet.domain.device_refusal import DeviceRefusal
from fleet.domain.device_report import DeviceReport
from fleet.domain.lease import Lease
from fleet.servers.admin.openapi import description
from fleet.servers.admin.reading import checked, decode_json
from fleet.servers.admin.records.base import Page, Paging
from fleet.servers.admin.records.devices import DeviceChanges
from fleet.servers.admin.records.models import Model as ModelRecord
from fleet.servers.admin.records.models import NewModel
from fleet.servers.admin.routing import JSON, Route
from fleet.servers.admin.sections import all_routes
from fleet.servers.refusals import HttpRefused
from fleet.services.notifying import Notifier
from fleet.services.sealing import seal
from tests.fake_publisher import FakePublisher
from tests.servers.admin_fixtures import AdminHarness, Client, csr_text, open_admin
from tests.servers.est_fixtures import Answer
from tests.servers.makers import new_maker

CONFLICTS = {"resume_device", "retire_device", "quarantine_claim", "release_claim"}
"""There is nothing of the kind to do, after what came before."""


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    async with open_admin(tmp_path) as api:
        yield api


@pytest.fixture
async def admin(api: AdminHarness) -> Client:
    return await api.operator("bob")


@cache
def components() -> Any:
    return description(all_routes())["components"]


def validator(schema: dict[str, Any]) -> Any:
    """A judge that is not ours, with the formats held to as well."""
    return jsonschema_rs.Draft202012Validator({**schema, "components": components()}, validate_formats=True)


def ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def described(document: dict[str, Any], route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = document["paths"][route.template][route.method.lower()]
    return operation


def judge(document: dict[str, Any], route: Route, answer: Answer) -> None:
    """Status, media type, headers and body of `answer` are among those that the description names."""
    told = described(document, route)["responses"][str(answer.status)]
    kind = answer.header("Content-Type")
    assert kind in told["content"], (route.name, answer.status)
    for name, header in told.get("headers", {}).items():
        assert not header["required"] or answer.header(name), (route.name, name)
    if "json" in str(kind):
        validator(told["content"][kind]["schema"]).validate(json.loads(answer.body))


async def test_it_names_every_route(admin: Client) -> None:
    document = await admin.get("/v1/openapi.json")
    assert document["openapi"] == "3.1.0"
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert sorted(names) == sorted(route.name for route in all_routes())
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)


def good_bodies() -> dict[str, object]:
    """By the names of the routes that take one."""
    return {
        "create_model": {"name": "valve"},
        "replace_model": {"retain": True},
        "patch_model": {"retain": True},
        "create_device": {"id": "cam-9", "model": "cam", "tags": {"site": "essen"}, "groups": ["a"]},
        "patch_device": {"tags": {"site": "essen"}, "groups": ["a"]},
        "create_token": {"model": "cam"},
        "create_station": {"name": "line-9", "models": ["cam"], "csr": csr_text("line-9")},
        "patch_station": {"quota": 7},
        "create_claim": {
            "name": "lot-9",
            "model": "cam",
            "quota": 1,
            "lifetime_seconds": 3600,
            "csr": csr_text("lot-9"),
        },
        "create_anchor": {"name": "acme", "models": ["cam"], "certificate": new_maker().pem.decode()},
        "import_devices": {"rows": [{"device_id": "m-1", "model": "cam", "hardware_serial": "SN-1"}]},
        "create_operator": {"name": "new", "role": "viewer", "csr": csr_text("new")},
        "deny_requests": {"filter": "model=cam", "dry_run": True},
        "revoke_distrusted": {"expected": 0},
        "begin_distrust": {"model": "cam", "dry_run": True},
        "notify_device": {"name": "renew", "payload": {"within": 60}},
        "act_in_bulk": {"filter": "model=cam", "act": "suspend", "dry_run": True},
    }


async def test_answers_are_as_described(api: AdminHarness, admin: Client) -> None:
    """A good request and a bad one to every route, and a stranger's."""
    document = await admin.get("/v1/openapi.json")
    token = (await admin.ask("POST", "/v1/tokens", {"model": "cam"}))[1]["id"]
    serial = f"{api.device.certificate.serial_number:x}"
    good = {"id": "cam-1", "name": "cam", "serial": serial, "token": token, "request": (await api.waiting()).id}
    await api.operator("alice")
    await seal(api.est.registry, LocalHeadSigner(generate_key()), api.est.clock())
    good |= {"station": "line-1", "operator": "alice", "claim": "lot-1", "anchor": "acme-2", "ca": "00", "crl": "full"}
    now = api.est.clock()
    head = CrlHead("/crl/00.crl", b"\0", 1, 0, now, now, 0)
    await api.est.registry.publish_crls([Crl(head, b"der")], [], Lease("crl", "test", now), now)
    await api.est.registry.keep_refusals([DeviceRefusal("cam-1", now, "mqtt.connect", "device-suspended", "192.0.2.1")])
    await api.est.registry.keep_report(DeviceReport("cam-1", now, serial, '{"device_id": "cam-1"}', b"signature"))
    maker = {"models": ["cam"], "certificate": new_maker().pem.decode()}
    assert (await admin.ask("POST", "/v1/anchors", {"name": "acme-2", **maker}))[0] == 201
    rule = (await admin.ask("POST", "/v1/distrusts", {"key_type": "Ed25519", "expected": 0}))[1]
    good["distrust"] = rule["distrust"]["id"]
    missing = {"id": "cam-99", "name": "nobody", "serial": "abc", "token": "0" * 12, "request": "0" * 16}
    missing |= dict.fromkeys(("station", "operator", "claim", "anchor"), "nobody")
    missing |= {"ca": "00", "crl": "x", "distrust": "0" * 12}
    bodies = good_bodies()
    api.est.notifier = Notifier(FakePublisher())
    stranger = api.client(None)
    for route in all_routes():
        if route.streams:
            continue
        body = bodies.get(route.name)
        for parameters in (good, missing):
            path = route.template.format(**parameters)
            if route.name == "prove_row":
                path += "?seq=1" if parameters is good else "?serial=abc"
            if route.name == "get_policy_test":
                path += "?action=publish&topic=a"
            answer = await admin.send(route.method, path, body, {"If-Match": "*"})
            judge(document, route, answer)
            if parameters == good:
                assert answer.status == route.status or route.name.startswith(
                    ("resume", "retire", "quarantine_claim", "release_claim")
                ), route.name
        unknown = f"{route.template.format(**parameters)}?color=red"
        judge(document, route, await admin.send(route.method, unknown, body, {"If-Match": "*"}))
        judge(document, route, await admin.send(route.method, path, body, {"If-Match": "*", "Accept": "text/csv"}))
        judge(document, route, await stranger.send(route.method, path, body))
        if route.takes is not None:
            judge(document, route, await admin.send(route.method, path, b"{", {"If-Match": "*"}))
            plain = {"If-Match": "*", "Content-Type": "text/plain"}
            judge(document, route, await admin.send(route.method, path, b"{}", plain))
            judge(document, route, await admin.send(route.method, path, body))


async def test_every_form_of_a_certificate_is_named(admin: Client) -> None:
    (route,) = (route for route in all_routes() if route.name == "get_credential")
    document = await admin.get("/v1/openapi.json")
    assert list(described(document, route)["responses"]["200"]["content"]) == list(route.media_types)
    assert route.media_types[0] == JSON


GOOD = {
    "name": "m",
    "lifetime_seconds": 60,
    "key_types": ["Ed25519"],
    "publish": ["a"],
    "subscribe": [],
    "retain": True,
}


@pytest.mark.parametrize(
    "value",
    [
        GOOD,
        {"name": "m"},
        {"name": "m", "lifetime_seconds": 60.0},
        {},
        [],
        None,
        "m",
        {"name": "m", "x": 1},
        {"name": 5},
        {"name": "m\n"},
        {"name": "m", "lifetime_seconds": 59},
        {"name": "m", "lifetime_seconds": 60.5},
        {"name": "m", "lifetime_seconds": True},
        {"name": "m", "lifetime_seconds": "60"},
        {"name": "m", "key_types": []},
        {"name": "m", "key_types": ["DSA"]},
        {"name": "m", "publish": [""]},
        {"name": "m", "publish": ["a" * 1025]},
        {"name": "m", "publish": ["a"] * 65},
        {"name": "m", "retain": 1},
        {"name": "m", "retain": None},
    ],
    ids=str,
)
def test_our_own_check_agrees_with_a_real_one(value: object) -> None:
    schema = ref("NewModel")
    fits = True
    try:
        checked(decode_json(json.dumps(value).encode()), NewModel, "The body")
    except HttpRefused:
        fits = False
    assert fits == validator(schema).is_valid(value)


@pytest.mark.parametrize(
    "value",
    [
        {"tags": {}},
        {"tags": {"a": None, "b": "x"}},
        {"groups": ["a", "b"]},
        {},
        {"tags": {"1": "x"}},
        {"tags": {"a": 1}},
        {"tags": {"a": ""}},
        {"tags": {f"a{n}": "x" for n in range(33)}},
        {"tags": None},
        {"groups": ["a/b"]},
        {"groups": [f"g{n}" for n in range(17)]},
    ],
    ids=lambda value: str(value)[:60],
)
def test_and_on_tags(value: object) -> None:
    schema = ref("DeviceChanges")
    fits = True
    try:
        checked(value, DeviceChanges, "The body")
    except HttpRefused:
        fits = False
    assert fits == validator(schema).is_valid(value)


def test_a_model_fits_its_schema() -> None:
    validator(ref("Model")).validate(json.loads(msgspec.json.encode(ModelRecord.shown(Model("m")))))


def test_listings_take_a_limit() -> None:
    """Commands read them with `client.items`, which sends one."""
    lists = {route.template: route.query for route in all_routes() if route.method == "GET" and is_page(route.gives)}
    assert len(lists) > 10
    unlimited = {path for path, query in lists.items() if query is None or not issubclass(query, Paging)}
    assert unlimited == {"/v1/authorities"}  # a handful, which is always whole


def is_page(gives: Any) -> bool:
    kind = get_origin(gives) or gives
    return isinstance(kind, type) and issubclass(kind, Page)
