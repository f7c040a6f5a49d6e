"""What a device's agent reports of itself: its last report, signed with the key of its certificate."""

from datetime import datetime
from typing import Protocol

from msgspec import Struct


class DeviceReport(Struct, frozen=True):
    """A report that a device sent with its certificate, and whose signature was verified by that."""

    device_id: str
    received_at: datetime
    serial: str
    """Of the certificate, lower-case hex."""
    text: str
    """JSON, as it was signed (`fleet.wire.device_report`)."""
    signature: bytes


class ReportStore(Protocol):
    """The last report of each device."""

    async def keep_report(self, report: DeviceReport) -> None:
        """In place of the device's last one, unless that was received later. Raises: Unavailable."""

    async def report_of(self, device_id: str) -> DeviceReport | None:
        """None: it has sent none."""
