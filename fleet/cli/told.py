"""What the API tells, as values of the domain; and what of a model is told to it."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.cli.desk import Held
from fleet.domain.approval import ApprovalRequest, RequestState
from fleet.domain.claim import Claim
from fleet.domain.credential import CredentialState, Token
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import Unavailable
from fleet.domain.idevid import Anchor
from fleet.domain.model_rules import DEFAULT_RULES, rules_json, rules_of

Json = Mapping[str, Any]
Made = TypeVar("Made")


def read_as(make: Callable[[Any], Made], value: Any) -> Made:
    """What `make` makes of an answer.

    Raises: Unavailable (`bad-answer`): it holds something else than was asked for.
    """
    try:
        return make(value)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise Unavailable("bad-answer", "What the server answers cannot be read.", "Check the address.") from error


def time_from(text: str) -> datetime:
    return datetime.fromisoformat(text)


def maybe_time_from(text: str | None) -> datetime | None:
    return None if text is None else time_from(text)


def model_body(model: Model) -> dict[str, Any]:
    return {
        "lifetime_seconds": int(model.certificate_lifetime.total_seconds()),
        "key_types": list(model.key_types),
        "publish": list(model.publish),
        "subscribe": list(model.subscribe),
        "retain": model.retain,
        **rules_json(model.rules),
    }


def model_from(value: Json) -> Model:
    return Model(
        name=value["name"],
        certificate_lifetime=timedelta(seconds=value["lifetime_seconds"]),
        key_types=tuple(value["key_types"]),
        publish=tuple(value["publish"]),
        subscribe=tuple(value["subscribe"]),
        retain=value["retain"],
        rules=rules_of({name: value[name] for name in rules_json(DEFAULT_RULES) if name in value}),
        revision=value["revision"],
    )


def device_from(value: Json) -> Device:
    return Device(
        id=DeviceId(value["id"]),
        model=value["model"],
        state=DeviceState(value["state"]),
        created_at=time_from(value["created_at"]),
        hardware_serial=value["hardware_serial"],
        expires_at=maybe_time_from(value["expires_at"]),
        tags=tuple(sorted(value["tags"].items())),
        groups=tuple(value["groups"]),
        revision=value["revision"],
    )


def held_from(value: Json) -> Held:
    return Held(
        serial=value["serial"],
        state=CredentialState(value["state"]),
        not_before=time_from(value["not_before"]),
        not_after=time_from(value["not_after"]),
        sha256=bytes.fromhex(value["sha256"]),
    )


def token_from(value: Json) -> Token:
    return Token(
        id=value["id"],
        secret_sha256=b"",  # not told
        device_id=None if value["device"] is None else DeviceId(value["device"]),
        model=value["model"],
        uses_max=value["uses_max"],
        uses=value["uses"],
        created_at=time_from(value["created_at"]),
        expires_at=time_from(value["expires_at"]),
        revoked_at=maybe_time_from(value["revoked_at"]),
    )


def request_from(value: Json) -> ApprovalRequest:
    return ApprovalRequest(
        id=value["id"],
        device_id=DeviceId(value["device"]),
        model=value["model"],
        key_sha256=bytes.fromhex(value["key_sha256"]),
        key_type=value["key_type"],
        facts=value["facts"],
        address=value["address"],
        network="",  # not told
        first_seen=time_from(value["first_seen"]),
        last_seen=time_from(value["last_seen"]),
        expires_at=time_from(value["expires_at"]),
        asked=value["asked"],
        state=RequestState(value["state"]),
        decided_by=value["decided_by"],
        decided_at=maybe_time_from(value["decided_at"]),
        reason=value["reason"],
        revision=value["revision"],
    )


def claim_from(v: Json) -> Claim:
    return Claim(
        name=v["name"],
        model=v["model"],
        quota=v["quota"],
        uses=v["uses"],
        created_at=time_from(v["created_at"]),
        expires_at=time_from(v["expires_at"]),
        takeovers=v["takeovers"],
        quarantined_at=maybe_time_from(v["quarantined_at"]),
        quarantine_reason=v["quarantine_reason"],
        revoked_at=maybe_time_from(v["revoked_at"]),
    )


def anchor_from(v: Json) -> Anchor:
    der = x509.load_pem_x509_certificate(v["pem"].encode()).public_bytes(Encoding.DER)
    return Anchor(v["name"], tuple(v["models"]), bytes.fromhex(v["sha256"]), der, time_from(v["created_at"]))
