"""Devices and their models: what they are called, what state they are in, and which moves between states exist."""

import enum
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NewType

from fleet.domain.errors import Invalid
from fleet.domain.model_rules import DEFAULT_RULES, ModelRules

DeviceId = NewType("DeviceId", str)

# No + # / $, space or NUL: a device id can stand in a topic, a file name or a client id without being escaped.
_DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

KEY_TYPES = ("EC-P256", "EC-P384", "RSA-2048+", "Ed25519", "ML-DSA-44", "ML-DSA-65")
"""Every kind of public key that a model may allow."""

BARRED_MODEL = "restore-barred"
"""Of devices that a registry knows of by this alone: they were put out after the backup that it was restored from."""

LIFETIME_MIN = timedelta(minutes=1)
LIFETIME_MAX = timedelta(days=3650)


def device_id(text: str) -> DeviceId:
    """The device id that `text` spells.

    Raises: Invalid (`bad-device-id`) when it breaks the rule `[A-Za-z0-9][A-Za-z0-9._:-]{0,63}`.
    """
    if not _DEVICE_ID.fullmatch(text):
        raise Invalid(
            "bad-device-id",
            f"{text[:80]!r} is not a device id.",
            "Use 1 to 64 letters, digits, dots, colons, dashes or underscores, starting with a letter or digit.",
        )
    return DeviceId(text)


def plain_name(text: str, what: str) -> str:
    """`text` itself, when it can name a model or a station. `what` is used in the error.

    Raises: Invalid (`bad-name`).
    """
    if not _NAME.fullmatch(text):
        raise Invalid(
            "bad-name",
            f"{text[:80]!r} is not a name for a {what}.",
            "Use 1 to 64 letters, digits, dots, dashes or underscores, starting with a letter or digit.",
        )
    return text


class DeviceState(enum.StrEnum):
    REGISTERED = "registered"
    """Known to the registry, holds no certificate yet."""
    ACTIVE = "active"
    SUSPENDED = "suspended"
    """Refused everywhere until it is resumed."""
    REVOKED = "revoked"
    """Refused everywhere, for good: its certificates are revoked."""
    RETIRED = "retired"
    """Taken out of service in good order; as dead as REVOKED."""


NEXT: dict[DeviceState, frozenset[DeviceState]] = {
    DeviceState.REGISTERED: frozenset(
        {DeviceState.ACTIVE, DeviceState.SUSPENDED, DeviceState.REVOKED, DeviceState.RETIRED}
    ),
    DeviceState.ACTIVE: frozenset({DeviceState.SUSPENDED, DeviceState.REVOKED, DeviceState.RETIRED}),
    DeviceState.SUSPENDED: frozenset(
        {DeviceState.REGISTERED, DeviceState.ACTIVE, DeviceState.REVOKED, DeviceState.RETIRED}
    ),
    DeviceState.REVOKED: frozenset({DeviceState.RETIRED}),
    DeviceState.RETIRED: frozenset(),
}
"""The table of allowed moves. Nothing leads out of REVOKED or RETIRED back to service."""


@dataclass(frozen=True, slots=True)
class Model:
    """A kind of device: what its certificates look like and which topics it may use.

    `publish` and `subscribe` are MQTT topic filters in which `{id}` and `{model}` stand for the device's own.
    """

    name: str
    certificate_lifetime: timedelta = timedelta(days=90)
    key_types: tuple[str, ...] = ("EC-P256", "EC-P384")
    publish: tuple[str, ...] = ("devices/{id}/up/#",)
    subscribe: tuple[str, ...] = ("devices/{id}/down/#",)
    retain: bool = False
    """Whether its devices may leave retained messages: the broker keeps those for ever, so it is a right of its own."""
    rules: ModelRules = DEFAULT_RULES
    revision: int = 1
    """Counts the changes: what was read of an older revision must not overwrite this one."""


Tags = tuple[tuple[str, str], ...]
"""(key, value) of each tag, sorted by key; no key twice."""


@dataclass(frozen=True, slots=True)
class Device:
    id: DeviceId
    model: str
    state: DeviceState
    created_at: datetime
    hardware_serial: str = ""
    """The maker's serial number, "" when unknown; it becomes the subject's serialNumber."""
    expires_at: datetime | None = None
    """When its newest certificate ends; None before the first."""
    tags: Tags = ()
    groups: tuple[str, ...] = ()
    """Sorted."""
    revision: int = 1
    """Counts the changes: what was read of an older revision must not overwrite this one."""


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """Which devices are meant: those of which everything given here is true."""

    model: str | None = None
    state: DeviceState | None = None
    tags: Tags = ()
    group: str | None = None
    expires_before: datetime | None = None
    """Devices whose newest certificate ends before then; those with none are left out."""


EVERY_DEVICE = DeviceFilter()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of devices ended: the next one begins behind it."""

    id: str = ""
    expires_at: datetime | None = None
    """Set when the pages go by expiry."""


FIRST_PLACE = Place()


def place_of(device: Device, where: DeviceFilter) -> Place:
    """The place of `device` in the pages of `where`."""
    return Place(device.id, device.expires_at if where.expires_before is not None else None)
