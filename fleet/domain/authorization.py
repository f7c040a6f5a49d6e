"""External authorization of a first certificate: the webhook's request and its verdict."""

from datetime import datetime

from msgspec import Struct

from fleet.domain.device import Tags


class Question(Struct, frozen=True):
    """Request to authorize a first certificate, after all checks of our own have passed."""

    id: str
    """Random, new for each request."""
    device_id: str
    model: str
    path: str
    """Its admission path."""
    key_type: str
    key_sha256: bytes
    address: str
    """The device's."""
    at: datetime


class Verdict(Struct, frozen=True):
    allow: bool
    reason: str = ""
    """For the audit; not sent to the device."""
    tags: Tags = ()
    """The verdict's attributes as tags of the device, their only use."""
