"""Operators of the admin API: enrolled with a certificate, and revoked."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from fleet.domain.access import Act, Operator, Role
from fleet.domain.changes import AuditEntry, Change, Event, EventKind
from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.device import LIFETIME_MAX, LIFETIME_MIN, plain_name
from fleet.domain.enrollment import permit_operator
from fleet.domain.errors import Conflict, Invalid, NotFound
from fleet.domain.ports import Issuer, Registry
from fleet.domain.writes import AddCredential, AddOperator, RevokeCredentials
from fleet.services.revocation import checked_reason

OPERATOR_MODELS_MAX = 64
OPERATOR_LIFETIME = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class NewOperator:
    """An operator to enroll."""

    name: str
    role: Role
    models: Sequence[str]
    """Models that its role is restricted to; () for all."""
    spki_der: bytes
    """Its public key, a DER SubjectPublicKeyInfo."""
    lifetime: timedelta = OPERATOR_LIFETIME


async def enroll_operator(registry: Registry, issuer: Issuer, new: NewOperator, *, act: Act) -> Credential:
    """Record an operator together with a certificate for its key: both, or neither. `issuer` is the operators' CA.

    Raises: Invalid: `bad-name`, `bad-operator-models`, `bad-lifetime`. NotFound (`no-such-model`). Conflict
    (`operator-exists`). Refused: the issuer cannot sign that long.
    """
    if not LIFETIME_MIN <= new.lifetime <= LIFETIME_MAX:
        raise Invalid("bad-lifetime", "A certificate lives at least one minute and at most 3650 days.")
    operator = await _checked(registry, new, act)
    key_sha256 = hashlib.sha256(new.spki_der).digest()
    permit = permit_operator(operator, new.spki_der, key_sha256, act.now + new.lifetime, act.now)
    credential = issuer.issue(permit, act.now)
    detail = {"role": new.role.value, "models": " ".join(operator.models), "serial": credential.serial}
    await registry.commit(
        Change(
            audit=AuditEntry(act.now, act.actor, "operator.add", f"operator {new.name}", "ok", act.address, detail),
            writes=(AddOperator(operator), AddCredential(credential)),
            events=(Event(EventKind.CREDENTIAL_ISSUED, new.name, credential.fingerprint.hex()),),
        )
    )
    return credential


async def _checked(registry: Registry, new: NewOperator, act: Act) -> Operator:
    name, models = new.name, new.models
    plain_name(name, "person or program")
    if len(models) > OPERATOR_MODELS_MAX:
        raise Invalid("bad-operator-models", f"An operator is restricted to at most {OPERATOR_MODELS_MAX} models.")
    if new.role is Role.FACTORY and not models:
        raise Invalid("bad-operator-models", "The role factory is always restricted to models.", "Name them.")
    for model in models:
        if await registry.model(model) is None:
            raise NotFound("no-such-model", f"There is no model {model[:80]!r}.", "See: fleet model list")
    if await registry.operator(name) is not None:
        raise Conflict("operator-exists", f"Operator {name} exists already.", "Choose another name.")
    return Operator(name, new.role, act.now, tuple(dict.fromkeys(models)))


async def revoke_operator(registry: Registry, name: str, *, act: Act, reason: str = "") -> None:
    """Revoke every certificate of the operator; its event streams end at once.

    Raises: NotFound (`no-such-operator`). Conflict (`operator-revoked`): it holds none that is not revoked. Invalid
    (`bad-reason`).
    """
    if await registry.operator(name) is None:
        raise NotFound("no-such-operator", f"There is no operator {name[:80]!r}.", "See: fleet operator list")
    ending = [c for c in await held_by_operator(registry, name) if c.state is not CredentialState.REVOKED]
    if not ending:
        raise Conflict("operator-revoked", f"Operator {name} has no certificate that is not revoked.")
    detail = {"reason": checked_reason(reason)} if reason else {}
    await registry.commit(
        Change(
            audit=AuditEntry(act.now, act.actor, "operator.revoke", f"operator {name}", "ok", act.address, detail),
            writes=(RevokeCredentials(CredentialKind.OPERATOR, name),),
            # By fingerprint: a device may bear the operator's name, and its sessions are none of this.
            events=tuple(Event(EventKind.CREDENTIAL_ENDED, name, c.fingerprint.hex()) for c in ending),
        )
    )


async def held_by_operator(registry: Registry, name: str) -> list[Credential]:
    """The operator's certificates, oldest first."""
    return [c for c in await registry.credentials(name) if c.kind is CredentialKind.OPERATOR]
