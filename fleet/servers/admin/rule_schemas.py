"""The JSON Schemas of a model's rules, in the shape of `fleet.domain.model_rules.rules_json`."""

from typing import Any

from fleet.domain.model_rules import (
    EXTENDED_KEY_USAGES,
    FORMER_TENANTS_MAX,
    GRACE_MAX,
    ORGANISATION_SIZE_MAX,
    SPREAD_MAX,
    URI_NAMES_MAX,
    WEBHOOK_URL_SIZE_MAX,
    AdmissionPath,
    RenewalKey,
)
from fleet.domain.name_templates import TEMPLATE_SIZE_MAX

Schema = dict[str, Any]


def _flag(description: str) -> Schema:
    return {"type": "boolean", "description": description}


def _text(size_max: int, description: str) -> Schema:
    return {"type": "string", "maxLength": size_max, "description": description}


def _choices(names: list[str], description: str) -> Schema:
    return {"type": "array", "items": {"type": "string", "enum": names}, "description": description}


def _group(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


_TIME: Schema = {"type": "string", "format": "date-time"}
CAMPAIGN: Schema = {
    "type": ["object", "null"],
    "properties": {
        "before": _TIME,
        "start": _TIME,
        "spread_seconds": {"type": "integer", "minimum": 0, "maximum": int(SPREAD_MAX.total_seconds())},
    },
    "required": ["before", "start", "spread_seconds"],
    "additionalProperties": False,
    "description": "Certificates issued before `before` are to be renewed within `spread_seconds` of `start`.",
}

RULES: dict[str, Schema] = {
    "tenant": {
        "type": "string",
        "pattern": "^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$",
        "description": "Whose issuing CA signs; empty for the fleet's own.",
    },
    "former_tenants": {
        "type": "array",
        "items": {"type": "string", "pattern": "^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$"},
        "maxItems": FORMER_TENANTS_MAX,
        "description": "Tenants whose certificates are still good for its devices; a move adds the one before.",
    },
    "admission": _group(
        {
            "paths": _choices([path.value for path in AdmissionPath], "How its devices may come in."),
            "any_idevid": _flag("Whether any device of an imported maker's CA may come in, listed or not."),
            "webhook": _text(WEBHOOK_URL_SIZE_MAX, "An https URL that is asked before each first certificate."),
        }
    ),
    "profile": _group(
        {
            "extended_key_usages": {
                **_choices(list(EXTENDED_KEY_USAGES), "What its certificates are good for; clientAuth always."),
                "minItems": 1,
            },
            "organisation": _text(ORGANISATION_SIZE_MAX, "O of the subject."),
            "hardware_module_name": _flag("Whether a known hardware serial stands in the SAN (IEEE 802.1AR)."),
            "dns_name": _text(TEMPLATE_SIZE_MAX, "A DNS name for the SAN; {id} and {model} are filled in."),
            "uris": {
                "type": "array",
                "items": _text(TEMPLATE_SIZE_MAX, "{id} and {model} are filled in."),
                "maxItems": URI_NAMES_MAX,
                "description": "URIs for the SAN.",
            },
            "csr_extended_key_usages": _flag("Whether a CSR may ask for fewer of the extended key usages."),
            "server_keygen": _flag("Whether the server makes keys for its devices (RFC 7030, 4.4)."),
            "binding": _flag("Whether requests must bind themselves to their TLS connection (RFC 7030, 3.5)."),
        }
    ),
    "renewal": _group(
        {
            "key": {"type": "string", "enum": [key.value for key in RenewalKey], "description": "Which key it takes."},
            "grace_seconds": {
                "type": "integer",
                "minimum": 0,
                "maximum": int(GRACE_MAX.total_seconds()),
                "description": "How long after its end a certificate may still be renewed, and nothing else.",
            },
            "campaign": CAMPAIGN,
        }
    ),
}
