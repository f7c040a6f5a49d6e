"""Operators of the admin API: enrolled with a certificate, and revoked."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from msgspec import Struct

from fleet.domain.access import Act, Operator, Role, operator_actor
from fleet.domain.changes import Change, Event, EventKind, made_by
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.crl import CrlReason
from fleet.domain.device import checked_lifetime, plain_name
from fleet.domain.enrollment import permit_by_operator
from fleet.domain.errors import Conflict, Invalid, known
from fleet.domain.ports import Issuer, Registry
from fleet.domain.writes import AddCredential, Insert
from fleet.services.inventory import known_model, must_be_of_devices, token_revocation
from fleet.services.revocation import revoke_certificates

OPERATOR_MODELS_MAX = 64
TOKENS_AT_ONCE = 64  # as many as share an fsync well
OPERATOR_LIFETIME = timedelta(days=365)


class NewOperator(Struct, frozen=True):
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
    (`operator-exists`). Refused: `application-model`, for the role factory; the issuer cannot sign that long.
    """
    checked_lifetime(new.lifetime)
    operator = await _checked(registry, new, act)
    until = act.now + new.lifetime
    permit = permit_by_operator(CredentialKind.OPERATOR, new.name, new.spki_der, until, act.now)
    credential = issuer.issue(permit, act.now)
    detail = {"role": new.role.value, "models": " ".join(operator.models), "serial": credential.serial}
    entry = made_by(act, "operator.add", f"operator {new.name}", **detail)
    event = Event(EventKind.CREDENTIAL_ISSUED, new.name, credential.fingerprint.hex())
    await registry.commit(Change(entry, (Insert(operator), AddCredential(credential)), (event,)))
    return credential


async def _checked(registry: Registry, new: NewOperator, act: Act) -> Operator:
    name, models = new.name, new.models
    plain_name(name, "person or program")
    if len(models) > OPERATOR_MODELS_MAX:
        raise Invalid("bad-operator-models", f"An operator is restricted to at most {OPERATOR_MODELS_MAX} models.")
    if new.role is Role.FACTORY and not models:
        raise Invalid("bad-operator-models", "The role factory is always restricted to models.", "Name them.")
    for model in models:
        await (must_be_of_devices if new.role is Role.FACTORY else known_model)(registry, model)
    if await registry.operator(name) is not None:
        raise Conflict("operator-exists", f"Operator {name} exists already.", "Choose another name.")
    return Operator(name, new.role, act.now, tuple(dict.fromkeys(models)))


async def revoke_open_tokens(registry: Registry, name: str, *, act: Act, reason: str = "") -> int:
    """Revoke every token that the operator made and that can still be used, each in a Change of its own; how many.
    Certificates that they earned stay. Its certificates are revoked first, or it makes others meanwhile.

    Raises: Invalid (`bad-reason`). Unavailable.
    """
    revoked = 0
    while found := await registry.open_tokens(operator_actor(name), act.now, TOKENS_AT_ONCE):
        changes = (registry.commit(token_revocation(token, act=act, reason=reason)) for token in found)
        for result in await asyncio.gather(*changes, return_exceptions=True):
            if result is None:
                revoked += 1
            elif not isinstance(result, Conflict):  # else it was spent or revoked meanwhile
                raise result
    return revoked


async def revoke_operator(
    registry: Registry, name: str, *, act: Act, reason: str = "", crl_reason: CrlReason = CrlReason.UNSPECIFIED
) -> None:
    """Revoke every certificate of the operator; its event streams end at once.

    Raises: NotFound (`no-such-operator`). Conflict (`operator-revoked`): it holds none that is not revoked. Invalid
    (`bad-reason`).
    """
    known(await registry.operator(name), "operator", name)
    kind = CredentialKind.OPERATOR
    if not await revoke_certificates(registry, kind, name, act=act, reason=reason, crl_reason=crl_reason):
        raise Conflict("operator-revoked", f"Operator {name} has no certificate that is not revoked.")
