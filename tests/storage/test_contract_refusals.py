"""What every registry promises of refusals: the last one of each device that is registered."""

from datetime import timedelta

from msgspec.structs import replace

from fleet.domain.device_refusal import DeviceRefusal
from fleet.domain.ports import Registry
from fleet.domain.writes import Insert
from tests.storage.samples import NOW, change, device

REFUSAL = DeviceRefusal("cam-1", NOW, "mqtt.connect", "certificate-revoked", "192.0.2.7")


async def test_the_last_refusal_of_each_registered_device_is_kept(registry: Registry) -> None:
    await registry.commit(change(Insert(device("cam-1"))))
    assert await registry.refusal_of("cam-1") is None
    later = replace(REFUSAL, refused_at=NOW + timedelta(seconds=1), code="device-revoked")
    await registry.keep_refusals([REFUSAL, replace(REFUSAL, device_id="nobody")])
    assert await registry.refusal_of("cam-1") == REFUSAL
    assert await registry.refusal_of("nobody") is None
    await registry.keep_refusals([later])
    await registry.keep_refusals([REFUSAL])  # was overtaken
    assert await registry.refusal_of("cam-1") == later
