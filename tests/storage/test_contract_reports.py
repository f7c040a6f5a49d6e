"""What every registry promises of devices' reports: the last one of each device."""

from datetime import timedelta

from msgspec.structs import replace

from fleet.domain.device_report import DeviceReport
from fleet.domain.ports import Registry
from tests.storage.samples import NOW

REPORT = DeviceReport("cam-1", NOW, "0a", '{"device_id": "cam-1", "note": "é"}', bytes(range(256)))


async def test_the_last_report_of_each_device_is_kept(registry: Registry) -> None:
    assert await registry.report_of("cam-1") is None
    await registry.keep_report(REPORT)
    await registry.keep_report(replace(REPORT, device_id="cam-2", text="{}"))
    assert await registry.report_of("cam-1") == REPORT
    later = replace(REPORT, received_at=NOW + timedelta(seconds=1), serial="0b")
    await registry.keep_report(later)
    await registry.keep_report(replace(REPORT, serial="0c"))  # was overtaken
    assert await registry.report_of("cam-1") == later
