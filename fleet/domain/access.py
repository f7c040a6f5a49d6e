"""Operators: people and programs that work with the fleet, and what their role lets them do."""

import enum
from dataclasses import dataclass
from datetime import datetime


class Role(enum.StrEnum):
    VIEWER = "viewer"
    """Reads everything, changes nothing."""
    OPERATOR = "operator"
    """Runs the fleet day by day: devices, tokens, tags."""
    ADMIN = "admin"
    """Everything, models, stations and other operators included."""
    FACTORY = "factory"
    """Registers devices and makes tokens for them, and sees what it has made."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who holds a certificate of the operators' CA."""

    name: str
    role: Role
    created_at: datetime
    models: tuple[str, ...] = ()
    """The models that its role is held to; () for all."""
