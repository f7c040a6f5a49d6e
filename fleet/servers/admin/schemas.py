"""The JSON Schemas of everything that the API takes and gives (OpenAPI 3.1 speaks JSON Schema 2020-12)."""

from typing import Any

from fleet.domain.access import Role
from fleet.domain.approval import RequestState
from fleet.domain.credential import CredentialKind, CredentialState
from fleet.domain.device import KEY_TYPES, LIFETIME_MAX, LIFETIME_MIN, DeviceState
from fleet.domain.device_filter import FILTER_MAX
from fleet.domain.tags import GROUPS_MAX, TAG_KEY, TAG_VALUE_MAX, TAGS_MAX
from fleet.domain.topic_policy import FILTERS_MAX
from fleet.servers.admin.rule_schemas import CAMPAIGN, RULES
from fleet.services.anchors import MODELS_MAX as ANCHOR_MODELS_MAX
from fleet.services.claims import QUOTA_MAX as CLAIM_QUOTA_MAX
from fleet.services.inventory import (
    STATION_LIFETIME,
    STATION_MODELS_MAX,
    STATION_QUOTA_MAX,
    TOKEN_TTL,
    TOKEN_TTL_MAX,
    TOKEN_TTL_MIN,
    TOKEN_USES_MAX,
)
from fleet.services.operators import OPERATOR_MODELS_MAX
from fleet.services.revocation import REASON_MAX

Schema = dict[str, Any]

LIMIT_MAX = 1000  # rows of a page: about 300 KiB of devices
LIMIT = 100
CURSOR_SIZE_MAX = 512
CSR_TEXT_MAX = 32 * 1024  # twice the largest that is read
ANCHOR_TEXT_MAX = 64 * 1024
MANIFEST_ROWS_MAX = 500  # some 25 ms for which others wait
MANIFEST_SIZE_MAX = 1024 * 1024
SEQ_MAX = 2**53 - 1  # what every JSON reader can count to

# Spelled so that Python and ECMAScript read them alike.
NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
DEVICE_ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"
SERIAL_PATTERN = "^[0-9a-f]{1,40}$"
TOKEN_ID_PATTERN = "^[0-9a-f]{12}$"  # noqa: S105
REQUEST_ID_PATTERN = "^[0-9a-f]{16}$"
_PRINTABLE = "^[^\\x00-\\x1f\\x7f]*$"

NAME: Schema = {"type": "string", "pattern": NAME_PATTERN}
DEVICE_ID: Schema = {"type": "string", "pattern": DEVICE_ID_PATTERN}
SERIAL: Schema = {"type": "string", "pattern": SERIAL_PATTERN, "description": "Serial number, lower-case hex."}
TOKEN_ID: Schema = {"type": "string", "pattern": TOKEN_ID_PATTERN}
REQUEST_ID: Schema = {"type": "string", "pattern": REQUEST_ID_PATTERN}
TIME: Schema = {"type": "string", "format": "date-time"}
MAYBE_TIME: Schema = {"type": ["string", "null"], "format": "date-time"}
SEQ: Schema = {"type": "integer", "minimum": 0, "maximum": SEQ_MAX}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXT: Schema = {"type": "string"}
SHA256: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
NAMES: Schema = {"type": "array", "items": NAME}
REASON: Schema = {
    "type": "string",
    "maxLength": REASON_MAX,
    "pattern": _PRINTABLE,
    "description": "Why, for the audit.",
}
LIMIT_PARAMETER: Schema = {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT}
CURSOR: Schema = {
    "type": "string",
    "pattern": "^[A-Za-z0-9_-]+$",
    "maxLength": CURSOR_SIZE_MAX,
    "description": "Where the page before ended: taken from its `next`, never made up.",
}


def _object(properties: dict[str, Schema], required: tuple[str, ...] | None = None, **more: Any) -> Schema:
    needed = list(properties if required is None else required)
    shape = {"type": "object", "properties": properties, "additionalProperties": False, **more}
    return {**shape, "required": needed} if needed else shape


def ref(name: str) -> Schema:
    """A reference to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def page_of(name: str, **more: Schema) -> Schema:
    """A page of components, with the address of the next one."""
    following = {"type": ["string", "null"], "description": "Address of the next page; null on the last."}
    return _object({"items": {"type": "array", "items": ref(name)}, "next": following, **more})


_LIFETIME: Schema = {
    "type": "integer",
    "minimum": int(LIFETIME_MIN.total_seconds()),
    "maximum": int(LIFETIME_MAX.total_seconds()),
    "description": "How long a certificate lives.",
}
_KEY_TYPES: Schema = {"type": "array", "items": {"type": "string", "enum": list(KEY_TYPES)}, "minItems": 1}
_FILTERS: Schema = {
    "type": "array",
    "maxItems": FILTERS_MAX,
    "items": {"type": "string", "minLength": 1, "maxLength": 1024},
    "description": "MQTT topic filters; {id} and {model} stand for the device's own.",
}
_TAGS: Schema = {
    "type": "object",
    "propertyNames": {"type": "string", "pattern": f"^{TAG_KEY}$"},
    "additionalProperties": {"type": "string", "minLength": 1, "maxLength": TAG_VALUE_MAX, "pattern": _PRINTABLE},
    "maxProperties": TAGS_MAX,
}
_GROUPS: Schema = {**NAMES, "maxItems": GROUPS_MAX}
_MODEL_CHANGES: dict[str, Schema] = {
    "lifetime_seconds": _LIFETIME,
    "key_types": _KEY_TYPES,
    "publish": _FILTERS,
    "subscribe": _FILTERS,
    "retain": {"type": "boolean", "description": "Whether devices may leave retained messages."},
    **RULES,
}
_CERTIFICATE: dict[str, Schema] = {
    "certificate": {
        "type": ["string", "null"],
        "enum": [*(state.value for state in CredentialState), None],
        "description": "State of its newest certificate.",
    },
    "serial": {**SERIAL, "type": ["string", "null"], "description": "Its serial number."},
    "not_after": MAYBE_TIME,
}
_ROLE: Schema = {"type": "string", "enum": [role.value for role in Role]}
_HELD_TO: Schema = {**NAMES, "description": "What it is held to; empty for all."}
_QUOTA: Schema = {
    "type": "integer",
    "minimum": 0,
    "maximum": STATION_QUOTA_MAX,
    "description": "Certificates that it may earn a day (UTC); 0: as many as it likes.",
}
_STATION: dict[str, Schema] = {
    "name": NAME,
    "models": NAMES,
    "quota": _QUOTA,
    "day": {**COUNT, "description": "The last on which it was counted, in days since 1970-01-01."},
    "used": {**COUNT, "description": "What it earned on that day."},
    "created_at": TIME,
    **_CERTIFICATE,
}
_OPERATOR: dict[str, Schema] = {"name": NAME, "role": _ROLE, "models": _HELD_TO, "created_at": TIME, **_CERTIFICATE}
_REQUEST: dict[str, Schema] = {
    "csr": {
        "type": "string",
        "maxLength": CSR_TEXT_MAX,
        "description": "A certificate request (PKCS #10) in PEM, whose subject is CN=NAME. The key stays where it is.",
    },
    "lifetime_seconds": {**_LIFETIME, "default": int(STATION_LIFETIME.total_seconds())},
}
_SIGNED: dict[str, Schema] = {
    "chain": {"type": "string", "description": "Its certificate, and the CA that has signed it: PEM."},
    "root": {"type": "string", "description": "The root by which it knows the server: PEM."},
}

_HEAD: dict[str, Schema] = {
    "size": {**SEQ, "description": "Rows that it covers."},
    "root": SHA256,
    "at": TIME,
    "key_id": SHA256,
    "signature": {"type": "string", "pattern": "^([0-9a-f]{2})+$"},
}
_CLAIM: dict[str, Schema] = {
    "name": NAME,
    "model": NAME,
    "state": {"type": "string", "enum": ["open", "used up", "expired", "quarantined", "revoked"]},
    "quota": {**COUNT, "description": "How many devices it may enroll."},
    "uses": COUNT,
    "takeovers": {**COUNT, "description": "How often it asked for an identity that has an owner."},
    "created_at": TIME,
    "expires_at": TIME,
    "quarantined_at": MAYBE_TIME,
    "quarantine_reason": TEXT,
    "revoked_at": MAYBE_TIME,
}
_MANIFEST_ROW: dict[str, Schema] = {
    "line": {**SEQ, "description": "Where it stands, for the refusals; its place in the request when nothing is said."},
    "device_id": {"type": "string", "maxLength": 256},
    "model": {"type": "string", "maxLength": 256},
    "hardware_serial": {"type": "string", "maxLength": 256},
    "key_sha256": {"type": "string", "maxLength": 256, "description": "Of the DER SubjectPublicKeyInfo, hex."},
    "tags": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 1024}, "maxProperties": 256},
    "groups": {"type": "array", "items": {"type": "string", "maxLength": 256}, "maxItems": 256},
}

COMPONENTS: dict[str, Schema] = {
    "Problem": _object(
        {
            "title": TEXT,
            "status": {"type": "integer"},
            "detail": TEXT,
            "code": {"type": "string", "description": "Stable, for programs."},
        },
        description="What was refused, and why (RFC 9457).",
    ),
    "Health": _object({"status": {"type": "string", "enum": ["ok"]}}),
    "Whoami": _object(
        {
            "holder": TEXT,
            "kind": {"type": "string", "enum": [kind.value for kind in CredentialKind]},
            "serial": SERIAL,
            "not_after": TIME,
            "state": {"type": "string", "enum": [state.value for state in CredentialState]},
            "role": {"type": "string", "enum": [role.value for role in Role], "description": "Of an operator."},
            "models": {**NAMES, "description": "What an operator is held to; empty for all."},
        },
        required=("holder", "kind", "serial", "not_after", "state"),
    ),
    "Status": {
        "type": "object",
        "properties": {
            "uptime_seconds": {"type": "number", "minimum": 0},
            "worker": {"type": "integer", "minimum": 1, "description": "The number of the worker that answers."},
            "pid": {"type": "integer", "minimum": 1, "description": "Its process."},
            "registry": {
                "type": "object",
                "additionalProperties": COUNT,
                "description": "What it holds; for operators.",
            },
        },
        "required": ["uptime_seconds"],
        "description": "Counters of every part of the worker that answers.",
    },
    "Model": _object({"name": NAME, **_MODEL_CHANGES, "revision": COUNT}),
    "Renewal": _object(
        {"model": NAME, "campaign": CAMPAIGN, "devices": COUNT, "renewed": COUNT},
        description="A model's renewal campaign: of its devices with a certificate, how many have renewed since.",
    ),
    "NewModel": _object({"name": NAME, **_MODEL_CHANGES}, required=("name",)),
    "ModelReplacement": _object(_MODEL_CHANGES, required=(), description="What is left out is as in a new model."),
    "ModelChanges": _object(
        _MODEL_CHANGES, required=(), minProperties=1, description="A merge patch (RFC 7396): the rest stays as it is."
    ),
    "Device": _object(
        {
            "id": DEVICE_ID,
            "model": NAME,
            "state": {"type": "string", "enum": [state.value for state in DeviceState]},
            "hardware_serial": TEXT,
            "created_at": TIME,
            "expires_at": {**MAYBE_TIME, "description": "When its newest certificate ends."},
            "tags": _TAGS,
            "groups": NAMES,
            "revision": COUNT,
        }
    ),
    "NewDevice": _object(
        {
            "id": DEVICE_ID,
            "model": NAME,
            "hardware_serial": {"type": "string", "pattern": "^[A-Za-z0-9 '()+,\\-./:=?]{0,64}$"},
            "tags": _TAGS,
            "groups": _GROUPS,
        },
        required=("id", "model"),
    ),
    "DeviceChanges": _object(
        {
            "tags": {**_TAGS, "additionalProperties": {**_TAGS["additionalProperties"], "type": ["string", "null"]}},
            "groups": _GROUPS,
            "reason": REASON,
        },
        required=(),
        minProperties=1,
        description="A merge patch (RFC 7396): a tag that is null goes, one that is not named stays.",
    ),
    "BulkAct": _object(
        {
            "filter": {
                "type": "string",
                "maxLength": FILTER_MAX,
                "description": "As in the commands: model=cam2 and lot=L7 and state=active and expires<30d",
            },
            "act": {"type": "string", "enum": ["suspend", "resume", "revoke", "retire", "tag"]},
            "tags": {
                **_TAGS,
                "additionalProperties": {**_TAGS["additionalProperties"], "type": ["string", "null"]},
                "description": "With the act tag: tags to set; one that is null is removed.",
            },
            "join": {**_GROUPS, "description": "With the act tag: groups to put the devices into."},
            "leave": {**_GROUPS, "description": "With the act tag: groups to take them out of."},
            "reason": REASON,
            "dry_run": {"type": "boolean", "description": "Say how many there are, and change nothing."},
            "expected": {**COUNT, "maximum": SEQ_MAX, "description": "How many there must be, for the first step."},
            "cursor": {**CURSOR, "description": "For each further step: the `next` of the one before."},
        },
        required=("filter", "act"),
    ),
    "BulkStep": _object(
        {
            "bulk": {
                "type": "string",
                "pattern": "^[0-9a-f]{12}$",
                "description": "What ties its audit rows together.",
            },
            "matched": {**COUNT, "description": "Devices that the whole act is for."},
            "done": {**COUNT, "description": "In this step."},
            "skipped": {
                "type": "object",
                "additionalProperties": COUNT,
                "description": "In this step, by code: devices to which there was nothing to do.",
            },
            "failed": {
                "type": "array",
                "items": _object({"id": DEVICE_ID, "code": TEXT, "why": TEXT}),
                "description": "In this step: devices that somebody changed first, or that the registry failed on.",
            },
            "next": {"type": ["string", "null"], "description": "The cursor of the next step; null when it is done."},
        },
        description="How a step of an act on many devices went.",
    ),
    "Reason": _object({"reason": REASON}, required=()),
    "Credential": _object(
        {
            "serial": SERIAL,
            "kind": {"type": "string", "enum": [kind.value for kind in CredentialKind]},
            "holder": TEXT,
            "state": {"type": "string", "enum": [state.value for state in CredentialState]},
            "not_before": TIME,
            "not_after": TIME,
            "issued_at": TIME,
            "sha256": {**SHA256, "description": "Of the certificate's DER."},
            "key_sha256": {**SHA256, "description": "Of the DER SubjectPublicKeyInfo."},
            "grant": {"type": "string", "description": "By what right it was earned."},
        }
    ),
    "Token": _object(
        {
            "id": TOKEN_ID,
            "device": {"type": ["string", "null"]},
            "model": {"type": ["string", "null"]},
            "uses": COUNT,
            "uses_max": COUNT,
            "state": {"type": "string", "enum": ["open", "used up", "expired", "revoked"]},
            "created_at": TIME,
            "expires_at": TIME,
            "revoked_at": MAYBE_TIME,
            "token": {"type": "string", "description": "ID.SECRET, in the answer that makes it and never again."},
            "note": TEXT,
        },
        required=(
            "id",
            "device",
            "model",
            "uses",
            "uses_max",
            "state",
            "created_at",
            "expires_at",
            "revoked_at",
        ),
    ),
    "NewToken": _object(
        {
            "device": {**DEVICE_ID, "description": "For this registered device alone; or give `model`."},
            "model": {**NAME, "description": "For new devices of this model; or give `device`."},
            "uses": {"type": "integer", "minimum": 1, "maximum": TOKEN_USES_MAX, "default": 1},
            "ttl_seconds": {
                "type": "integer",
                "minimum": int(TOKEN_TTL_MIN.total_seconds()),
                "maximum": int(TOKEN_TTL_MAX.total_seconds()),
                "default": int(TOKEN_TTL.total_seconds()),
            },
        },
        required=(),
        oneOf=[{"required": ["device"]}, {"required": ["model"]}],  # checked by the service, `bad-token-scope`
    ),
    "Request": _object(
        {
            "id": REQUEST_ID,
            "device": DEVICE_ID,
            "model": NAME,
            "state": {"type": "string", "enum": [state.value for state in RequestState]},
            "fingerprint": {
                "type": "string",
                "pattern": "^[0-9a-f]{4}(-[0-9a-f]{4}){3}$",
                "description": "Of the key, short: compare it with what the device shows before you approve.",
            },
            "key_sha256": {**SHA256, "description": "Of the DER SubjectPublicKeyInfo."},
            "key_type": TEXT,
            "facts": {"type": "string", "description": "Subject and SAN of the CSR: whoever asks has written them."},
            "address": TEXT,
            "asked": COUNT,
            "first_seen": TIME,
            "last_seen": TIME,
            "expires_at": {**TIME, "description": "When it is forgotten."},
            "decided_by": TEXT,
            "decided_at": MAYBE_TIME,
            "reason": TEXT,
            "revision": COUNT,
        },
        description="A key that asks for a first certificate and waits for an operator.",
    ),
    "Station": _object(_STATION),
    "NewStation": _object(
        {"name": NAME, "models": {**NAMES, "minItems": 1, "maxItems": STATION_MODELS_MAX}, "quota": _QUOTA, **_REQUEST},
        required=("name", "models", "csr"),
    ),
    "AddedStation": _object({**_STATION, **_SIGNED}),
    "StationChanges": _object({"quota": _QUOTA}, description="A merge patch (RFC 7396)."),
    "Claim": _object(_CLAIM),
    "NewClaim": _object(
        {
            "name": NAME,
            "model": NAME,
            "quota": {"type": "integer", "minimum": 1, "maximum": CLAIM_QUOTA_MAX},
            "lifetime_seconds": {**_LIFETIME, "description": "How long it lives."},
            "csr": {
                "type": "string",
                "maxLength": CSR_TEXT_MAX,
                "description": "A certificate request (PKCS #10) in PEM; nothing of it counts but the key.",
            },
        }
    ),
    "AddedClaim": _object({**_CLAIM, **_SIGNED}),
    "Anchor": _object(
        {
            "name": NAME,
            "models": NAMES,
            "subject": TEXT,
            "not_after": TIME,
            "sha256": {**SHA256, "description": "Of the certificate's DER."},
            "created_at": TIME,
            "pem": TEXT,
        },
        description="A maker's CA.",
    ),
    "NewAnchor": _object(
        {
            "name": NAME,
            "models": {**NAMES, "minItems": 1, "maxItems": ANCHOR_MODELS_MAX},
            "certificate": {"type": "string", "maxLength": ANCHOR_TEXT_MAX, "description": "One CA, PEM."},
        }
    ),
    "RemovedAnchor": _object({"name": NAME}),
    "ManifestPart": _object(
        {
            "bulk": {"type": "string", "pattern": "^[0-9a-f]{12}$", "description": "Ties the audit rows together."},
            "rows": {
                "type": "array",
                "minItems": 1,
                "maxItems": MANIFEST_ROWS_MAX,
                "items": _object(_MANIFEST_ROW, required=("device_id", "model")),
            },
        },
        required=("rows",),
        description="Rows of a manifest. Each stands for itself, and the same again changes nothing.",
    ),
    "ManifestTaken": _object(
        {
            "bulk": {"type": "string", "pattern": "^[0-9a-f]{12}$"},
            "added": COUNT,
            "unchanged": {**COUNT, "description": "Taken before."},
            "refused": {
                "type": "array",
                "items": _object({"line": SEQ, "device_id": TEXT, "code": TEXT, "message": TEXT}),
            },
        },
        description="What became of the rows.",
    ),
    "Operator": _object(_OPERATOR),
    "NewOperator": _object(
        {"name": NAME, "role": _ROLE, "models": {**_HELD_TO, "maxItems": OPERATOR_MODELS_MAX}, **_REQUEST},
        required=("name", "role", "csr"),
    ),
    "AddedOperator": _object({**_OPERATOR, **_SIGNED}),
    "Authority": _object(
        {
            "role": {"type": "string", "description": "root, issuing and the like."},
            "subject": TEXT,
            "not_after": TIME,
            "sha256": {**SHA256, "description": "Of the certificate's DER."},
            "tenant": {"type": "string", "description": "Whose it is; empty for the fleet's own."},
            "pem": TEXT,
        },
        description="One of the fleet's CAs.",
    ),
    "Forecast": _object(
        {
            "devices": {**COUNT, "description": "In service with a certificate, valid or not."},
            "overdue": {**COUNT, "description": "Of them, those whose newest certificate ended before this week."},
            "weeks": {
                "type": "array",
                "items": _object(
                    {
                        "week": {"type": "string", "format": "date", "description": "Its Monday."},
                        "devices": COUNT,
                        "tokens": COUNT,
                        "authorities": {"type": "array", "items": TEXT, "description": "CAs that end in it, by role."},
                    }
                ),
            },
            "warnings": {"type": "array", "items": _object({"code": TEXT, "message": TEXT})},
        },
        description="What ends when, by week from this one on, and what to prepare for.",
    ),
    "Retention": _object(
        {
            "events_days": {**COUNT, "description": "Kept for so many days; 0: for ever."},
            "audit_days": COUNT,
            "expired_credentials_days": COUNT,
            "first_event": {**SEQ, "description": "The oldest that is kept; 0: there is none."},
            "last_event": SEQ,
            "first_audit": SEQ,
            "last_audit": SEQ,
        },
        description="For how long the registry keeps things, and what there is now.",
    ),
    "Proof": {
        "type": "object",
        "properties": {"version": {"type": "integer"}, "seq": SEQ, "path": {"type": "array", "items": SHA256}},
        "required": ["version", "seq", "entry", "leaf", "index", "size", "path", "head"],
        "description": "The row, its path through the audit's tree (RFC 9162), and the signed head: "
        "`fleet audit check-proof` checks it with the public key alone.",
    },
    "TreeHead": _object(_HEAD, description="A head of the audit's tree (RFC 9162), signed."),
    "Sealed": _object(
        {
            "head": _object(_HEAD, type=["object", "null"]),
            "frontier": _object(
                {"size": SEQ, "hashes": {"type": "string", "pattern": "^([0-9a-f]{64})*$"}}, type=["object", "null"]
            ),
        },
        description="The newest head, and the hashes of the perfect subtrees of its rows; null before the first.",
    ),
    "Hashes": _object({"hashes": {"type": "array", "items": SHA256}}),
    "AuditRow": _object(
        {
            "seq": SEQ,
            "at": TIME,
            "actor": TEXT,
            "action": TEXT,
            "subject": TEXT,
            "outcome": TEXT,
            "address": TEXT,
            "detail": {"type": "object", "additionalProperties": TEXT},
            "leaf": {**SHA256, "description": "The row's leaf hash in the audit's tree."},
        }
    ),
}
for _of in ("Model", "Device", "Credential", "Token", "Request", "Station", "Claim", "Anchor", "Operator", "Authority"):
    COMPONENTS[f"{_of}Page"] = page_of(_of)
COMPONENTS["TreeHeadPage"] = page_of("TreeHead")
COMPONENTS["AuditPage"] = page_of("AuditRow", last={**SEQ, "description": "The newest row's sequence."})
