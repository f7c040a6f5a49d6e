"""Operators of the admin API: how they come in with a certificate, and how they are put out again."""

import hashlib
from collections.abc import Sequence
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


async def enroll_operator(
    registry: Registry,
    issuer: Issuer,
    name: str,
    role: Role,
    models: Sequence[str],
    spki_der: bytes,
    *,
    lifetime: timedelta = OPERATOR_LIFETIME,
    act: Act,
) -> Credential:
    """Record an operator together with a certificate for its key: both, or neither.

    `spki_der` is its public key, a DER SubjectPublicKeyInfo; `issuer` the operators' CA; `models` what its role is
    held to, () for all.

    Raises: Invalid: `bad-name`, `bad-operator-models`, `bad-lifetime`. NotFound (`no-such-model`). Conflict
    (`operator-exists`). Refused: the issuer cannot sign that long.
    """
    if not LIFETIME_MIN <= lifetime <= LIFETIME_MAX:
        raise Invalid("bad-lifetime", "A certificate lives at least one minute and at most 3650 days.")
    operator = await _new_operator(registry, name, role, models, act)
    permit = permit_operator(operator, spki_der, hashlib.sha256(spki_der).digest(), act.now + lifetime, act.now)
    credential = issuer.issue(permit, act.now)
    detail = {"role": role.value, "models": " ".join(operator.models), "serial": credential.serial}
    await registry.commit(
        Change(
            audit=AuditEntry(act.now, act.actor, "operator.add", f"operator {name}", "ok", act.address, detail),
            writes=(AddOperator(operator), AddCredential(credential)),
            events=(Event(EventKind.CREDENTIAL_ISSUED, name, credential.fingerprint.hex()),),
        )
    )
    return credential


async def _new_operator(registry: Registry, name: str, role: Role, models: Sequence[str], act: Act) -> Operator:
    plain_name(name, "person or program")
    if len(models) > OPERATOR_MODELS_MAX:
        raise Invalid("bad-operator-models", f"An operator is held to at most {OPERATOR_MODELS_MAX} models.")
    if role is Role.FACTORY and not models:
        raise Invalid("bad-operator-models", "The role factory is always held to models.", "Name them.")
    for model in models:
        if await registry.model(model) is None:
            raise NotFound("no-such-model", f"There is no model {model[:80]!r}.", "See: fleet model list")
    if await registry.operator(name) is not None:
        raise Conflict("operator-exists", f"Operator {name} exists already.", "Choose another name.")
    return Operator(name, role, act.now, tuple(dict.fromkeys(models)))


async def revoke_operator(registry: Registry, name: str, *, act: Act, reason: str = "") -> None:
    """Revoke every certificate of the operator; what it follows of the events ends at once.

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
