"""When and why a device was last refused: at EST or at MQTT, one row for each device."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from msgspec import Struct


class DeviceRefusal(Struct, frozen=True):
    """A refusal of a device that has proven who it is: by its certificate, or by a right of its own to enroll."""

    device_id: str
    refused_at: datetime
    action: str
    """As in the audit: `mqtt.connect`, `enroll`, ..."""
    code: str
    address: str
    """IP address of the device."""


class RefusalStore(Protocol):
    """The last refusal of each device."""

    async def keep_refusals(self, refusals: Sequence[DeviceRefusal]) -> None:
        """Each in place of its device's last one, unless that was later. Of devices that are not registered, none is
        kept. Raises: Unavailable."""

    async def refusal_of(self, device_id: str) -> DeviceRefusal | None:
        """None: it has not been refused."""
