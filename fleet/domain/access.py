"""Operators: people and programs that work with the fleet, and what their role lets them do.

A role is a list of permissions. An operator may be held to models: then it sees and changes what belongs to those
models alone, and has no say in what belongs to the whole fleet (FLEET_WIDE).
"""

import enum
from dataclasses import dataclass
from datetime import datetime

from fleet.domain.errors import Refused


@dataclass(frozen=True, slots=True)
class Act:
    """Who asks for a change, when and whence: what the audit says of it."""

    actor: str
    """In the audit's words: "operator" at the console of the home itself, "operator bob" over the API."""
    now: datetime
    address: str = ""
    """IP address, "" at the console."""


class Role(enum.StrEnum):
    VIEWER = "viewer"
    """Reads everything, changes nothing."""
    OPERATOR = "operator"
    """Runs the fleet day by day: devices, tokens, claims, tags, requests."""
    ADMIN = "admin"
    """Everything, models, stations and other operators included."""
    FACTORY = "factory"
    """Registers devices of its models, makes tokens for those that have not been in the field, and sees them. It is
    always held to models.
    """


class Permission(enum.StrEnum):
    """What a request needs; names are stable."""

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
    """Make, quarantine, release and revoke claims."""
    ANCHOR_READ = "anchor.read"
    ANCHOR_WRITE = "anchor.write"
    """Believe a maker's CA, and believe it no more."""
    OPERATOR_READ = "operator.read"
    OPERATOR_WRITE = "operator.write"
    """Add and revoke operators; nobody gives what it does not have."""
    REQUEST_READ = "request.read"
    REQUEST_DECIDE = "request.decide"
    """Approve and deny what waits for an operator."""
    EVENT_READ = "event.read"
    AUDIT_READ = "audit.read"
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
        Permission.STATUS_READ,
    }
)
"""What cannot be had for some models only: closed to an operator who is held to models."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who holds a certificate of the operators' CA."""

    name: str
    role: Role
    created_at: datetime
    models: tuple[str, ...] = ()
    """The models that its role is held to; () for all."""

    def sees(self, model: str) -> bool:
        """Whether what belongs to `model` is there for it at all."""
        return not self.models or model in self.models


def demand(operator: Operator, permission: Permission) -> None:
    """Let `operator` do what takes `permission`.

    Raises: Refused: `role-not-enough`, `held-to-models`.
    """
    if permission not in PERMISSIONS[operator.role]:
        raise Refused("role-not-enough", f"The role {operator.role} does not have the permission {permission}.")
    if operator.models and permission in FLEET_WIDE:
        raise Refused("held-to-models", f"{permission} concerns the whole fleet, and this operator is held to models.")


def demand_model(operator: Operator, model: str) -> None:
    """Let `operator` put something under `model`.

    Raises: Refused (`held-to-models`), whether there is such a model or not.
    """
    if not operator.sees(model):
        raise Refused("held-to-models", f"This operator is held to other models than {model[:80]!r}.")


def demand_grantable(operator: Operator, role: Role, models: tuple[str, ...]) -> None:
    """Let `operator` make another one of `role`, held to `models`: nobody gives what it does not have itself.

    Raises: Refused: `more-than-yours`, `held-to-models`.
    """
    more = sorted(PERMISSIONS[role] - PERMISSIONS[operator.role])
    if more:
        raise Refused("more-than-yours", f"The role {role} has the permission {more[0]}, and yours has not.")
    if operator.models and not models:
        raise Refused("more-than-yours", "You are held to models: name those that the new operator is held to.")
    for model in models:
        demand_model(operator, model)
