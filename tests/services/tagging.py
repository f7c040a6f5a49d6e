"""A device's tags and groups, changed as a command changes them: read, then written as it was seen."""

from fleet.domain.access import Act
from fleet.domain.device import Device
from fleet.domain.ports import Registry
from fleet.domain.tags import Retag
from fleet.services.revocation import known_device
from fleet.services.tagging import label_device


async def tag_device(registry: Registry, device_id: str, retag: Retag, *, act: Act, reason: str = "") -> Device:
    device = await known_device(registry, device_id)
    return await label_device(registry, device, *retag.applied(device), act=act, reason=reason)
