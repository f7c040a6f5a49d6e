"""Devices and models: identifiers, states and the allowed transitions between them."""

import enum
import re
from datetime import datetime, timedelta
from typing import NewType

from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.errors import Invalid, Refused
from fleet.domain.model_rules import DEFAULT_RULES, AdmissionPath, ModelKind, ModelRules
from fleet.wire import identifiers
from fleet.wire.key_types import OF_MODELS

DeviceId = NewType("DeviceId", str)

DEVICE_ID, NAME = re.compile(identifiers.DEVICE_ID), re.compile(identifiers.NAME)

# It becomes the certificate's serialNumber: in X.520 a PrintableString of at most 64 characters.
HARDWARE_SERIAL = re.compile(r"(?! +\Z)[A-Za-z0-9 '()+,\-./:=?]{1,64}")

KEY_TYPES = OF_MODELS
"""Every kind of public key that a model may allow."""

BARRED_MODEL = "restore-barred"
"""Model of devices that were revoked after the backup from which the registry was restored, and are not in it."""

LIFETIME_MIN = timedelta(minutes=1)
LIFETIME_MAX = timedelta(days=3650)


def device_id(text: str) -> DeviceId:
    """`text` as a device id. Raises: Invalid (`bad-device-id`): it does not match DEVICE_ID."""
    if not DEVICE_ID.fullmatch(text):
        raise Invalid(
            "bad-device-id",
            f"{text[:80]!r} is not a device id.",
            f"Use {identifiers.DEVICE_ID_RULE}.",
        )
    return DeviceId(text)


def plain_name(text: str, what: str) -> str:
    """`text`, a valid name of a model or a station. `what` is used in the error. Raises: Invalid (`bad-name`)."""
    if not NAME.fullmatch(text):
        raise Invalid(
            "bad-name",
            f"{text[:80]!r} is not a name for a {what}.",
            "Use 1 to 64 letters, digits, dots, dashes or underscores, starting with a letter or digit.",
        )
    return text


def checked_serial(text: str) -> str:
    """`text`, which may be a device's hardware serial; "" for none.

    Raises: Invalid (`bad-hardware-serial`).
    """
    if text and not HARDWARE_SERIAL.fullmatch(text):
        message = "A hardware serial has at most 64 letters, digits, spaces (not these alone) and '()+,-./:=?"
        raise Invalid("bad-hardware-serial", message, "It is what X.520 allows in a certificate's serialNumber.")
    return text


def checked_lifetime(span: timedelta) -> timedelta:
    """`span`, which may be the validity period of a certificate. Raises: Invalid (`bad-lifetime`)."""
    if not LIFETIME_MIN <= span <= LIFETIME_MAX:
        raise Invalid("bad-lifetime", "A certificate's lifetime is one minute to 3650 days.")
    return span


class DeviceState(enum.StrEnum):
    REGISTERED = "registered"
    """In the registry, without a certificate so far."""
    ACTIVE = "active"
    SUSPENDED = "suspended"
    """Refused on every connection until resumed."""
    REVOKED = "revoked"
    """Permanently refused: its certificates are revoked."""
    RETIRED = "retired"
    """Decommissioned; as permanent as REVOKED."""


IN_SERVICE = frozenset({DeviceState.REGISTERED, DeviceState.ACTIVE})
OUT_OF_SERVICE = frozenset({DeviceState.REVOKED, DeviceState.RETIRED})
"""Permanently."""

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
"""Allowed transitions. None leads out of REVOKED or RETIRED back to service."""


class Model(Struct, frozen=True):
    """A device model: its certificates' profile and its topic policy.

    `publish` and `subscribe` are MQTT topic filters in which `{id}`, `{model}`, `{tenant}` and `{tag:KEY}` are
    replaced by the device's (`fleet.domain.topic_policy.filled`).
    """

    name: str
    certificate_lifetime: timedelta = timedelta(days=90)
    key_types: tuple[str, ...] = ("EC-P256", "EC-P384")
    publish: tuple[str, ...] = ("devices/{id}/up/#",)
    subscribe: tuple[str, ...] = ("devices/{id}/down/#",)
    retain: bool = False
    """Whether its devices may publish retained messages, which the broker keeps indefinitely."""
    rules: ModelRules = DEFAULT_RULES
    revision: int = 1
    """Revision number for optimistic concurrency control."""


def new_model(name: str, kind: ModelKind = ModelKind.DEVICE) -> Model:
    """A model of `kind` of which nothing else is said. Applications read what devices send, and write to them."""
    if kind is ModelKind.DEVICE:
        return Model(name)
    rules = replace(DEFAULT_RULES, kind=kind, admission=replace(DEFAULT_RULES.admission, paths=(AdmissionPath.TOKEN,)))
    return Model(name, publish=("devices/+/down/#",), subscribe=("devices/+/up/#",), rules=rules)


Tags = tuple[tuple[str, str], ...]
"""(key, value) of each tag, sorted by key; no key twice."""


class Device(Struct, frozen=True):
    id: DeviceId
    model: str
    state: DeviceState
    created_at: datetime
    hardware_serial: str = ""
    """The manufacturer's serial number, "" when unknown; the subject's serialNumber."""
    expires_at: datetime | None = None
    """notAfter of its newest certificate; None before the first."""
    tags: Tags = ()
    groups: tuple[str, ...] = ()
    """Sorted."""
    revision: int = 1
    """Revision number for optimistic concurrency control."""
    budget_full_at: datetime | None = None
    """When its budget of certificates is full again (`fleet.domain.certificate_budget`); None: it is."""


class StateChange(Struct, frozen=True):
    """The newest move of a device out of service: suspended, revoked or retired."""

    device_id: DeviceId
    state: DeviceState
    """Where it was moved to."""
    at: datetime
    actor: str
    """As the audit has it."""
    reason: str
    """"": none was given."""


def must_not_be_ended(device: Device) -> None:
    """Raises: Refused: `device-revoked`, `device-retired`."""
    if device.state in OUT_OF_SERVICE:
        raise Refused(f"device-{device.state}", f"Device {device.id} is {device.state}.")


def must_be_in_service(device: Device) -> None:
    """Raises: Refused: `device-suspended`, `device-revoked`, `device-retired`."""
    if device.state not in IN_SERVICE:
        raise Refused(f"device-{device.state}", f"Device {device.id} is {device.state}.")


def must_be_active(device: Device) -> None:
    """What connecting takes. Raises: Refused: `device-registered`, `device-suspended`, `device-revoked`,
    `device-retired`."""
    if device.state is not DeviceState.ACTIVE:
        raise Refused(f"device-{device.state}", f"Device {device.id} is {device.state}.")


def next_step(device: Device) -> str:
    """What to do with a device that is not active."""
    otherwise = "It is out of service permanently: register the hardware under a new id."
    return _NEXT_STEPS.get(device.state, otherwise).format(device.id)


_NEXT_STEPS = {
    DeviceState.REGISTERED: "It has no certificate yet. Enroll it: fleet token create --device {}",
    DeviceState.SUSPENDED: "fleet device resume {}",
}


class DeviceFilter(Struct, frozen=True):
    """Selects the devices that match every field given."""

    model: str | None = None
    state: DeviceState | None = None
    tags: Tags = ()
    group: str | None = None
    expires_before: datetime | None = None
    """Devices whose newest certificate ends before then; those without one are excluded."""
    kind: ModelKind | None = None
    """Of the model. Who asks the registry puts the models of that kind in its place, one filter for each."""


EVERY_DEVICE = DeviceFilter()


class Place(Struct, frozen=True):
    """Position after which the next page of devices begins."""

    id: str = ""
    expires_at: datetime | None = None
    """Set when pages are ordered by expiry."""


FIRST_PLACE = Place()


def place_of(device: Device, where: DeviceFilter) -> Place:
    """Position of `device` in the pages of `where`."""
    return Place(device.id, device.expires_at if where.expires_before is not None else None)
