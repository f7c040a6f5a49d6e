"""Operators of the admin API, people and programs: roles, permissions and their scope.

A role is a list of permissions. An operator may be restricted to models: it then sees and changes only what belongs to
them, and nothing that belongs to the whole fleet (FLEET_WIDE).
"""

import enum
from datetime import datetime

from msgspec import Struct

from fleet.domain.errors import Refused


class Act(Struct, frozen=True):
    """Actor, time and source address of a change, as recorded in the audit."""

    actor: str
    """In the audit's words: "user alice" at the home itself, "operator bob" over the API."""
    now: datetime
    address: str = ""
    """IP address; "" at the home itself."""


class Role(enum.StrEnum):
    VIEWER = "viewer"
    """Reads everything, changes nothing."""
    OPERATOR = "operator"
    """Day-to-day operation: devices, tokens, claims, tags, requests."""
    ADMIN = "admin"
    """Everything, including models, stations and other operators."""
    FACTORY = "factory"
    """Registers and sees devices of its models, and creates tokens for those not yet in the field. Always restricted to
    models.
    """


class Permission(enum.StrEnum):
    """Permission that a request needs; names are stable."""

    MODEL_READ = "model.read"
    MODEL_CREATE = "model.create"
    MODEL_WRITE = "model.write"
    DEVICE_READ = "device.read"
    DEVICE_CREATE = "device.create"
    DEVICE_WRITE = "device.write"
    """Tags, groups, suspend, resume, revoke, retire."""
    CREDENTIAL_READ = "credential.read"
    TOKEN_READ = "token.read"  # noqa: S105  a permission's name
    TOKEN_CREATE = "token.create"  # noqa: S105
    TOKEN_REVOKE = "token.revoke"  # noqa: S105
    STATION_READ = "station.read"
    STATION_WRITE = "station.write"
    """Add, change and revoke stations."""
    CLAIM_READ = "claim.read"
    CLAIM_WRITE = "claim.write"
    """Create, quarantine, release and revoke claims."""
    ANCHOR_READ = "anchor.read"
    ANCHOR_WRITE = "anchor.write"
    """Add and remove trust anchors."""
    OPERATOR_READ = "operator.read"
    OPERATOR_WRITE = "operator.write"
    """Add and revoke operators, with no more rights than one's own."""
    REQUEST_READ = "request.read"
    REQUEST_DECIDE = "request.decide"
    """Approve and deny requests that wait for approval."""
    EVENT_READ = "event.read"
    AUDIT_READ = "audit.read"
    CRL_ISSUE = "crl.issue"
    """Have every CRL signed now."""
    STATUS_READ = "status.read"


_READS = frozenset(permission for permission in Permission if permission.endswith(".read"))

PERMISSIONS: dict[Role, frozenset[Permission]] = {
    Role.VIEWER: _READS,
    Role.OPERATOR: _READS
    | {
        Permission.DEVICE_CREATE,
        Permission.DEVICE_WRITE,
        Permission.TOKEN_CREATE,
        Permission.TOKEN_REVOKE,
        Permission.CLAIM_WRITE,
        Permission.REQUEST_DECIDE,
    },
    Role.ADMIN: frozenset(Permission),
    Role.FACTORY: frozenset(
        {
            Permission.MODEL_READ,
            Permission.DEVICE_READ,
            Permission.DEVICE_CREATE,
            Permission.CREDENTIAL_READ,
            Permission.TOKEN_READ,
            Permission.TOKEN_CREATE,
        }
    ),
}

FLEET_WIDE = frozenset(
    {
        Permission.MODEL_CREATE,
        Permission.ANCHOR_WRITE,
        Permission.OPERATOR_READ,
        Permission.OPERATOR_WRITE,
        Permission.AUDIT_READ,
        Permission.CRL_ISSUE,
        Permission.STATUS_READ,
    }
)
"""Permissions without a model scope: denied to an operator restricted to models."""


class Operator(Struct, frozen=True):
    """Holder of a certificate from the operators' CA."""

    name: str
    role: Role
    created_at: datetime
    models: tuple[str, ...] = ()
    """Models it is restricted to; () for all."""

    def sees(self, model: str) -> bool:
        """Whether it may see what belongs to `model`."""
        return not self.models or model in self.models


def operator_actor(name: str) -> str:
    """The operator in the audit's words."""
    return f"operator {name}"


class NotPermitted(Refused):
    """The operator's role or models do not permit it."""


def demand(operator: Operator, permission: Permission) -> None:
    """Check that `operator` has `permission`. Raises: NotPermitted: `role-not-enough`, `held-to-models`."""
    if permission not in PERMISSIONS[operator.role]:
        raise NotPermitted("role-not-enough", f"The role {operator.role} does not have the permission {permission}.")
    if operator.models and permission in FLEET_WIDE:
        message = f"{permission} concerns the whole fleet, and this operator is restricted to models."
        raise NotPermitted("held-to-models", message)


def demand_model(operator: Operator, model: str) -> None:
    """Check that `operator` may add something to `model`.

    Raises: NotPermitted (`held-to-models`), whether the model exists or not.
    """
    if not operator.sees(model):
        raise NotPermitted("held-to-models", f"This operator is restricted to models other than {model[:80]!r}.")


def demand_grantable(operator: Operator, role: Role, models: tuple[str, ...]) -> None:
    """Check that `operator` may add an operator of `role`, restricted to `models`: no more rights than its own.

    Raises: NotPermitted: `more-than-yours`, `held-to-models`.
    """
    more = sorted(PERMISSIONS[role] - PERMISSIONS[operator.role])
    if more:
        raise NotPermitted("more-than-yours", f"The role {role} has the permission {more[0]}, and yours does not.")
    if operator.models and not models:
        raise NotPermitted("more-than-yours", "You are restricted to models: name those of the new operator.")
    for model in models:
        demand_model(operator, model)
