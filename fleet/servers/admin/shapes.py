"""Values of the domain as JSON, and back. Times are RFC 3339 in UTC, bytes are hex, durations are seconds."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.domain.access import Operator
from fleet.domain.approval import ApprovalRequest
from fleet.domain.changes import AuditRow, Event
from fleet.domain.claim import Claim, claim_state
from fleet.domain.credential import Credential, Station, Token, token_state
from fleet.domain.device import Device, Model
from fleet.domain.idevid import Anchor
from fleet.domain.model_rules import rules_json, rules_of
from fleet.services.renewal import Progress

Json = dict[str, Any]


def moment(at: datetime) -> str:
    """`at` as RFC 3339."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _maybe(at: datetime | None) -> str | None:
    return None if at is None else moment(at)


def model_json(m: Model) -> Json:
    return {
        "name": m.name,
        "lifetime_seconds": int(m.certificate_lifetime.total_seconds()),
        "key_types": list(m.key_types),
        "publish": list(m.publish),
        "subscribe": list(m.subscribe),
        "retain": m.retain,
        **rules_json(m.rules),
        "revision": m.revision,
    }


def progress_json(p: Progress) -> Json:
    campaign = None
    if p.campaign is not None:
        campaign = {
            "before": moment(p.campaign.before),
            "start": moment(p.campaign.start),
            "spread_seconds": int(p.campaign.spread.total_seconds()),
        }
    return {"model": p.model, "campaign": campaign, "devices": p.devices, "renewed": p.renewed}


def changed_model(model: Model, changes: Mapping[str, Any]) -> Model:
    """`model` with what `changes`, which fit the schema, say."""
    given: dict[str, Any] = {}
    for name in ("key_types", "publish", "subscribe"):
        if name in changes:
            given[name] = tuple(changes[name])
    if "retain" in changes:
        given["retain"] = changes["retain"]
    if "lifetime_seconds" in changes:
        given["certificate_lifetime"] = timedelta(seconds=int(changes["lifetime_seconds"]))
    rules = {name: changes[name] for name in rules_json(model.rules) if name in changes}
    return replace(model, rules=rules_of(rules, model.rules), **given)


def device_json(d: Device) -> Json:
    return {
        "id": d.id,
        "model": d.model,
        "state": d.state.value,
        "hardware_serial": d.hardware_serial,
        "created_at": moment(d.created_at),
        "expires_at": _maybe(d.expires_at),
        "tags": dict(d.tags),
        "groups": list(d.groups),
        "revision": d.revision,
    }


def credential_json(c: Credential) -> Json:
    return {
        "serial": c.serial,
        "kind": c.kind.value,
        "holder": c.holder,
        "state": c.state.value,
        "not_before": moment(c.not_before),
        "not_after": moment(c.not_after),
        "issued_at": moment(c.issued_at),
        "sha256": c.fingerprint.hex(),
        "key_sha256": c.key_sha256.hex(),
        "grant": c.grant,
    }


def token_json(t: Token, now: datetime) -> Json:
    return {
        "id": t.id,
        "device": t.device_id,
        "model": t.model,
        "uses": t.uses,
        "uses_max": t.uses_max,
        "state": token_state(t, now),
        "created_at": moment(t.created_at),
        "expires_at": moment(t.expires_at),
        "revoked_at": _maybe(t.revoked_at),
    }


def request_json(r: ApprovalRequest) -> Json:
    return {
        "id": r.id,
        "device": r.device_id,
        "model": r.model,
        "state": r.state.value,
        "fingerprint": r.fingerprint,
        "key_sha256": r.key_sha256.hex(),
        "key_type": r.key_type,
        "facts": r.facts,
        "address": r.address,
        "asked": r.asked,
        "first_seen": moment(r.first_seen),
        "last_seen": moment(r.last_seen),
        "expires_at": moment(r.expires_at),
        "decided_by": r.decided_by,
        "decided_at": _maybe(r.decided_at),
        "reason": r.reason,
        "revision": r.revision,
    }


def station_json(s: Station, newest: Credential | None) -> Json:
    return {
        "name": s.name,
        "models": list(s.models),
        "quota": s.quota,
        "day": s.day,
        "used": s.used,
        "created_at": moment(s.created_at),
        **_certificate(newest),
    }


def claim_json(c: Claim, now: datetime) -> Json:
    return {
        "name": c.name,
        "model": c.model,
        "state": claim_state(c, now),
        "quota": c.quota,
        "uses": c.uses,
        "takeovers": c.takeovers,
        "created_at": moment(c.created_at),
        "expires_at": moment(c.expires_at),
        "quarantined_at": _maybe(c.quarantined_at),
        "quarantine_reason": c.quarantine_reason,
        "revoked_at": _maybe(c.revoked_at),
    }


def anchor_json(a: Anchor) -> Json:
    certificate = x509.load_der_x509_certificate(a.der)
    return {
        "name": a.name,
        "models": list(a.models),
        "subject": certificate.subject.rfc4514_string(),
        "not_after": moment(certificate.not_valid_after_utc),
        "sha256": a.fingerprint.hex(),
        "created_at": moment(a.created_at),
        "pem": certificate.public_bytes(Encoding.PEM).decode(),
    }


def operator_json(o: Operator, newest: Credential | None) -> Json:
    return {
        "name": o.name,
        "role": o.role.value,
        "models": list(o.models),
        "created_at": moment(o.created_at),
        **_certificate(newest),
    }


def _certificate(newest: Credential | None) -> Json:
    return {
        "certificate": newest.state.value if newest else None,
        "serial": newest.serial if newest else None,
        "not_after": _maybe(newest.not_after if newest else None),
    }


def audit_json(row: AuditRow) -> Json:
    e = row.entry
    return {
        "seq": row.seq,
        "at": moment(e.at),
        "actor": e.actor,
        "action": e.action,
        "subject": e.subject,
        "outcome": e.outcome,
        "address": e.address,
        "detail": e.detail,
        "leaf": row.leaf.hex(),
    }


def event_json(event: Event) -> Json:
    return {"seq": event.seq, "kind": event.kind, "subject": event.subject, "detail": event.detail}
