"""Tags and groups of a device, put in place of those it had by somebody who has seen them."""

from collections.abc import Iterable

from fleet.domain.access import Act
from fleet.domain.device import Device
from fleet.domain.ports import Registry
from fleet.domain.tags import checked_groups, checked_tags
from fleet.services.tagging import relabelling


async def label_device(
    registry: Registry, device: Device, tags: Iterable[tuple[str, str]], groups: Iterable[str], *, act: Act
) -> Device:
    """Give `device`, as it was seen, these tags and groups and no others.

    Raises: Invalid: `bad-tag`, `too-many-tags`, `bad-name`, `too-many-groups`. Conflict (`changed-meanwhile`).
    """
    change, after = relabelling(device, checked_tags(tags), checked_groups(groups), act=act)
    await registry.commit(change)
    return after
