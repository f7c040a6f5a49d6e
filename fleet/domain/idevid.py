"""Makers' certificates (IDevID, IEEE 802.1AR): whose CA is believed, what such a certificate says, whose it has become.

A maker's certificate is never one of ours: it opens no door, it only earns a first certificate.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from fleet.domain.device import DeviceId

# What a certificate's serialNumber may hold (X.520), and a hardware serial in the registry.
_SERIAL = re.compile(r"[A-Za-z0-9 '()+,\-./:=?]{1,64}")


@dataclass(frozen=True, slots=True)
class Anchor:
    """A maker's CA, imported for some models."""

    name: str
    models: tuple[str, ...]
    fingerprint: bytes
    """SHA-256 of `der`."""
    der: bytes
    created_at: datetime


@dataclass(frozen=True, slots=True)
class MakerCertificate:
    """What a maker's certificate says of its device."""

    fingerprint: bytes
    key_sha256: bytes
    """SHA-256 of its DER SubjectPublicKeyInfo."""
    serials: tuple[str, ...]
    """Ways in which it may name its hardware serial, the likeliest first: serialNumber of its subject; hwModuleName as
    text, and in hex.
    """


MakerReader = Callable[[bytes], MakerCertificate]
"""From the DER of a certificate. Raises: Invalid (`bad-idevid`): it names no serial, or can't be read."""


@dataclass(frozen=True, slots=True)
class IdevidBinding:
    """Which device has enrolled by which maker's certificate: for good."""

    key_sha256: bytes
    device_id: DeviceId
    fingerprint: bytes
    anchor: str
    bound_at: datetime


def is_serial(text: str) -> bool:
    return _SERIAL.fullmatch(text) is not None
