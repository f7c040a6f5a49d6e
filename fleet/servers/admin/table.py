"""Every route that there is. Whatever is not here is refused.

A route names the permission that it takes (domain.access says which roles have it), or the door that it stands
behind; tests hold each of them against every kind of caller.
"""

from functools import lru_cache

from fleet.domain.access import Permission
from fleet.domain.approval import RequestState
from fleet.domain.device import DeviceState
from fleet.domain.tags import TAG_KEY, TAG_VALUE_MAX
from fleet.servers.admin import approvals, bulk, devices, events, holders, insight, models, records, tokens
from fleet.servers.admin.openapi import description
from fleet.servers.admin.parts import Call, Parts
from fleet.servers.admin.reply import Reply
from fleet.servers.admin.routes import (
    DER,
    EVENT_STREAM,
    JSON,
    MERGE_PATCH,
    PEM,
    Condition,
    Door,
    Handler,
    Route,
    get,
    listing,
    post,
)
from fleet.servers.admin.schemas import (
    CURSOR,
    DEVICE_ID,
    DEVICE_ID_PATTERN,
    LIMIT_PARAMETER,
    NAME,
    SEQ,
    SERIAL,
    TIME,
    Schema,
    ref,
)
from fleet.services.forecast import CLIFF_PERCENT

_PAGING: dict[str, Schema] = {"limit": LIMIT_PARAMETER, "cursor": CURSOR}
_DEVICE_FILTERS: dict[str, Schema] = {
    "model": NAME,
    "state": {"type": "string", "enum": [state.value for state in DeviceState]},
    "tag": {
        "type": "array",
        "items": {"type": "string", "pattern": f"^{TAG_KEY}:[^\\x00-\\x1f\\x7f]{{1,{TAG_VALUE_MAX}}}$"},
        "maxItems": 8,
        "description": "KEY:VALUE; may be repeated, and then all of them count.",
    },
    "group": NAME,
    "after": {
        "type": "string",
        "pattern": f"^([0-9T:.+Z-]{{20,40}}/)?{DEVICE_ID_PATTERN[1:]}",
        "description": "Begin behind this id; with expires_before, behind this TIME/ID.",
    },
    "expires_before": {**TIME, "description": "Devices whose newest certificate ends before then, soonest first."},
}


async def openapi(parts: Parts, call: Call) -> Reply:
    return Reply(_description())


@lru_cache(maxsize=1)
def _description() -> dict[str, object]:
    return description(ROUTES)


def _move(verb: str, handle: Handler, summary: str) -> Route:
    return post(
        f"{verb}_device",
        f"/v1/devices/{{id}}/{verb}",
        Permission.DEVICE_WRITE,
        handle,
        summary=summary,
        takes=ref("Reason"),
        needs_body=False,
        gives=ref("Device"),
        has_etag=True,
        condition=Condition.OPTIONAL,
    )


def _decision(verb: str, handle: Handler, summary: str) -> Route:
    return post(
        f"{verb}_request",
        f"/v1/requests/{{request}}/{verb}",
        Permission.REQUEST_DECIDE,
        handle,
        summary=summary,
        takes=ref("Reason"),
        needs_body=False,
        gives=ref("Request"),
        has_etag=True,
        condition=Condition.OPTIONAL,
    )


ROUTES: tuple[Route, ...] = (
    get("health", "/healthz", Door.ANYBODY, records.health, summary="Whether it works.", gives=ref("Health")),
    get(
        "whoami",
        "/v1/whoami",
        Door.HOLDER,
        records.whoami,
        summary="Who the presented certificate says you are.",
        gives=ref("Whoami"),
    ),
    get(
        "status",
        "/v1/status",
        Permission.STATUS_READ,
        records.status,
        summary="Uptime and counters.",
        gives=ref("Status"),
        query={
            "devices": {
                "type": "string",
                "enum": [records.COUNT_DEVICES],
                "description": "Count the devices, too: it looks at each of them. For operators.",
            }
        },
        for_stations=True,
    ),
    get(
        "openapi",
        "/v1/openapi.json",
        Door.OPERATOR,
        openapi,
        summary="This description.",
        gives={"type": "object"},
        has_etag=True,
    ),
    # Models
    listing(
        "list_models",
        "/v1/models",
        Permission.MODEL_READ,
        models.list_models,
        "ModelPage",
        summary="Models, by name.",
        query=_PAGING,
    ),
    post(
        "create_model",
        "/v1/models",
        Permission.MODEL_CREATE,
        models.create_model,
        summary="Add a model.",
        takes=ref("NewModel"),
        gives=ref("Model"),
        status=201,
        has_etag=True,
    ),
    get(
        "get_model",
        "/v1/models/{name}",
        Permission.MODEL_READ,
        models.get_model,
        summary="One model.",
        gives=ref("Model"),
        has_etag=True,
    ),
    get(
        "get_renewal",
        "/v1/models/{name}/renewal",
        Permission.MODEL_READ,
        models.get_renewal,
        summary="How far a model's renewal campaign has come; it counts the model's devices.",
        gives=ref("Renewal"),
    ),
    Route(
        "replace_model",
        "PUT",
        "/v1/models/{name}",
        Permission.MODEL_WRITE,
        models.replace_model,
        summary="Replace a model; what is left out is as in a new one.",
        takes=ref("ModelReplacement"),
        gives=ref("Model"),
        has_etag=True,
        condition=Condition.REQUIRED,
    ),
    Route(
        "patch_model",
        "PATCH",
        "/v1/models/{name}",
        Permission.MODEL_WRITE,
        models.patch_model,
        summary="Change a model; live sessions are held to its topics at once.",
        takes=ref("ModelChanges"),
        gives=ref("Model"),
        takes_types=(MERGE_PATCH, JSON),
        has_etag=True,
        condition=Condition.REQUIRED,
    ),
    # Devices
    listing(
        "list_devices",
        "/v1/devices",
        Permission.DEVICE_READ,
        devices.list_devices,
        "DevicePage",
        summary="Devices of which everything given is true, by id.",
        query={**_DEVICE_FILTERS, **_PAGING},
    ),
    post(
        "create_device",
        "/v1/devices",
        Permission.DEVICE_CREATE,
        devices.create_device,
        summary="Register a device.",
        takes=ref("NewDevice"),
        gives=ref("Device"),
        status=201,
        has_etag=True,
        finds=True,
    ),
    get(
        "get_device",
        "/v1/devices/{id}",
        Permission.DEVICE_READ,
        devices.get_device,
        summary="One device.",
        gives=ref("Device"),
        has_etag=True,
    ),
    Route(
        "patch_device",
        "PATCH",
        "/v1/devices/{id}",
        Permission.DEVICE_WRITE,
        devices.patch_device,
        summary="Change a device's tags and groups.",
        takes=ref("DeviceChanges"),
        gives=ref("Device"),
        takes_types=(MERGE_PATCH, JSON),
        has_etag=True,
        condition=Condition.REQUIRED,
    ),
    _move("suspend", devices.suspend_device, "Refuse a device everywhere until it is resumed."),
    _move("resume", devices.resume_device, "Let a suspended device in again."),
    _move("revoke", devices.revoke_device, "Put a device out for good, its certificates with it."),
    _move("retire", devices.retire_device, "Take a device out of service in good order, for good."),
    post(
        "act_in_bulk",
        "/v1/bulk",
        Permission.DEVICE_WRITE,
        bulk.act_in_bulk,
        summary="Act on every device of a filter: dry run, then step by step, the first confirmed by their number.",
        takes=ref("BulkAct"),
        gives=ref("BulkStep"),
    ),
    # Certificates
    listing(
        "list_device_credentials",
        "/v1/devices/{id}/credentials",
        Permission.CREDENTIAL_READ,
        devices.list_device_credentials,
        "CredentialPage",
        summary="A device's certificates, oldest first.",
        query=_PAGING,
    ),
    get(
        "get_credential",
        "/v1/credentials/{serial}",
        Permission.CREDENTIAL_READ,
        records.get_credential,
        summary="One certificate: as JSON, PEM or DER, by Accept.",
        gives=ref("Credential"),
        media_types=(JSON, PEM, DER),
        has_etag=True,
    ),
    # Tokens
    listing(
        "list_tokens",
        "/v1/tokens",
        Permission.TOKEN_READ,
        tokens.list_tokens,
        "TokenPage",
        summary="Tokens, newest first; never their secrets.",
        query=_PAGING,
    ),
    post(
        "create_token",
        "/v1/tokens",
        Permission.TOKEN_CREATE,
        tokens.create_token,
        summary="Make a token; its secret is in this answer and nowhere else.",
        takes=ref("NewToken"),
        gives=ref("Token"),
        status=201,
        finds=True,
    ),
    post(
        "revoke_token",
        "/v1/tokens/{token}/revoke",
        Permission.TOKEN_REVOKE,
        tokens.revoke_token,
        summary="No further use of a token.",
        gives=ref("Token"),
    ),
    # Requests that wait for an operator
    listing(
        "list_requests",
        "/v1/requests",
        Permission.REQUEST_READ,
        approvals.list_requests,
        "RequestPage",
        summary="Requests for a first certificate, by id.",
        query={
            "state": {"type": "string", "enum": [state.value for state in RequestState]},
            "model": NAME,
            "device": DEVICE_ID,
            **_PAGING,
        },
    ),
    get(
        "get_request",
        "/v1/requests/{request}",
        Permission.REQUEST_READ,
        approvals.get_request,
        summary="One request.",
        gives=ref("Request"),
        has_etag=True,
    ),
    _decision("approve", approvals.approve_request, "Let this key have a certificate for the device id it asks for."),
    _decision("deny", approvals.deny_request, "No certificate for this key; an approval not used yet is taken back."),
    # On record
    listing(
        "list_stations",
        "/v1/stations",
        Permission.STATION_READ,
        records.list_stations,
        "StationPage",
        summary="Factory stations, by name.",
        query=_PAGING,
    ),
    post(
        "create_station",
        "/v1/stations",
        Permission.STATION_WRITE,
        holders.create_station,
        summary="Add a factory station: a certificate for the key that its request was made with.",
        takes=ref("NewStation"),
        gives=ref("AddedStation"),
        status=201,
        finds=True,
    ),
    post(
        "revoke_station",
        "/v1/stations/{station}/revoke",
        Permission.STATION_WRITE,
        holders.revoke_station,
        summary="Revoke a station's certificates; devices that it provisioned stay.",
        takes=ref("Reason"),
        needs_body=False,
        gives=ref("Station"),
    ),
    listing(
        "list_operators",
        "/v1/operators",
        Permission.OPERATOR_READ,
        records.list_operators,
        "OperatorPage",
        summary="Operators, by name.",
        query=_PAGING,
    ),
    get(
        "get_operator",
        "/v1/operators/{operator}",
        Permission.OPERATOR_READ,
        holders.get_operator,
        summary="One operator.",
        gives=ref("Operator"),
    ),
    post(
        "create_operator",
        "/v1/operators",
        Permission.OPERATOR_WRITE,
        holders.create_operator,
        summary="Add an operator, with a certificate for the key of its request. Nobody gives what it has not.",
        takes=ref("NewOperator"),
        gives=ref("AddedOperator"),
        status=201,
        finds=True,
    ),
    post(
        "revoke_operator",
        "/v1/operators/{operator}/revoke",
        Permission.OPERATOR_WRITE,
        holders.revoke_operator,
        summary="Revoke an operator's certificates; its streams of events end.",
        takes=ref("Reason"),
        needs_body=False,
        gives=ref("Operator"),
    ),
    get(
        "list_authorities",
        "/v1/authorities",
        Door.OPERATOR,
        holders.list_authorities,
        summary="The fleet's CAs: the root that devices trust, and what signs for them.",
        gives=ref("AuthorityPage"),
    ),
    listing(
        "list_audit",
        "/v1/audit",
        Permission.AUDIT_READ,
        records.list_audit,
        "AuditPage",
        summary="Who did what, oldest first.",
        query={"after": {**SEQ, "description": "Rows behind this sequence."}, **_PAGING},
    ),
    get(
        "prove_row",
        "/v1/audit/proof",
        Permission.AUDIT_READ,
        insight.prove_row,
        summary="A proof that a row is in the audit: seq, or the row of the issue of serial.",
        gives=ref("Proof"),
        query={"seq": {**SEQ, "minimum": 1}, "serial": SERIAL},
        finds=True,
    ),
    get(
        "get_forecast",
        "/v1/forecast",
        Permission.STATUS_READ,
        insight.get_forecast,
        summary="What ends when: certificates, tokens and CAs by week, and what to prepare for.",
        gives=ref("Forecast"),
        query={
            "weeks": {"type": "integer", "minimum": 1, "maximum": 520, "default": insight.WEEKS},
            "cliff_percent": {"type": "number", "minimum": 1, "maximum": 100, "default": CLIFF_PERCENT},
        },
    ),
    get(
        "get_retention",
        "/v1/retention",
        Permission.STATUS_READ,
        insight.get_retention,
        summary="For how long the registry keeps things, and what there is now.",
        gives=ref("Retention"),
    ),
    get(
        "follow_events",
        "/v1/events",
        Permission.EVENT_READ,
        events.follow_events,
        summary="Changes as they happen, as Server-Sent Events.",
        gives={"type": "string"},
        media_types=(EVENT_STREAM,),
        query={"after": {**SEQ, "description": "Begin behind this event; without it, from now on."}},
        streams=True,
    ),
)
