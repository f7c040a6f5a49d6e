"""IDevID certificates of device manufacturers (IEEE 802.1AR): trust anchors, identities, bindings.

An IDevID is not issued by the fleet: it authorizes a first enrollment and nothing else.
"""

from collections.abc import Callable
from datetime import datetime

from msgspec import Struct

from fleet.domain.device import HARDWARE_SERIAL, DeviceId


class Anchor(Struct, frozen=True):
    """A trust anchor: a manufacturer's CA, imported for some models."""

    name: str
    models: tuple[str, ...]
    fingerprint: bytes
    """SHA-256 of `der`."""
    der: bytes
    created_at: datetime


class IdevidCertificate(Struct, frozen=True):
    """The device's identity in an IDevID certificate."""

    fingerprint: bytes
    key_sha256: bytes
    """SHA-256 of its DER SubjectPublicKeyInfo."""
    serials: tuple[str, ...]
    """Candidates for its hardware serial, likeliest first: the subject's serialNumber; hwModuleName as text, in hex."""


IdevidReader = Callable[[bytes], IdevidCertificate]
"""From a certificate's DER. Raises: Invalid (`bad-idevid`): it has no serial, or is malformed."""


class IdevidBinding(Struct, frozen=True):
    """Permanent binding of an IDevID to the device that enrolled with it."""

    key_sha256: bytes
    device_id: DeviceId
    fingerprint: bytes
    anchor: str
    bound_at: datetime


def is_serial(text: str) -> bool:
    return HARDWARE_SERIAL.fullmatch(text) is not None
