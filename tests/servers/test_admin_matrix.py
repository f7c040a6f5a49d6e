"""Every route against every kind of caller. Nothing is open by default: a route without a row in MAY fails here, unless
it is a GET beneath a listed resource and takes that one's permission.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from fleet.ca.keys import generate_key
from fleet.domain.access import Operator, Permission, Role
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.enrollment import IssuePermit, permit_by_operator
from fleet.domain.errors import Refused
from fleet.domain.writes import AddCredential, Insert, Write
from fleet.servers.admin.routing import AccessLevel, Route
from fleet.servers.admin.sections import all_routes
from tests.servers.admin_fixtures import AdminHarness, Client, csr_text, open_admin
from tests.servers.est_fixtures import Identity, Key
from tests.servers.makers import new_maker

EVERYBODY = frozenset({"nobody", "device", "station", "viewer", "operator", "admin", "factory", "held"})
HOLDERS = EVERYBODY - {"nobody"}
OPERATORS = frozenset({"viewer", "operator", "admin", "factory", "held"})

# "held": an admin who is held to the model cam. "factory" is held to cam, too.
MAY: dict[str, frozenset[str]] = {
    "health": EVERYBODY,
    "whoami": HOLDERS,
    "openapi": OPERATORS,
    "status": frozenset({"station", "viewer", "operator", "admin"}),
    "metrics": frozenset({"viewer", "operator", "admin"}),
    "list_models": OPERATORS,
    "get_model": OPERATORS,
    "get_renewal": OPERATORS,
    "create_model": frozenset({"admin"}),
    "replace_model": frozenset({"admin", "held"}),
    "patch_model": frozenset({"admin", "held"}),
    "list_devices": OPERATORS,
    "get_device": OPERATORS,
    "create_device": frozenset({"operator", "admin", "factory", "held"}),
    "patch_device": frozenset({"operator", "admin", "held"}),
    "suspend_device": frozenset({"operator", "admin", "held"}),
    "resume_device": frozenset({"operator", "admin", "held"}),
    "revoke_device": frozenset({"operator", "admin", "held"}),
    "retire_device": frozenset({"operator", "admin", "held"}),
    "notify_device": frozenset({"operator", "admin", "held"}),
    "act_in_bulk": frozenset({"operator", "admin", "held"}),
    "list_distrusts": OPERATORS,
    "get_distrust": OPERATORS,
    "begin_distrust": frozenset({"operator", "admin", "held"}),
    "revoke_distrusted": frozenset({"operator", "admin", "held"}),
    "undo_distrust": frozenset({"operator", "admin", "held"}),
    "list_device_credentials": OPERATORS,
    "revoke_device_credential": frozenset({"operator", "admin", "held"}),
    "get_credential": OPERATORS,
    "list_sessions": OPERATORS,
    "get_sessions": OPERATORS,
    "kick_sessions": frozenset({"operator", "admin", "held"}),
    "list_tokens": OPERATORS,
    "create_token": frozenset({"operator", "admin", "factory", "held"}),
    "revoke_token": frozenset({"operator", "admin", "held"}),
    "list_claims": OPERATORS - {"factory"},
    "get_claim": OPERATORS - {"factory"},
    "list_claim_credentials": OPERATORS - {"factory"},
    "create_claim": frozenset({"operator", "admin", "held"}),
    "revoke_claim": frozenset({"operator", "admin", "held"}),
    "quarantine_claim": frozenset({"operator", "admin", "held"}),
    "release_claim": frozenset({"operator", "admin", "held"}),
    "list_anchors": OPERATORS - {"factory"},
    "create_anchor": frozenset({"admin"}),
    "remove_anchor": frozenset({"admin"}),
    "import_devices": frozenset({"operator", "admin", "factory", "held"}),
    "list_requests": OPERATORS - {"factory"},
    "get_request": OPERATORS - {"factory"},
    "approve_request": frozenset({"operator", "admin", "held"}),
    "deny_request": frozenset({"operator", "admin", "held"}),
    "deny_requests": frozenset({"operator", "admin", "held"}),
    "list_stations": OPERATORS - {"factory"},
    "patch_station": frozenset({"admin", "held"}),
    "create_station": frozenset({"admin", "held"}),
    "revoke_station": frozenset({"admin", "held"}),
    "get_operator": frozenset({"viewer", "operator", "admin"}),
    "create_operator": frozenset({"admin"}),
    "revoke_operator": frozenset({"admin"}),
    "list_authorities": OPERATORS,
    "list_crls": OPERATORS,
    "get_crl": OPERATORS,
    "issue_crls": frozenset({"admin"}),
    "list_operators": frozenset({"viewer", "operator", "admin"}),
    "list_heads": frozenset({"viewer", "operator", "admin"}),
    "get_sealed": frozenset({"viewer", "operator", "admin"}),
    "get_hashes": frozenset({"viewer", "operator", "admin"}),
    "prove_row": frozenset({"viewer", "operator", "admin"}),
    "get_retention": frozenset({"viewer", "operator", "admin"}),
    "get_forecast": frozenset({"viewer", "operator", "admin"}),
    "list_audit": frozenset({"viewer", "operator", "admin"}),
    "follow_events": OPERATORS - {"factory"},
    "list_events": OPERATORS - {"factory"},
}


def row_of(route: Route) -> frozenset[str] | None:
    """Who may call `route`: its own row in MAY, or for a GET beneath a listed resource that row, if it takes the same
    permission. None: it has none.
    """
    if route.name in MAY or route.method != "GET" or not isinstance(route.access, Permission):
        return MAY.get(route.name)
    above = [
        each
        for each in all_routes()
        if each.name in MAY and each.method == "GET" and each.template.endswith("}") and each.access is route.access
        if route.template.startswith(f"{each.template}/")
    ]
    return MAY[max(above, key=lambda each: len(each.template)).name] if above else None


# A request that is well-formed, so that whoever is let in gets an answer of another kind than 401 and 403.
PARAMETERS = {"id": "cam-1", "name": "cam", "serial": "1", "token": "000000000000", "request": "0" * 16}
PARAMETERS |= {"station": "line-1", "operator": "nobody", "claim": "lot-1", "anchor": "nobody"}
PARAMETERS |= {"ca": "00", "crl": "full"}
PARAMETERS |= {"station": "line-1", "operator": "nobody", "claim": "lot-1", "anchor": "nobody", "distrust": "0" * 12}
MAKER = new_maker().pem.decode()
BODIES: dict[str, object] = {
    "create_model": {"name": "valve"},
    "replace_model": {},
    "patch_model": {"retain": True},
    "create_device": {"id": "cam-9", "model": "cam"},
    "patch_device": {"groups": ["a"]},
    "create_token": {"model": "cam"},
    "create_station": {"name": "line-9", "models": ["cam"], "csr": csr_text("line-9")},
    "patch_station": {"quota": 7},
    "create_claim": {"name": "lot-9", "model": "cam", "quota": 1, "lifetime_seconds": 3600, "csr": csr_text("lot-9")},
    "create_anchor": {"name": "acme", "models": ["cam"], "certificate": MAKER},
    "import_devices": {"rows": [{"device_id": "m-1", "model": "cam", "hardware_serial": "SN-1"}]},
    "create_operator": {"name": "new", "role": "viewer", "csr": csr_text("new")},
    "deny_requests": {"filter": "model=cam", "dry_run": True},
    "revoke_distrusted": {"expected": 0},
    "begin_distrust": {"model": "cam", "dry_run": True},
    "notify_device": {"name": "renew"},
    "act_in_bulk": {"filter": "model=cam", "act": "suspend", "dry_run": True},
}
QUERIES = {"prove_row": "?seq=999999", "get_policy_test": "?action=publish&topic=a"}
OTHERS = {"id": "pump-1", "name": "pump", "serial": "1", "token": "000000000000", "request": "0" * 16}
OTHERS |= {"station": "line-2", "operator": "nobody", "claim": "lot-2", "anchor": "nobody", "ca": "00", "crl": "full"}
OTHERS |= {"station": "line-2", "operator": "nobody", "claim": "lot-2", "anchor": "nobody", "distrust": "0" * 12}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    async with open_admin(tmp_path) as api:
        yield api


async def status_of(client: Client, route: Route, parameters: dict[str, str] = PARAMETERS) -> int:
    path = route.template.format(**parameters)
    path += QUERIES.get(route.name, "")
    if route.streams:
        path += "?after=999999"  # 410 for whoever is let in, and no stream to wait for
    answer = await client.send(route.method, path, BODIES.get(route.name), {"If-Match": "*"})
    return answer.status


def test_every_route_is_in_the_matrix() -> None:
    assert [route.name for route in all_routes() if row_of(route) is None] == []
    assert set(MAY) <= {route.name for route in all_routes()}
    assert len({(route.method, route.template) for route in all_routes()}) == len(all_routes())


@pytest.mark.parametrize(
    ("method", "template", "access", "row"),
    [
        ("GET", "/v1/devices/{id}/sessions", Permission.DEVICE_READ, "get_device"),
        ("GET", "/v1/devices/{id}/a/{serial}", Permission.DEVICE_READ, "get_device"),
        ("GET", "/v1/claims/{claim}/devices", Permission.CLAIM_READ, "get_claim"),
        ("GET", "/v1/devices/{id}/sessions", Permission.STATUS_READ, None),  # another permission than the device's
        ("GET", "/v1/devices/{id}/sessions", Permission.DEVICE_WRITE, None),
        ("GET", "/v1/devices/{id}/sessions", AccessLevel.OPERATOR, None),  # none
        ("GET", "/v1/devices/{id}/sessions", AccessLevel.ANYBODY, None),
        ("POST", "/v1/devices/{id}/sessions", Permission.DEVICE_READ, None),  # a change
        ("PATCH", "/v1/devices/{id}/sessions", Permission.DEVICE_WRITE, None),
        ("GET", "/v1/devices/sessions", Permission.DEVICE_READ, None),  # beneath the list, and no device's
        ("GET", "/v1/devices/{id}x", Permission.DEVICE_READ, None),
        ("GET", "/v1/sessions", Permission.DEVICE_READ, None),  # a new section
        ("GET", "/v1/stations/{station}/devices", Permission.STATION_READ, None),  # one station has no GET of its own
    ],
)
def test_a_row_is_inherited_with_its_permission_alone(
    method: str, template: str, access: Permission | AccessLevel, row: str | None
) -> None:
    new = Route(method, template, access, "New.", name="new_route")
    assert row_of(new) == (MAY[row] if row is not None else None)


def test_every_change_takes_a_permission() -> None:
    for route in all_routes():
        assert isinstance(route.access, Permission | AccessLevel)
        if route.method != "GET":
            assert isinstance(route.access, Permission), route.name


async def test_every_route_against_every_kind_of_caller(api: AdminHarness) -> None:
    callers = {
        "nobody": api.client(None),
        "device": api.client(api.device),
        "station": api.client(api.station),
        "held": await api.operator("held", Role.ADMIN, ("cam",)),
        "factory": await api.operator("factory", Role.FACTORY, ("cam",)),
    }
    for role in (Role.VIEWER, Role.OPERATOR, Role.ADMIN):
        callers[role.value] = await api.operator(role.value, role)
    assert set(callers) == EVERYBODY
    for route in all_routes():
        row = row_of(route) or frozenset()
        for who, client in callers.items():
            status = await status_of(client, route)
            if who not in row:
                assert status == (401 if who == "nobody" else 403), (route.name, who)
            else:
                assert status in (200, 201, 404, 409, 410), (route.name, who, status)


async def test_whoever_is_out_is_out_everywhere(api: AdminHarness) -> None:
    """A revoked operator, one whom nobody has recorded, and one whose certificate comes from the wrong CA."""
    revoked = await api.operator("gone")
    assert (await revoked.ask("GET", "/v1/models"))[0] == 200
    await api.revoke("gone")
    callers = {
        "revoked": (revoked, 403),
        "unrecorded": (api.client(forged(api)), 401),
        "device in the registry, operator by its chain": (api.client(await crossed(api, "crossed-1")), 401),
    }
    for route in all_routes():
        for who, (client, expected) in callers.items():
            status = await status_of(client, route)
            assert status == (200 if route.access is AccessLevel.ANYBODY else expected), (route.name, who)


def permit_for(api: AdminHarness, name: str) -> tuple[IssuePermit, Key]:
    """Leave for an operator's certificate, and the key that it is for."""
    key, now = generate_key(), api.est.clock()
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return permit_by_operator(CredentialKind.OPERATOR, name, spki, now + timedelta(days=1), now), key


def identity_of(api: AdminHarness, credential: Credential, key: Key) -> Identity:
    return api.est.identity(x509.load_der_x509_certificate(credential.der), key)


async def record(api: AdminHarness, *writes: Write) -> None:
    await api.est.registry.commit(Change(AuditEntry(api.est.clock(), "test", "test", "test", "ok"), writes))


async def test_an_operator_needs_the_chain_and_the_record(api: AdminHarness) -> None:
    """One that is an operator by the registry, but comes with a certificate of the devices' CA."""
    permit, key = permit_for(api, "mallory")
    now = api.est.clock()
    as_device = api.est.issuer.issue(replace(permit, kind=CredentialKind.DEVICE), now)
    operator = Operator("mallory", Role.ADMIN, now)
    await record(api, Insert(operator), AddCredential(replace(as_device, kind=CredentialKind.OPERATOR)))
    client = api.client(identity_of(api, as_device, key))
    for route in all_routes():
        assert await status_of(client, route) == (200 if route.access is AccessLevel.ANYBODY else 401), route.name


def forged(api: AdminHarness) -> Identity:
    """Signed by the operators' CA, recorded nowhere."""
    permit, key = permit_for(api, "bob")
    return identity_of(api, api.est.operators_issuer.issue(permit, api.est.clock()), key)


async def crossed(api: AdminHarness, name: str) -> Identity:
    """Signed by the operators' CA, recorded as a device's."""
    permit, key = permit_for(api, name)
    await api.est.device(name)
    made = api.est.operators_issuer.issue(permit, api.est.clock())
    await record(api, AddCredential(replace(made, kind=CredentialKind.DEVICE)))
    return identity_of(api, made, key)


async def test_an_expired_operator_does_not_get_through_the_handshake(api: AdminHarness) -> None:
    identity = await api.est.operator("brief", lifetime=timedelta(minutes=2))
    early = api.client(identity)
    assert (await early.ask("GET", "/v1/models"))[0] == 200
    api.est.now = api.est.clock() + timedelta(minutes=3)
    for route in all_routes():  # the connection was opened in time: the registry's own check has to catch it
        assert await status_of(early, route) == (200 if route.access is AccessLevel.ANYBODY else 403), route.name
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await api.client(identity).ask("GET", "/v1/models")


async def test_what_is_another_models_is_not_there(api: AdminHarness) -> None:
    """Single ones answer 404, like what does not exist; what is to be made under it answers 403."""
    held = await api.operator("held", Role.ADMIN, ("cam",))
    for route in all_routes():
        if route.path_parameters and route.path_parameters[0] in ("id", "name", "station", "claim"):
            assert await status_of(held, route, OTHERS) == 404, route.name
    for model in ("pump", "no-such-model"):
        assert await held.ask("POST", "/v1/devices", {"id": "x-1", "model": model}) == (
            403,
            {
                "title": "Forbidden",
                "status": 403,
                "detail": f"This operator is restricted to models other than '{model}'.",
                "code": "held-to-models",
            },
        )
        assert (await held.ask("POST", "/v1/tokens", {"model": model}))[1]["code"] == "held-to-models"
    assert (await held.ask("POST", "/v1/tokens", {"device": "pump-1"}))[0] == 404


async def test_a_request_for_another_model_is_not_there(api: AdminHarness) -> None:
    held = await api.operator("held", Role.ADMIN, ("pump",))
    asked = await api.waiting()
    for method, path in (("GET", ""), ("POST", "/approve"), ("POST", "/deny")):
        assert (await held.ask(method, f"/v1/requests/{asked.id}{path}"))[1]["code"] == "no-such-request"
    found = await api.est.registry.request(asked.id)
    assert found == asked


async def test_lists_hold_what_is_ones_own(api: AdminHarness) -> None:
    held = await api.operator("held", Role.ADMIN, ("cam",))
    both = await api.operator("both", Role.ADMIN, ("cam", "pump"))
    admin = await api.operator("admin")
    for model in ("cam", "pump"):
        await admin.ask("POST", "/v1/tokens", {"model": model})
    asked = [(await api.waiting("new-1")).id, (await api.waiting("new-2", "k2", "pump")).id]
    for name, models in (("acme", ["cam", "pump"]), ("acme-cam", ["cam"])):
        body = {"name": name, "models": models, "certificate": new_maker().pem.decode()}
        assert (await admin.ask("POST", "/v1/anchors", body))[0] == 201
    for device in ("cam-2", "pump-1"):
        await admin.ask("POST", "/v1/tokens", {"device": device})
    expected: dict[str, tuple[set[str], set[str]]] = {
        "/v1/models": ({"cam"}, {"cam", "pump"}),
        "/v1/devices": ({"cam-1", "cam-2"}, {"cam-1", "cam-2", "pump-1"}),
        "/v1/devices?model=pump": (set(), {"pump-1"}),
        "/v1/requests": ({asked[0]}, set(asked)),
        "/v1/requests?model=pump": (set(), {asked[1]}),
        "/v1/stations": ({"line-1"}, {"line-1", "line-2"}),
        "/v1/claims": ({"lot-1"}, {"lot-1", "lot-2"}),
        "/v1/anchors": ({"acme-cam"}, {"acme", "acme-cam"}),
    }
    for path, (of_held, of_all) in expected.items():
        for client, wanted in ((held, of_held), (both, of_all), (admin, of_all)):
            items = (await client.get(path))["items"]
            assert {item.get("id") or item.get("name") for item in items} == wanted, path
    scopes = [{t["model"] or t["device"] for t in (await c.get("/v1/tokens"))["items"]} for c in (held, both, admin)]
    everything = {"cam", "pump", "cam-1", "cam-2", "pump-1"}
    assert scopes == [{"cam", "cam-1", "cam-2"}, everything, everything]


async def test_a_certificate_of_another_model_is_not_there(api: AdminHarness) -> None:
    held = await api.operator("held", Role.ADMIN, ("pump",))
    admin = await api.operator("admin")
    serials = {f"{identity.certificate.serial_number:x}" for identity in (api.device, api.station)}
    for serial in serials:
        assert (await admin.ask("GET", f"/v1/credentials/{serial}"))[0] == 200
        assert (await held.ask("GET", f"/v1/credentials/{serial}"))[0] == 404


async def test_a_refusal_is_in_the_audit_once_a_minute(api: AdminHarness) -> None:
    viewer = await api.operator("viewer", Role.VIEWER)
    for _ in range(3):
        assert (await viewer.ask("POST", "/v1/models", {"name": "valve"}))[0] == 403
    rows = [row.entry for row in await api.est.registry.audit() if row.entry.action == "api.call"]
    assert [(row.actor, row.subject, row.outcome, row.address) for row in rows] == [
        ("operator viewer", "POST /v1/models", "role-not-enough", "127.0.0.1")
    ]


async def test_the_log_names_the_caller_by_its_kind(api: AdminHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fleet.servers.admin")
    bob = await api.operator("bob")
    assert (await bob.ask("GET", "/v1/models"))[0] == 200
    assert (await api.client(api.device).ask("GET", "/v1/whoami"))[0] == 200
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(" serial=")[0] for line in lines] == [
        "event=admin.list_models operator=bob",
        "event=admin.whoami device=cam-1",
    ]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/devices", {"id": "x-1", "model": "pump"}),
        ("POST", "/v1/tokens", {"model": "pump"}),
        ("PATCH", "/v1/models/{name}", {"publish": ["#"]}),
    ],
)
async def test_what_a_handler_does_not_permit_is_in_the_audit(
    api: AdminHarness, method: str, path: str, body: dict[str, object]
) -> None:
    """Models that the operator is restricted to are known to handlers alone: their refusals are audited like others."""
    held = await api.operator("held", Role.ADMIN, ("cam",))
    headers = {"If-Match": "*"} if method == "PATCH" else None
    for _ in range(2):
        assert (await held.ask(method, path.format(name="cam"), body, headers))[0] == 403
    rows = [row.entry for row in await api.est.registry.audit() if row.entry.action == "api.call"]
    assert [(row.actor, row.subject, row.outcome) for row in rows] == [
        ("operator held", f"{method} {path}", "held-to-models")
    ]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (
            "/v1/manifest",
            {
                "rows": [
                    {"device_id": f"m-{n}", "model": model, "hardware_serial": f"SN-{n}"}
                    for n, model in enumerate(("cam", "pump", "pump"))
                ]
            },
            200,
        ),
        ("/v1/bulk", {"filter": "model=pump", "act": "suspend", "expected": 9}, 409),
    ],
    ids=["manifest", "bulk"],
)
async def test_what_is_refused_in_another_way_than_by_403_is_in_the_audit(
    api: AdminHarness, path: str, body: dict[str, object], status: int
) -> None:
    for name, models in (("held", ("cam",)), ("both", ("cam", "pump"))):
        operator = await api.operator(name, Role.OPERATOR, models)
        assert (await operator.ask("POST", path, body))[0] == status
    rows = [row.entry for row in await api.est.registry.audit() if row.entry.action == "api.call"]
    assert [(row.actor, row.subject, row.outcome) for row in rows] == [
        ("operator held", f"POST {path}", "held-to-models")
    ]


async def test_operators_open_no_other_door(api: AdminHarness) -> None:
    """The EST listener does not believe their CA; neither CA signs for the doors of the other."""
    identity = await api.est.operator("bob")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await api.est.send("GET", "/.well-known/est/cacerts", identity=identity)
    permit, _ = permit_for(api, "cam-1")
    with pytest.raises(Refused, match="signs nothing for operator"):
        api.est.issuer.issue(permit, api.est.clock())
    for kind in (CredentialKind.DEVICE, CredentialKind.STATION):
        with pytest.raises(Refused, match=f"signs nothing for {kind}"):
            api.est.operators_issuer.issue(replace(permit, kind=kind), api.est.clock())
