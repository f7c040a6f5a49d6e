"""Somebody else's word on a first certificate: what is asked of a webhook, and what it may answer."""

from dataclasses import dataclass
from datetime import datetime

from fleet.domain.device import Tags


@dataclass(frozen=True, slots=True)
class Question:
    """May this device have its first certificate? Every check of ours has said yes."""

    id: str
    """New with each question."""
    device_id: str
    model: str
    path: str
    """The admission path by which it comes in."""
    key_type: str
    key_sha256: bytes
    address: str
    """The device's."""
    at: datetime


@dataclass(frozen=True, slots=True)
class Verdict:
    allow: bool
    reason: str = ""
    """For the audit; the device is not told."""
    tags: Tags = ()
    """What becomes of its attributes: tags of the device, and nothing else."""
